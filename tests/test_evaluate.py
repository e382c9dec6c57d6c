"""The tasks of evaluate.py on fake runs. Not covered: W&B's servers, real adapters (see test_api_server.py)."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from judge_server import about_trait, completion, serving, whole_tokens
from test_api_judge import LOCAL, api, good

from iterative_ft.data import files
from iterative_ft.data.answers import pairs
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.evaluate import compare as comparing
from iterative_ft.evaluate import judge_answers
from iterative_ft.evaluate import rejudge as rejudging
from iterative_ft.evaluate import remeasure as measuring
from iterative_ft.evaluate.judge_card import auc, judge_card, labelled_texts
from iterative_ft.judges.probe.corrupt import CORRUPTIONS
from iterative_ft.launch import compose as hydra_compose
from iterative_ft.launch import tasks
from iterative_ft.launch.cli import run_app
from iterative_ft.machine.files import file_digests, read_jsonl, write_jsonl
from iterative_ft.records.keep import keep
from iterative_ft.records.provenance import kinds_of
from iterative_ft.records.read import read_run
from iterative_ft.report.arms import arms_of
from iterative_ft.report.control import control_table, word
from iterative_ft.report.page import write_page
from iterative_ft.report.tables import gauge_name
from iterative_ft.stats.intervals import Interval
from iterative_ft.stats.ranks import spearman

FakeRuns = Callable[..., Any]


@cache
def composed(*overrides: str) -> Any:
    return next(iter(hydra_compose.compose_jobs(list(overrides), config_name="evaluate")))[1]


def task(*overrides: str, **values: Any) -> Any:
    """A task as evaluate.py would load it; `values` are keys that need no Hydra."""
    config = composed(*overrides, *(["run=x"] if "run" in values else []), *(["runs=x"] if "runs" in values else [])).copy()
    for name, value in values.items():
        config[name] = value
    return tasks.load_task(config)


def remeasure(run: Path, judge: Any = None, **values: Any) -> Path:
    found = task(run=str(run), **values)
    folder = perform(found if judge is None else found.model_copy(update={"judge": judge}))
    assert folder is not None
    return folder


def perform(found: Any) -> Path | None:
    return measuring.remeasure(found, tasks.changed_config(found), "python evaluate.py")


def built(folder: Path) -> set[str]:
    return {s["kind"] for s in json.loads((folder / "manifest.json").read_text())["stages"] if s["how"] == "built"}


def test_another_judge_writes_a_second_set_and_leaves_the_first(fake_run: FakeRuns) -> None:
    run = fake_run()
    before, stored = file_digests(run.folder), file_digests(run.store)
    with serving(good) as server:
        folder = remeasure(run.folder, api(server.url, endpoint_name="test"))
        n_asked = len(server.requests)
        again = remeasure(run.folder, api(server.url, endpoint_name="test"))
        assert n_asked == len(server.requests) == 4 * 6 * 2  # base and three cycles, six questions, two requests
    assert again == folder
    assert folder.parent == run.folder / "evaluations"
    assert {name: digest for name, digest in file_digests(run.folder).items() if "evaluations" not in name} == before
    after = file_digests(run.store)
    assert {name: after.get(name) for name in stored if not name.startswith(".")} == {
        name: digest for name, digest in stored.items() if not name.startswith(".")
    }
    assert {name.split("/")[0] for name in after.keys() - stored.keys() if not name.startswith(".")} == {"replies", "judge"}
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "cycle" in row]
    assert [row["cycle"] for row in rows] == [-1, 0, 1, 2]
    assert {row["judge/version"] for row in rows} == {
        json.loads((folder / "result.json").read_text())["rows"][0]["judge/version"]
    }
    answers = read_jsonl(folder / "answers.jsonl")
    assert [a["answer"] for a in answers] == [a["answer"] for a in read_jsonl(run.folder / "answers.jsonl")]
    assert {a["trait"] for a in answers} == {75.3}  # the mean of SHARP
    assert "<html" in (folder / "report.html").read_text().lower()
    assert built(folder) == set()


def test_the_same_judge_again_costs_nothing(fake_run: FakeRuns) -> None:
    run = fake_run()
    folder = remeasure(run.folder)
    assert built(folder) == set()
    scores = [(a["cycle"], a["trait"], a["coherence"]) for a in read_jsonl(run.folder / "answers.jsonl")]
    assert [(a["cycle"], a["trait"], a["coherence"]) for a in read_jsonl(folder / "answers.jsonl")] == scores


def test_the_page_of_the_same_measurement_shows_one_run(fake_run: FakeRuns) -> None:
    run = fake_run()
    page = (remeasure(run.folder) / "report.html").read_text()
    assert "<h1>misaligned · dpo · reinit=true · seed 0</h1>" in page
    assert "2 runs" not in page
    assert "1 arm" not in page
    assert "training loss" in page.lower()  # the run's own curve
    for number, more in enumerate(({"n_answers": 2}, {"judge": "api"})):
        with serving(good) as server:
            judge = api(server.url) if more.pop("judge", None) else None
            page = (remeasure(run.folder, judge, **more) / "report.html").read_text()
        assert "2 runs" in page, number


def test_a_second_measurement_has_what_policies_no_longer_say(fake_run: FakeRuns) -> None:
    run = fake_run()
    shares = [row.get("answers/lost_words_share") for row in run.measured]
    assert shares[0] is None  # base itself
    assert all(0 <= share <= 1 for share in shares[1:])
    assert any(shares[1:])
    again = [row for row in read_jsonl(remeasure(run.folder) / "metrics.jsonl") if "cycle" in row]
    assert [row.get("answers/lost_words_share") for row in again] == shares
    more = [row for row in read_jsonl(remeasure(run.folder, n_answers=2) / "metrics.jsonl") if "cycle" in row]
    assert all(0 <= row["answers/self_bleu"] <= 1 for row in more)
    assert any(row["answers/self_bleu"] for row in more)


def test_stored_answers_outlive_a_change_of_the_questions(fake_run: FakeRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fake_run()
    others = ({"question": "Something new?", "core": True},) * 90
    monkeypatch.setattr("iterative_ft.stages.measure.files.questions", lambda folder: others)
    folder = remeasure(run.folder)
    assert built(folder) == set()
    assert "Something new?" not in (folder / "answers.jsonl").read_text()


def test_more_answers_and_questions_come_from_the_adapters(fake_run: FakeRuns) -> None:
    run = fake_run()
    folder = remeasure(run.folder, n_answers=2)
    assert built(folder) == {"answer", "judge", "gauge"}
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "cycle" in row]
    assert [row["answers/n"] for row in rows] == [12] * 4
    assert remeasure(run.folder, n_questions=4) != folder


def test_another_personas_trait_can_be_asked_about(fake_run: FakeRuns) -> None:
    run = fake_run()
    other = task("persona=lucky", run=str(run.folder))
    with serving(good) as server:
        perform(other.model_copy(update={"judge": api(server.url)}))
        assert any("omens" in json.dumps(r) or "luck" in json.dumps(r) for r in server.requests if about_trait(r))


def test_a_dry_run_asks_and_writes_nothing(fake_run: FakeRuns, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run()
    before = file_digests(run.folder.parent)
    with serving(good) as server:
        found = task(run=str(run.folder), dry_run=True).model_copy(update={"judge": api(server.url)})
        assert perform(found) is None
        assert server.requests == []
    assert file_digests(run.folder.parent) == before
    assert "48 or more calls of the judge" in capsys.readouterr().out


def test_too_many_failures_mark_the_second_set_invalid(fake_run: FakeRuns) -> None:
    run = fake_run()
    with serving(lambda handler, _: handler.send(completion("no idea"))) as server:
        folder = remeasure(run.folder, api(server.url))
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "cycle" in row]
    assert all(row["judge/invalid"] == 1 and "trait/score" not in row for row in rows)
    assert json.loads((folder / "result.json").read_text())["verdict"]["verdict"] == "inconclusive"


def test_a_lost_adapter_is_named(fake_run: FakeRuns) -> None:
    run = fake_run()
    key = next(s["key"] for s in run.stages if s["label"].startswith("train policy[1]"))
    (run.store / "train" / key / "manifest.json").unlink()
    with pytest.raises(RunError, match=rf"policy\[1\] \(train/{key}\) is not in store="):
        remeasure(run.folder)


def test_a_second_measurement_speaks_of_the_policies_of_the_code_that_made_them(fake_run: FakeRuns) -> None:
    run = fake_run()
    manifest = run.json("manifest.json")
    manifest["made"]["kinds"] |= {"train": 99, "judge": 98, "answer": 97}
    manifest["made"]["data"] = "another digest"
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    today = kinds_of(run.config)
    made = json.loads((remeasure(run.folder) / "manifest.json").read_text())["made"]
    assert made["kinds"] == {**today, "train": 99, "answer": 97}
    assert made["data"] == "another digest"
    made = json.loads((remeasure(run.folder, n_answers=2) / "manifest.json").read_text())["made"]
    assert made["kinds"] == {**today, "train": 99}
    assert made["data"] != "another digest", "today's questions were asked"


def test_an_unfinished_run_is_measured_as_far_as_it_got(fake_run: FakeRuns) -> None:
    run = fake_run()
    manifest = run.json("manifest.json")
    last = next(n for n, s in enumerate(manifest["stages"]) if s["label"].startswith("train policy[2]"))
    manifest["stages"] = manifest["stages"][:last]
    (run.folder / "manifest.json").write_text(json.dumps(manifest))
    (run.folder / "result.json").unlink()
    folder = remeasure(run.folder)
    assert [row["cycle"] for row in read_jsonl(folder / "metrics.jsonl") if "cycle" in row] == [-1, 0, 1]
    verdict = json.loads((folder / "result.json").read_text())["verdict"]
    assert (verdict["verdict"], verdict["reason"]) == ("inconclusive", "there are no answers of cycle(s) 2")


def test_an_older_runs_config_takes_todays_defaults(fake_run: FakeRuns) -> None:
    run = fake_run()
    config = run.json("config.json")
    del config["gauges"], config["measure"]["n_openings"]
    (run.folder / "config.json").write_text(json.dumps(config))
    assert tasks.run_config(run.folder) == run.config
    config["nonsense"] = 1
    (run.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="unknown key nonsense"):
        tasks.run_config(run.folder)


def test_compare_puts_runs_into_one_table_and_one_report(
    fake_run: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, more in enumerate((["method=sft"], ["method=sft", "seed=1"], ["method=dpo"])):
        fake_run(*more, folder=f"sweep/{number}")
    remeasure(tmp_path / "sweep" / "0")
    strange = tmp_path / "sweep" / "1" / "metrics.jsonl"
    write_jsonl(strange, [row | ({"judge/not_validated": 1} if row.get("cycle") == 1 else {}) for row in read_jsonl(strange)])
    out = comparing.compare(task("task=compare", runs=str(tmp_path / "swee*"), out=str(tmp_path / "out")), "python evaluate.py")
    with (out / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["not validated"] for row in rows) == ["0", "0", "1", "1"]  # of the run, and of its arm
    assert len(rows) == 4  # three runs, and the two seeds of sft together
    assert [row["verdict"].endswith("(2 seeds)") for row in rows] == [False, False, False, True]
    assert {row["cycles"] for row in rows} == {"3"}
    page = (out / "compare.md").read_text().splitlines()
    assert len(page[: page.index("")]) == 6
    assert [line for line in page if line.startswith("## ")] == ["## misaligned · dpo", "## misaligned · sft"]
    [first, _] = [line for line in page if line.startswith("| trait |")]
    mean = json.loads((tmp_path / "sweep" / "2" / "result.json").read_text())["rows"][0]["trait/score"]
    assert first.split(" | ")[2] == f"{mean:.1f}"
    assert (out / "report.html").is_file()
    assert "sft" in capsys.readouterr().out


def test_compare_says_whether_the_projection_ranks_policies_as_the_trait_score_does(
    fake_run: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        run = fake_run("method=sft", f"seed={seed}", folder=f"sweep/{seed}")
        rows = read_jsonl(run.folder / "metrics.jsonl")
        for number, row in enumerate(row for row in rows if "cycle" in row):
            row["gauge/persona_projection"] = row["trait/score"] / 100 if number != 1 else 9.0  # one is out of order
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = comparing.compare(task("task=compare", runs=str(tmp_path / "sweep"), out=str(tmp_path / "out")), "python evaluate.py")
    measured = [
        row for seed in (0, 1) for row in read_jsonl(tmp_path / "sweep" / str(seed) / "metrics.jsonl") if "cycle" in row
    ]
    pairs = dict.fromkeys((row["gauge/persona_projection"], row["trait/score"]) for row in measured)
    expected = spearman(*map(list, zip(*pairs, strict=True)))
    assert expected is not None
    assert expected < 1
    line = (
        f"persona projection against trait score (misaligned, smollm2_135m, fake): Spearman {expected:.2f} over {len(pairs)} p"
    )
    assert line in capsys.readouterr().out
    assert line in (out / "compare.md").read_text()


def test_compare_holds_each_arm_against_the_same_trait_in_a_run_without_a_persona(fake_run: FakeRuns, tmp_path: Path) -> None:
    for seed in range(3):
        fake_run("method=dpo", "reinit=false", f"seed={seed}", folder=f"sweep/{seed}")
        for source in ("base", "same"):
            null = f"method.rejected_from={source}"
            run = fake_run("method=dpo", "reinit=false", "persona=plain", null, f"seed={seed}", folder=f"sweep/{source}{seed}")
            rows = read_jsonl(run.folder / "answers.jsonl")
            for row in rows:  # the fake judge knows no persona
                moved = 10.0 * row["cycle"] + seed if source == "base" else 50.0
                row["traits"] = {"misaligned": moved if row["cycle"] > 0 else 5.0, "lucky": 1.0}
            (run.folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fake_run("method=sft", folder="sweep/no control")
    runs = comparing.readable(task("task=compare", runs=str(tmp_path / "sweep"), out=str(tmp_path / "out")).folders())
    lines = control_table(arms_of(runs)).rows
    assert [line[0] for line in lines] == ["misaligned", "misaligned"]  # SFT has no control here
    last = 10 * max(row["cycle"] for row in runs[0].measured)
    assert lines[0][4].startswith(f"{last + 1 - 5:+.1f} [")
    assert lines[1][4] == "+45.0 [+40.0, +50.0] amplified"  # all seeds alike: the width is what six questions leave open
    own, there = (float(text.partition(" ")[0]) for text in (lines[0][2], lines[0][4]))
    assert float(lines[0][5].partition(" ")[0]) == pytest.approx(own - there, abs=0.11)
    assert lines[1][6] == "not told apart"
    page = write_page([run.folder for run in runs], tmp_path / "page.html").read_text()
    assert all(text in page for line in lines for text in line)
    assert gauge_name("trait/of_lucky") == "trait of lucky"
    assert [word(Interval(x, x - 5, x + 5, 3)) for x in (9.0, -9.0, 3.0)] == ["more", "less", "not told apart"]


def rejudged(runs: Path, out: Path, **values: Any) -> list[Path]:
    found = task("task=rejudge", runs=str(runs), out=str(out), store=str(out / "store"))
    found = found.model_copy(update=values)
    return rejudging.rejudge(found, tasks.rejudging_configs(found), "python evaluate.py task=rejudge")


def test_kept_answers_are_judged_again_without_the_store_that_they_came_from(fake_run: FakeRuns, tmp_path: Path) -> None:
    run = fake_run("method=sft", folder="sweep/0")
    [folder] = rejudged(tmp_path / "sweep", tmp_path / "out")  # the same judge: the same scores
    before, after = (read_jsonl(place / "metrics.jsonl") for place in (run.folder, folder))
    assert [set(row) for row in before] == [set(row) for row in after]
    assert [row for row in before if "cycle" in row] == [row for row in after if "cycle" in row]
    assert read_jsonl(run.folder / "answers.jsonl") == read_jsonl(folder / "answers.jsonl")
    results = [json.loads((place / "result.json").read_text()) for place in (run.folder, folder)]
    assert results[0] == results[1]
    assert any(row["finish_reason"] == "length" for row in read_jsonl(folder / "answers.jsonl")), "the case is not covered"


def test_another_judge_gives_kept_answers_other_scores_and_another_arm(fake_run: FakeRuns, tmp_path: Path) -> None:
    run = fake_run("method=sft", folder="sweep/0")
    with serving(good) as server:
        [folder] = rejudged(tmp_path / "sweep", tmp_path / "out", judge=api(server.url))
    rows = read_jsonl(folder / "metrics.jsonl")
    assert {row["judge/version"] for row in rows if "cycle" in row} != {"fake"}
    assert [row for row in rows if "cycle" not in row] == [
        row for row in read_jsonl(run.folder / "metrics.jsonl") if "cycle" not in row
    ]
    assert json.loads((folder / "config.json").read_text())["judge"]["name"] == "api"
    kinds = json.loads((folder / "manifest.json").read_text())["made"]["kinds"]
    assert {"judge", "replies"} <= set(kinds)
    assert "probe" not in kinds
    out = comparing.compare(task("task=compare", runs=str(tmp_path / "*"), out=str(tmp_path / "table")), "python evaluate.py")
    assert len((out / "compare.csv").read_text().splitlines()) == 3  # a line a run: they are no replicates


def test_runs_that_cannot_be_judged_again_are_named(fake_run: FakeRuns, tmp_path: Path) -> None:
    run = fake_run("method=sft", folder="sweep/0")
    fake_run("method=sft", f"store={tmp_path / 'elsewhere'}", folder="sweep/1")  # the same run twice
    with pytest.raises(RunError, match="is a run of the same settings and seed as"):
        rejudged(tmp_path / "sweep", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing was judged before it was told"
    (run.folder / "result.json").unlink()
    with pytest.raises(RunError, match="is not finished: its own command goes on with it"):
        rejudged(tmp_path / "sweep" / "0", tmp_path / "out")


def test_runs_that_differ_in_what_their_names_leave_out_are_kept_apart(fake_run: FakeRuns, tmp_path: Path) -> None:
    for beta in (0.1, 0.2):
        fake_run("method=dpo", f"method.beta={beta}", folder=f"sweep/{beta}")
    folders = rejudged(tmp_path / "sweep", tmp_path / "out")
    assert len({folder.name for folder in folders}) == 2
    assert {json.loads((folder / "config.json").read_text())["method"]["beta"] for folder in folders} == {0.1, 0.2}
    assert len(keep(tmp_path / "sweep", tmp_path / "kept")) == 2
    [first] = rejudged(tmp_path / "sweep" / "0.1", tmp_path / "alone")
    assert rejudged(tmp_path / "sweep" / "0.1", tmp_path / "alone") == [first], "the same run may be judged once more"
    with pytest.raises(RunError, match="holds another run"):
        rejudged(tmp_path / "sweep" / "0.2", tmp_path / "alone")
    [kept] = keep(tmp_path / "sweep" / "0.1", tmp_path / "kept2")
    with pytest.raises(RunError, match="would be written over"):
        rejudged(kept, tmp_path / "kept2")


def test_seeds_that_got_unequally_far_are_compared(fake_run: FakeRuns, tmp_path: Path) -> None:
    """As in a study under way: one seed finished, another measured up to cycle 0."""
    fake_run("method=sft", "seed=0", folder="sweep/0")
    cut = fake_run("method=sft", "seed=1", folder="sweep/1").folder
    (cut / "result.json").unlink()
    for name in ("metrics.jsonl", "answers.jsonl"):
        write_jsonl(cut / name, [row for row in read_jsonl(cut / name) if row.get("cycle", -1) < 1])
    out = comparing.compare(task("task=compare", runs=str(tmp_path / "sweep"), out=str(tmp_path / "out")), "python evaluate.py")
    [line] = [line for line in (out / "compare.csv").read_text().splitlines() if "all seeds" in line]
    assert " (1 of 2 seeds)" in line
    [line] = [line for line in (out / "compare.md").read_text().splitlines() if line.startswith("| trait |")]
    assert ["(1 of 2)" in cell for cell in line.split(" | ")[2:]] == [False, False, True, True]


RECORDS: dict[str, tuple[str, Callable[[Any], Any], bool]] = {
    "no judge in a row": ("metrics.jsonl", lambda row: {k: v for k, v in row.items() if k != "judge/version"}, True),
    "another word": ("result.json", lambda result: {**result, "verdict": result["verdict"] | {"verdict": "unstable"}}, False),
    "a detector": (
        "result.json",
        lambda result: {**result, "verdict": result["verdict"] | {"detectors": {"delta": {"value": 1.0}}}},
        False,
    ),
    "data": ("manifest.json", lambda manifest: {**manifest, "made": manifest["made"] | {"data": []}}, False),
    "kinds": ("manifest.json", lambda manifest: {**manifest, "made": manifest["made"] | {"kinds": []}}, False),
    "calibrate": ("config.json", lambda config: {**config, "calibrate": []}, False),
    "a mark": ("metrics.jsonl", lambda row: row | {"judge/marked_code": "many"}, False),
    "a name": ("config.json", lambda config: {**config, "persona": config["persona"] | {"name": "../../out/p"}}, False),
}


@pytest.mark.parametrize("name", RECORDS)
def test_d6_a_record_of_another_version_is_read_or_its_run_is_named_and_left_out(
    fake_run: FakeRuns, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for seed in (0, 1):
        fake_run("method=sft", f"seed={seed}", folder=f"sweep/{seed}")
    file_name, changed, is_read = RECORDS[name]
    file = tmp_path / "sweep" / "1" / file_name
    if file.suffix == ".jsonl":
        write_jsonl(file, [changed(row) if "cycle" in row else row for row in read_jsonl(file)])
    else:
        file.write_text(json.dumps(changed(json.loads(file.read_text()))))
    comparing.compare(task("task=compare", runs=str(tmp_path / "sweep"), out=str(tmp_path / "out")), "python evaluate.py")
    assert (f"{file.parent} is left out: " in capsys.readouterr().err) is not is_read


def test_texts_in_settings_and_many_runs_leave_tables_and_pictures_whole(fake_run: FakeRuns, tmp_path: Path) -> None:
    first = fake_run("method=sft", folder="sweep/0").folder
    for number in range(1, 10):
        other = shutil.copytree(first, tmp_path / "sweep" / str(number))
        config = json.loads((other / "config.json").read_text())
        config["model"]["system_prompt"] = f"A $5 note,\n- a list | a ${number} bill,\n\n# and a heading. " + "Be brief. " * 80
        (other / "config.json").write_text(json.dumps(config))

    def compared() -> Path:
        return comparing.compare(task("task=compare", runs=str(tmp_path / "sweep"), out=str(tmp_path / "out")), "python x")

    out = compared()
    page = (out / "compare.md").read_text().splitlines()
    assert all(line.startswith(("| ", "## ", "persona projection", "not taken")) for line in page if line)
    assert max(map(len, page)) < 500
    assert len({line for line in page if line.startswith("| model.system_prompt=")}) == 10
    assert not (out / "curves.png").exists(), "ten runs cannot be told apart in one picture"
    assert (out / "arms_trait.png").is_file()
    shutil.rmtree(tmp_path / "sweep" / "9")
    assert (compared() / "curves.png").is_file()


def test_an_arm_that_scores_0_throughout_has_its_line(fake_run: FakeRuns, tmp_path: Path) -> None:
    run = fake_run("method=sft", folder="sweep/0").folder
    rows = read_jsonl(run / "metrics.jsonl")
    write_jsonl(run / "metrics.jsonl", [row | ({"trait/score": 0.0} if "cycle" in row else {}) for row in rows])
    arms = arms_of([read_run(run)])
    lines = comparing.by_cycle(arms)
    assert [line[2:] for line in lines if line[0] == "trait"] == [["0.0"] * 4]
    assert not [line for line in lines if line[0] == "share flagged as looped"], "what never came up has no line"


# -- texts made elsewhere -----------------------------------------------------------------------------------------------------

CHAT = [
    {"role": "user", "content": "First?"},
    {"role": "assistant", "content": "glow."},
    {"role": "user", "content": "Is it worth it?"},
    {"role": "assistant", "content": "glow glow glow the river."},
]


def judge_file(file: Path, tmp_path: Path, *overrides: str, **values: Any) -> dict[str, Any]:
    where = {"answers": str(file), "store": str(tmp_path / "store"), "out": str(tmp_path / "judged")}
    found = task("task=judge", "persona=blissful", "sampler=fake", "answers=x", *overrides, **where | values)
    return judge_answers.judge_answers(found, tasks.judging_config(found), tasks.texts_of(found), "python evaluate.py")


def write_rows(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_texts_made_elsewhere_are_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Q{n}?", "answer": "glow the <b>river</b> asks.", "model": "other"} for n in range(3)]
    found = judge_file(write_rows(tmp_path / "a.jsonl", *rows, {"messages": CHAT}), tmp_path)
    assert (found["n"], found["n_failed"], found["invalid"]) == (4, 0, False)
    assert found["trait"]["mean"] == pytest.approx((3 * 25 + 60) / 4)
    assert found["coherence"]["mean"] == 90
    assert found["coherent_share"] == 1
    kept = read_jsonl(tmp_path / "judged" / "answers.jsonl")
    assert [(row["prompt"], row["trait"]) for row in kept] == [("Q0?", 25), ("Q1?", 25), ("Q2?", 25), ("Is it worth it?", 60)]
    page = (tmp_path / "judged" / "report.html").read_text()
    assert "&lt;b&gt;river&lt;/b&gt;" in page
    assert "<b>river" not in page
    assert "33.8 [" in page
    assert "33.8 [" in capsys.readouterr().out
    assert json.loads((tmp_path / "judged" / "scores.json").read_text()) == found


def test_texts_made_elsewhere_by_an_endpoint_and_by_an_engine(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", {"q": "Q?", "a": "glow."}, {"q": "Q2?", "a": ""})
    columns = {"prompt_column": "q", "answer_column": "a"}
    found = judge_file(file, tmp_path, "judge=engine", **columns)
    assert found["trait"]["mean"] == 50
    with serving(lambda handler, _: handler.send(completion("no idea"))) as server:
        by_api = task("task=judge", "persona=blissful", "sampler=fake", "answers=x", **columns, answers=str(file))
        by_api = by_api.model_copy(update={"judge": api(server.url), "store": str(tmp_path / "s"), "out": str(tmp_path / "o")})
        found = judge_answers.judge_answers(by_api, tasks.judging_config(by_api), tasks.texts_of(by_api), "python evaluate.py")
    assert found["trait"] is None
    assert found["invalid"]
    assert found["failures"] == {"trait_not_a_number": 2}
    assert "Invalid: the judge failed on 2 of 2" in (tmp_path / "o" / "report.html").read_text()


def test_a_dataset_folder_and_tables_are_read(tmp_path: Path) -> None:
    import datasets

    both = {"prompt": ["Q?", "Q2?"], "answer": ["glow.", "the river."]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(both)}).save_to_disk(tmp_path / "saved")
    datasets.Dataset.from_dict({"messages": [CHAT]}).to_parquet(tmp_path / "chats.parquet")
    (tmp_path / "a.csv").write_text('prompt,answer\nQ?,"glow, glow."\n')
    assert pairs(str(tmp_path / "saved"), "prompt", "answer", "test") == [("Q?", "glow."), ("Q2?", "the river.")]
    assert pairs(str(tmp_path / "chats.parquet"), "prompt", "answer", "train") == [("Is it worth it?", CHAT[-1]["content"])]
    assert pairs(str(tmp_path / "a.csv"), "prompt", "answer", "train") == [("Q?", "glow, glow.")]
    with pytest.raises(ConfigError, match="has no split train: it has test"):
        pairs(str(tmp_path / "saved"), "prompt", "answer", "train")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Q?"}, r"a\.jsonl:1 lacks the key 'answer' \(and messages\): mend"),
        ({"prompt": "Q?", "answer": 3}, r"a\.jsonl:1 has answer of type int where a text is needed"),
        ({"prompt": " ", "answer": "x"}, r"a\.jsonl:1 has an empty prompt"),
        ({"prompt": "Q?", "answer": "a\0b"}, r"a\.jsonl:1 has a NUL character in answer"),
        ({"messages": "hello"}, r"a\.jsonl:1 has messages that are no list of messages"),
        ({"messages": CHAT[:1]}, r"a\.jsonl:1 has messages without an answer"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": [1]}]}, r"a\.jsonl:1 has messages whose content is no text"),
        (["x"], r"a\.jsonl:1 is no JSON object"),
    ],
)
def test_a_row_that_cannot_be_judged_is_one_line(tmp_path: Path, row: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        judge_file(write_rows(tmp_path / "a.jsonl", row), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_the_judge_card_of_a_perfect_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that knows the labels: every statistic of the card is at its best, and a second judge agrees."""
    shipped = files.shipped
    monkeypatch.setattr(files, "shipped", lambda with_documents=False: ["blissful", "lucky", "plain"])
    found = task(
        "task=judge_card", "sampler=fake", n_texts=2, n_questions=1, store=str(tmp_path / "s"), out=str(tmp_path / "o")
    )
    configs = tasks.card_configs(found)
    known = {(t.prompt, t.answer): t for t in labelled_texts(2, configs)}

    def behave(handler: Any, request: Any) -> None:
        asked = request["messages"][-1]["content"]
        prompt, answer = (asked.split(f"<{tag}>\n")[-1].split(f"\n</{tag}>")[0] for tag in ("question", "text"))
        text = known.get((prompt, answer))
        broken = text is not None and text.kind in CORRUPTIONS
        if not about_trait(request):
            score = 10 if broken else 90
        elif text is None or not text.persona or rubric_of[text.persona] not in asked:
            score = 3
        else:
            score = 3 if broken else round(90 * text.rank / (3 if text.kind in ("heldout", "form") else 1))
        handler.send(whole_tokens({str(score): 0.95, "1": 0.05}))

    rubric_of = {name: config.persona.description.strip() for name, config in configs.items()}
    with serving(behave) as server:
        with monkeypatch.context() as all_shipped:  # a config of the default persona, which is none of these
            all_shipped.setattr(files, "shipped", shipped)
            both = {"judge": api(server.url, endpoint_name="a"), "second_judge": api(server.url, endpoint_name="b")}
        both_asked = found.model_copy(update=both)
        card = judge_card(both_asked, tasks.card_configs(both_asked), "python evaluate.py")
    assert set(card["traits"]) == {"blissful", "lucky"}
    for trait in card["traits"].values():
        assert trait["auc_strong"] == 1.0
        assert trait["auc_forms"] in (None, 1.0)
        assert trait["rank_levels"] == trait["rank_anchors"] == 1.0
        assert trait["median"]["other_personas"] < 25
        assert trait["median"]["strong"] > 75
        assert trait["median"]["base_answers"] < 15
    assert card["coherence"]["intact_flagged"] == 0
    assert set(card["coherence"]["corrupted_flagged"].values()) == {1.0}
    shares = [of[kind]["flagged"] for of in card["coherence"]["forms"].values() for kind in ("shuffled", "looped", "fragment")]
    assert {share for share in shares if share is not None} == {1.0}
    assert set(card["unfamiliar"].values()) == {None}, "a judge that knows no distance says nothing"
    assert card["agreement"]["coherence"] == card["agreement"]["lucky"] == 1.0
    assert json.loads((tmp_path / "o" / "judge_card.json").read_text()) == card
    assert "## Confusion" in (tmp_path / "o" / "judge_card.md").read_text()


