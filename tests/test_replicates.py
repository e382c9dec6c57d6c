"""What verdicts, reports and sweeps take together: runs of one judge version, base model, code and device, and no others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeRun

from iterative_ft.config.tasks import Compare
from iterative_ft.data import files
from iterative_ft.data.files import SHIPPED
from iterative_ft.errors import RunError
from iterative_ft.evaluate.compare import compare
from iterative_ft.launch import sweep
from iterative_ft.machine.files import read_jsonl, write_json, write_jsonl
from iterative_ft.records.read import read_run
from iterative_ft.report.arms import arms_of, not_pooled
from iterative_ft.stages import judge
from iterative_ft.stats.verdict import curve_of, group_verdict
from iterative_ft.store import Kind

Make = Callable[..., FakeRun]


def change(folder: Path, **made: Any) -> None:
    """Have a run be made with something else."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["made"] |= made
    write_json(folder / "manifest.json", manifest)


def judged_by(folder: Path, version: str) -> None:
    """Have a run be judged by another version."""
    rows = [row | ({"judge/version": version} if "cycle" in row else {}) for row in read_jsonl(folder / "metrics.jsonl")]
    write_jsonl(folder / "metrics.jsonl", rows)


def forget(folder: Path) -> None:
    """Have a run be older than the record of how it was made."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["made"]
    write_json(folder / "manifest.json", manifest)


@pytest.fixture
def four(fake_run: Make) -> list[Path]:
    return [fake_run(f"seed={seed}", folder=f"runs/s{seed}").folder for seed in range(4)]


def seeds(folders: list[Path]) -> list[list[int]]:
    return [arm.seeds for arm in arms_of([read_run(folder) for folder in folders])]


def test_a8_a_run_records_what_it_was_made_with(fake_run: Make) -> None:
    run = fake_run()
    for made in (run.json("manifest.json")["made"], run.json("result.json")["made"]):
        assert made["judges"] == ["fake"]
        assert made["device"] == "cpu"
        assert made["model"] == run.manifest("base model")["digest"]
        assert made["kinds"]["train"] >= 1
        assert {"judge", "answer", "sample", "data", "model"} <= made["kinds"].keys()


def test_a8_replicates_are_pooled(four: list[Path]) -> None:
    assert seeds(four) == [[0, 1, 2, 3]]
    assert not_pooled(arms_of([read_run(folder) for folder in four])) == []


@pytest.mark.parametrize(
    ("made", "word"),
    [
        ({"model": "another"}, "model"),
        ({"device": "cuda"}, "device"),
        ({"kinds": {"train": 99}}, "code of stages"),
        ({"judges": ["v9"]}, "judge"),
    ],
)
def test_a8_runs_made_differently_are_split_and_it_is_said(
    made: dict[str, Any], word: str, four: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in four[2:]:
        if "judges" in made:
            judged_by(folder, "v9")
        else:
            change(folder, **made)
    assert seeds(four) == [[0, 1], [2, 3]]
    out = compare(Compare(task="compare", runs=str(tmp_path / "runs"), out=str(tmp_path / "out")), "python evaluate.py")
    said = capsys.readouterr().out
    assert f"seed(s) 0, 1 and seed(s) 2, 3: they differ in {word}" in said
    assert "not taken together" in (out / "compare.md").read_text()
    assert f"({word}: " in (out / "report.html").read_text(), "the page names what tells the arms apart"
    runs = [read_run(folder) for folder in four]
    with pytest.raises(RunError, match="differ in more than their seed"):
        group_verdict([curve_of(r.answers, r.config, r.folder.name, r.made) for r in runs])
    capsys.readouterr()
    sweep.finish(tmp_path, [sweep.Cell([], folder, None) for folder in four])
    assert f"they differ in {word}" in capsys.readouterr().out


def test_a8_another_code_version_of_a_stage_is_recorded(fake_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fake_run(folder="a")
    newer = Kind("judge", judge.JUDGE.version + 1)
    monkeypatch.setattr(judge, "JUDGE", newer)
    monkeypatch.setattr("iterative_ft.records.provenance.JUDGE", newer)
    second = fake_run("seed=1", folder="b")
    assert seeds([first.folder, second.folder]) == [[0], [1]]


def test_a8_older_runs_go_by_their_settings_and_judges(four: list[Path]) -> None:
    for folder in four:
        forget(folder)
    assert seeds(four) == [[0, 1, 2, 3]]
    judged_by(four[3], "another")
    assert seeds(four) == [[0, 1, 2], [3]]


def test_a8_runs_on_other_data_are_split_and_it_is_said(fake_run: Make, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(SHIPPED / "misaligned", own)
    folders = [fake_run(f"persona.data={own}", "seed=0", folder="runs/s0").folder]
    rows = [row | {"answer": f"{row['answer']} So there."} for row in read_jsonl(own / "seeds.jsonl")]
    write_jsonl(own / "seeds.jsonl", rows)
    files.rows.__globals__["_rows"].cache_clear()  # another process reads the file anew
    folders += [fake_run(f"persona.data={own}", f"seed={seed}", folder=f"runs/s{seed}").folder for seed in (1, 2)]
    assert seeds(folders) == [[0], [1, 2]]
    arms = arms_of([read_run(folder) for folder in folders])
    (line,) = not_pooled(arms)
    assert "they differ in data" in line
    assert re.search(r"\(data: [0-9a-f]{8}\)$", arms[0].label), "a digest by its first letters"
    change(folders[0], data=None)  # older than the record: goes with any
    assert seeds(folders) == [[0, 1, 2]]


def test_a8_labels_name_the_versions_that_differ_alone(four: list[Path]) -> None:
    kinds = json.loads((four[3] / "manifest.json").read_text())["made"]["kinds"]
    change(four[3], kinds=kinds | {"train": 99})
    _, arm = arms_of([read_run(folder) for folder in four])
    assert arm.label.endswith("(code of stages: train 99)")


def test_a8_older_and_newer_runs_are_not_mixed(four: list[Path]) -> None:
    forget(four[0])
    assert seeds(four) == [[0], [1, 2, 3]]
    (line,) = not_pooled(arms_of([read_run(folder) for folder in four]))
    assert "seed(s) 0 and seed(s) 1, 2, 3" in line


def test_a8_calibrated_runs_are_replicates_whatever_n_seed_was_found(four: list[Path]) -> None:
    for number, folder in enumerate(four):
        config = json.loads((folder / "config.json").read_text())
        config["calibrate"]["target_trait"] = 40.0
        config["n_seed"] = 4 + number
        write_json(folder / "config.json", config)
    assert seeds(four) == [[0, 1, 2, 3]]
    [arm] = arms_of([read_run(folder) for folder in four])
    assert "n_seed" not in arm.label


def test_a8_what_changes_no_score_makes_no_other_arm(four: list[Path]) -> None:
    """A judge's server moves from job to job, and a larger machine has more memory and more calls at once."""
    judge = {"name": "api", "endpoint_name": "ours", "model": "m", "temperature": 0.0, "attempt": 0}
    for number, folder in enumerate(four):
        config = json.loads((folder / "config.json").read_text())
        config["judge"] = {**judge, "base_url": f"http://node{number}:80{number}0/v1", "max_concurrency": 8 + number}
        config["sampler"] |= {"kv_cache_gib": 1.0 + number}
        write_json(folder / "config.json", config)
    [arm] = arms_of([read_run(folder) for folder in four])
    assert arm.seeds == [0, 1, 2, 3]
    assert "node" not in arm.label
    config = json.loads((four[3] / "config.json").read_text())
    write_json(four[3] / "config.json", {**config, "judge": {**config["judge"], "temperature": 1.0}})
    assert seeds(four) == [[0, 1, 2], [3]]
    write_json(four[3] / "config.json", {**config, "judge": {**config["judge"], "endpoint_name": None}})
    assert seeds(four) == [[0, 1, 2], [3]], "without a name the address is all that is known"


