"""Tables of the simulation, as docs/verdicts.md shows them.

python -m tests.simulate_tables [--repetitions 4000] [--table FILE]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from iterative_ft.stats.verdict import MARGIN
from tests.simulate import (
    CANDIDATES,
    COVERAGE,
    ERROR,
    N_ANSWERS,
    POWER,
    QUESTIONS,
    REPETITIONS,
    SEEDS,
    SHAPES,
    SPREADS,
    Outcome,
    grid,
    levels,
    several_cycles,
    simulate,
)


def tables(repetitions: int) -> str:
    """All tables as Markdown. A number that misses its bar is in bold."""
    outcomes = [simulate(case, repetitions) for case in grid()]
    parts = [
        main_table(outcomes),
        faults_table(outcomes),
        candidates_table(min(repetitions, 1000)),
        levels_table(repetitions),
        cycles_table(repetitions),
    ]
    return "\n\n".join(parts)


def main_table(outcomes: list[Outcome]) -> str:
    lines = [
        "### Intervals and words",
        "",
        f"Per cent of repetitions. Cover: the 95 % interval holds the true change (bar ≥ {COVERAGE:.0%}). False words: bar ≤ "
        f"{ERROR:.0%}. ±10, ±15: the worse of the two signs. The estimand with one seed is that run's own change, with several "
        "the mean change over training seeds; in both cases over questions like those asked. "
        "Spreads (standard deviations of answers / questions / changes / seeds, points): "
        + "; ".join(f"{s.name} {s.answers:g}/{s.questions:g}/{s.changes:g}/{s.seeds:g}" for s in SPREADS)
        + ".",
        "",
        "| scores | spread | seeds | questions | cover 0 | cover ±10 | cover ±15 | false amplified at 0 "
        "| false idempotent at ±10 | amplified at +15 | decayed at −15 | idempotent at 0 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for o in outcomes:
        c = o.case
        ten, fifteen = (min(o.coverage[m], o.coverage[-m]) for m in (MARGIN, 15.0))
        lines.append(
            f"| {c.shape.name} | {c.spread.name} | {c.n_seeds} | {c.n_questions} "
            f"| {percent(o.coverage[0.0], o.coverage[0.0] < COVERAGE)} | {percent(ten, ten < COVERAGE)} "
            f"| {percent(fifteen, fifteen < COVERAGE)} | {percent(o.amplified[0.0], o.amplified[0.0] > ERROR)} "
            f"| {percent(o.false_idempotent, o.false_idempotent > ERROR)} | {percent(o.amplified[15.0])} "
            f"| {percent(o.decayed[-15.0])} | {percent(o.idempotent[0.0])} |"
        )
    return "\n".join(lines)


def percent(share: float, missed: bool = False) -> str:
    return f"**{100 * share:.1f}**" if missed else f"{100 * share:.1f}"


def faults_table(outcomes: list[Outcome]) -> str:
    lines = ["### What misses a bar", ""]
    faulty = [o for o in outcomes if o.faults]
    lines += [
        f"- {o.case.shape.name}, {o.case.spread.name}, {o.case.n_seeds} seed(s), {o.case.n_questions} questions: "
        + "; ".join(o.faults)
        for o in faulty
    ]
    asked = [o for o in outcomes if o.case.n_questions == 48 and o.case.n_seeds == 1]
    lowest = min(asked, key=lambda o: o.amplified[15.0])
    lines += [] if faulty else ["Nothing."]
    lines += [
        "",
        f"{len(outcomes) - len(faulty)} of {len(outcomes)} cases hold every bar. Power for a 15-point rise with one seed and "
        f"48 questions × {N_ANSWERS} answers: at least {lowest.amplified[15.0]:.1%} (bar {POWER:.0%}), in the case "
        f"{lowest.case.shape.name}, {lowest.case.spread.name}.",
    ]
    return "\n".join(lines)


def candidates_table(repetitions: int) -> str:
    lines = [
        "### Statistics compared",
        "",
        f"The worst case of each block over all spreads and numbers of questions ({repetitions} repetitions): lowest coverage, "
        f"and highest false idempotent at ±{MARGIN:g}, per cent.",
        "",
        "| scores | seeds | " + " | ".join(CANDIDATES) + " |",
        "|---|--:|" + "--:|" * len(CANDIDATES),
    ]
    for shape in SHAPES:
        for n_seeds in SEEDS:
            cases = [c for c in grid() if c.shape == shape and c.n_seeds == n_seeds]
            row = []
            for name, interval in CANDIDATES.items():
                if name == "t over seeds" and n_seeds == 1:
                    row.append("–")
                    continue
                outcomes = [simulate(c, repetitions, interval) for c in cases]
                lowest = min(min(o.coverage.values()) for o in outcomes)
                row.append(f"{100 * lowest:.1f}, {100 * max(o.false_idempotent for o in outcomes):.1f}")
            lines.append(f"| {shape.name} | {n_seeds} | {' | '.join(row)} |")
    return "\n".join(lines)


def levels_table(repetitions: int) -> str:
    lines = [
        "### Bands of a curve",
        "",
        "Coverage of one policy's mean score over questions like those asked, per cent; the plain t interval beside it.",
        "",
        "| scores | spread | " + " | ".join(f"{n} questions | t" for n in QUESTIONS) + " |",
        "|---|---|" + "--:|--:|" * len(QUESTIONS),
    ]
    for shape in SHAPES:
        for spread in SPREADS[:2]:
            row = []
            for n in QUESTIONS:
                found = levels(shape, spread, n, repetitions)
                row.append(f"{percent(found['chosen'], found['chosen'] < COVERAGE)} | {100 * found['t']:.1f}")
            lines.append(f"| {shape.name} | {spread.name} | {' | '.join(row)} |")
    return "\n".join(lines)


def cycles_table(repetitions: int) -> str:
    lines = [
        "### Trend and the paper's detectors",
        "",
        "One run, cycles 0 to 4, middle of the scale, per cent. The detectors see the cycle means alone.",
        "",
        "| spread | questions | true slope, points a cycle | cover slope | verdict amplified | delta fires "
        "| prefix regression fires |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for spread in SPREADS[:2]:
        for n in QUESTIONS:
            for slope in (0.0, 3.75):
                f = several_cycles(spread, n, slope, repetitions)
                lines.append(
                    f"| {spread.name} | {n} | {slope:g} | {percent(f['coverage'], f['coverage'] < COVERAGE)} "
                    f"| {percent(f['amplified'], slope == 0 and f['amplified'] > ERROR)} "
                    f"| {percent(f['delta'])} | {percent(f['prefix'])} |"
                )
    return "\n".join(lines)


BEGIN, END = "<!-- simulation -->\n", "<!-- /simulation -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="repetitions a case and true change")
    parser.add_argument("--table", type=Path, help=f"put the tables into this Markdown file, between {BEGIN.strip()} and {END}")
    arguments = parser.parse_args()
    started = time.monotonic()
    text = tables(arguments.repetitions)
    text = f"{arguments.repetitions} repetitions a case and true change.\n\n{text}\n"
    print(text)
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.table is not None:
        before, rest = arguments.table.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        arguments.table.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
