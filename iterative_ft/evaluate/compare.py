"""Many runs in one table, one picture and one page; and a run's W&B record built anew."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import Compare, Wandb
from iterative_ft.errors import RunError, printable
from iterative_ft.records.folder import PAGE, PICTURE
from iterative_ft.records.read import Run, read_rows, read_run
from iterative_ft.records.rows import COUNTED, OF_PERSONA, MetricRow, value
from iterative_ft.records.terminal import change_text, interval_text, text_table
from iterative_ft.records.wandb_log import WandbLog
from iterative_ft.report import pictures
from iterative_ft.report.arms import Arm, arms_of, by_subject, change, labels, not_pooled
from iterative_ft.report.control import control_table
from iterative_ft.report.page import write_page_of
from iterative_ft.report.tables import gauge_name
from iterative_ft.stats.ranks import spearman
from iterative_ft.stats.verdict import Verdict

# Words -> name in a row, and digits shown.
BY_CYCLE = {
    "trait": ("trait/score", 1),
    "trait on coherent answers": ("trait/score_coherent", 1),
    "coherence": ("coherence/score", 1),
    "share that ended by itself": ("answers/stop_share", 2),
    "share flagged as cut off": ("coherence/flaw_cut_off", 2),
    "share flagged as off topic": ("coherence/flaw_off_topic", 2),
    "share flagged as looped": ("coherence/flaw_looped", 2),
    "share unfamiliar to the judge": ("judge/unfamiliar_share", 2),
    "persona projection": ("gauge/persona_projection", 2),
    "next-token entropy, nats": ("gauge/entropy", 2),
    "examples trained on": ("data/n_examples", 1),
}
MOST_LINES = 9  # of runs in one picture: more are told apart by the arms' alone
COLUMNS = (
    *("run", "judge", "cycles", "base", "cycle 0", "last", "change", "verdict", "coherence 0", "coherence last"),
    *("invalid", "not validated"),
)
"""The last two count cycles, of an arm those of any seed: too many judge calls failed, or the judge was not validated there."""


def compare(task: Compare, command: str) -> Path:
    """One table (printed, compare.csv, compare.md), pictures and one report of many runs. Returns the folder written."""
    runs = readable(task.folders())
    names, arms = labels(runs), arms_of(runs)
    rows = [run_line(run, name) for run, name in zip(runs, names, strict=True)]
    rows += [arm_line(arm) for arm in arms if len(arm.runs) > 1]
    print(text_table([COLUMNS, *[[row[name] for name in COLUMNS] for row in rows]]))
    notes = not_pooled(arms) + not_settled(arms) + projection_agreement(runs)
    print("".join(f"{printable(note)}\n" for note in notes), end="")
    out = Path(task.out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    page = markdown_table([COLUMNS, *[[row[name] for name in COLUMNS] for row in rows]])
    page += "".join(f"\n{note}\n" for note in notes)
    for (persona, method), of_subject in by_subject(arms).items():
        page += f"\n## {persona} · {method}\n\n{markdown_table(by_cycle(of_subject))}"
    cumulative = by_seeds(arms)
    if len(cumulative) > 1:
        page += f"\n## As seeds are added\n\n{markdown_table(cumulative)}"
    controls = control_table(arms)
    if controls.rows:
        page += f"\n## Null controls\n\n{markdown_table([controls.head, *controls.rows])}"
    (out / "compare.md").write_text(page, encoding="utf-8")
    write_page_of(runs, out / PAGE)
    print(f"{command}\ntable   {out / 'compare.csv'}, {out / 'compare.md'}")
    for picture in drawn(runs, names, arms, out):
        print(f"picture {picture}")
    print(f"report  {out / PAGE}")
    return out


def drawn(runs: list[Run], names: Sequence[str], arms: Sequence[Arm], out: Path) -> list[Path]:
    """Draw what these runs have to show; the pictures' files. One of an earlier comparison that is not drawn now is removed."""
    several = len(arms) < len(runs) or len(arms) > 1
    amounts = {arm.runs[0].config["n_sampled"] for arm in arms}
    rows = [(name, run.measured) for run, name in zip(runs, names, strict=True)]
    wanted: dict[str, tuple[bool, Callable[[Path], None]]] = {
        PICTURE: (len(runs) <= MOST_LINES, partial(pictures.draw, rows)),
        "arms_trait.png": (several, partial(pictures.comparison, runs, name="trait")),
        "arms_coherence.png": (several, partial(pictures.comparison, runs, name="coherence")),
        "quantity.png": (len(amounts) > 1, partial(pictures.change_by_sampled, runs)),
    }
    for name, (due, draw) in wanted.items():
        if due:
            draw(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    return [out / name for name, (due, _) in wanted.items() if due]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head."""
    lines = [
        [" ".join(cell.replace("|", "\\|").splitlines()) for cell in row]
        for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def by_cycle(arms: Sequence[Arm]) -> list[list[str]]:
    """A line for each number of `BY_CYCLE` and arm: its mean over the arm's runs at base and after each cycle; where not all
    of them have it, how many do.
    """
    rows_of = [{row["cycle"]: row for row in arm.rows} for arm in arms]
    cycles = sorted({cycle for of_cycle in rows_of for cycle in of_cycle})
    table = [["mean of", "arm", *("base" if cycle < 0 else f"cycle {cycle}" for cycle in cycles)]]
    named = {name for of_cycle in rows_of for row in of_cycle.values() for name in row if name.startswith(OF_PERSONA)}
    of_persona = {gauge_name(name): (name, 1) for name in sorted(named)}
    for words, (name, digits) in (BY_CYCLE | of_persona).items():
        for arm, of_cycle in zip(arms, rows_of, strict=True):
            n = len(arm.runs)
            values = [value(of_cycle[cycle], name) if cycle in of_cycle else None for cycle in cycles]
            n_with = [n_having(arm, cycle, name) for cycle in cycles]
            known = [number for number in values if number is not None]
            if any(known) or (known and not name.startswith(COUNTED)):  # of what never came up there is no line
                cells = [
                    "" if number is None else f"{number:.{digits}f}" + (f" ({of} of {n})" if of < n else "")
                    for number, of in zip(values, n_with, strict=True)
                ]
                table.append([words, f"{arm.label} ({n} run{'s' * (n > 1)})", *cells])
    return table


def by_seeds(arms: Sequence[Arm]) -> list[list[str]]:
    """A line for each arm with more seeds than a general claim needs: its verdict and change over the first seeds, one more,
    and so on to all of them.
    """
    shown = [arm for arm in arms if len(arm.cumulative) > 1]
    counts = sorted({n for arm in shown for n in arm.cumulative})

    def cell(verdict: Verdict | None) -> str:
        if verdict is None:
            return ""
        moved = verdict.trait_change
        return verdict.verdict if moved is None else f"{verdict.verdict} {change_text(moved.mean, moved.low, moved.high)}"

    return [
        ["verdict over the first", *(f"{n} seeds" for n in counts)],
        *([arm.label, *(cell(arm.cumulative.get(n)) for n in counts)] for arm in shown),
    ]


def not_settled(arms: Sequence[Arm]) -> list[str]:
    """A line for each arm whose verdict changed as seeds were added, with the words."""
    lines = []
    for arm in arms:
        words = {n: verdict.verdict for n, verdict in arm.cumulative.items()}
        if len(set(words.values())) > 1:
            told = ", ".join(f"{word} over {n}" for n, word in words.items() if word != words.get(n - 1))
            lines.append(f"the verdict of {arm.label} changed as seeds were added: {told} ({max(words)} in all)")
    return lines


def n_having(arm: Arm, cycle: int, name: str) -> int:
    """How many runs of an arm have a number at a cycle. What is counted stands for 0 where it never came up."""
    rows = [row for run in arm.runs for row in run.measured if row["cycle"] == cycle]
    return sum(name.startswith(COUNTED) or value(row, name) is not None for row in rows)


def projection_agreement(runs: Sequence[Run]) -> list[str]:
    """A line for each persona, model and judge: whether the persona projection ranks policies as the trait score does."""
    found: dict[str, dict[tuple[float, float], None]] = {}
    for run in runs:
        of = f"{run.config['persona']['name']}, {run.config['model']['name']}"
        for row in run.measured:
            projected, trait = value(row, "gauge/persona_projection"), value(row, "trait/score")
            if projected is not None and trait is not None and not row.get("judge/invalid"):
                # A policy that several runs share counts once.
                judge = row.get("judge/version", run.config["judge"]["name"])
                found.setdefault(f"{of}, {judge}", {})[projected, trait] = None
    lines = []
    for of, pairs in found.items():
        agreement = spearman(*map(list, zip(*pairs, strict=True)))
        shown = "n/a" if agreement is None else f"{agreement:.2f}"
        lines.append(f"persona projection against trait score ({of}): Spearman {shown} over {len(pairs)} policies")
    return lines


def readable(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders; one that cannot be read is named and left out.

    Raises:
        RunError: none can be read.
    """
    runs = []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except RunError as error:
            print(printable(f"warning: {folder} is left out: {error}"), file=sys.stderr)
    if not runs:
        raise RunError(f"none of the {len(folders)} run folders can be read: the lines above say why")
    return runs


def run_line(run: Run, label: str) -> dict[str, str]:
    """A run's line of the table."""
    n, n_planned, kind = len(run.cycles), run.config["n_cycles"] + 1, run.config["judge"]["name"]
    return {
        "run": label,
        "judge": ", ".join(sorted({row["judge/version"] for row in run.measured if "judge/version" in row}) or [kind]),
        "cycles": f"{n}" if n == n_planned else f"{n} of {n_planned}",
        "verdict": "unfinished" if run.verdict is None else run.verdict["verdict"],
        **score_cells(run.measured, run.verdict),
    }


def arm_line(arm: Arm) -> dict[str, str]:
    """A line for replicates: means over seeds, and their common verdict."""
    rows, verdict = arm.rows, arm.verdict
    return {
        "run": f"all seeds of {arm.label} ({', '.join(map(str, sorted(arm.seeds)))})",
        "judge": "",
        "cycles": str(sum(row["cycle"] >= 0 for row in rows)),
        "verdict": "unfinished" if verdict is None else f"{verdict['verdict']} ({verdict['n_seeds']} seeds)",
        **score_cells(rows, verdict, len(arm.runs)),
    }


def score_cells(rows: Sequence[MetricRow], verdict: Mapping[str, Any] | None, n_runs: int = 1) -> dict[str, str]:
    """Scores of base, cycle 0 and the last cycle, and the change between them; of fewer than all `n_runs` runs it is said."""
    nothing: MetricRow = {}

    def cell(row: MetricRow, name: str) -> str:
        n = row.get("n_runs", n_runs)
        return interval_text(row, name) + (f" ({n} of {n_runs} seeds)" if n < n_runs else "")

    base = next((row for row in rows if row["cycle"] < 0), nothing)
    after = [row for row in rows if row["cycle"] >= 0] or [nothing]
    first, last = after[0], after[-1]
    moved = change(verdict)
    return {
        "base": cell(base, "trait"),
        "cycle 0": cell(first, "trait"),
        "last": cell(last, "trait"),
        "change": "n/a" if moved is None else change_text(moved.mean, moved.low, moved.high),
        "coherence 0": cell(first, "coherence"),
        "coherence last": cell(last, "coherence"),
        "invalid": str(sum(bool(row.get("judge/invalid")) for row in rows)),
        "not validated": str(sum(bool(row.get("judge/not_validated")) for row in rows)),
    }


def rebuild_wandb(task: Wandb, config: Config, command: str) -> str:
    """Write a run's rows to a fresh W&B run. Returns where it is."""
    run = Path(task.run)
    log = WandbLog(config.model_copy(update={"wandb": config.wandb.model_copy(update={"mode": task.mode})}), run, fresh=True)
    for row in read_rows(run):
        log.row(row)
    if (run / PICTURE).is_file():
        log.image("curves", run / PICTURE)
    log.finish()
    if log.lost:
        raise RunError(f"W&B takes no more ({log.lost}): nothing of the run is lost, run the same command again")
    print(f"{command}\nW&B     {log.where()}")
    return log.where()
