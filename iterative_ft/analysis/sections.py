"""Sections of the report: from runs and groups of seeds to headings, tables and charts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from iterative_ft.analysis import charts
from iterative_ft.analysis.charts import Axis, Point, Series, element, number_text
from iterative_ft.analysis.runs import Group, Run, change, differing, flat
from iterative_ft.measure.intervals import Interval

SIGNS = {"amplified": "▲", "decayed": "▼", "idempotent": "=", "inconclusive": "?"}
MEANINGS = {
    "amplified": "The trait grew over the cycles.",
    "decayed": "The trait faded over the cycles.",
    "idempotent": "The trait stayed where cycle 0 left it, within the margin.",
    "inconclusive": "The run cannot tell growth from no change.",
}
GAUGES = {
    "trait/score_coherent": "trait, coherent answers only",
    "coherence/share": "coherent answers, share",
    "answers/mean_words": "words an answer",
    "answers/mean_tokens": "tokens an answer",
    "answers/stop_share": "ended by themselves, share",
    "judge/n_failed": "judge failures",
    "gauge/canary_error": "canary: engine against trainer, nats",
    "gauge/canary_shift": "canary: shift from base, nats",
    "gauge/canary_share": "canary: error, share of the shift",
    "gauge/canary_noise": "canary: noise floor, nats",
    "gauge/adapter_norm": "norm of the adapter",
}
CURVES = {f"{name}/{key}" for name in ("trait", "coherence") for key in ("score", "low", "high")}
NOT_GAUGES = CURVES | {"cycle", "n_runs", "judge/invalid", "answers/n"}
TRAINING = {
    "train/loss": "training loss",
    "train/rewards/margins": "reward margin",
    "train/rewards/accuracies": "reward accuracy",
    "train/grad_norm": "gradient norm",
}
N_POINTS = 240  # of a training curve: more are thinned to means


def title(runs: list[Run]) -> str:
    """What was run, in a line."""
    if len(runs) == 1:
        run, config = runs[0], runs[0].config
        return f"{config['persona']['name']} · {config['method']['name']} · reinit={run.reinit} · seed {config['seed']}"
    return f"{', '.join(distinct(run.config['persona']['name'] for run in runs))}: {len(runs)} runs"


def distinct(values: Iterable[Any]) -> list[str]:
    return list(dict.fromkeys(str(value) for value in values))


# -- what was run -----------------------------------------------------------------------------------------------------


def header(runs: list[Run], names: list[str]) -> str:
    """Title, a fact each, and where runs differ a table of how."""

    def fact(name: str, values: Iterable[Any]) -> str:
        texts = distinct(values)
        return element("div", element("dt", name) + element("dd", escape(", ".join(texts))))

    configs = [run.config for run in runs]
    facts = [
        fact("persona", (c["persona"]["name"] for c in configs)),
        fact("method", (c["method"]["name"].upper() for c in configs)),
        fact(
            "each cycle starts from",
            ("base (reinit=true)" if r.reinit == "true" else "the last policy (reinit=false)" for r in runs),
        ),
        fact("model", (c["model"]["name"] for c in configs)),
        fact("seed examples, n_seed", (c["n_seed"] for c in configs)),
        fact("sampled a cycle, n_sampled", (c["n_sampled"] for c in configs)),
        fact("cycles after cycle 0", (c["n_cycles"] for c in configs)),
        fact("training seed" + ("s" if len({c["seed"] for c in configs}) > 1 else ""), sorted({c["seed"] for c in configs})),
        fact("judge", (c["judge"]["name"] for c in configs)),
        fact("sampler", (c["sampler"]["name"] for c in configs)),
        fact("questions × answers", (f"{c['measure']['n_questions']} × {c['measure']['n_answers']}" for c in configs)),
        fact("code", (commit(run) for run in runs)),
    ]
    about = (
        element("p", escape(runs[0].config["persona"]["description"]), class_="about")
        if len(distinct(names_of(runs))) == 1
        else ""
    )
    parts = [element("h1", escape(title(runs))), about, element("dl", "".join(facts), class_="facts")]
    parts += [
        element("p", escape(state), class_="warning")
        for run, name in zip(runs, names, strict=True)
        if (state := unfinished(run, name))
    ]
    if len(runs) == 1:
        parts.append(element("pre", element("code", escape(runs[0].command)), tabindex="0") if runs[0].command else "")
    else:
        parts.append(details(f"The {len(runs)} runs, their commands and folders", run_table(runs)))
    common = {n: v for n, v in flat(runs[0].config).items() if all(flat(run.config).get(n) == v for run in runs)}
    rows = [
        [element("code", escape(name)), escape(value if isinstance(value, str) else json.dumps(value))]
        for name, value in common.items()
    ]
    parts.append(
        details(
            "All settings" + (" that the runs share" if len(runs) > 1 else ""), table(["setting", "value"], rows, "settings")
        )
    )
    return "".join(parts)


def names_of(runs: list[Run]) -> list[str]:
    return [run.config["persona"]["name"] for run in runs]


def commit(run: Run) -> str:
    known = run.code.get("commit")
    return "unknown" if known is None else known[:10] + (" with local changes" if run.code.get("changed") else "")


def unfinished(run: Run, name: str) -> str:
    """A line when result.json is missing."""
    if run.result is not None:
        return ""
    n = run.config["n_cycles"]
    done = f"measured up to cycle {run.cycles[-1]['cycle']} of {n}" if run.cycles else "no cycle measured yet"
    return f"Unfinished: {name}: {done}; there is no verdict yet. The same command goes on where it stopped."


def run_table(runs: list[Run]) -> str:
    names = [name for name in differing(runs) if len(name) < 40]
    rows = [
        [
            *(escape(setting(run, name)) for name in names),
            escape(commit(run)),
            element("code", escape(run.command or str(run.folder))),
        ]
        for run in runs
    ]
    return table([*names, "code", "command"], rows)


def setting(run: Run, name: str) -> str:
    return run.reinit if name == "reinit" else str(flat(run.config).get(name, ""))


# -- verdicts ---------------------------------------------------------------------------------------------------------


def verdicts(runs: list[Run], names: list[str], arms: list[Group]) -> str:
    """The verdict in words for one run, else how many there are of each; and the table behind it."""
    rows: list[list[str]] = []
    extent = forest_extent(runs)
    label_of = dict(zip((id(run) for run in runs), names, strict=True))
    for arm in arms:
        if len(arm.runs) > 1:
            rows.append(verdict_row(arm.label, seeds_text(arm), arm.verdict, extent))
        rows += [verdict_row(label_of[id(run)], "", run.verdict, extent, one_of=len(arm.runs) > 1) for run in arm.runs]
    head = ["run", "verdict", "trait, cycle 0 to last", "coherence, cycle 0 to last", "trend, points a cycle", "detectors"]
    if all(len(arm.runs) == 1 for arm in arms):
        words = Counter(run.verdict["verdict"] if run.verdict else "unfinished" for run in runs)
        speaks = "Each verdict speaks of its run only: general claims need three training seeds or more."
    else:
        words = Counter(arm.verdict["verdict"] if arm.verdict else "unfinished" for arm in arms)
        speaks = "Arms with several training seeds are judged over seeds; the seed is the unit."
    if len(runs) == 1:
        lead = headline(runs[0].verdict)
    else:
        counts = ", ".join(f"{count} {word}" for word, count in words.most_common())
        what = f"{len(arms)} arms" if len(arms) < len(runs) else f"{len(runs)} runs"
        lead = element("p", f"{element('strong', escape(f'{what}: {counts}.'))} {speaks}", class_="lead")
    known = next((run.verdict for run in runs if run.verdict), None)
    note = "" if known is None else verdict_note(known)
    return lead + table(head, rows, "verdicts") + element("p", note, class_="note")


def seeds_text(arm: Group) -> str:
    """The seeds that a verdict rests on, and those that are still missing."""
    done = [str(run.config["seed"]) for run in arm.runs if run.verdict is not None]
    missing = [str(run.config["seed"]) for run in arm.runs if run.verdict is None]
    return f"over seeds {', '.join(done) or 'none'}" + (f"; unfinished: {', '.join(missing)}" if missing else "")


def verdict_note(verdict: dict[str, Any]) -> str:
    """How to read the table."""
    found = verdict.get("detectors") or {}
    thresholds = ", ".join(f"{name.replace('_', ' ')} {values['threshold']:g}" for name, values in found.items())
    paper = f" Detectors are the paper's, they ignore uncertainty; they fire at: {thresholds}." if thresholds else ""
    return f"Whiskers are 95 % intervals, the shaded zone is the margin of ±{verdict['margin']:g} points.{escape(paper)}"


def headline(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return element("p", "No verdict yet: the run is unfinished.", class_="lead")
    moved = change(verdict)
    by = "" if moved is None else f" It changed by {interval_text(moved, signed=True)} points."
    words = f"{MEANINGS[verdict['verdict']]}{by} This speaks of {verdict['speaks_of']}."
    return element("p", f"{badge(verdict['verdict'])} {escape(words)}", class_="lead")


def badge(word: str) -> str:
    return element("span", f"{element('span', SIGNS[word], aria_hidden='true')} {word}", class_=f"badge {word}")


def forest_extent(runs: list[Run]) -> float:
    ends = [abs(end) for run in runs if (moved := change(run.verdict)) is not None for end in (moved.low, moved.high)]
    return max(20.0, math.ceil(max(ends, default=0.0) / 10 + 0.2) * 10)


def verdict_row(name: str, more: str, verdict: dict[str, Any] | None, extent: float, one_of: bool = False) -> list[str]:
    kind = "of-seeds" if more else "one-of" if one_of else ""
    title_ = element("span", escape(name) + (f" <small>{escape(more)}</small>" if more else ""), class_=kind)
    if verdict is None:
        return [title_, element("span", "unfinished", class_="badge"), "", "", "", ""]
    moved, trend = change(verdict), change(verdict, "trend")
    reason = verdict.get("reason", "")
    word = badge(verdict["verdict"]) + element(
        "small", escape(f"speaks of {verdict['speaks_of']}" + (f"; {reason}" if reason else ""))
    )
    return [
        title_,
        word,
        charts.forest(moved, verdict["margin"], extent) + interval_text(moved, signed=True),
        interval_text(change(verdict, "coherence_change"), signed=True),
        interval_text(trend, signed=True),
        detectors(verdict.get("detectors") or {}),
    ]


def detectors(found: dict[str, dict[str, Any]]) -> str:
    """The paper's detectors, one a line; they ignore uncertainty."""
    lines = []
    for name, values in found.items():
        fired = values["fired"]
        text = "too few cycles" if values["value"] is None else f"{values['value']:+.1f}, {'fired' if fired else 'silent'}"
        lines.append(element("li", f"{escape(name.replace('_', ' '))}: {element('strong' if fired else 'span', text)}"))
    return element("ul", "".join(lines), class_="plain") if lines else ""


