"""Every file of sweeps/ on fakes: all cells run, again from the store alone, and after a kill as if there had been none.

Cut to two cycles and few questions, every cell is there; the whole files are marked long. Not covered: real models and judges.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from iterative_ft.launch import compose as hydra_compose
from iterative_ft.machine.files import read_jsonl
from iterative_ft.sampling import engine
from iterative_ft.store import stages

NAMES = sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml"))
CUT = ["n_cycles=2", "measure.n_questions=4", "measure.n_answers=1", "measure.n_openings=2"]


def sweep(name: str, folder: Path, store: Path, *more: str) -> int:
    """`python train.py -m +sweep=<name> sampler=fake` in this process; its exit code."""
    fake = ["sampler=fake", "wandb.mode=disabled", f"store={store}", f"hydra.sweep.dir={folder}"]
    sys.argv = [str(ROOT / "train.py"), "-m", f"+sweep={name}", *fake, *more]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        engine.close_sampler()
    return 0


def found(folder: Path) -> dict[str, Any]:
    """By cell: its rows but for times, its answers, and its verdict."""
    cells = [path for path in sorted(folder.iterdir()) if (path / "config.json").is_file()]
    return {
        cell.name: (
            [row for row in read_jsonl(cell / "metrics.jsonl") if not any(name.startswith("time/") for name in row)],
            read_jsonl(cell / "answers.jsonl"),
            json.loads((cell / "result.json").read_text())["verdict"],
        )
        for cell in cells
    }


def stored(store: Path) -> set[str]:
    return {f"{p.parent.parent.name}/{p.parent.name}" for p in store.glob("[!.]*/*/manifest.json")}


def n_cells(name: str) -> int:
    hydra_compose.register_sweeps()
    return len(hydra_compose.planned([f"+sweep={name}"], True, [], "config").cells)


def killed_sweep(name: str, folder: Path, store: Path, n_built: int, more: list[str]) -> None:
    """The sweep, killed when it has built so many stages and the next is half done."""
    real, left = stages.write_json, [n_built]

    def torn(path: Path, value: Any) -> None:
        if path.name == stages.MANIFEST and ".work" in path.parts:
            left[0] -= 1
            if left[0] < 0:
                path.write_text(json.dumps(value)[:40])
                os.kill(os.getpid(), signal.SIGKILL)
        real(path, value)

    stages.write_json = torn  # type: ignore[assignment]
    sweep(name, folder, store, *more)


def run_twice_and_killed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], parts: tuple[int, ...] = (3, 2)
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr("iterative_ft.launch.sweep.write_page", lambda done, file: file.write_text(str(len(done))))
    assert sweep(name, tmp_path / "one", tmp_path / "store", *more) == 0
    once, built = found(tmp_path / "one"), stored(tmp_path / "store")
    assert len(once) == n_cells(name)
    assert sweep(name, tmp_path / "one", tmp_path / "store", *more) == 0
    assert found(tmp_path / "one") == once
    assert stored(tmp_path / "store") == built, "the second time builds nothing"

    for part in parts:  # killed after the third and the half of its stages
        place = tmp_path / f"killed{part}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads: the child starts none
            arguments = (name, place / "sweep", place / "store", len(built) // part, more)
            process = multiprocessing.get_context("fork").Process(target=killed_sweep, args=arguments)
            process.start()
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        kept = stored(place / "store")
        assert len(kept) == len(built) // part
        assert sweep(name, place / "sweep", place / "store", *more) == 0
        assert found(place / "sweep") == once
        assert stored(place / "store") == built


def test_b8_a_sweep_run_twice_and_killed_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_twice_and_killed("claims_null", tmp_path, monkeypatch, CUT, (2,))


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("claims_null", "mitigations")])
def test_b8_every_other_sweep_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_twice_and_killed(name, tmp_path, monkeypatch, CUT)


@pytest.mark.long
def test_b8_mitigations_as_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_twice_and_killed("mitigations", tmp_path, monkeypatch, [])
