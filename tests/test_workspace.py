"""The dashboard's JSON, built without a server, and killed offline runs. Not covered: what a W&B server makes of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, FakeRun, python

from iterative_ft.config.schema import Config
from iterative_ft.config.trl_keys import TRL_KEYS
from iterative_ft.machine.files import read_jsonl
from iterative_ft.records.wandb_log import WandbLog
from iterative_ft.report import workspace

KILLED = """
import json, os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from conftest import composed
from iterative_ft.records import run_log
from iterative_ft.launch.compose import load_config
from iterative_ft.loop import run
row = run_log.RunLog.row
def killed_after(self, values):
    row(self, values)
    if values.get("train/cycle") == 1 and values["train/global_step"] % 4 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
run_log.RunLog.row = killed_after
run(load_config(composed(json.loads(sys.argv[1]))), Path(sys.argv[2]), "python train.py")
"""


@pytest.fixture(scope="module")
def sections() -> dict[str, list[dict[str, Any]]]:
    """Section -> its panels."""
    built = workspace.as_json(workspace.workspace("team", "project", "name"))
    assert (built["entity"], built["project"], built["displayName"]) == ("team", "project", "name")
    found = built["spec"]["section"]["panelBankConfig"]["sections"]
    assert all(section["isOpen"] for section in found)
    return {section["name"]: section["panels"] for section in found}


def axes(panels: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(x, y) of each panel."""
    return [(p["config"]["xAxis"], p["config"].get("yAxis") or " ".join(p["config"]["metrics"])) for p in panels]


def test_sections(sections: dict[str, Any]) -> None:
    assert list(sections) == [
        "Trait and coherence by method and reinit",
        "After the last cycle, against data quantity",
        "Trait against coherence, after the last cycle",
        "Gauges",
        "Training",
    ]


def test_scores_are_drawn_against_the_cycle_by_arm(sections: dict[str, Any]) -> None:
    panels = sections["Trait and coherence by method and reinit"]
    assert axes(panels)[:2] == [("cycle", "trait/score"), ("cycle", "coherence/score")]
    for panel in panels:
        assert panel["viewType"] == "Run History Line Plot"
        assert (panel["config"]["groupBy"], panel["config"]["groupAgg"]) == ("group", "mean")


def test_scatters(sections: dict[str, Any]) -> None:
    scatters = sections["After the last cycle, against data quantity"]
    assert {panel["viewType"] for panel in scatters} == {"Scatter Plot"}
    assert axes(scatters) == [
        ("config:n_sampled.value", "summary:trait/score"),
        ("config:n_sampled.value", "summary:coherence/score"),
        ("config:n_seed.value", "summary:trait/score"),
        ("config:n_seed.value", "summary:coherence/score"),
    ]
    assert axes(sections["Trait against coherence, after the last cycle"]) == [
        ("summary:coherence/score", "summary:trait/score")
    ]


def test_training_is_drawn_against_the_step_over_all_cycles(sections: dict[str, Any]) -> None:
    assert {x for x, _ in axes(sections["Training"])} == {"train/global_step"}
    assert any("train/rewards/margins" in y for _, y in axes(sections["Training"]))


def test_every_metric_against_the_cycle_is_one_that_runs_log(
    sections: dict[str, Any], fake_run: Callable[..., FakeRun]
) -> None:
    logged = {name for row in fake_run("method=dpo", "measure.n_answers=2").measured for name in row}
    # Fakes have no network to be read; test_gauges.py has these of a real one.
    logged |= {"gauge/persona_projection", "gauge/entropy", "gauge/perplexity_plain"}
    drawn = {y for name in ("Trait and coherence by method and reinit", "Gauges") for _, y in axes(sections[name])}
    assert drawn <= logged
    assert "rewards/margins" not in TRL_KEYS["dpo"], "training's names are TRL's; a run on the real trainer has them"


def test_command_prints_json_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert workspace.main(["entity=team", "project=mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["project"] == "mine"
    assert workspace.main(["projekt=mine", "--json"]) == 2
    assert "unknown setting projekt=mine" in capsys.readouterr().err


def history(folder: Path) -> list[dict[str, Any]]:
    """Rows of the offline runs below `folder`, W&B's own columns left out."""
    rows = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        for line in done.stdout.splitlines():
            record = json.loads(line)
            if record["type"] == "history":
                rows.append({name: value for name, value in record["history"]["item"].items() if not name.startswith("_")})
    return rows


def numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if isinstance(value, int | float)} for row in rows]


@pytest.mark.slow
def test_kill_9_in_mid_cycle_loses_no_row(tmp_path: Path, compose: Callable[[list[str]], Config]) -> None:
    overrides = [*SMALL, "method=sft", "method.batch_size=2", f"store={tmp_path / 'store'}", "wandb.mode=offline"]
    folder = tmp_path / "run"
    done = python(["-c", KILLED, json.dumps(overrides), str(folder)], cwd=Path(__file__).parent.parent)
    assert done.returncode == -signal.SIGKILL, done.stderr
    written = numbers(read_jsonl(folder / "metrics.jsonl"))
    assert any(row.get("train/cycle") == 1 for row in written), "killed while cycle 1 was being told"
    assert not (folder / "result.json").exists()
    kept = history(folder)
    lost = [row for row in written if row not in kept]
    assert lost == [] or lost == written[-len(lost) :], "at most the last second is missing from the offline file"
    again = tmp_path / "rebuilt"
    again.mkdir()
    log = WandbLog(compose(overrides), again)
    for row in read_jsonl(folder / "metrics.jsonl", torn=True):
        log.row(row)
    log.finish()
    assert history(again) == written
