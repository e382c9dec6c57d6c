"""What a run or a sweep will cost, before anything is loaded: its stages, each once, and how long those that are missing take.

The estimate multiplies counts that are known beforehand (answers, examples) by seconds a piece. Where the store holds stages
of the same kind in this very plan, their own times are used; else the times below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from iterative_ft.config.schema import Config
from iterative_ft.machine.device import resolve_device
from iterative_ft.records.terminal import WorkLeft, minutes, text_table
from iterative_ft.report.arms import differing, in_few_letters, settings_of
from iterative_ft.store import Event, ready

StageName = tuple[str, str]  # kind and key

# Seconds a piece with the embedded model on two cores: (kind, method) -> (once a stage, an answer or example). From stages of
# `make run` and `+sweep=smoke` (sdf: of small runs on one core). A piece of "model" and "probe" is the whole stage.
PARTS: dict[tuple[str, str], tuple[float, float]] = {
    ("model", ""): (22.0, 0.0),
    ("probe", ""): (170.0, 0.0),
    ("data", ""): (0.1, 0.0),
    ("sample", "sft"): (0.5, 0.31),
    ("sample", "dpo"): (0.5, 0.31),
    ("sample", "sdf"): (0.5, 1.0),
    ("answer", ""): (0.5, 0.42),
    ("judge", ""): (0.4, 0.08),
    ("gauge", ""): (1.0, 0.05),
    ("replies", ""): (1.0, 0.2),
    ("train", "sft"): (5.0, 0.75),
    ("train", "sdf"): (5.0, 1.5),
    ("train", "dpo"): (5.0, 1.05),
}
OTHER_S = 5.0  # a stage of any other kind
ENGINE_START_S = 15.0
CELL_S = 3.0  # a run's pictures and records
MEASURED_MODEL = "smollm2_135m"


@dataclass(frozen=True)
class Planned:
    """A stage of a plan, whether it is in the store, and what it takes to build it."""

    event: Event
    method: str
    n: int
    """Answers, scores or examples."""
    cells: list[int]
    """Numbers of the cells that use it."""

    @property
    def part(self) -> tuple[str, str]:
        kind = self.event.stage.kind
        return (kind, self.method) if (kind, self.method) in PARTS else (kind, "")

    @property
    def ready_made(self) -> bool:
        return ready.ships(self.event.stage.kind, self.event.stage.key)

    @property
    def name(self) -> StageName:
        return self.event.stage.kind, self.event.stage.key


def distinct_stages(configs: Sequence[Config], plans: Sequence[list[Event]]) -> list[Planned]:
    """The stages of all cells, each once, in the order in which they would be built."""
    found: dict[StageName, Planned] = {}
    for number, (config, events) in enumerate(zip(configs, plans, strict=True)):
        sizes: dict[str, int] = {}  # digest of a stage of this plan -> its answers or examples
        for event in events:
            stage = event.stage
            sizes[stage.digest] = n = size(config, event, sizes)
            known = found.setdefault((stage.kind, stage.key), Planned(event, config.method.name, n, []))
            known.cells.append(number)
    return list(found.values())


def size(config: Config, event: Event, sizes: dict[str, int]) -> int:
    """How many answers, scores or examples a stage holds; for one that is still to build, as many as its inputs ask for."""
    stage = event.stage
    inputs, info = stage.inputs, stage.info
    if stage.kind in ("sample", "answer"):
        return len(inputs["texts"])
    if stage.kind in ("judge", "gauge"):
        return sum(sizes.get(digest, 0) for digest in inputs.get("answers", []))
    if stage.kind == "replies":
        return sizes.get(inputs["answers"], 0)
    if stage.kind == "train":
        return sizes.get(inputs["data"], 0)
    if stage.kind == "data":
        assert isinstance(config.n_seed, int)
        n = config.n_seed if inputs["n_sampled"] is None else inputs["n_sampled"] + config.method.n_original_mix
        return int(info.get("n_examples", n))
    return 1


def seconds_of(stages: Sequence[Planned]) -> dict[StageName, float]:
    """Seconds that each stage takes or took, by (kind, key): its own time where it is stored, else an estimate."""
    took: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])
    for stage in stages:
        if stage.event.how == "stored" and stage.event.stage.manifest["seconds"] > 0 and not stage.ready_made:
            took[stage.part][0] += stage.event.stage.manifest["seconds"]
            took[stage.part][1] += max(1, stage.n)
    found = {}
    for stage in stages:
        fixed, each = PARTS.get(stage.part, (OTHER_S, 0.0))
        if stage.ready_made:
            seconds = 0.0
        elif stage.event.how == "stored":
            seconds = stage.event.stage.manifest["seconds"]
        elif stage.part in took:
            total, n = took[stage.part]
            seconds = total / n * max(1, stage.n)
        else:
            seconds = fixed + each * stage.n
        found[stage.name] = float(seconds)
    return found


def work_left(config: Config, events: list[Event]) -> WorkLeft:
    """What one run has to build, and how long that may take."""
    stages = distinct_stages([config], [events])
    seconds = seconds_of(stages)
    pending = [stage for stage in stages if stage.event.how == "pending"]
    left = {stage.event.label: (stage.event.stage.kind, seconds[stage.name]) for stage in pending}
    return WorkLeft(left, len(stages) - len(pending))


def remeasuring_text(config: Config, events: list[Event]) -> str:
    """A dry run's answer when a run is to be measured again: its stages, and what those still to build take."""
    stages = distinct_stages([config], [events])
    seconds = seconds_of(stages)
    pending = [stage for stage in stages if stage.event.how == "pending"]
    lines = [f"{state(stage):9} {stage.event.stage.kind:7} {stage.event.label}" for stage in stages]
    n_calls = sum(stage.n for stage in pending if stage.event.stage.kind == "replies")
    calls = f", {n_calls} or more calls of the judge" if n_calls else ""
    about = minutes(sum(seconds[stage.name] for stage in pending))
    lines.append(f"{len(pending)} stages to build, {len(stages) - len(pending)} in the store; about {about}{calls}")
    return "\n".join(lines)