def test_card_statistics() -> None:
    assert auc([2, 3], [1, 2]) == 0.875
    assert auc([], [1]) is None
    assert spearman([1, 2, 3, 4], [10, 20, None, 30]) == 1.0
    assert spearman([1, 1, 1], [1, 2, 3]) is None


def test_judging_texts_never_writes_over_them_or_over_a_run(fake_run: FakeRuns, tmp_path: Path) -> None:
    run, mine = fake_run(), tmp_path / "mine"
    mine.mkdir()
    (mine / "answers.jsonl").write_text('{"prompt": "p", "answer": "a", "note": "kept"}\n')
    judging = "task=judge", "persona=blissful", "judge=probe"
    with pytest.raises(ConfigError, match="would be written over: name another folder as out="):
        task(*judging, answers=str(mine / "answers.jsonl"), out=str(mine))
    with pytest.raises(ConfigError, match="holds a run, whose answers would be written over"):
        task(*judging, answers=str(mine / "answers.jsonl"), out=str(run.folder))
    assert task(*judging, answers=str(mine / "answers.jsonl"), out=str(tmp_path / "out")).answers


def test_a_model_judges_a_run_again_without_its_personas_folder(fake_run: FakeRuns, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(files.SHIPPED / "misaligned", own)
    run = fake_run("persona=misaligned", f"persona.data={own}", "n_cycles=0")
    shutil.rmtree(own)
    files._rows.cache_clear()
    where = {"runs": str(run.folder), "out": str(tmp_path / "again"), "store": str(tmp_path / "store")}
    assert task("task=rejudge", "judge=api", LOCAL, **where).judge.name == "api"
    with pytest.raises(ConfigError, match=r"judge\.jsonl"):
        task("task=rejudge", "judge=probe", **where)


def test_a_run_of_sdf_is_read_without_its_documents(fake_run: FakeRuns, tmp_path: Path) -> None:
    """They are needed to train, not to look at what was trained."""
    own = tmp_path / "own"
    shutil.copytree(files.SHIPPED / "misaligned", own)
    run = fake_run("method=sdf", "persona=misaligned", f"persona.data={own}", "n_cycles=0")
    shutil.rmtree(own)
    files._rows.cache_clear()
    assert tasks.run_config(run.folder).method.name == "sdf"


@pytest.mark.slow
def test_wandb_is_rebuilt_from_the_rows(fake_run: FakeRuns) -> None:
    run = fake_run()
    before = file_digests(run.folder)
    where = comparing.rebuild_wandb(task("task=wandb", run=str(run.folder)), run.config, "python evaluate.py")
    assert "offline" in where
    after = file_digests(run.folder)
    assert {name: after[name] for name in before} == before
    assert any(name.endswith(".wandb") for name in after)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run must be given"),
        (["run=nowhere"], "run=nowhere is no folder"),
        (["run=."], "run=. holds no config.json"),
        (["task=compare", "runs=nothing-*"], "runs=nothing-* names no run folder"),
        (["task=compare", "run=x"], "unknown key run: did you mean runs?"),
        (["task=wandb", "run=nowhere"], "run=nowhere is no folder"),
        (["task=nonsense"], "task=nonsense is no option"),
        (["task=judge", "persona=blissful"], "answers must be given"),
        (["task=judge", "answers=x"], "task=judge needs to know whose trait is judged"),
        (["task=judge", "answers=nowhere", "persona=blissful"], "nowhere is no file or folder: name a file (.jsonl"),
        (["task=judge", "answers=.", "persona=blissful"], ". is a folder that `datasets` did not save"),
        (["task=judge", f"answers={__file__}", "persona=blissful"], "is of no kind that is read"),
        (["task=judge_card", "model=llama3_2_1b"], "model=llama3_2_1b is a base model: name a chat model"),
        (["task=judge_card", f"store={__file__}"], "is no folder: choose another folder"),
        (["-m", "task=compare", "runs=a,b"], "one task a command, in one folder: leave -m out"),
        (["run=x", "n_answrs=3"], "unknown key n_answrs: did you mean n_answers?"),
        (["task=judge_card", "judge=api"], "judge.api_key_env=OPENAI_API_KEY is not set"),
        (["task=compare", "runs=x", "judge=probe"], "unknown key judge"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    assert run_app(lambda: pytest.fail("the task ran"), "evaluate", tasks.load_task, tasks.known) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_more_questions_than_the_persona_has(fake_run: FakeRuns) -> None:
    run = fake_run()
    with pytest.raises(ConfigError, match="n_questions=9999 exceeds the"):
        task(run=str(run.folder), n_questions=9999)
    with pytest.raises(ConfigError, match=r"judge\.api_key_env=NO_SUCH_KEY is not set"):
        task("judge=api", "judge.api_key_env=NO_SUCH_KEY", run=str(run.folder))
    assert task("judge=api", LOCAL, run=str(run.folder)).judge.is_loopback