def interval_text(interval: Interval | None, signed: bool = False) -> str:
    if interval is None:
        return "n/a"
    form = "+.1f" if signed else ".1f"
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


# -- curves -----------------------------------------------------------------------------------------------------------


def curves(runs: list[Run], names: list[str], arms: list[Group]) -> str:
    """Trait and coherence over cycles: an arm a line, then each run by itself."""
    cycles = [row["cycle"] for run in runs for row in run.cycles]
    if not cycles:
        return element("p", "No cycle has been measured yet.", class_="note")
    x = charts.cycle_axis(cycles)
    pair = []
    for name in ("trait", "coherence"):
        series = [arm_series(arm, number, name, "" if len(arms) > 1 else name) for number, arm in enumerate(arms)]
        chart = charts.line_chart(f"curve-{name}", series, x, charts.score_axis(f"{name} score"))
        pair.append(figure(f"{name.capitalize()} score", chart))
    bands = "over training seeds where an arm has several (thin lines: its runs), else over questions"
    note = (
        f"Bands and whiskers: 95 % intervals {bands}. Dashed: the base model's level. Hollow: invalid, too many judge failures."
    )
    parts = [legend(arms), element("div", "".join(pair), class_="pair"), element("p", note, class_="note")]
    parts.append(details("Values as a table", score_table(arms)))
    if len(runs) > 1:
        panels = [
            figure(escape(name), run_panel(run, number, x)) for number, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        key = element("span", "trait", class_="key trait") + element("span", "coherence", class_="key coherence")
        parts.append(element("h3", "Each run") + element("p", key + " Bands: 95 % over questions.", class_="legend"))
        parts.append(element("div", "".join(panels), class_="grid"))
    return "".join(parts)


def legend(arms: list[Group]) -> str:
    """Buttons that show and hide an arm in every chart."""
    if len(arms) == 1:
        return ""
    keys = []
    for number, arm in enumerate(arms):
        s = Series(number, arm.label, [])
        line = element("line", x1=0.0, x2=26.0, y1=5.0, y2=5.0, stroke_dasharray=s.dash)
        swatch = element("svg", line, viewBox="0 0 26 10", aria_hidden="true", class_="swatch")
        seeds = f" ({len(arm.runs)} seeds)" if len(arm.runs) > 1 else ""
        keys.append(
            element(
                "button",
                swatch + escape(arm.label + seeds),
                class_=f"key {s.classes}",
                type="button",
                aria_pressed="true",
                data_toggle=number,
            )
        )
    return element("div", "".join(keys), class_="legend", role="group", aria_label="Lines to show")


def arm_series(arm: Group, number: int, name: str, colour: str = "") -> Series:
    """A score of an arm over cycles."""
    rows, n = arm.rows(), len(arm.runs)
    several = n > 1
    members = (
        [[score_point(row, name, "") for row in run.cycles if f"{name}/score" in row] for run in arm.runs] if several else []
    )
    points = [score_point(row, name, arm.label, n) for row in rows if f"{name}/score" in row]
    return Series(
        number, arm.label, [p for p in points if p.x >= 0], next((p for p in points if p.x < 0), None), colour, members
    )


def score_point(row: dict[str, Any], name: str, label: str, of_runs: int = 1) -> Point:
    score, low, high = row[f"{name}/score"], row.get(f"{name}/low"), row.get(f"{name}/high")
    shown = f"{score:.1f}" if low is None or high is None else f"{score:.1f} [{low:.1f}, {high:.1f}]"
    runs = f" (mean of {row['n_runs']} of {of_runs} seeds)" if of_runs > 1 else ""
    tip = f"{label + ', ' if label else ''}{cycle_name(row['cycle'])}: {name} {shown}{runs}"
    return Point(max(row["cycle"], charts.BASE_X), score, low, high, bool(row.get("judge/invalid")), tip)


def cycle_name(cycle: int) -> str:
    return "base" if cycle < 0 else f"cycle {cycle}"


def run_panel(run: Run, number: int, x: Axis) -> str:
    series = []
    for place, name in enumerate(("trait", "coherence")):
        points = [score_point(row, name, "") for row in run.measured if f"{name}/score" in row]
        base = next((p for p in points if p.x < 0), None)
        series.append(Series(1000 + place, name, [p for p in points if p.x >= 0], base, name))
    return charts.line_chart(f"run-{number}", series, x, charts.score_axis("score"), charts.SMALL)


def score_table(arms: list[Group]) -> str:
    rows = []
    for arm in arms:
        for row in arm.rows():
            cells = [arm.label, cycle_name(row["cycle"]) + (" (invalid)" if row.get("judge/invalid") else "")]
            for name in ("trait", "coherence"):
                point = score_point(row, name, "") if f"{name}/score" in row else None
                cells.append(point.tip.rpartition(f"{name} ")[2] if point else "n/a")
            rows.append([escape(text) for text in [*cells, str(row["n_runs"])]])
    return table(["", "policy", "trait [95 %]", "coherence [95 %]", "runs"], rows)


def path(arms: list[Group]) -> str:
    """Trait against coherence, a line from cycle to cycle."""
    series = []
    for number, arm in enumerate(arms):
        points = [path_point(row, arm.label) for row in arm.rows() if "trait/score" in row and "coherence/score" in row]
        rows = [row for row in arm.rows() if "trait/score" in row and "coherence/score" in row]
        after = [p for p, row in zip(points, rows, strict=True) if row["cycle"] >= 0]
        base = next((p for p, row in zip(points, rows, strict=True) if row["cycle"] < 0), None)
        series.append(Series(number, arm.label, after, base, "ink" if len(arms) == 1 else ""))
    points = [p for s in series for p in [*s.points, *([s.base] if s.base is not None else [])]]
    if not points:
        return ""
    x = charts.value_axis([p.x for p in points], "trait score", 5, span=50)
    y = charts.value_axis([p.y for p in points], "coherence score", 5, span=50)
    chart = charts.path_chart("path", series, x, y)
    note = "From the base model (diamond) through the cycles. Right: more of the trait; up: more coherent."
    return figure("Trait against coherence", chart, note)


def path_point(row: dict[str, Any], label: str) -> Point:
    x, y = row["trait/score"], row["coherence/score"]
    tip = f"{label}, {cycle_name(row['cycle'])}: trait {x:.1f}, coherence {y:.1f}"
    return Point(x, y, invalid=bool(row.get("judge/invalid")), tip=tip)


# -- training ---------------------------------------------------------------------------------------------------------


def path_and_training(runs: list[Run], names: list[str], arms: list[Group]) -> str:
    """The path beside the training loss, the other training curves below."""
    loss, more = training(runs, names, arms)
    both = element("div", path(arms)) + element("div", loss)
    return element("div", both, class_="pair") + more


def training(runs: list[Run], names: list[str], arms: list[Group]) -> tuple[str, str]:
    """Loss over the global step, a line a run, in the colour of its arm; and what else was logged."""
    if not any(run.training for run in runs):
        return "", ""
    arm_of = {id(run): number for number, arm in enumerate(arms) for run in arm.runs}
    shown = [(run, name) for run, name in zip(runs, names, strict=True) if id(run) in arm_of and run.training]
    starts = [tuple(r["train/global_step"] for r in firsts(run.training)) for run, _ in shown]
    dividers = [step - 0.5 for step in starts[0][1:]] if len(set(starts)) == 1 else []
    parts = []
    for key, text in TRAINING.items():
        series = [
            Series(arm_of[id(run)], name, training_points(run.training, key, name), None, "ink" if len(arms) == 1 else "")
            for run, name in shown
        ]
        values = [p.y for s in series for p in s.points if math.isfinite(p.y)]
        if not values:
            continue
        x = charts.value_axis([0.0, max(p.x for s in series for p in s.points)], "training step over all cycles", 5)
        name = f"train-{key.removeprefix('train/').replace('/', '-')}"
        large = key == "train/loss"
        y = charts.value_axis(values, text, 5 if large else 3)
        chart = charts.line_chart(name, series, x, y, charts.SQUARE if large else charts.SMALL, dividers, dots=False)
        parts.append(figure(text.capitalize(), chart))
    if not parts:
        return "", ""
    note = "Every cycle starts its optimizer afresh" + ("; hairlines part the cycles." if dividers else ".")
    table_ = details("Mean loss of each cycle as a table", loss_table(shown))
    more = element("div", "".join(parts[1:]), class_="grid") if parts[1:] else ""
    return parts[0] + element("p", note, class_="note"), more + table_


def firsts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first training row of every cycle."""
    return list({row["train/cycle"]: row for row in reversed(rows)}.values())[::-1]


def training_points(rows: list[dict[str, Any]], key: str, label: str) -> list[Point]:
    """A training curve, thinned to bucket means, with a gap between cycles."""
    size = max(1, math.ceil(len(rows) / N_POINTS))
    points: list[Point] = []
    for first in firsts(rows):
        cycle = first["train/cycle"]
        mine = [row for row in rows if row["train/cycle"] == cycle and key in row]
        for start in range(0, len(mine), size):
            bucket = mine[start : start + size]
            y = sum(row[key] for row in bucket) / len(bucket)
            step = bucket[-1]["train/global_step"]
            points.append(Point(step, y, tip=f"{label}, {cycle_name(cycle)}, step {step}: {number_text(y)}"))
        if mine:
            points.append(Point(mine[-1]["train/global_step"], math.nan))
    return points


def loss_table(shown: list[tuple[Run, str]]) -> str:
    rows = []
    for run, name in shown:
        for first in firsts(run.training):
            losses = [r["train/loss"] for r in run.training if r["train/cycle"] == first["train/cycle"] and "train/loss" in r]
            if losses:
                values = (number_text(v) for v in (sum(losses) / len(losses), losses[0], losses[-1]))
                rows.append([escape(name), cycle_name(first["train/cycle"]), str(len(losses)), *values])
    return table(["run", "policy", "steps", "mean loss", "first", "last"], rows)


# -- gauges -----------------------------------------------------------------------------------------------------------


def gauges(arms: list[Group]) -> str:
    """A small chart for every gauge that moves, a line for those that do not, and all of it as a table."""
    by_arm = [arm.rows() for arm in arms]
    rows = [row for arm_rows in by_arm for row in arm_rows]
    names = {n for row in rows for n, v in row.items() if isinstance(v, int | float)} - NOT_GAUGES
    names = {n for n in names if not n.endswith(("_low", "_high"))}
    order = {name: place for place, name in enumerate(GAUGES)}
    ordered = sorted(names, key=lambda name: (order.get(name, len(order)), name))
    cycles = [row["cycle"] for row in rows if row["cycle"] >= 0]
    panels, still = [], []
    for place, name in enumerate(ordered):
        values = [row[name] for row in rows if name in row]
        if len(set(values)) == 1 or not cycles:
            still.append(f"{gauge_name(name)} {number_text(values[0])}")
            continue
        series = [
            gauge_series(arm_rows, arm.label, number, name, len(arms))
            for number, (arm, arm_rows) in enumerate(zip(arms, by_arm, strict=True))
        ]
        y = charts.value_axis(
            [v for s in series for p in [*s.points, *([s.base] if s.base is not None else [])] for v in ends(p)],
            gauge_name(name),
            3,
        )
        chart = charts.line_chart(f"gauge-{place}", series, charts.cycle_axis(cycles), y, charts.SMALL)
        panels.append(figure(escape(gauge_name(name)), chart))
    head = ["gauge", *([""] if len(arms) > 1 else []), *(cycle_name(c) for c in sorted({row["cycle"] for row in rows}))]
    unmoved = element("p", escape("The same throughout: " + "; ".join(still) + "."), class_="note") if still else ""
    return (
        element("div", "".join(panels), class_="grid")
        + unmoved
        + details("Values as a table", table(head, gauge_rows(arms, by_arm, ordered)))
    )


def ends(point: Point) -> list[float]:
    return [v for v in (point.y, point.low, point.high) if v is not None]


def gauge_name(name: str) -> str:
    """A gauge in words, from the list or from its own name."""
    return GAUGES.get(name) or name.removeprefix("gauge/").replace("/", ": ").replace("_", " ").removesuffix(" score")


def gauge_series(rows: list[dict[str, Any]], label: str, number: int, name: str, n_arms: int) -> Series:
    points = []
    for row in rows:
        if name in row:
            stem = name.removesuffix("_score")
            low, high = (row.get(f"{stem}_{end}") if stem != name else None for end in ("low", "high"))
            tip = f"{label + ', ' if n_arms > 1 else ''}{cycle_name(row['cycle'])}: {number_text(row[name])}"
            points.append(Point(max(row["cycle"], charts.BASE_X), row[name], low, high, bool(row.get("judge/invalid")), tip))
    base = next((p for p in points if p.x < 0), None)
    return Series(number, label, [p for p in points if p.x >= 0], base, "ink" if n_arms == 1 else "")


def gauge_rows(arms: list[Group], by_arm: list[list[dict[str, Any]]], names: Sequence[str]) -> list[list[str]]:
    cycles = sorted({row["cycle"] for rows in by_arm for row in rows})
    table_rows = []
    for name in names:
        for arm, rows in zip(arms, by_arm, strict=True):
            values = {row["cycle"]: number_text(row[name]) for row in rows if name in row}
            label = [escape(arm.label)] if len(arms) > 1 else []
            table_rows.append([escape(gauge_name(name)), *label, *(values.get(cycle, "") for cycle in cycles)])
    return table_rows


# -- pieces -----------------------------------------------------------------------------------------------------------


def figure(caption: str, chart: str, note: str = "") -> str:
    """A chart under its title; `caption` is markup."""
    return element(
        "figure", element("figcaption", caption) + chart + (element("p", escape(note), class_="note") if note else "")
    )


def details(summary: str, content: str) -> str:
    return element("details", element("summary", escape(summary)) + content)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself when it is too wide; cells are markup."""
    top = element("tr", "".join(element("th", escape(text), scope="col") for text in head))
    body = "".join(element("tr", "".join(element("td", cell) for cell in row)) for row in rows)
    inner = element("table", element("thead", top) + element("tbody", body), class_=kind)
    return element(
        "div", inner, class_="scroll", tabindex="0", role="region", aria_label=f"table: {', '.join(t for t in head if t)}"
    )
