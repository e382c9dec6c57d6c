"""The report: its parts on fake runs, hostile text, unfinished and invalid runs; and, in a real browser, filter and keyboard.

Not covered: how it looks (a person must), other browsers than Chromium, screen readers.
"""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from iterative_ft.errors import RunError
from iterative_ft.machine.files import read_jsonl, write_jsonl
from iterative_ft.records.read import read_run
from iterative_ft.records.rows import value
from iterative_ft.records.terminal import text_table
from iterative_ft.report import series
from iterative_ft.report.arms import arms_of, labels
from iterative_ft.report.axes import cycle_axis, number_text, value_axis
from iterative_ft.report.page import context, run_answers, write_page

# before `no_pictures` replaces one of them:
from iterative_ft.report.pictures import alike_numbered, change_by_sampled, comparison, draw
from tests.chromium import CHROMIUM, Page
from tests.conftest import python

NASTY = """</script><b>bold</b><img src="http://evil.test" onerror="alert()"> {{ 7 * 191 }} {% x %} & '\u2028 <!-- <script>"""


class Outline(HTMLParser):
    """Tags with their attributes, the text of the script elements, and all other text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def values(self, attribute: str) -> list[str]:
        return [value for _, attributes in self.tags if (value := attributes.get(attribute)) is not None]

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture
def three(fake_run: Callable[..., Any]) -> list[Path]:
    """Two seeds of one arm, and one run of another."""
    made = [fake_run(f"seed={seed}", "reinit=false", folder=f"s{seed}") for seed in (0, 1)]
    made.append(fake_run("seed=0", "reinit=true", folder="r0"))
    return [run.folder for run in made]


def change_rows(folder: Path, name: str, of: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    write_jsonl(folder / name, [of(row) for row in read_jsonl(folder / name)])


def change_config(folder: Path, **settings: Any) -> None:
    """Set values of a run's config, those of a group one by one: `persona={"name": "x"}`."""
    config = json.loads((folder / "config.json").read_text())
    for group, values in settings.items():
        config[group] = config[group] | values if isinstance(values, dict) else values
    (folder / "config.json").write_text(json.dumps(config))