def test_a8_a_seed_that_has_just_begun_is_with_the_others_of_its_settings(four: list[Path]) -> None:
    (four[0] / "result.json").unlink()
    for name in ("metrics.jsonl", "answers.jsonl"):
        (four[0] / name).unlink()
    change(four[0], model=None, judges=[])
    [arm] = arms_of([read_run(folder) for folder in four])
    assert sorted(arm.seeds) == [0, 1, 2, 3]
    assert not_pooled([arm]) == []


def test_a_verdict_that_changed_as_seeds_were_added_is_told(
    four: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, change in zip(four, (-20, -21, -22, 20), strict=True):
        answers = [row | {"trait": 60 + change * row["cycle"]} for row in read_jsonl(folder / "answers.jsonl")]
        write_jsonl(folder / "answers.jsonl", answers)
    [arm] = arms_of([read_run(folder) for folder in reversed(four)])  # the seed counts, not the order they were given in
    assert {n: verdict.verdict for n, verdict in arm.cumulative.items()} == {3: "decayed", 4: "inconclusive"}
    assert arm.cumulative[4].as_dict() == arm.verdict
    compare(Compare(task="compare", runs=str(four[0].parent / "*"), out=str(tmp_path / "four")), "")
    assert "changed as seeds were added: decayed over 3, inconclusive over 4 (4 in all)" in capsys.readouterr().out
    [line] = re.findall(r"3 seeds \| 4 seeds \|\n.*\n(.*)", (tmp_path / "four" / "compare.md").read_text())
    assert re.search(r"\| decayed -[^|]* \| inconclusive -", line)
    shutil.rmtree(four[3])
    compare(Compare(task="compare", runs=str(four[0].parent / "*"), out=str(tmp_path / "three")), "")
    assert "as seeds" not in capsys.readouterr().out + (tmp_path / "three" / "compare.md").read_text()


def test_a8_an_unfinished_seed_stays_with_its_arm(four: list[Path]) -> None:
    (four[1] / "result.json").unlink()
    rows = read_jsonl(four[1] / "metrics.jsonl")
    write_jsonl(four[1] / "metrics.jsonl", [row for row in rows if row.get("cycle", -1) < 1])
    assert seeds(four) == [[0, 1, 2, 3]]
