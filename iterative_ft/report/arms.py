"""Many runs together: replicates make an arm, which has rows and a verdict over its seeds. Labels say what tells runs apart."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from iterative_ft.machine.files import text_digest
from iterative_ft.records.read import Run
from iterative_ft.records.rows import COUNTED, MetricRow, numbers, value
from iterative_ft.stats.intervals import Interval, t_interval
from iterative_ft.stats.replicates import FREE, arm_digest, arm_settings, deciding, is_known, made_differently, on_same_data
from iterative_ft.stats.verdict import GENERAL_SEEDS, Curve, Verdict, curve_of, group_verdict

GROUPS = ("method", "persona", "model", "judge", "sampler")  # groups of settings; a label holds the name of one
NAMES = tuple(f"{group}.name" for group in GROUPS)
DIGEST = re.compile(r"\b[0-9a-f]{16,}\b")
LONGEST_VALUE = 40  # letters of a setting in a label
FIRST = ("persona.name", "method.name", "reinit", "model.name", "n_seed", "n_sampled", "n_cycles")  # in labels


@dataclass(frozen=True)
class Arm:
    """Runs that differ in nothing but the seed."""

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return [run.config["seed"] for run in self.runs]

    @cached_property
    def digest(self) -> str:
        """Of the settings that its runs share."""
        return arm_digest(self.runs[0].config)

    @cached_property
    def rows(self) -> list[MetricRow]:
        """Rows like a run's: each number is the mean over runs, low and high a t interval over seeds (two or more), cut to
        the scale of 0 to 100.

        With one run its own rows, whose intervals are over questions. `n_runs` says how many runs a row rests on; a row in
        which any run's judge failed too often is invalid. A flaw or failure that came up anywhere in the arm is 0 elsewhere.
        """
        measured = [row for run in self.runs for row in run.measured]
        counted = {name: 0.0 for row in measured for name in numbers(row) if name.startswith(COUNTED)}
        measured = [cast("MetricRow", counted | row) for row in measured]  # type: ignore[operator]
        if len(self.runs) == 1:
            return [{**row, "n_runs": 1} for row in measured]
        rows = []
        for cycle in sorted({row["cycle"] for row in measured}):
            members = [row for row in measured if row["cycle"] == cycle]
            merged: dict[str, float] = {"cycle": cycle, "n_runs": len(members)}
            names = {name for row in members for name in numbers(row)}
            for name in sorted(names - {"cycle", "judge/invalid", "judge/not_validated"}):
                if not name.endswith(("/low", "/high", "_low", "_high")):
                    merged[name] = statistics.fmean(present(members, name))
            for name in ("trait", "coherence"):
                interval = t_interval(present(members, f"{name}/score"))
                if interval is not None:
                    merged |= {f"{name}/low": max(0.0, interval.low), f"{name}/high": min(100.0, interval.high)}
            for name in ("judge/invalid", "judge/not_validated"):
                merged[name] = int(any(value(row, name) for row in members))
            rows.append(cast("MetricRow", merged))
        return rows

    @cached_property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.verdict is not None]

    @cached_property
    def curves(self) -> list[Curve]:
        """Of the finished runs."""
        return [curve_of(run.answers, run.config, run.folder.name, run.made) for run in self.finished]

    @cached_property
    def verdict(self) -> dict[str, Any] | None:
        """Over the seeds of the finished runs, or the only one's own; None while none is finished."""
        if len(self.finished) < 2:
            return self.finished[0].verdict if self.finished else None
        return group_verdict(self.curves).as_dict()

    @cached_property
    def cumulative(self) -> dict[int, Verdict]:
        """Number of seeds -> verdict over so many, the smallest seeds first: from those that a general claim needs up to all
        that finished. Whether a verdict has settled is seen from it.
        """
        curves = sorted(self.curves, key=lambda curve: curve.seed)
        return {n: group_verdict(curves[:n]) for n in range(GENERAL_SEEDS, len(curves) + 1)}


def present(rows: Sequence[MetricRow], name: str) -> list[float]:
    """The values of a name in the rows that have it."""
    return [number for number in (value(row, name) for row in rows) if number is not None]


def change(verdict: Mapping[str, Any] | None) -> Interval | None:
    """A verdict's change of the trait from cycle 0 to the last, as an interval."""
    values = (verdict or {}).get("trait_change")
    return None if values is None else Interval(values["mean"], values["low"], values["high"], values["n"])


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    values: dict[str, Any] = {}
    for key, setting in config.items():
        if isinstance(setting, dict) and setting:
            values |= flat(setting, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = setting
    return values


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that can change what a run finds, by their dotted names."""
    values = flat(deciding(config))
    for name in ("reinit.init", "reinit.name"):
        values.pop(name, None)
    return values | {"reinit": str(config["reinit"]["init"] == "base").lower(), "seed": config["seed"]}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the settings in which configs of runs differ, but for those that follow from the name of their group."""
    settings = [settings_of(config) for config in configs]

    def n_found(*names: str) -> int:
        return len({json.dumps([values.get(name) for name in names]) for values in settings})

    def follows(name: str) -> bool:
        group = name.partition(".")[0]
        return group in GROUPS and name not in NAMES and n_found(f"{group}.name", name) == n_found(f"{group}.name")

    differ = [name for name in {name for values in settings for name in values} if n_found(name) > 1 and not follows(name)]
    return sorted(differ, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name == "seed", name))


def label(run: Run, names: list[str]) -> str:
    """A run by the settings that tell it from the others, such as "dpo · reinit=true · seed=1"."""
    values = settings_of(run.config)
    texts = {name: in_few_letters(str(values[name])) for name in names if name in values}
    return " · ".join(text if name in NAMES else f"{name}={text}" for name, text in texts.items()) or run.folder.name