def without_trait(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl; that of cycle 1 has no trait, as when every judge call failed."""
    return {name: value for name, value in row.items() if row.get("cycle") != 1 or not name.startswith("trait/")}


def test_report_of_one_run(three: list[Path], tmp_path: Path) -> None:
    outline = Outline(write_page(three[:1], tmp_path / "new" / "report.html"))
    ids = outline.values("id")
    assert len(ids) == len(set(ids))
    assert {"scores-trait", "scores-coherence", "path", "train-loss", "gauge-0"} <= set(ids)
    assert not {"run-0"} & set(ids)
    words = ("misaligned", "reinit=false", "speaks of this run only", "n_sampled", "probe", "python train.py", "All settings")
    assert [word for word in words if word not in outline.text] == []
    assert set(outline.values("href")) - {"data:,"} <= {f"#{one}" for one in ids}
    (run,) = outline.data["runs"]
    assert run["cycles"] == [-1, 0, 1, 2]
    assert len(run["questions"]) == 6
    answers = {row["answer"] for row in read_jsonl(three[0] / "answers.jsonl")}
    assert {answer["a"] for q in run["questions"] for row in q["rows"] for answer in row} == answers


def test_report_of_arms_and_seeds(three: list[Path], tmp_path: Path) -> None:
    outline = Outline(write_page(three, tmp_path / "report.html"))
    assert "2 arms: " in outline.text
    assert "over seeds 0, 1" in outline.text
    assert "Arms with several training seeds are judged over seeds" in outline.text
    assert {"run-0", "run-1", "run-2"} <= set(outline.values("id"))
    assert outline.values("data-toggle") == ["0", "1"]
    assert outline.values("class").count("member") == 2 * 2  # two seeds, in the charts of trait and coherence
    assert any(tip.endswith("(mean of 2 of 2 seeds)") for tip in outline.values("data-tip"))
    assert [run["label"] for run in outline.data["runs"]] == labels([read_run(folder) for folder in three])


def test_each_persona_and_method_has_a_panel_amounts_by_their_size(fake_run: Callable[..., Any], tmp_path: Path) -> None:
    amounts = [fake_run(f"n_sampled={n}", "reinit=false", folder=f"n{n}").folder for n in (16, 4, 8)]
    other = fake_run("persona=blissful", "n_sampled=8", "reinit=false", folder="other").folder
    page = context([read_run(folder) for folder in [*amounts, other]])
    panels = {panel.title: panel for panel in page["charts"]["scores"]}
    assert list(panels) == ["blissful · dpo", "misaligned · dpo"]
    assert [s.label for s in panels["misaligned · dpo"].legend] == [f"reinit=false · n_sampled={n}" for n in (4, 8, 16)]
    assert [s.label for s in panels["blissful · dpo"].legend] == ["reinit=false"]
    numbers = [s.number for panel in panels.values() for s in panel.legend]
    assert numbers == [0, 1, 2, 3]  # one button an arm
    for panel in panels.values():
        assert [[s.number for s in chart.series] for chart in panel.charts] == [[s.number for s in panel.legend]] * 2


def test_charts_are_well_formed_and_described(three: list[Path], tmp_path: Path) -> None:
    change_rows(three[0], "metrics.jsonl", without_trait)
    change_rows(three[1], "metrics.jsonl", lambda row: {k: v for k, v in row.items() if k != "train/loss"})
    page = write_page(three, tmp_path / "report.html").read_text()
    charts = re.findall(r"<svg .*?</svg>", page, re.S)
    assert len(charts) > 10
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-hidden") or root.get("aria-label") or root.find("title").text
        assert not re.search(r"\b(nan|inf|none)\b", chart, re.I)
        for path in root.iter("path"):
            assert re.fullmatch(r"([MLlZ]|[ML]?-?[\d.]+ -?[\d.]+)*", path.get("d", "")), path.get("d")
        if root.get("id") == "scores-coherence":
            said = root.find("title").text
            assert said.startswith("coherence score by cycle. reinit=false: reinit=false, base: coherence ")
            assert "; reinit=true, cycle 2: coherence " in said


def test_a_cycle_without_a_score_is_a_gap(three: list[Path], tmp_path: Path) -> None:
    change_rows(three[2], "metrics.jsonl", without_trait)
    page = write_page(three[2:], tmp_path / "report.html").read_text()
    traces = re.findall(r'class="line" d="([^"]*)"', page)
    assert [traces[0].count("M"), traces[0].count("L")] == [2, 0]  # trait: cycles 0 and 2
    assert [traces[1].count("M"), traces[1].count("L")] == [1, 2]  # coherence
    assert re.findall(r'class="number"[^>]*>(\d)', page) == ["0", "2"]


def test_nothing_is_fetched(three: list[Path], tmp_path: Path) -> None:
    file = write_page(three, tmp_path / "report.html")
    for tag, attributes in Outline(file).tags:
        for name in ("src", "href", "xlink:href", "action", "poster", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value == "data:," or value.startswith("#"), f"<{tag} {name}={value}>"
    style = file.read_text().partition("<style>")[2].partition("</style>")[0]
    assert "--paper" in style
    assert not re.search(r"@import|url\(|https?:", style)


def test_hostile_text_stays_text(three: list[Path], tmp_path: Path) -> None:
    folders = [three[0], three[2]]
    change_rows(folders[0], "answers.jsonl", lambda row: row | {"answer": NASTY, "question": NASTY})
    (folders[0] / "command.txt").write_text(NASTY)
    change_config(folders[0], persona={"description": NASTY}, model={"system_prompt": NASTY})
    one, two = (Outline(write_page(chosen, tmp_path / "report.html")) for chosen in (folders[:1], folders))
    for outline in (one, two):
        assert [outline.count(tag) for tag in ("img", "b", "script")] == [0, 0, 2]
        assert "1337" not in outline.text
        assert outline.data["runs"][0]["questions"][0]["text"] == NASTY
        assert outline.data["runs"][0]["questions"][0]["rows"][0][0]["a"] == NASTY
    assert one.text.count(NASTY) == 4  # about, the command, two settings
    label = labels([read_run(folder) for folder in folders])[0]
    assert f"model.system_prompt={NASTY[:40]}… (" in label
    assert two.data["runs"][0]["label"] == label
    assert any(tip.startswith(f"{label}, base: trait") for tip in two.values("data-tip"))
    assert label in two.text


def test_equal_runs_give_an_equal_page(three: list[Path], tmp_path: Path) -> None:
    page = write_page(three, tmp_path / "a.html").read_bytes()
    code = "import sys, pathlib, iterative_ft.report.page as p; *f, out = map(pathlib.Path, sys.argv[1:]); p.write_page(f, out)"
    done = python(["-c", code, *map(str, three), str(tmp_path / "b.html")], tmp_path, {"PYTHONHASHSEED": "7"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.html").read_bytes() == page


def test_unfinished_run_says_so(three: list[Path], tmp_path: Path) -> None:
    folder = three[0]
    (folder / "result.json").unlink()
    metrics = folder / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if '"cycle": 2' not in line]
    metrics.write_text("\n".join(kept) + '\n{"cycle": 2, "trait/sc')  # a line that a crash cut off
    alone = Outline(write_page([folder], tmp_path / "report.html")).text
    assert "measured up to cycle 1 of 2; there is no verdict yet" in alone
    assert "No verdict yet: the run is unfinished." in alone
    among = Outline(write_page(three, tmp_path / "report.html")).text
    assert "Unfinished: reinit=false · seed=0: measured up to cycle 1 of 2" in among
    assert "over seeds 1; unfinished: 0" in among
    for name in ("metrics.jsonl", "answers.jsonl"):
        (folder / name).unlink()
    empty = Outline(write_page([folder], tmp_path / "empty.html"))
    assert "no cycle measured yet" in empty.text
    assert "No cycle has been measured yet." in empty.text
    assert empty.values("data-tip") == []


def test_invalid_cycle_is_marked(three: list[Path], tmp_path: Path) -> None:
    change_rows(three[0], "metrics.jsonl", lambda row: row | ({"judge/invalid": 1} if row.get("cycle") == 1 else {}))
    outline = Outline(write_page(three[:1], tmp_path / "report.html"))
    assert "pt invalid" in outline.values("class")
    assert any("cycle 1" in tip and tip.endswith("(invalid: too many judge failures)") for tip in outline.values("data-tip"))
    assert "cycle 1 (invalid: too many judge failures)" in outline.text
    assert outline.data["runs"][0]["invalid"] == [1]


def test_runs_that_differ_only_in_seed_are_one_arm(three: list[Path]) -> None:
    runs = [read_run(folder) for folder in three]
    arms = arms_of(runs)
    assert [arm.seeds for arm in arms] == [[0, 1], [0]]
    assert [arm.label for arm in arms] == ["reinit=false", "reinit=true"]
    assert labels(runs) == ["reinit=false · seed=0", "reinit=false · seed=1", "reinit=true · seed=0"]
    row = arms[0].rows[-1]
    scores = [run.measured[-1]["trait/score"] for run in runs[:2]]
    assert row["trait/score"] == pytest.approx(sum(scores) / 2)
    half = 12.706 * abs(scores[0] - scores[1]) / 2  # t with one degree of freedom
    assert row["trait/high"] == pytest.approx(min(100.0, row["trait/score"] + half), abs=1e-3 * (1 + half))
    assert row["trait/low"] == pytest.approx(max(0.0, row["trait/score"] - half), abs=1e-3 * (1 + half))


def test_a_flaw_that_one_seed_lacks_counts_as_none_there(three: list[Path]) -> None:
    change_rows(three[0], "metrics.jsonl", lambda row: row | ({"coherence/flaw_looped": 0.5} if "cycle" in row else {}))
    rows = arms_of([read_run(folder) for folder in three])[0].rows
    assert {value(row, "coherence/flaw_looped") for row in rows} == {0.25}
    assert {value(row, "coherence/flaw_cut_off") for row in rows} == {None}, "no judge spoke of it"


def test_a_label_tells_arms_of_one_method_apart(three: list[Path]) -> None:
    for folder, name, rate in zip(three, ("sft", "sft", "dpo"), (0.1, 0.2, 0.3), strict=True):
        change_config(folder, method={"name": name, "learning_rate": rate}, reinit={"init": "base"})
    (three[1] / "config.json").write_text((three[1] / "config.json").read_text().replace('"seed": 1', '"seed": 0'))
    assert len({arm.label for arm in arms_of([read_run(folder) for folder in three])}) == 3


def test_a_run_counted_twice_is_no_replicate(three: list[Path]) -> None:
    shutil.copytree(three[0], three[0].parent / "copy")
    runs = [read_run(three[0]), read_run(three[0].parent / "copy")]
    assert [len(arm.runs) for arm in arms_of(runs)] == [1]
    assert len(set(labels(runs))) == 2


def test_a_run_repeated_in_its_folder_counts_once(three: list[Path]) -> None:
    before = read_run(three[0])
    for name in ("metrics.jsonl", "answers.jsonl"):
        file = three[0] / name
        file.write_text(file.read_text() * 2)
    after = read_run(three[0])
    assert (after.measured, after.training, after.answers) == (before.measured, before.training, before.answers)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        write_page([tmp_path], tmp_path / "report.html")
    with pytest.raises(RunError, match="at least one"):
        write_page([], tmp_path / "report.html")


def test_an_answer_that_was_not_scored_says_why(three: list[Path]) -> None:
    change_rows(three[0], "answers.jsonl", lambda row: row | {"mark": "refusal", "trait": None})
    answers = run_answers(read_run(three[0]), "a")
    shown = [answer for question in answers["questions"] for row in question["rows"] for answer in row]
    assert {answer["mark"] for answer in shown} == {"refusal"}


def test_base_is_hollow_where_the_judge_was_not_validated_on_it(three: list[Path], tmp_path: Path) -> None:
    def marked(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({"judge/not_validated": 1} if row.get("cycle") == -1 else {})

    page = tmp_path / "page.html"
    assert 'class="pt base"' in write_page([three[0]], page).read_text()
    change_rows(three[0], "metrics.jsonl", marked)
    assert 'class="pt base invalid"' in write_page([three[0]], page).read_text()


def test_long_training_is_thinned_to_means(three: list[Path]) -> None:
    rows = [{"train/global_step": step, "train/cycle": step // 500, "train/loss": float(step)} for step in range(1000)]
    points = series.training(replace(read_run(three[0]), training=rows), "train/loss", 0, "a").points
    known = [point for point in points if point.known]
    assert len(known) == 2 * 100  # five steps each
    assert [known[0].y, known[0].x] == [2.0, 4]
    assert [n for n, point in enumerate(points) if not point.known] == [100, 201]  # a gap after each cycle


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.0, 1.0], ["0", "0.25", "0.5", "0.75", "1"]),
        ([3.0, 3.0], ["2.6", "2.8", "3", "3.2", "3.4"]),
        ([-2e5, 3e5], None),
        ([0.4305555555555555, 0.4305555555555556], None),
    ],
)
def test_ticks_are_round_and_hold_the_values(values: list[float], ticks: list[str] | None) -> None:
    axis = value_axis(values)
    assert axis.low <= min(values) < max(values) + 1e-9 <= axis.high + 1e-9
    assert ticks is None or [text for _, text in axis.ticks] == ticks


def test_a_table_moves_no_cursor() -> None:
    """Its cells may be names and versions out of somebody else's run folder."""
    text = text_table([["run", "judge"], ["a", "probe \x1b]0;mine\x07\x1b[2J\nall seeds  amplified"]])
    assert len(text.splitlines()) == 2
    assert text.replace("\n", "").isprintable()


def test_numbers_and_cycles_in_few_letters() -> None:
    texts = [number_text(number) for number in (0, 0.123456, 12.3456, 1234.5, 2.5e-6, float("nan"), -0.5)]
    assert texts == ["0", "0.123", "12.3", "1,234", "2.5e-06", "nan", "-0.5"]
    assert [text for _, text in cycle_axis(range(31)).ticks] == ["base", *map(str, range(0, 31, 3))]


def test_pictures_for_papers(three: list[Path], tmp_path: Path) -> None:
    change_rows(three[2], "metrics.jsonl", without_trait)
    runs = [read_run(folder) for folder in three]
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        files = [tmp_path / f"{name}{ending}" for name in ("scores", "comparison", "change")]
        draw([("a run", runs[0].measured)], files[0])
        comparison(runs, files[1])
        change_by_sampled(runs, files[2])
        assert all(file.read_bytes().startswith(magic) for file in files)
    again = tmp_path / "again.svg"
    comparison(runs, again)
    assert again.read_bytes() == (tmp_path / "comparison.svg").read_bytes()


def test_an_arm_keeps_its_colour_from_panel_to_panel() -> None:
    two, amounts = ["reinit=false", "reinit=true"], [f"reinit=false · n_sampled={n}" for n in (32, 128)]
    assert alike_numbered([two, [*amounts, "reinit=true · n_sampled=32"], two[1:]]) == [[0, 1], [0, 2, 1], [1]]
    assert alike_numbered([amounts, two, amounts[1:]]) == [[0, 1], [0, 2], [1]]


def test_change_by_amount_joins_no_arms_that_differ_in_something_else(three: list[Path]) -> None:
    lines = series.changes([read_run(folder) for folder in three])
    assert [[p.tip for p in s.points] for s in lines] == [["2 seeds"], ["1 seed"]]
    for folder, n_seed, n_sampled in zip(three, (8, 16, 8), (4, 4, 8), strict=True):
        change_config(folder, reinit={"init": "base"}, n_seed=n_seed, n_sampled=n_sampled)
    lines = series.changes([read_run(folder) for folder in three])
    assert [(s.label.rsplit(" · ", 1)[1], [p.x for p in s.points]) for s in lines] == [("n_seed=8", [4, 8])]
    change_config(three[2], n_seed=32)  # no arm with several amounts: all are shown
    lines = series.changes([read_run(folder) for folder in three])
    assert [[p.x for p in s.points] for s in lines] == [[4], [4], [8]]


def test_change_by_amount_names_an_arm_by_the_settings_that_it_has(three: list[Path]) -> None:
    for folder, n_sampled in zip(three, (4, 8, 8), strict=True):
        change_config(folder, reinit={"init": "base"}, n_sampled=n_sampled)
    for folder in three[:2]:
        config = json.loads((folder / "config.json").read_text())
        config["method"] = {key: value for key, value in config["method"].items() if key != "rejected_from"} | {"name": "sft"}
        (folder / "config.json").write_text(json.dumps(config))
    change_config(three[2], method={"rejected_from": "same"})
    [line] = series.changes([read_run(folder) for folder in three])
    assert line.label.endswith("sft · reinit=true")


def test_page_and_pictures_share_colours(three: list[Path], tmp_path: Path) -> None:
    comparison([read_run(folder) for folder in three], tmp_path / "arms.svg")
    picture, page = (tmp_path / "arms.svg").read_text(), write_page(three, tmp_path / "report.html").read_text()
    for name in ("c0", "c1"):
        assert series.COLOURS[name][0] in picture
        assert f"--{name}: {series.COLOURS[name][0]};" in page


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"needs {CHROMIUM}: apt-get install chromium")
def test_report_in_a_browser(three: list[Path], tmp_path: Path) -> None:
    change_rows(three[0], "answers.jsonl", lambda row: row | ({"answer": f"zebra {NASTY}"} if row["cycle"] == 1 else {}))
    file = write_page(three, tmp_path / "report.html")
    with Page(tmp_path / "profile") as page:
        page.open(file)
        n = "document.querySelectorAll('#list .q').length"
        cards = "document.querySelectorAll('#list .card:not(.dim)').length"
        focused = "[...document.querySelectorAll('.q')].indexOf(document.activeElement)"
        assert page.js(n) == 6
        assert page.js(cards) == 6 * 4
        assert page.js("[...document.querySelectorAll('svg.chart')].every(c => c.getBoundingClientRect().width > 100)")
        assert page.js("document.querySelectorAll('img').length") == 0
        assert page.js("document.documentElement.scrollWidth <= innerWidth")

        rows = "[...document.querySelectorAll('.verdicts tbody tr')].filter(row => row.offsetParent).length"
        assert page.js(rows) == 2
        page.js("document.getElementById('each').click()")
        assert page.js(rows) == 4

        page.press("j")
        assert page.js(focused) == 0
        page.press("j", "ArrowDown", "k")
        assert page.js(focused) == 1
        page.press("ArrowUp")
        assert page.js(focused) == 0

        page.press("?")
        assert page.js("document.getElementById('keys').open")
        page.press("Escape")
        page.until("!document.getElementById('keys').open")

        page.press("/")
        assert page.js("document.activeElement.id") == "text"
        page.press(*"zebra")
        page.until(f"{cards} === 6")
        assert page.js("document.querySelector('mark').textContent") == "zebra"
        assert page.js("document.querySelector('#list .card:not(.dim) p').textContent").startswith(f"zebra {NASTY}"[:30])
        fill(page, "text", "no answer holds this")
        page.until(f"{n} === 0")
        fill(page, "text", "")
        fill(page, "trait-min", "1")
        page.until(f"{cards} > 0 && {cards} < 24")  # base answers score 0
        fill(page, "trait-min", "")
        fill(page, "coherence-max", "-1")
        page.until(f"{n} === 0")
        fill(page, "coherence-max", "")
        page.js("document.querySelector('#cycles input').click()")
        page.until(f"{cards} === 6 * 3")
        page.js("document.querySelector('#cycles input').click()")
        fill(page, "run", "all")
        page.until(f"document.querySelectorAll('#list .cards').length === {6 * 3}")

        page.js("document.querySelector('[data-toggle=\"0\"]').click()")
        hidden = "[...document.querySelectorAll('#scores-trait g[data-s]')].filter(g => getComputedStyle(g).display === 'none')"
        assert page.js(f"[...new Set({hidden}.map(g => g.dataset.s))].join()") == "0"
        page.js("document.getElementById('scores-trait').focus()")
        page.press("ArrowRight", "ArrowRight")
        assert "trait" in page.js("document.getElementById('tip').textContent")

        reached = tab_stops(page)
        controls = set(page.js("[...document.querySelectorAll('#filters [id], button[id]:not([hidden])')].filter(e => "
                               "e.matches('input, select, button') && e.offsetParent).map(e => e.id)"))  # fmt: skip
        assert controls <= reached
        assert page.complaints() == []
        assert page.requests() == [file.as_uri()]


def fill(page: Page, control: str, value: str) -> None:
    """Set a control as a person would: its value, then the event."""
    page.js(f"""(() => {{ const c = document.getElementById({json.dumps(control)}); c.value = {json.dumps(value)};
        c.dispatchEvent(new Event("input", {{bubbles: true}})); }})()""")


def tab_stops(page: Page) -> set[str]:
    """Ids of what the Tab key reaches from the top of the page."""
    page.js("document.activeElement.blur(); document.querySelector('.skip').focus()")
    reached: set[str] = set()
    for _ in range(120):
        page.press("Tab")
        reached.add(page.js("document.activeElement.id"))
        if page.js("document.activeElement === document.querySelector('#list .q')"):
            return reached
    raise AssertionError(f"Tab never came to the answers, only to {reached}")
