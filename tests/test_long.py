"""Real kills: SIGKILL inside training and inside sampling of a whole run on the embedded model, then the same command again.

Each run is a process of its own on a copy of one store. About ten minutes on two idle cores.
Not covered: kills on a GPU, kills while judging (the fakes' kill tests cover every stage), power loss.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iterative_ft.machine.files import file_digests
from tests.tiny import ROOT, read_json

pytestmark = pytest.mark.long
COMMAND = [
    "method=sft",
    "n_seed=16",
    "n_sampled=16",
    "n_cycles=1",
    "measure.n_questions=12",
    "measure.n_answers=1",
    "method.checkpoint_steps=1",
    "wandb.mode=disabled",
]
LIMIT_S = 900.0


def start(store: Path, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "train.py", *COMMAND, f"store={store}", f"hydra.run.dir={folder}"],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )


def finish(store: Path, folder: Path, log: Path) -> None:
    process = start(store, folder, log)
    try:
        assert process.wait(timeout=LIMIT_S) == 0, log.read_text()[-3000:]
    finally:
        process.kill()


def kill_when(moment: Callable[[Path], bool], store: Path, folder: Path, log: Path) -> None:
    """Start a run, send SIGKILL to it as soon as its store shows `moment`."""
    process = start(store, folder, log)
    deadline = time.monotonic() + LIMIT_S
    try:
        while not moment(store):
            assert process.poll() is None, f"the run ended before it could be killed: {log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, "the moment to kill never came"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL


def finished(store: Path) -> dict[str, dict[str, str]]:
    """Stage name -> digests of all its files, the manifest's included."""
    return {
        f"{manifest.parent.parent.name}/{manifest.parent.name}": {
            **file_digests(manifest.parent),
            "manifest": manifest.read_text(),
        }
        for manifest in store.glob("[!.]*/*/manifest.json")
    }


def contents(store: Path) -> dict[str, str]:
    """Stage name -> content digest, which leaves times out."""
    return {f"{m.parent.parent.name}/{m.parent.name}": read_json(m)["digest"] for m in store.glob("[!.]*/*/manifest.json")}


def results(folder: Path) -> Any:
    """What a run found, without times, and without whether a stage was built or found: the rest of a killed run's is found."""
    found = without_times(read_json(folder / "result.json"))
    return {**found, "stages": [{**stage, "how": None} for stage in found["stages"]]}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not any(t in k for t in ("time", "second", "per_s", "folder"))}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which base model, judge and cycle 0 are done, and from which the three runs start."""
    folder = tmp_path_factory.mktemp("prepared")
    process = start(folder / "store", folder / "run", folder / "log")
    deadline = time.monotonic() + LIMIT_S
    try:
        while not list((folder / "store" / "train").glob("*/manifest.json")):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait(timeout=60)
    shutil.rmtree(folder / "store" / ".work", ignore_errors=True)
    return folder / "store"


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(prepared, folder / "store")
    finish(folder / "store", folder / "run", folder / "log")
    return folder


def in_training(store: Path) -> bool:
    """A training stage has two checkpoints behind it and is not finished."""
    return len(list(store.glob(".work/train-*/checkpoints/checkpoint-*/trainer_state.json"))) >= 2


def in_sampling(store: Path) -> bool:
    """A block of samples has been in the making for a second."""
    return any(time.time() - work.stat().st_mtime > 1.0 for work in store.glob(".work/sample-*"))


@pytest.mark.parametrize("moment", [in_training, in_sampling], ids=["in training", "in sampling"])
def test_a_run_killed_for_real_goes_on_and_ends_like_an_uninterrupted_one(
    prepared: Path, uninterrupted: Path, tmp_path: Path, moment: Callable[[Path], bool]
) -> None:
    store = shutil.copytree(prepared, tmp_path / "store")
    kill_when(moment, store, tmp_path / "killed", tmp_path / "log")
    before = finished(store)
    assert list(store.glob(".work/*")), "the kill came between two stages"
    assert contents(store).keys() < contents(uninterrupted / "store").keys()
    finish(store, tmp_path / "resumed", tmp_path / "log")
    after = finished(store)
    assert {name: after.get(name) for name in before} == before  # byte for byte, manifests included
    assert contents(store) == contents(uninterrupted / "store")
    assert results(tmp_path / "resumed") == results(uninterrupted / "run")
    if moment is in_training:
        assert any(read_json(m)["info"]["resumed_from_step"] >= 1 for m in store.glob("train/*/manifest.json"))
