"""The top of the page: what was run, and what became of the trait in each run and arm.

Facts and verdict rows are made here; their words are in `templates/report.html` and `templates/parts.html`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from iterative_ft.records.read import Run
from iterative_ft.report.arms import Arm, change
from iterative_ft.report.charts import Forest
from iterative_ft.report.tables import commit


@dataclass(frozen=True)
class VerdictRow:
    """A run's or an arm's line in the table of verdicts."""

    label: str
    verdict: dict[str, Any] | None
    """As in result.json; None while unfinished."""
    forest: Forest | None
    seeds: str = ""
    """Which seeds an arm's verdict rests on; empty for a run."""
    member: bool = False
    """Whether it is one run of the arm above."""


def title(runs: list[Run]) -> str:
    """What was run, in a line."""
    if len(runs) == 1:
        run, config = runs[0], runs[0].config
        return f"{config['persona']['name']} · {config['method']['name']} · reinit={run.reinit} · seed {config['seed']}"
    return f"{distinct(run.config['persona']['name'] for run in runs)}: {len(runs)} runs"


def distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def facts(runs: list[Run]) -> dict[str, str]:
    """What a reader asks first; where runs differ, all values."""
    configs = [run.config for run in runs]
    seeds = sorted({config["seed"] for config in configs})
    starts = {"true": "base (reinit=true)", "false": "the last policy (reinit=false)"}
    return {
        "persona": distinct(c["persona"]["name"] for c in configs),
        "method": distinct(c["method"]["name"].upper() for c in configs),
        "each cycle starts from": distinct(starts[run.reinit] for run in runs),
        "model": distinct(c["model"]["name"] for c in configs),
        "seed examples, n_seed": distinct(c["n_seed"] for c in configs),
        "sampled a cycle, n_sampled": distinct(c["n_sampled"] for c in configs),
        "cycles after cycle 0": distinct(c["n_cycles"] for c in configs),
        "training seeds" if len(seeds) > 1 else "training seed": distinct(seeds),
        "judge": distinct(c["judge"]["name"] for c in configs),
        "sampler": distinct(c["sampler"]["name"] for c in configs),
        "questions × answers": distinct(f"{c['measure']['n_questions']} × {c['measure']['n_answers']}" for c in configs),
        "code": distinct(map(commit, runs)),
    }


def counts(runs: list[Run], arms: list[Arm]) -> str:
    """How many verdicts there are of each word: of arms, unless every run is one."""
    judged, what = (arms, "arm") if len(arms) < len(runs) else (runs, "run")
    words = Counter(of.verdict["verdict"] if of.verdict is not None else "unfinished" for of in judged)
    what += "s" if len(judged) > 1 else ""
    return f"{len(judged)} {what}: {', '.join(f'{n} {word}' for word, n in words.most_common())}."


def verdict_rows(runs: list[Run], names: list[str], arms: list[Arm]) -> list[VerdictRow]:
    """A row for each arm of several runs, and for each of its runs below."""
    moved = [interval for run in runs if (interval := change(run.verdict)) is not None]
    furthest = max((abs(end) for interval in moved for end in (interval.low, interval.high)), default=0.0)
    extent = max(20.0, math.ceil(furthest / 10 + 0.2) * 10)

    def forest(verdict: dict[str, Any] | None) -> Forest | None:
        moved = change(verdict)
        return None if verdict is None or moved is None else Forest(moved, verdict["margin"], extent)

    name_of = {id(run): name for run, name in zip(runs, names, strict=True)}
    rows = []
    for arm in arms:
        several = len(arm.runs) > 1
        if several:
            rows.append(VerdictRow(arm.label, verdict := arm.verdict, forest(verdict), seeds_text(arm)))
        rows += [VerdictRow(name_of[id(run)], run.verdict, forest(run.verdict), member=several) for run in arm.runs]
    return rows


def seeds_text(arm: Arm) -> str:
    """The seeds that a verdict rests on, and those that are still missing."""
    done = [str(run.config["seed"]) for run in arm.runs if run.verdict is not None]
    missing = [str(run.config["seed"]) for run in arm.runs if run.verdict is None]
    return f"over seeds {', '.join(done) or 'none'}" + (f"; unfinished: {', '.join(missing)}" if missing else "")
