"""The top of the page: what was run, and what became of the trait in each run and arm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from iterative_ft.records.read import Run
from iterative_ft.report.arms import Arm, change
from iterative_ft.report.charts import Forest
from iterative_ft.report.tables import Table, commit, run_table, settings_table
from iterative_ft.stats.intervals import Interval

MEANINGS = {
    "amplified": "The trait grew over the cycles.",
    "decayed": "The trait faded over the cycles.",
    "idempotent": "The trait stayed where cycle 0 left it, within the margin.",
    "inconclusive": "The run cannot tell growth from no change.",
}


@dataclass(frozen=True)
class Head:
    """What was run."""

    title: str
    about: str
    """The persona, where there is one."""
    facts: dict[str, str]
    unfinished: list[str]
    command: str
    """Of the only run."""
    runs: Table | None
    """Of several."""
    settings: Table


@dataclass(frozen=True)
class Detector:
    """One of the paper's detectors; they ignore uncertainty."""

    name: str
    text: str
    fired: bool


@dataclass(frozen=True)
class VerdictRow:
    """A run's or an arm's line in the table of verdicts."""

    label: str
    seeds: str
    """Which seeds an arm's verdict rests on; empty for a run."""
    member: bool
    """Whether it is one run of the arm above."""
    word: str
    about: str
    forest: Forest | None
    changes: list[str]
    """Of the trait, of coherence, and the trend."""
    detectors: list[Detector]


@dataclass(frozen=True)
class Verdicts:
    """Verdicts in words, and the table behind them."""

    word: str
    """Of the only run."""
    counts: str
    """Of several."""
    text: str
    rows: list[VerdictRow]
    note: str


def title(runs: list[Run]) -> str:
    """What was run, in a line."""
    if len(runs) == 1:
        run, config = runs[0], runs[0].config
        return f"{config['persona']['name']} · {config['method']['name']} · reinit={run.reinit} · seed {config['seed']}"
    return f"{distinct(run.config['persona']['name'] for run in runs)}: {len(runs)} runs"


def distinct(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


def head(runs: list[Run], names: list[str]) -> Head:
    """Title and facts; where runs differ, a table of how."""
    configs = [run.config for run in runs]
    seeds = sorted({config["seed"] for config in configs})
    starts = {"true": "base (reinit=true)", "false": "the last policy (reinit=false)"}
    facts = {
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
    one_persona = len({config["persona"]["name"] for config in configs}) == 1
    return Head(
        title=title(runs),
        about=configs[0]["persona"]["description"] if one_persona else "",
        facts=facts,
        unfinished=[unfinished(run, name) for run, name in zip(runs, names, strict=True) if run.result is None],
        command=runs[0].command if len(runs) == 1 else "",
        runs=run_table(runs) if len(runs) > 1 else None,
        settings=settings_table(runs),
    )


def unfinished(run: Run, name: str) -> str:
    """How far a run without result.json got."""
    n = run.config["n_cycles"]
    done = f"measured up to cycle {run.cycles[-1]['cycle']} of {n}" if run.cycles else "no cycle measured yet"
    return f"Unfinished: {name}: {done}; there is no verdict yet. The same command goes on where it stopped."


def verdicts(runs: list[Run], names: list[str], arms: list[Arm]) -> Verdicts:
    """The verdict in words for one run, else how many there are of each; and the table."""
    moved = [interval for run in runs if (interval := change(run.verdict)) is not None]
    furthest = max((abs(end) for interval in moved for end in (interval.low, interval.high)), default=0.0)
    extent = max(20.0, math.ceil(furthest / 10 + 0.2) * 10)
    label_of = {id(run): name for run, name in zip(runs, names, strict=True)}
    rows = []
    for arm in arms:
        several = len(arm.runs) > 1
        if several:
            rows.append(verdict_row(arm.label, arm.verdict, extent, seeds=seeds_text(arm)))
        rows += [verdict_row(label_of[id(run)], run.verdict, extent, member=several) for run in arm.runs]
    known = next((run.verdict for run in runs if run.verdict is not None), None)
    note = "" if known is None else reading(known)
    if len(runs) == 1:
        return Verdicts("" if known is None else known["verdict"], "", outcome(known), rows, note)
    judged, what = (arms, "arms") if len(arms) < len(runs) else (runs, "runs")
    words = Counter(of.verdict["verdict"] if of.verdict else "unfinished" for of in judged)
    if any(len(arm.runs) > 1 for arm in arms):
        text = "Arms with several training seeds are judged over seeds; the seed is the unit."
    else:
        text = "Each verdict speaks of its run only: general claims need three training seeds or more."
    counts = ", ".join(f"{count} {word}" for word, count in words.most_common())
    return Verdicts("", f"{len(judged)} {what}: {counts}.", text, rows, note)


def seeds_text(arm: Arm) -> str:
    """The seeds that a verdict rests on, and those that are still missing."""
    done = [str(run.config["seed"]) for run in arm.runs if run.verdict is not None]
    missing = [str(run.config["seed"]) for run in arm.runs if run.verdict is None]
    return f"over seeds {', '.join(done) or 'none'}" + (f"; unfinished: {', '.join(missing)}" if missing else "")


def outcome(verdict: dict[str, Any] | None) -> str:
    """One run's verdict in a sentence or two."""
    if verdict is None:
        return "No verdict yet: the run is unfinished."
    moved = change(verdict)
    by = "" if moved is None else f" It changed by {change_text(moved)} points."
    return f"{MEANINGS[verdict['verdict']]}{by} This speaks of {verdict['speaks_of']}."


def reading(verdict: dict[str, Any]) -> str:
    """How to read the table."""
    found = verdict.get("detectors") or {}
    thresholds = ", ".join(f"{name.replace('_', ' ')} {values['threshold']:g}" for name, values in found.items())
    paper = f" Detectors are the paper's, they ignore uncertainty; they fire at: {thresholds}." if thresholds else ""
    return f"Whiskers are 95 % intervals, the shaded zone is the margin of ±{verdict['margin']:g} points.{paper}"


def verdict_row(label: str, verdict: dict[str, Any] | None, extent: float, seeds: str = "", member: bool = False) -> VerdictRow:
    if verdict is None:
        return VerdictRow(label, seeds, member, "unfinished", "", None, [], [])
    moved = change(verdict)
    return VerdictRow(
        label=label,
        seeds=seeds,
        member=member,
        word=verdict["verdict"],
        about="; ".join(filter(None, [f"speaks of {verdict['speaks_of']}", verdict.get("reason")])),
        forest=None if moved is None else Forest(moved, verdict["margin"], extent),
        changes=[change_text(change(verdict, name)) for name in ("trait_change", "coherence_change", "trend")],
        detectors=[detector(name, found) for name, found in (verdict.get("detectors") or {}).items()],
    )


def detector(name: str, found: dict[str, Any]) -> Detector:
    fired = "fired" if found["fired"] else "silent"
    text = "too few cycles" if found["value"] is None else f"{found['value']:+.1f}, {fired}"
    return Detector(name.replace("_", " "), text, found["fired"])


def change_text(interval: Interval | None) -> str:
    return "n/a" if interval is None else f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