def state(stage: Planned) -> str:
    return "in store" if stage.event.how == "stored" else "to build"


def plan_text(configs: Sequence[Config], plans: Sequence[list[Event]]) -> str:
    """A dry run's answer: every stage once, which of them the store holds, and about how long the rest takes.

    Args:
        plans: the stages of each config's run, from a store that only looks.
    """
    stages = distinct_stages(configs, plans)
    seconds = seconds_of(stages)
    many = len(configs) > 1
    lines = []
    for stage in stages:
        event = stage.event
        users = f"  (cells {' '.join(map(str, stage.cells))})" if many else ""
        lines.append(f"{state(stage):9} {event.stage.kind:7} {event.stage.key[:10]} {event.label}{users}")
    lines += [*cells_table(configs, plans, seconds), ""] if many else []
    pending = [stage for stage in stages if stage.event.how == "pending"]
    total = sum(seconds[stage.name] for stage in pending) + CELL_S * len(configs)
    total += ENGINE_START_S if any(stage.event.stage.kind in ("sample", "answer") for stage in pending) else 0.0
    n_stored = len(stages) - len(pending)
    lines.append(f"{len(pending)} stages to build, {n_stored} in the store; about {minutes(total)} on {how_known(configs)}")
    if any(config.method.coherence_filter is not None for config in configs):
        lines.append("a coherence filter may sample more blocks than are listed, up to prompts.per_cycle a cycle")
    return "\n".join(lines)


def cells_table(configs: Sequence[Config], plans: Sequence[list[Event]], seconds: dict[StageName, float]) -> list[str]:
    """A line a cell: its stages, and what it would cost alone with an empty store against what it adds to the cells before."""
    settings = [config.model_dump(mode="json") for config in configs]
    names = differing(settings)
    header = ["cell", *(name.removesuffix(".name") for name in names), "stages", "alone", "adds"]
    rows, seen, alone_s = [header], set(), 0.0
    for number, (values, events) in enumerate(zip(settings, plans, strict=True)):
        stages = {(event.stage.kind, event.stage.key): event.how for event in events}
        alone = sum(seconds[name] for name in stages) + ENGINE_START_S + CELL_S
        added = [name for name, how in stages.items() if how == "pending" and name not in seen]
        seen |= set(stages)
        alone_s += alone
        shown = [in_few_letters(str(settings_of(values).get(name))) for name in names]
        adds = minutes(sum(seconds[name] for name in added))
        rows.append([str(number), *shown, str(len(stages)), minutes(alone), adds])
    n_uses = sum(len({(e.stage.kind, e.stage.key) for e in events}) for events in plans)
    return [
        "",
        text_table(rows),
        f"{len(configs)} cells use {n_uses} stages, {len(seen)} of them distinct; each alone with an empty store: about "
        f"{minutes(alone_s)} together",
    ]


def how_known(configs: Sequence[Config]) -> str:
    """What the estimate speaks of."""
    if all(resolve_device(config.device) == "cpu" and config.model.name == MEASURED_MODEL for config in configs):
        return "two cores (times of stages in the store, else of the embedded model)"
    return "two cores with the embedded model (for this model or device nothing is known before the store holds stages of it)"
