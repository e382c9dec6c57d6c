"""Run folders, finished or not, read back for plots and the report: rows, answers, and which runs differ only in seed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.analysis.verdict import NOT_CELL, curve_of, group_verdict
from iterative_ft.errors import RunError
from iterative_ft.measure.intervals import LEVEL, Interval

# Settings that follow from a group's name: a label with the name alone says it all.
FOLLOWING = {
    "method": "method.name",
    "persona": "persona.name",
    "model": "model.name",
    "judge": "judge.name",
    "sampler": "sampler.name",
}


@dataclass(frozen=True)
class Run:
    """What one run folder holds."""

    folder: Path
    config: dict[str, Any]
    code: dict[str, Any]
    command: str
    measured: list[dict[str, Any]]
    """A row per measured policy, base (cycle -1) first."""
    training: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    """Rows of answers.jsonl, with `number`: which answer to its question it is."""
    result: dict[str, Any] | None
    """result.json, or None while the run is unfinished."""

    @property
    def reinit(self) -> str:
        return "true" if self.config["reinit"]["init"] == "base" else "false"

    @property
    def verdict(self) -> dict[str, Any] | None:
        return None if self.result is None else self.result.get("verdict")

    @property
    def base(self) -> dict[str, Any] | None:
        return next((row for row in self.measured if row["cycle"] < 0), None)

    @property
    def cycles(self) -> list[dict[str, Any]]:
        """The measured rows of cycles 0, 1, ..."""
        return [row for row in self.measured if row["cycle"] >= 0]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return [run.config["seed"] for run in self.runs]

    def rows(self) -> list[dict[str, Any]]:
        """Rows like a run's: each number is the mean over runs, low and high a t interval over seeds (two or more).

        With one run its own rows, whose intervals are over questions. `n_runs` says how many runs a row rests on; a row in
        which any run's judge failed too often is invalid.
        """
        if len(self.runs) == 1:
            return [row | {"n_runs": 1} for row in self.runs[0].measured]
        rows = []
        for cycle in sorted({row["cycle"] for run in self.runs for row in run.measured}):
            members = [row for run in self.runs for row in run.measured if row["cycle"] == cycle]
            merged: dict[str, Any] = {"cycle": cycle, "n_runs": len(members)}
            names = {name for row in members for name, value in row.items() if isinstance(value, int | float)}
            for name in sorted(names - {"cycle", "judge/invalid"}):
                values = [row[name] for row in members if name in row]
                if not name.endswith(("/low", "/high", "_low", "_high")):
                    merged[name] = sum(values) / len(values)
            for name in ("trait", "coherence"):
                interval = over_seeds([row[f"{name}/score"] for row in members if f"{name}/score" in row])
                if interval is not None:
                    merged |= {f"{name}/low": interval.low, f"{name}/high": interval.high}
            merged["judge/invalid"] = int(any(row.get("judge/invalid") for row in members))
            rows.append(merged)
        return rows

    @property
    def verdict(self) -> dict[str, Any] | None:
        """Over the seeds of the finished runs, or the only one's own; None while none is finished."""
        finished = [run for run in self.runs if run.verdict is not None]
        if len(finished) < 2:
            return finished[0].verdict if finished else None
        return group_verdict([curve_of(run.answers, run.config, run.folder.name) for run in finished]).as_dict()


def change(verdict: dict[str, Any] | None, name: str = "trait_change") -> Interval | None:
    """A verdict's change from cycle 0 to the last, or its trend, as an interval."""
    values = (verdict or {}).get(name)
    return None if values is None else Interval(values["mean"], values["low"], values["high"], values["n"])


