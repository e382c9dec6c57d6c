"""The kept runs of the study: made by the protocol's settings, and all that is said of them comes out of one command."""

import json
import re
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from iterative_ft.config.tasks import Compare
from iterative_ft.evaluate.compare import compare
from iterative_ft.launch import compose as hydra_compose
from iterative_ft.launch.compose import load_config
from iterative_ft.records.keep import name_of
from iterative_ft.records.read import read_run
from iterative_ft.stats.replicates import arm_settings

RESULTS = ROOT / "results"
RUNS = sorted((RESULTS / "runs").iterdir())
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d \[[+-]?\d+\.\d, [+-]?\d+\.\d\]")  # with its interval


@lru_cache
def arms_of(sweep: str) -> list[dict[str, Any]]:
    """The settings of each cell of a shipped sweep, as far as replicates share them."""
    hydra_compose.register_sweeps()
    cells = hydra_compose.compose_jobs([f"+sweep={sweep}"], multirun=True)
    return [arm_settings(load_config(composed).model_dump(mode="json")) for _, composed in cells]


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_kept_run_has_the_settings_of_the_protocol(folder: Path) -> None:
    run = read_run(folder)
    [tag] = run.config["wandb"]["tags"]
    assert arm_settings(run.config) in arms_of(tag)
    assert run.config["gauges"] == {**run.config["gauges"], "persona_projection": True, "perplexity_plain": False}
    assert run.config["seed"] in range(6)
    assert folder.name == name_of(run)


@pytest.mark.parametrize("folder", RUNS, ids=lambda folder: folder.name)
def test_a_kept_run_was_made_after_its_method_was_frozen(folder: Path) -> None:
    code = json.loads((folder / "code.json").read_text())
    assert code["changed"] is False
    shown = subprocess.run(["git", "show", f"{code['commit']}:docs/protocol.md"], cwd=ROOT, capture_output=True, text=True)
    if shown.returncode != 0:
        pytest.skip("this copy of the project does not hold the commit that the run was made with")
    method = json.loads((folder / "config.json").read_text())["method"]["name"].upper()
    assert re.search(rf"^\| {method}\b.*\*\*frozen\*\*", shown.stdout, re.MULTILINE)


def test_kept_runs_name_no_folder_of_a_machine_and_hold_no_weights() -> None:
    files = [file for folder in RUNS for file in folder.rglob("*") if file.is_file()]
    assert not [file.name for file in files if file.suffix in (".safetensors", ".bin", ".pt")]
    absolute = re.compile(r'"(?:store|path)": "/|=/\w+/')
    named = [file for file in files if file.name != "answers.jsonl" and absolute.search(file.read_text(encoding="utf-8"))]
    assert not named


def test_one_command_rebuilds_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    compare(Compare(task="compare", runs="results/runs", out=str(tmp_path)), "python evaluate.py task=compare")
    for name in ("compare.csv", "compare.md"):
        assert (tmp_path / name).read_text() == (RESULTS / name).read_text(), f"make results writes another {name}"
    assert all((tmp_path / name).is_file() for name in ("arms_trait.png", "arms_coherence.png", "report.html"))


@pytest.mark.parametrize("file", ["README.md", "docs/results.md"])
def test_numbers_with_intervals_that_are_told_come_out_of_the_command(file: str) -> None:
    told = set(NUMBER.findall(study_of((ROOT / file).read_text())))
    assert told
    assert told <= set(NUMBER.findall((RESULTS / "compare.md").read_text()))


def test_the_counts_of_runs_that_are_told_are_those_that_are_kept() -> None:
    tags = Counter(read_run(folder).config["wandb"]["tags"][0] for folder in RUNS)
    kept = {"DPO": tags["claims_dpo"], "SFT": tags["claims_sft"], "SDF": tags["claims_sdf"], "all": tags.total()}
    kept |= {"amounts of data": tags["claims_quantity"], "null controls": tags["claims_null"]}
    table = (ROOT / "docs" / "results.md").read_text().split("\n## Counts\n")[1].strip().split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {re.split("[:,]", row[0])[0]: int(re.split("[:,]", row[2])[0]) for row in rows} == kept
    assert sum(int(row[1]) for row in rows[:-1]) == int(rows[-1][1])


def study_of(text: str) -> str:
    """The part of a page that tells of the study: from the mark that opens it to the one that ends it."""
    return text.split("<!-- study -->")[1].split("<!-- /study -->")[0]
