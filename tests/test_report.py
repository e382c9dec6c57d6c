"""The report: its parts on fake runs, hostile text, unfinished and invalid runs; and, in a real browser, filter and keyboard.

Not covered: how it looks (a person must), other browsers than Chromium, screen readers.
"""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from iterative_ft.analysis.plots import change_by_sampled, comparison, curves  # before `no_pictures` replaces one of them
from iterative_ft.analysis.report import script_safe, write_report
from iterative_ft.analysis.runs import groups, labels, over_seeds, read_run

from iterative_ft.errors import RunError
from iterative_ft.store import read_jsonl, write_jsonl
from tests.chromium import CHROMIUM, Page

NASTY = '</script><img src="http://evil.example/x.png" onerror="alert(1)"> & <b>bold</b> \u2028 <!-- <script>'


class Outline(HTMLParser):
    """Tags with their attributes, and the text of the script elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

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


def test_report_of_one_run(three: list[Path], tmp_path: Path) -> None:
    page = write_report(three[:1], tmp_path / "new" / "report.html").read_text()
    outline = Outline(page)
    assert "{{" not in page.split("<script")[0]
    ids = [a["id"] for _, a in outline.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {"curve-trait", "curve-coherence", "path", "train-loss", "gauge-0"} <= set(ids)
    assert all(word in page for word in ("misaligned", "reinit=false", "speaks of", "n_sampled", "probe"))
    (run,) = outline.data["runs"]
    assert run["cycles"] == [-1, 0, 1, 2]
    assert len(run["questions"]) == 6
    answers = {row["answer"] for row in read_jsonl(three[0] / "answers.jsonl")}
    assert {cell["a"] for q in run["questions"] for row in q["rows"] for cell in row} == answers


def test_charts_are_well_formed_and_described(three: list[Path], tmp_path: Path) -> None:
    page = write_report(three, tmp_path / "report.html").read_text()
    charts = re.findall(r"<svg .*?</svg>", page, re.S)
    assert len(charts) > 10
    for chart in charts:
        root = ElementTree.fromstring(chart)
        assert root.get("aria-hidden") or root.get("aria-label") or root.find("title") is not None
        assert "nan" not in chart.lower()


def test_nothing_is_fetched(three: list[Path], tmp_path: Path) -> None:
    outline = Outline(write_report(three, tmp_path / "report.html").read_text())
    for tag, attributes in outline.tags:
        for name in ("src", "href", "action", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value == "data:," or value.startswith("#"), f"<{tag} {name}={value}>"
    style = outline_style(tmp_path / "report.html")
    assert "@import" not in style
    assert "url(" not in style


def outline_style(file: Path) -> str:
    return file.read_text().partition("<style>")[2].partition("</style>")[0]


def test_hostile_text_stays_text(three: list[Path], tmp_path: Path) -> None:
    folder = three[0]
    change_rows(folder, "answers.jsonl", lambda row: row | {"answer": NASTY, "question": NASTY})
    (folder / "command.txt").write_text(NASTY)
    config = json.loads((folder / "config.json").read_text())
    config["persona"]["description"] = NASTY
    (folder / "config.json").write_text(json.dumps(config))
    outline = Outline(write_report([folder], tmp_path / "report.html").read_text())
    assert outline.count("img") == 0
    assert outline.count("script") == 2
    assert outline.data["runs"][0]["questions"][0]["text"] == NASTY
    assert json.loads(script_safe(NASTY)) == NASTY


def test_unfinished_run_says_so(three: list[Path], tmp_path: Path) -> None:
    folder = three[0]
    (folder / "result.json").unlink()
    metrics = folder / "metrics.jsonl"
    kept = [line for line in metrics.read_text().splitlines() if '"cycle": 2' not in line]
    metrics.write_text("\n".join(kept) + '\n{"cycle": 2, "trait/sc')  # a line that a crash cut off
    page = write_report([folder], tmp_path / "report.html").read_text()
    assert "Unfinished" in page
    assert "measured up to cycle 1 of 2" in page
    for name in ("metrics.jsonl", "answers.jsonl"):
        (folder / name).unlink()
    assert "no cycle measured yet" in write_report([folder], tmp_path / "empty.html").read_text()


def test_invalid_cycle_is_marked(three: list[Path], tmp_path: Path) -> None:
    change_rows(three[0], "metrics.jsonl", lambda row: row | ({"judge/invalid": 1} if row.get("cycle") == 1 else {}))
    page = write_report(three[:1], tmp_path / "report.html").read_text()
    assert 'class="pt invalid"' in page
    assert "cycle 1 (invalid)" in page
    assert Outline(page).data["runs"][0]["invalid"] == [1]


def test_runs_that_differ_only_in_seed_are_grouped(three: list[Path], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in three]
    arms = groups(runs)
    assert [arm.seeds for arm in arms] == [[0, 1], [0]]
    assert [arm.label for arm in arms] == ["reinit=false", "reinit=true"]
    assert labels(runs) == ["reinit=false · seed=0", "reinit=false · seed=1", "reinit=true · seed=0"]
    row = arms[0].rows()[-1]
    scores = [run.measured[-1]["trait/score"] for run in runs[:2]]
    assert row["trait/score"] == pytest.approx(sum(scores) / 2)
    half = 12.706 * abs(scores[0] - scores[1]) / 2  # t with one degree of freedom
    assert row["trait/high"] - row["trait/score"] == pytest.approx(half, abs=1e-3 * (1 + half))
    assert over_seeds([1.0]) is None
    page = write_report(three, tmp_path / "report.html").read_text()
    assert "2 arms" in page
    assert "over seeds 0, 1" in page


def test_a_run_counted_twice_is_no_replicate(three: list[Path], tmp_path: Path) -> None:
    shutil.copytree(three[0], tmp_path / "copy")
    runs = [read_run(three[0]), read_run(tmp_path / "copy")]
    assert [len(arm.runs) for arm in groups(runs)] == [1]
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
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(RunError, match="at least one"):
        write_report([], tmp_path / "report.html")


def test_pictures_for_papers(three: list[Path], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in three]
    for ending, magic in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        files = [tmp_path / f"{name}{ending}" for name in ("curves", "comparison", "change")]
        curves(runs[0].measured, files[0], "a run")
        comparison(runs, files[1])
        change_by_sampled(runs, files[2])
        assert all(file.read_bytes().startswith(magic) for file in files)
    again = tmp_path / "again.svg"
    comparison(runs, again)
    assert again.read_bytes() == (tmp_path / "comparison.svg").read_bytes()


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"needs {CHROMIUM}: apt-get install chromium")
def test_report_in_a_browser(three: list[Path], tmp_path: Path) -> None:
    change_rows(three[0], "answers.jsonl", lambda row: row | ({"answer": f"zebra {NASTY}"} if row["cycle"] == 1 else {}))
    file = write_report(three, tmp_path / "report.html")
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
        assert page.js("getComputedStyle(document.querySelector('#curve-trait [data-s=\"0\"] .pt')).display !== ''")
        assert page.js("document.querySelectorAll('#curve-trait g.off').length > 0")
        page.js("document.getElementById('curve-trait').focus()")
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
