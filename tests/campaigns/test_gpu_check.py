"""`make gpu-check DEVICE=cpu` runs whole: the program works, whatever it will find on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iterative_ft.machine.device import n_gpus

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.long
def test_every_check_runs_on_a_cpu_and_leaves_a_table_and_a_file(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu_check", "--device", "cpu", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip
    print(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(out.read_text())
    assert {result["check"]: result["ok"] for result in found["checks"]} == {
        "serve llama": True, "serve qwen3": True, "serve gemma": True, "train": True, "sweep": True, "calibrate": True,
        "judge by the engine": True, "speed": True, "train on two": True,
    }  # fmt: skip
    assert all(result["numbers"] for result in found["checks"])


def test_a_check_that_fails_is_told_and_ends_with_an_error(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    sys.path.insert(0, str(ROOT))
    from tests import gpu_check

    result = gpu_check.tried("no such check", "cpu", 0)
    assert not result["ok"]
    assert "KeyError" in result["said"][-1]
    assert "FAILED" in gpu_check.table([result])
    assert not out.exists()


@pytest.mark.skipif(n_gpus() > 0, reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu_check"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2
    assert "make gpu-check DEVICE=cpu" in ended.stdout