def over_seeds(values: Sequence[float]) -> Interval | None:
    """t interval of a mean over training seeds; None with fewer than two."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return None
    mean = statistics.fmean(values)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1)) * statistics.stdev(values) / n**0.5
    return Interval(mean, mean - half, mean + half, n)


def read_run(folder: Path) -> Run:
    """Read a run folder. Of rows that were written twice (a run repeated in its folder) the last count.

    Raises:
        RunError: the folder holds no run.
    """
    if not (folder / "config.json").is_file():
        raise RunError(f"{folder} is not a run folder: it has no config.json")
    rows = read_rows(folder / "metrics.jsonl")
    measured = {row["cycle"]: row for row in rows if "cycle" in row}
    training = {row["train/global_step"]: row for row in rows if "train/global_step" in row}
    command = folder / "command.txt"
    return Run(
        folder=folder,
        config=json.loads((folder / "config.json").read_text()),
        code=read_object(folder / "code.json") or {},
        command=command.read_text().strip() if command.is_file() else "",
        measured=[measured[cycle] for cycle in sorted(measured)],
        training=[training[step] for step in sorted(training)],
        answers=numbered(read_rows(folder / "answers.jsonl"), measured),
        result=read_object(folder / "result.json"),
    )


def read_object(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text()) if file.is_file() else None


def read_rows(file: Path) -> list[dict[str, Any]]:
    """JSON lines; a last line that a crash cut off is left out, and a missing file has no rows."""
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")
    complete, rest = lines[:-1], lines[-1]
    rows = [json.loads(line) for line in complete if line]
    return [*rows, json.loads(rest)] if rest.endswith("}") else rows


def numbered(answers: list[dict[str, Any]], measured: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The last set of answers of every cycle, each with its number among the answers to its question."""
    kept = []
    for cycle in sorted({row["cycle"] for row in answers}):
        of_cycle = [row for row in answers if row["cycle"] == cycle]
        n = measured.get(cycle, {}).get("answers/n", len(of_cycle))
        seen: dict[str, int] = {}
        for row in of_cycle[-n:]:
            number = seen[row["question"]] = seen.get(row["question"], -1) + 1
            kept.append(row | {"number": number})
    return kept


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def telling(run: Run) -> dict[str, Any]:
    """The settings that can change what a run finds."""
    values = flat({name: value for name, value in run.config.items() if name not in NOT_CELL})
    for name in ("reinit.init", "reinit.name"):
        values.pop(name, None)
    return values | {"reinit": run.reinit, "seed": run.config["seed"]}


def differing(runs: list[Run]) -> list[str]:
    """Names of the settings in which the runs differ; of a group whose name differs, the name alone."""
    settings = [telling(run) for run in runs]
    names = sorted({name for values in settings for name in values})
    differ = [name for name in names if len({json.dumps(values.get(name)) for values in settings}) > 1]
    by_name = {group for group, name in FOLLOWING.items() if name in differ}
    kept = [name for name in differ if name.partition(".")[0] not in by_name or name in FOLLOWING.values()]
    first = ["persona.name", "method.name", "reinit", "model.name", "n_seed", "n_sampled", "n_cycles"]
    return sorted(kept, key=lambda name: (first.index(name) if name in first else len(first), name == "seed", name))


def label(run: Run, names: list[str]) -> str:
    """A run by the settings that tell it from the others, such as "dpo · reinit=true · seed=1"."""
    values = telling(run)
    parts = [str(values[n]) if n in FOLLOWING.values() else f"{n}={values[n]}" for n in names if n in values]
    return " · ".join(parts) or run.folder.name


def labels(runs: list[Run]) -> list[str]:
    """A label for every run; equal ones (the same settings run twice) get their folder's name."""
    names = differing(runs)
    texts = [label(run, names) for run in runs]
    return [text if texts.count(text) == 1 else f"{text} ({run.folder.name})" for text, run in zip(texts, runs, strict=True)]


def groups(runs: list[Run]) -> list[Group]:
    """Runs that differ only in seed, together, in the order of their first run.

    A run counted twice is no replicate: of runs that share the seed too, the one that got furthest stands for it.
    """
    names = [name for name in differing(runs) if name != "seed"]
    together: dict[str, dict[int, Run]] = {}
    for run in runs:
        cell = json.dumps({name: value for name, value in telling(run).items() if name != "seed"}, sort_keys=True)
        seeds, seed = together.setdefault(cell, {}), run.config["seed"]
        if seed not in seeds or len(run.measured) > len(seeds[seed].measured):
            seeds[seed] = run
    found = []
    for seeds in together.values():
        first = next(iter(seeds.values()))
        text = label(first, names) if names else f"{first.config['method']['name']} · reinit={first.reinit}"
        found.append(Group(text, list(seeds.values())))
    return found