def of_arm(run: Run) -> Run:
    """The run without settings that were found anew for its seed: no label of an arm speaks of one seed's."""
    shared = arm_settings(run.config)
    return replace(run, config={name: value for name, value in run.config.items() if name in shared or name in FREE})


def in_few_letters(text: str) -> str:
    """A value on one line; of a long text its beginning, and digits of its digest, by which two that begin alike differ."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_VALUE and line == text else f"{line[:LONGEST_VALUE]}… ({text_digest(text)[:4]})"


def labels(runs: list[Run]) -> list[str]:
    """A label for every run; equal ones (the same settings run twice) get their folder's name."""
    names = differing([run.config for run in runs])
    texts = [label(run, names) for run in runs]
    return [text if texts.count(text) == 1 else f"{text} ({run.folder.name})" for text, run in zip(texts, runs, strict=True)]


def arms_of(runs: list[Run]) -> list[Arm]:
    """Replicates together, in the order of what tells arms apart: amounts by their size, the rest by its text.

    A run counted twice is no replicate: of runs that share the seed too, the one that got furthest stands for it.
    """
    names = [name for name in differing([of_arm(run).config for run in runs]) if name != "seed"]
    by_digest: dict[str, list[Run]] = {}
    begun = {run.folder for run in runs if run.result is None and not is_known(run.made)}
    for run in sorted(runs, key=lambda run: run.folder in begun):
        digest = arm_digest(run.config, run.made)
        if run.folder in begun:  # just now: it goes with the others of its settings, where they agree
            settings = arm_digest(run.config)
            among = [key for key, members in by_digest.items() if arm_digest(members[0].config) == settings]
            digest = among[0] if len(among) == 1 else digest
        by_digest.setdefault(digest, []).append(run)
    together = [
        [members[place] for place in places]
        for members in by_digest.values()
        for places in on_same_data([run.made for run in members])
    ]
    found = []
    for members in sorted(together, key=lambda members: in_order(members[0], names)):
        seeds: dict[int, Run] = {}
        for run in members:
            seed = run.config["seed"]
            if seed not in seeds or len(run.measured) > len(seeds[seed].measured):
                seeds[seed] = run
        first = of_arm(members[0])
        text = label(first, names) if names else f"{first.config['method']['name']} · reinit={first.reinit}"
        found.append(Arm(text, list(seeds.values())))
    return [replace(arm, label=arm.label + apart(arm, found)) for arm in found]


def in_order(run: Run, names: list[str]) -> list[tuple[bool, float, str]]:
    """What a run is sorted by: its values of these settings, numbers by their size, before all else by its text."""

    def size(value: Any) -> tuple[bool, float, str]:
        return (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))

    values = settings_of(run.config)
    return [size(values.get(name)) for name in names]


def by_subject(arms: Sequence[Arm]) -> dict[tuple[str, str], list[Arm]]:
    """The arms of each (persona, method), labelled by reinit and by what else tells them apart, such as
    "reinit=false · rejected_from=same".
    """
    found: dict[tuple[str, str], list[Arm]] = {}
    for arm in arms:
        config = arm.runs[0].config
        found.setdefault((config["persona"]["name"], config["method"]["name"]), []).append(arm)
    for subject, of_subject in found.items():
        differ = differing([of_arm(run).config for arm in of_subject for run in arm.runs])
        names = ["reinit", *(name for name in differ if name not in ("reinit", "seed"))]
        texts = [label(of_arm(arm.runs[0]), names).replace(" method.", " ") + apart(arm, arms) for arm in of_subject]
        found[subject] = [replace(arm, label=text) for arm, text in zip(of_subject, texts, strict=True)]
    return found


def alike(arm: Arm, arms: Sequence[Arm]) -> list[Arm]:
    """The arms of the same settings, itself among them."""
    return [other for other in arms if other.digest == arm.digest]


def apart(arm: Arm, arms: Sequence[Arm]) -> str:
    """What tells an arm from others of the same settings, such as " (judge: probe 1a2b)"; empty where there are none."""
    same = alike(arm, arms)
    differ = made_differently([other.runs[0].made for other in same])
    own = next(number for number, other in enumerate(same) if other is arm)
    texts = [f"{word}: {short_text(values[own], values)}" for word, values in differ.items()]
    return f" ({'; '.join(texts)})" if texts else ""


def short_text(value: Any, values: Sequence[Any]) -> str:
    """A value of a run's record in few letters: of versions those in which the `values` differ, of a digest its beginning."""
    if isinstance(value, list):
        return ", ".join(short_text(one, []) for one in value) or "none"
    if isinstance(value, dict):
        differ = [name for name in sorted(value) if any((other or {}).get(name) != value[name] for other in values)]
        return " ".join(f"{name} {value[name]}" for name in differ) or "fewer"
    return "not known" if value is None else DIGEST.sub(lambda found: found[0][:8], str(value))


def not_pooled(arms: Sequence[Arm]) -> list[str]:
    """A line for each set of arms that have the same settings and are no replicates all the same, with the reason."""
    lines = []
    for arm in arms:
        same = alike(arm, arms)
        if len(same) > 1 and same[0] is arm:
            differ = ", ".join(made_differently([other.runs[0].made for other in same]))
            seeds = " and ".join(f"seed(s) {', '.join(map(str, sorted(other.seeds)))}" for other in same)
            lines.append(f"not taken together, though their settings are the same: {seeds}: they differ in {differ}")
    return lines
