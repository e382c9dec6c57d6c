"""A null control beside the arms with a persona: how far each persona's trait moves where none was seeded.

A run without a persona (`persona=plain`) has every persona's score of each answer, where the judge knows them (`traits`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from iterative_ft.records.terminal import change_text
from iterative_ft.report.arms import Arm, by_subject, change
from iterative_ft.report.tables import Table
from iterative_ft.stats.intervals import Interval, difference
from iterative_ft.stats.replicates import arm_settings, made_differently
from iterative_ft.stats.verdict import Verdict, curve_of, group_verdict

PLAIN = "plain"
HEAD = ("persona", "arm", "its change", "control", "the same trait there", "difference", "the arm moved")


def control_table(arms: Sequence[Arm]) -> Table:
    """A row for each arm with a persona and each control of the same settings."""
    named = [
        (persona, replace(arm, label=f"{method} · {arm.label} ({seeds_text(arm)})"))
        for (persona, method), of_subject in by_subject(arms).items()
        for arm in of_subject
    ]
    rows = []
    for persona, arm in named:
        mine, own = arm.verdict, change(arm.verdict)
        for _, control in named:
            verdict = persona_verdict(control, persona) if persona != PLAIN and is_control(control, arm) else None
            if mine is not None and own is not None and verdict is not None and verdict.trait_change is not None:
                there = verdict.trait_change
                apart = difference(own, there)
                texts = [change_text(moved.mean, moved.low, moved.high) for moved in (own, there, apart)]
                rows.append(
                    [
                        persona,
                        arm.label,
                        f"{texts[0]} {mine['verdict']}",
                        control.label,
                        f"{texts[1]} {verdict.verdict}",
                        texts[2],
                        word(apart),
                    ]
                )
    return Table(list(HEAD), rows)


def seeds_text(arm: Arm) -> str:
    """How many seeds an arm's change rests on, and of how many that were begun."""
    n, begun = len(arm.finished), len(arm.runs)
    return f"{n} of {begun} seeds" if n < begun else f"{n} seed{'s' * (n != 1)}"


def is_control(control: Arm, arm: Arm) -> bool:
    """Whether two arms differ in nothing but the persona, which the control lacks, and who wrote the rejected answers."""
    without, with_persona = control.runs[0], arm.runs[0]
    alike = not made_differently([without.made, with_persona.made], but_data=True)
    return without.config["persona"]["name"] == PLAIN and alike and shared(without.config) == shared(with_persona.config)


def shared(config: dict[str, Any]) -> dict[str, Any]:
    """Settings that an arm and its control have in common."""
    settings = arm_settings(config)
    method = {name: value for name, value in settings["method"].items() if name != "rejected_from"}
    return {name: value for name, value in settings.items() if name != "persona"} | {"method": method}


def persona_verdict(control: Arm, persona: str) -> Verdict | None:
    """What became of a persona's trait over a control's seeds; None where its answers have no score of it."""
    curves = []
    for run in control.finished:
        rows = [{**row, "trait": row.get("traits", {}).get(persona)} for row in run.answers]
        if any(row["trait"] is not None for row in rows):
            curves.append(curve_of(rows, run.config, run.folder.name, run.made))  # type: ignore[arg-type]
    return group_verdict(curves) if curves else None


def word(apart: Interval) -> str:
    """What a difference of changes says."""
    return "more" if apart.low > 0 else "less" if apart.high < 0 else "not told apart"
