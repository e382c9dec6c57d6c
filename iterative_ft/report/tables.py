"""Tables of the page, as rows of text: the runs, their settings, scores, losses and gauges.

`templates/parts.html` lays them out.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from iterative_ft.records.read import Run
from iterative_ft.records.rows import OF_PERSONA, value
from iterative_ft.records.terminal import score_text
from iterative_ft.report.arms import Arm, differing, flat
from iterative_ft.report.axes import number_text
from iterative_ft.report.series import SCORES, by_cycle, cycle_name, doubts

GAUGES = {
    "trait/score_coherent": "trait, coherent answers only",
    "coherence/share": "coherent answers, share",
    "answers/mean_words": "words an answer",
    "answers/mean_tokens": "tokens an answer",
    "answers/stop_share": "ended by themselves, share",
    "gauge/persona_projection": "persona projection, own answers (plain 0, strong 1)",
    "gauge/persona_projection_prompt": "persona projection, end of the question (base 0)",
    "gauge/perplexity_plain": "perplexity of plain text",
    "gauge/entropy": "entropy of the next token, nats",
    "answers/self_bleu": "self-BLEU within a question",
    "answers/lost_words_share": "base's words no longer used, share",
    "answers/self_similarity": "similarity of answers to different questions",
    "judge/n_failed": "judge failures",
    "judge/unfamiliar_share": "answers unlike those that the judge was validated on, share",
    "gauge/canary_error": "canary: engine against trainer, nats",
    "gauge/canary_shift": "canary: shift from base, nats",
    "gauge/canary_share": "canary: error, share of the shift",
    "gauge/canary_kept": "canary: share of the shift that is served",
    "gauge/canary_noise": "canary: noise floor, nats",
    "gauge/adapter_norm": "norm of the adapter",
}


@dataclass(frozen=True)
class Table:
    """A head and rows of text."""

    head: list[str]
    rows: list[list[str]]


def commit(run: Run) -> str:
    known = run.code.get("commit")
    return "unknown" if known is None else known[:10] + (" with local changes" if run.code.get("changed") else "")


def run_table(runs: list[Run]) -> Table:
    """What tells the runs apart, and how each was started."""
    names = [name for name in differing([run.config for run in runs]) if len(name) < 40]
    rows = []
    for run in runs:
        settings = {**flat(run.config), "reinit": run.reinit}
        rows.append([*(str(settings.get(name, "")) for name in names), commit(run), run.command or str(run.folder)])
    return Table([*names, "code", "command"], rows)


def settings_table(runs: list[Run]) -> Table:
    """The settings that all runs share."""
    first, *others = (flat(run.config) for run in runs)
    shared = {name: found for name, found in first.items() if all(other.get(name) == found for other in others)}
    rows = [[name, found if isinstance(found, str) else json.dumps(found)] for name, found in shared.items()]
    return Table(["setting", "value"], rows)


def score_table(arms: list[Arm]) -> Table:
    """Scores of every arm and cycle."""
    rows = []
    for arm in arms:
        for row in arm.rows:
            policy = cycle_name(row["cycle"]) + doubts(row)
            share = value(row, "judge/unfamiliar_share")
            shown = "n/a" if share is None else f"{share:.0%}"
            rows.append([arm.label, policy, *(score_text(row, name) for name in SCORES), shown, str(row["n_runs"])])
    return Table(["", "policy", "trait [95 %]", "coherence [95 %]", "unfamiliar", "runs"], rows)


def loss_table(runs: Sequence[tuple[str, Run]]) -> Table:
    """Training loss of every run and cycle."""
    rows = []
    for name, run in runs:
        for cycle, steps in by_cycle(run):
            losses = [loss for row in steps if (loss := value(row, "train/loss")) is not None]
            if losses:
                numbers = (statistics.fmean(losses), losses[0], losses[-1])
                rows.append([name, cycle_name(cycle), str(len(losses)), *map(number_text, numbers)])
    return Table(["run", "policy", "steps", "mean loss", "first", "last"], rows)


def gauge_name(name: str) -> str:
    """A gauge in words, from the list or from its own name."""
    if name.startswith(OF_PERSONA):
        return f"trait of {name.removeprefix(OF_PERSONA)}"
    return GAUGES.get(name) or name.removeprefix("gauge/").replace("/", ": ").replace("_", " ").removesuffix(" score")


def gauge_table(arms: list[Arm], names: list[str]) -> Table:
    """A row for each gauge and arm, a column for each cycle."""
    by_arm = [(arm.label, arm.rows) for arm in arms]
    cycles = sorted({row["cycle"] for _, rows in by_arm for row in rows})
    several = len(arms) > 1
    table = []
    for name in names:
        for label, rows in by_arm:
            found = {row["cycle"]: number_text(y) for row in rows if (y := value(row, name)) is not None}
            table.append([gauge_name(name), *([label] if several else []), *(found.get(cycle, "") for cycle in cycles)])
    return Table(["gauge", *([""] if several else []), *map(cycle_name, cycles)], table)
