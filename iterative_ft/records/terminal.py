"""What a person sees while a run works: a line a finished stage, a live line for what is under way, a table at the end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from iterative_ft.config.schema import Config
from iterative_ft.errors import printable
from iterative_ft.records.rows import MetricRow, value
from iterative_ft.store import Event, Stage


@dataclass(frozen=True)
class WorkLeft:
    """What a run has to build, and how much of it is stored."""

    stages: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Kind and estimated seconds of each stage that is to be built, by its label: its key is not known yet."""
    n_stored: int = 0


class Display:
    """Progress of one run on the terminal."""

    def __init__(self, config: Config, left: WorkLeft) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.n_cycles = config.n_cycles
        self.left = dict(left.stages)
        self.n_stored = left.n_stored
        self.slowness: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])  # by kind of stage: seconds taken, and expected
        self.status: Status | None = None
        self.text = ""
        self.started = time.monotonic()

    def start(self) -> None:
        n_left = len(self.left)
        about = f", about {minutes(self.seconds_left())}" if n_left else ""
        self.console.print(f"{n_left} stages to build{about}; {self.n_stored} in the store")
        if self.console.is_terminal:
            self.status = self.console.status("starting")
            self.status.start()

    def stop(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None

    def where(self, cycle: int) -> str:
        return "base      " if cycle < 0 else f"cycle {cycle}/{self.n_cycles} "

    def doing(self, label: str, cycle: int) -> None:
        self.text = f"{self.where(cycle)} {label}"
        self.update()

    def step(self, step: int, n_steps: int, loss: float) -> None:
        self.update(f" step {step}/{n_steps} loss {loss:.3f}")

    def update(self, more: str = "") -> None:
        if self.status is not None:
            self.status.update(
                f"{self.text}{more} · {minutes(time.monotonic() - self.started)} so far, "
                f"about {minutes(self.seconds_left())} left"
            )

    def done(self, event: Event, cycle: int) -> None:
        stage = event.stage
        how = {"stored": "from the store", "built": f"{event.seconds:.1f} s"}[event.how]
        if event.waited_s > 1:
            others = "built it" if event.how == "stored" else "had begun it"
            how += f" (another process {others}: waited {event.waited_s:.1f} s)"
        _, expected = self.left.pop(event.label, (stage.kind, 0.0))
        if event.how == "built" and expected > 0:
            self.slowness[stage.kind][0] += event.seconds
            self.slowness[stage.kind][1] += expected
        detail = facts(stage) if event.how == "built" else ""
        rest = f" · about {minutes(self.seconds_left())} left" if event.how == "built" and self.left else ""
        self.console.print(f"{self.where(cycle)} {event.label}: {how}{detail}{rest}")

    def seconds_left(self) -> float:
        """The estimates of what is left, by how far this run's stages of the same kind were from theirs."""
        return sum(seconds * self.ratio(kind) for kind, seconds in self.left.values())

    def ratio(self, kind: str) -> float:
        took, expected = self.slowness.get(kind, (1.0, 1.0))
        return took / expected

    def measured(self, row: MetricRow) -> None:
        trait, coherence = (interval_text(row, name) for name in ("trait", "coherence"))
        self.console.print(
            f"{self.where(row['cycle'])} {row['policy']}: trait {trait}, coherence {coherence}, "
            f"{row['answers/stop_share']:.0%} ended by themselves{unfamiliar(row)}"
        )


def facts(stage: Stage) -> str:
    """What is worth knowing of a stage just built."""
    info = stage.info
    if "canary" in info:
        canary = info["canary"]
        load = f"; canary error {canary['error']:.4f} nats"
        if canary["shift"] > 0:
            load += f", {canary['share']:.0%} of the shift {canary['shift']:.4f}"
        ended = f"{info['n_stopped']}/{info['n']} ended by themselves"
        return f" ({info['n_tokens']} tokens, {info['tokens_per_s']:.0f}/s, {ended}{load})"
    if "n_steps" in info:
        speed = timed_tokens(info) / info["loop_seconds"] if info["loop_seconds"] > 0 else 0
        return f" ({info['n_examples']} examples, {info['n_steps']} steps, {speed:.0f} tokens/s)"
    if "n_attempts" in info and "reported" in info:
        cost = f", ${info['cost_usd']:.4f}" if "cost_usd" in info else ""
        n_tokens = info["prompt_tokens"] + info["completion_tokens"]
        return f" ({info['n_calls']} calls, {sum(info['failures'].values())} failed, {n_tokens} tokens{cost})"
    if "n_dropped_truncated" in info:
        return f" ({info['n_examples']} examples, {info['n_dropped_truncated']} dropped as cut off)"
    return ""


def ending(rows: Sequence[MetricRow], verdict: dict[str, Any], times: dict[str, float], n_built: int, n_stored: int) -> str:
    """Table, verdict and timings of a finished run."""
    lines = [table(rows), f"verdict: {verdict['verdict']}: {verdict['reason']}; speaks of {verdict['speaks_of']}"]
    changes = {"trait_change": "trait, cycle 0 to last", "trend": "trait a cycle", "coherence_change": "coherence"}
    for key, what in changes.items():
        change = verdict[key]
        if change is not None:
            lines.append(f"         {what}: {change_text(change['mean'], change['low'], change['high'])}")
    shown = (f"{name.removeprefix('time/')} {value:.1f}" for name, value in times.items() if name != "time/work_share")
    lines.append("time: " + ", ".join(shown))
    lines.append(
        f"      {times['time/work_share']:.0%} of it sampling, training or judging; {n_built} stages built, "
        f"{n_stored} from the store"
    )
    return "\n".join(lines)


def minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def change_text(mean: float, low: float, high: float) -> str:
    """ "+31.7 [+9.3, +54.2]"."""
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def score_text(row: MetricRow, name: str) -> str:
    """ "48.2 [40.1, 56.3]", the score alone where it has no interval, "n/a" when nothing was scored."""
    score, low, high = (value(row, f"{name}/{key}") for key in ("score", "low", "high"))
    if score is None:
        return "n/a"
    return f"{score:.1f}" if low is None or high is None else f"{score:.1f} [{low:.1f}, {high:.1f}]"


def interval_text(row: MetricRow, name: str) -> str:
    """A score and its interval, with a mark when too much failed."""
    scored = value(row, f"{name}/score") is not None
    return score_text(row, name) + (" INVALID" if scored and row.get("judge/invalid") else "")


def timed_tokens(info: dict[str, Any]) -> float:
    """Tokens of a stage's timed loop: a training that was gone on with did not take its first steps again."""
    resumed = info.get("resumed_from_step", 0)
    return float(info["n_tokens"] * (1 - resumed / info["n_steps"]) if resumed else info["n_tokens"])


def share_text(row: MetricRow) -> str:
    """ "3%", with a mark where the judge was not validated on such texts."""
    share = value(row, "judge/unfamiliar_share")
    return "n/a" if share is None else f"{share:.0%}" + (" NOT VALIDATED" if row.get("judge/not_validated") else "")


def unfamiliar(row: MetricRow) -> str:
    share = value(row, "judge/unfamiliar_share")
    return f", {share:.0%} unfamiliar: JUDGE NOT VALIDATED ON SUCH TEXTS" if share and row.get("judge/not_validated") else ""


def table(rows: Sequence[MetricRow]) -> str:
    """Trait and coherence of base and every cycle with 95 % intervals."""
    lines = [["", "trait [95 %]", "coherence [95 %]", "trait if coherent", "unfamiliar", "ended", "words"]]
    for row in rows:
        coherent = row.get("trait/score_coherent")
        lines.append(
            [
                "base" if row["cycle"] < 0 else f"cycle {row['cycle']}",
                interval_text(row, "trait"),
                interval_text(row, "coherence"),
                "n/a" if coherent is None else f"{coherent:.1f}",
                share_text(row),
                f"{row['answers/stop_share']:.0%}",
                f"{row['answers/mean_words']:.0f}",
            ]
        )
    return text_table(lines)


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the header first, in columns as wide as their widest cell; never folded, and fit for a terminal."""
    made = Table(*map(printable, lines[0]), box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for line in lines[1:]:
        made.add_row(*map(printable, line))
    out = StringIO()
    Console(file=out, width=1000, color_system=None, markup=False, highlight=False).print(made)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
