"""What the files of a run folder must hold for anything to be read of them. What is more than that is left alone.

A folder may come from another version of this code, another machine, or a disk that lost half of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from iterative_ft.config.section import name_of_files
from iterative_ft.machine.files import DamagedFile

OF_WORK = ("answers/", "gauge/", "data/", "train/", "time/")
NUMBERS = ("trait/", "coherence/", "judge/n_", "judge/failed_", "judge/marked_", *OF_WORK)
SCORES = tuple(f"{name}/{end}" for name in ("trait", "coherence") for end in ("score", "low", "high"))
LARGEST = 1e15  # of any number in a row: what is beyond is no measurement
MOST_CYCLES = 100_000

Score = Annotated[float, Field(ge=-0.001, le=100.001)]
Cycle = Annotated[int, Field(ge=-1, le=MOST_CYCLES)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Number = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


class Saved(BaseModel):
    """A part of a file; keys that it does not name may hold anything."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Named(Saved):
    name: Annotated[str, AfterValidator(name_of_files)]
    """Folders and files are named after it."""


class SavedPersona(Named):
    description: str


class SavedReinit(Saved):
    init: str


class SavedMeasure(Saved):
    n_questions: Count
    n_answers: Count
    max_failure_share: Number


class SavedConfig(Saved):
    """config.json."""

    model: Named
    method: Named
    persona: SavedPersona
    reinit: SavedReinit
    sampler: Named
    judge: Named
    measure: SavedMeasure
    n_seed: Count
    n_sampled: Count
    n_cycles: Annotated[int, Field(ge=0, le=MOST_CYCLES)]
    seed: Annotated[int, Field(ge=0)]
    calibrate: dict[str, Any] | None = None


class SavedAnswer(Saved):
    """A row of answers.jsonl."""

    cycle: Cycle
    policy: str
    question: str
    answer: str
    finish_reason: str
    trait: Score | None
    coherence: Score | None
    flaw: str | None
    failure: str | None
    mark: str | None = None
    judge: str | None = None
    distance: Number | None = None
    traits: dict[str, Score] = {}


class SavedInterval(Saved):
    mean: Number
    low: Number
    high: Number
    n: Count


class SavedDetector(Saved):
    value: Number | None
    threshold: Number
    fired: bool


class SavedVerdict(Saved):
    verdict: Literal["amplified", "decayed", "idempotent", "inconclusive"]
    reason: str
    speaks_of: str
    margin: Number
    n_seeds: Count
    trait_change: SavedInterval | None
    coherence_change: SavedInterval | None
    trend: SavedInterval | None
    detectors: dict[str, SavedDetector] = {}


class SavedResult(Saved):
    """result.json."""

    verdict: SavedVerdict
    rows: list[dict[str, Any]]
    time: dict[str, Number]


class SavedStage(Saved):
    """A stage in manifest.json; its kind and key are names of folders."""

    cycle: Cycle
    kind: Annotated[str, Field(pattern=r"^[a-z_]{1,40}$")]
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    how: str


class SavedMade(Saved):
    """What a run was made with (stats/replicates.py)."""

    model: str | None = None
    judges: list[str] = []
    kinds: dict[str, int] | None = None
    device: str | None = None
    data: str | None = None


class SavedManifest(Saved):
    """manifest.json."""

    stages: list[SavedStage]
    made: SavedMade | None = None


class SavedCode(Saved):
    """code.json."""

    commit: str | None = None
    changed: bool | None = None


def hold(shape: type[Saved], value: Any, file: Path, line: int | None = None) -> None:
    """Raise `DamagedFile` unless `value`, read from `file`, is of this shape."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "it"
        at = str(file) if line is None else f"{file}:{line}"
        raise DamagedFile(f"{at}: {place} is damaged ({first['msg'][0].lower()}{first['msg'][1:]})") from None
    try:
        plain(value)
    except (UnicodeEncodeError, RecursionError):
        raise DamagedFile(f"{file}{'' if line is None else f':{line}'} holds text that is none (half a letter)") from None


def plain(value: Any) -> None:
    """Raise where a text cannot be written again."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for key, inner in value.items():
            key.encode("utf-8")
            plain(inner)
    elif isinstance(value, list):
        for inner in value:
            plain(inner)


def hold_rows(rows: Sequence[Any], file: Path) -> None:
    """Raise `DamagedFile` for the first thing in metrics.jsonl (or a result's rows) that is no row."""
    for number, row in enumerate(rows, 1):
        fault = fault_of(row)
        if fault is not None:
            raise DamagedFile(f"{file}: row {number} is damaged ({fault})")


def fault_of(row: Any) -> str | None:
    """What is wrong with a row, if anything."""
    if not isinstance(row, dict):
        return f"it is no object but {type(row).__name__}"
    for name, value in row.items():
        if name in (
            "cycle",
            "train/cycle",
            "train/global_step",
            "answers/n",
            "judge/n_failed",
            "judge/invalid",
            "judge/not_validated",
        ):
            if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value <= 10**12:
                return f"{name} is no count"
        elif name in ("policy", "judge/version"):
            if not isinstance(value, str):
                return f"{name} is no text"
        elif name == "judge/unfamiliar_share" and value is None:
            continue
        elif name.startswith(NUMBERS) and (
            not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or abs(value) > LARGEST
        ):
            return f"{name} is no number"
        if name in SCORES and not -0.001 <= value <= 100.001:
            return f"{name} is no score"
    if row.get("cycle", 0) > MOST_CYCLES or row.get("train/cycle", 0) > MOST_CYCLES:
        return "there is no such cycle"
    if "cycle" in row and not isinstance(row.get("policy"), str):
        return "policy is missing"
    if "train/global_step" in row and "train/cycle" not in row:
        return "train/cycle is missing"
    try:
        plain(row)
    except (UnicodeEncodeError, RecursionError):
        return "it holds half a letter"
    return None
