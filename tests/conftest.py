"""Fixtures that all tests share: composing a config, and whole runs on fakes."""

from __future__ import annotations

import base64
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from iterative_ft.config.schema import Config
from iterative_ft.launch import compose as hydra_compose
from iterative_ft.loop import run
from iterative_ft.machine.files import read_jsonl
from tests.tiny import composed, embedded_model, tiny_model, tiny_model_bos, tiny_models  # noqa: F401  (fixtures: one a session)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and its children inherit that

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["sampler=fake", "n_seed=8", "n_sampled=6", "n_cycles=2", "measure.n_questions=6", "measure.n_answers=1"]
PIXEL = base64.b64decode(  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several add a product's parts up in an order that depends on where in memory they lie."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def compose() -> Callable[[list[str]], Config]:
    """`compose(["method=sft"])` gives the validated config."""
    return lambda overrides: hydra_compose.load_config(composed(overrides))


HEAVY = ("test_sampling", "test_gpu_paths", "test_sweeps", "test_training")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: of two processes that take files in turn, neither is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in HEAVY)


@dataclass(frozen=True)
class FakeRun:
    """A finished run on fakes."""

    folder: Path
    store: Path
    config: Config

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "metrics.jsonl")

    @property
    def measured(self) -> list[dict[str, Any]]:
        return [row for row in self.metrics if "cycle" in row]

    @property
    def stages(self) -> list[dict[str, Any]]:
        return self.json("manifest.json")["stages"]

    def built(self) -> list[str]:
        return [stage["label"] for stage in self.stages if stage["how"] == "built"]

    def manifest(self, label: str) -> dict[str, Any]:
        """The store's manifest of the stage of this label."""
        stage = next(s for s in self.stages if s["label"] == label)
        return json.loads((self.store / stage["kind"] / stage["key"] / "manifest.json").read_text())

    def rows(self, label: str, file: str) -> list[dict[str, Any]]:
        stage = next(s for s in self.stages if s["label"] == label)
        return read_jsonl(self.store / stage["kind"] / stage["key"] / file)


@pytest.fixture
def fake_run(tmp_path: Path, compose: Callable[[list[str]], Config]) -> Callable[..., FakeRun]:
    """`fake_run("method=sft", folder="a")` runs a small experiment on fakes; runs of one test share a store."""
    counter = iter(range(1000))

    def make(*overrides: str, folder: str | None = None, store: str = "store") -> FakeRun:
        config = compose([*SMALL, "wandb.mode=disabled", f"store={tmp_path / store}", *overrides])
        where = tmp_path / (folder if folder is not None else f"run{next(counter)}")
        run(config, where, "python train.py")
        return FakeRun(where, tmp_path / store, config)

    return make


modules_left_out: set[str] = set()


@pytest.fixture(autouse=True)
def libraries_left_out_of_collections() -> None:
    """Whoever trains collects garbage, which took half a second a time with a million objects of torch, TRL and vLLM in it."""
    if not sys.modules.keys() <= modules_left_out:
        modules_left_out.update(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, pages and git cost seconds and have tests of their own."""
    monkeypatch.setattr("iterative_ft.report.pictures.draw", lambda runs, file: file.write_bytes(PIXEL))
    monkeypatch.setattr("iterative_ft.loop.write_page", lambda folders, out: out)
    monkeypatch.setattr("iterative_ft.records.run_log.code_state", lambda folder: {})


def python(arguments: list[str], cwd: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run this Python in `cwd` on the checkout's code, without network."""
    variables = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT), **(environment or {})}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False
    )
