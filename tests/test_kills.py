"""Invariant 1: a run killed at any moment loses no finished stage, and resumed it ends like an uninterrupted one.

On fakes, with SIGKILL. Not covered here: kills of real training and sampling (test-long), and loss of power.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import python
from killed_run import MOMENTS, forked, run_killed

from iterative_ft.machine.files import read_jsonl

OVERRIDES = ["reinit=false", "n_cycles=1"]


def start(root: Path, folder: Path, moment: str, n: int) -> int:
    """Run in a forked process (all libraries are loaded already). Returns minus the signal that ended it, or 0."""
    code = forked(run_killed, root, folder, moment, n, OVERRIDES)
    assert code in (0, -signal.SIGKILL), "the run failed: see its traceback above"
    return code


def finished(root: Path) -> dict[str, dict[str, Any]]:
    """Stage -> digest of its files, and every file's bytes and time of change."""
    found = {}
    for manifest in root.glob("[!.]*/*/manifest.json"):
        folder = manifest.parent
        files = {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}
        found[f"{folder.parent.name}/{folder.name}"] = {"digest": json.loads(manifest.read_text())["digest"], "files": files}
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(folder / "metrics.jsonl") if not any(name.startswith("time/") for name in row)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], str]:
    """Stages, rows and answers of a run that nothing disturbed."""
    base = tmp_path_factory.mktemp("uninterrupted")
    assert start(base / "store", base / "run", "never", 0) == 0
    return finished(base / "store"), rows(base / "run"), (base / "run" / "answers.jsonl").read_text()


CASES = [
    ("before_build", 1),
    ("before_build", 9),
    ("holding_the_lock", 4),
    ("half_a_stage_file", 2),
    ("half_a_stage_file", 6),
    ("in_training", 1),
    ("in_training", 2),
    ("before_manifest", 5),
    ("after_manifest", 5),
    ("before_rename", 7),
    ("after_rename", 7),
    ("before_folder_sync", 3),
    ("write_reference", 6),
    ("before_a_row", 1),
    ("half_a_row", 3),
    ("between_cycles", 2),
    ("before_result", 1),
]


def test_every_moment_is_tried() -> None:
    assert {moment for moment, _ in CASES} == MOMENTS.keys() - {"never"}


@pytest.mark.parametrize(("moment", "n"), CASES)
def test_invariant_1_killed_and_resumed(
    tmp_path: Path, uninterrupted: tuple[dict[str, dict[str, Any]], list[dict[str, Any]], str], moment: str, n: int
) -> None:
    stages, told, answers = uninterrupted
    root, folder = tmp_path / "store", tmp_path / "run"
    assert start(root, folder, moment, n) == -signal.SIGKILL
    kept = finished(root)
    assert len(kept) < len(stages) or moment in ("before_result", "before_a_row", "half_a_row")
    assert not (folder / "result.json").exists()
    assert start(root, folder, "never", 0) == 0
    after = finished(root)
    assert {name: after[name] for name in kept} == kept, "a finished stage was lost or written again"
    assert {name: stage["digest"] for name, stage in after.items()} == {n: stage["digest"] for n, stage in stages.items()}
    assert rows(folder) == told
    assert (folder / "answers.jsonl").read_text() == answers
    assert not list((root / ".work").glob("*")), "a resumed run leaves nothing half done"
    how = [stage["how"] for stage in json.loads((folder / "result.json").read_text())["stages"]]
    assert how.count("stored") == len(kept)


def test_invariant_1_the_stages_of_a_killed_run_survive_gc(tmp_path: Path) -> None:
    root, folder = tmp_path / "store", tmp_path / "run"
    assert start(root, folder, "between_cycles", 2) == -signal.SIGKILL
    kept = finished(root)
    assert kept
    done = python(["-m", "iterative_ft.store", "gc", str(root), "--yes"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert finished(root) == kept
