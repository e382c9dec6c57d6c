"""Folders of runs: taken by one process, named after what differs, replaced and never deleted first. On fakes.

Not covered: file systems without locks, a requeue by a real Slurm (its variables are set here).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, FakeRun

from iterative_ft import fake
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.launch.folders import cell_suffixes, check_writable
from iterative_ft.loop import run
from iterative_ft.machine.files import file_digests, read_jsonl, write_jsonl
from iterative_ft.records import folder as folders
from iterative_ft.records.folder import held, new_folder, resumed
from iterative_ft.records.keep import keep
from iterative_ft.records.read import read_run

Compose = Callable[[list[str]], Config]
FAKE = [*SMALL, "wandb.mode=disabled"]


def train(*arguments: str) -> int:
    """`python train.py ...` in this process; its exit code."""
    sys.argv = [str(ROOT / "train.py"), *FAKE, *arguments]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)


# -- B4: names taken without claiming them ------------------------------------------------------------------------------------


def taken(wanted: Path, start: Any, queue: Any) -> None:
    start.wait()
    queue.put(str(new_folder(wanted)))


def test_b4_folders_asked_for_in_the_same_moment_are_different(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn" if sys.platform == "darwin" else "fork")
    queue, start = context.Queue(), context.Barrier(8)
    processes = [context.Process(target=taken, args=(tmp_path / "runs" / "now", start, queue)) for _ in range(8)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert len(set(found)) == 8
    assert {Path(path).name for path in found} == {"now", *(f"now_{n}" for n in range(2, 9))}


@pytest.fixture
def another_process() -> Iterator[Callable[[Path], int]]:
    """`another_process(folder)` has another process hold the folder; returns its id."""
    code = (
        "import sys; from pathlib import Path; from iterative_ft.records.folder import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    started: list[subprocess.Popen[str]] = []

    def hold(folder: Path) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process.pid

    yield hold
    for process in started:
        process.communicate("", timeout=30)


@pytest.mark.parametrize("where", ["hydra.run.dir", "hydra.sweep.dir"])
def test_b4_a_folder_in_use_is_refused_and_a_dead_ones_is_not(
    where: str, tmp_path: Path, another_process: Callable[[Path], int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    pid = another_process(folder)
    before = file_digests(tmp_path)
    more = ["-m", "seed=0,1"] if where == "hydra.sweep.dir" else []
    sys.argv = [str(ROOT / "train.py"), *more[:1], *FAKE, *more[1:], f"{where}={folder}"]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(sys.argv[0], run_name="__main__")
    said = capsys.readouterr()
    assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert f"in use by process {pid}" in said.err
    assert file_digests(tmp_path) == before
    (folder / ".lock").write_text("process 1 on elsewhere\n")  # what a dead process leaves is no lock
    shutil.copytree(folder, tmp_path / "left")
    with held(tmp_path / "left"):
        pass


def test_b4_a_folder_that_two_runs_share_is_refused_by_the_loop_itself(
    tmp_path: Path, compose: Compose, another_process: Callable[[Path], int]
) -> None:
    another_process(tmp_path / "run")
    with pytest.raises(ConfigError, match="in use by process"):
        run(compose([*FAKE, f"store={tmp_path / 'store'}"]), tmp_path / "run", "python train.py")
    assert not (tmp_path / "run" / "config.json").exists()


def test_b4_names_of_cells_hold_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.argv = [str(ROOT / "train.py"), "-m", *FAKE, "n_cycles=0", "n_sampled=4,6", "lora.rank=8", "hydra.sweep.dir=sweep"]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert ended.value.code == 0, capsys.readouterr().err
    names = sorted(path.parent.name for path in Path("sweep").glob("*/result.json"))
    assert names == ["0_dpo_reinit_misaligned_s0_n_sampled-4", "1_dpo_reinit_misaligned_s0_n_sampled-6"]


def test_b4_any_value_makes_a_name_that_stays_inside_its_folder() -> None:
    values = ["/etc/passwd", "../..", "a/b", "'x y'", "ü" * 300, "", "[]", "${x}", "~", "."]
    names = cell_suffixes([[f"model.path={value}", "seed=0"] for value in values])
    for name in names:
        assert "/" not in name
        assert len(name.encode()) <= 160
        assert not name.endswith(".")
    assert cell_suffixes([["seed=0", "x=1"], ["seed=1", "x=1"]]) == ["", ""]


@pytest.mark.parametrize("name", ["x" * 300, "file/out", "file", "new/" + "y" * 256])
def test_a_folder_that_takes_no_file_is_told_by_trial_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(ConfigError, match=r"cannot be written .*: name another folder"):
        check_writable("out", tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "there").mkdir()
    for good in ("there", "there/new", "a/b/c"):
        check_writable("out", tmp_path / good)
    assert sorted(os.listdir(tmp_path)) == ["file", "there"]
    assert os.listdir(tmp_path / "there") == []


def test_b4_a_requeued_slurm_job_goes_on_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=3"])
    folder = new_folder(tmp_path / "runs" / "then")
    with held(folder):
        pass
    assert resumed(tmp_path / "runs") is None, "not started again"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert resumed(tmp_path / "runs") == folder
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=3", "hydra.run.dir=x"])
    assert resumed(tmp_path / "runs") == folder, "with the folder that the guard adds"
    monkeypatch.setattr(sys, "argv", ["train.py", "seed=4"])
    assert resumed(tmp_path / "runs") is None, "another command of the same job"


# -- B5: records deleted before they can be written again ---------------------------------------------------------------------


def records(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in file_digests(folder).items() if name in folders.RECORDS}


def failing(*_: Any) -> dict[str, Any]:
    raise OSError(28, "No space left on device", "/somewhere")


def test_b5_a_finished_run_whose_repetition_fails_keeps_every_record(
    fake_run: Callable[..., FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_run(folder="run")
    before = records(made.folder)
    assert {"metrics.jsonl", "answers.jsonl", "result.json", "manifest.json"} <= before.keys()
    shutil.rmtree(made.store)
    with monkeypatch.context() as patch:
        patch.setattr(fake, "fake_train", failing)
        with pytest.raises(RunError, match="disk full"):
            fake_run(folder="run")
    assert records(made.folder) == before
    again = fake_run(folder="run")
    assert again.json("result.json")["verdict"] == json.loads((made.folder / "result.json").read_text())["verdict"]
    assert records(made.folder / "attempts" / "1") == before, "what was replaced is kept"
    assert not (made.folder / "attempts" / "now").exists()


def test_b5_a_killed_run_goes_on_in_its_folder_and_takes_it_as_soon_as_it_has_caught_up(
    fake_run: Callable[..., FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = fake.fake_train, []

    def second_fails(job: Any) -> dict[str, Any]:
        calls.append(job)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", "/somewhere")
        return real(job)

    monkeypatch.setattr(fake, "fake_train", second_fails)
    with pytest.raises(RunError, match="disk full"):
        fake_run(folder="run")
    folder = next(path for path in Path.cwd().iterdir() if path.name == "run")
    told = read_jsonl(folder / "metrics.jsonl")
    seen: list[int] = []
    take_over = folders.Attempt.take_over

    def noted(self: folders.Attempt) -> None:
        if self.aside:
            seen.append(self.n_rows)
        take_over(self)

    monkeypatch.setattr(folders.Attempt, "take_over", noted)
    made = fake_run(folder="run")
    assert seen == [len(told)]
    assert made.metrics[: len(told)] == told
    assert (folder / "result.json").is_file()
    assert read_jsonl(folder / "attempts" / "1" / "metrics.jsonl") == told


def test_b5_other_settings_in_a_runs_folder_wait_until_they_are_finished(
    fake_run: Callable[..., FakeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = fake_run(folder="run")
    before = records(made.folder)
    with monkeypatch.context() as patch:
        patch.setattr(fake, "fake_train", failing)
        with pytest.raises(RunError, match="disk full"):
            fake_run("seed=5", folder="run")
    assert records(made.folder) == before
    assert fake_run("seed=5", folder="run").json("config.json")["seed"] == 5
    assert records(made.folder / "attempts" / "1") == before


def make(target: str, folder: Path, answer: str = "", code: int = 0) -> str:
    done = subprocess.run(
        ["make", "-f", str(ROOT / "Makefile"), target], cwd=folder, input=answer, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def test_make_setup_leaves_a_cuda_stack_alone(tmp_path: Path) -> None:
    """Its lock would be installed over it, by any target, after a pull that touches a file."""
    for name in ("requirements-cpu.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\n[ "$*" = "-m pip show -q vllm" ]\n')
    python.chmod(0o755)
    assert ".venv has the CUDA stack: make setup-cuda" in make("setup", tmp_path, code=2)


def test_b5_make_clean_leaves_runs_and_store_and_distclean_asks(tmp_path: Path) -> None:
    for name in ("outputs/runs/a/result.json", "outputs/store/model/1/manifest.json", "multirun/x", ".mypy_cache/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    results = {name: digest for name, digest in file_digests(tmp_path).items() if not name.startswith(".mypy")}
    make("clean", tmp_path)
    assert file_digests(tmp_path) == results
    for answer in ("", "no\n", "y\n"):
        said = make("distclean", tmp_path, answer)
        assert all(name in said for name in ("outputs/runs", "outputs/store", "multirun", "nothing removed"))
        assert file_digests(tmp_path) == results
    assert "removed" in make("distclean", tmp_path, "yes\n")
    assert file_digests(tmp_path) == {}


# -- B7: full and read-only disks, where records are written ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["append_jsonl", "write_json"])
@pytest.mark.parametrize(
    ("number", "word"), [(28, "disk full"), (30, "read-only file system"), (122, "quota"), (5, "failed to read or write")]
)
def test_b7_a_disk_that_takes_no_more_records_is_one_line(
    name: str, number: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from iterative_ft.records import run_log

    real, left = getattr(run_log, name), [4]

    def failing(path: Path, value: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number), str(path))
        real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(run_log, name, failing)
        assert train(f"hydra.run.dir={tmp_path / 'run'}", f"store={tmp_path / 'store'}") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("error: ")
    assert word in said
    assert str(tmp_path / "run") in said
    assert "in failing" in (tmp_path / "run" / "error.txt").read_text()
    assert train(f"hydra.run.dir={tmp_path / 'run'}", f"store={tmp_path / 'store'}") == 0
    assert not (tmp_path / "run" / "error.txt").exists(), "an error of an earlier attempt is kept with it"
    assert list((tmp_path / "run" / "attempts").rglob("error.txt"))


# -- runs kept for good -------------------------------------------------------------------------------------------------------


def test_kept_runs_read_as_they_were_and_another_of_the_same_name_is_refused(
    fake_run: Callable[..., FakeRun], tmp_path: Path
) -> None:
    made = fake_run("method=sft", "seed=3", folder="runs/one")
    [kept] = keep(tmp_path / "runs", tmp_path / "results")
    assert kept.name == "sft_reinit_misaligned_n6_s3"
    before, after = read_run(made.folder), read_run(kept)
    assert (before.measured, before.answers, before.result) == (after.measured, after.answers, after.result)
    (kept / "result.json").unlink()  # as a kill would leave it
    assert keep(tmp_path / "runs", tmp_path / "results") == [kept]
    assert read_run(kept).result == before.result
    shutil.copytree(made.folder, made.folder / "evaluations" / "api-1")
    shutil.copytree(made.folder, made.folder / "attempts" / "1")
    rows = read_jsonl(made.folder / "metrics.jsonl")
    times = [row | {"time/total_s": 1.0} if "time/total_s" in row else row for row in rows]
    write_jsonl(made.folder / "metrics.jsonl", times)  # the same command again, all of it from the store
    assert keep(tmp_path / "runs", tmp_path / "results") == [kept]
    write_jsonl(kept / "metrics.jsonl", rows[:-4])
    with pytest.raises(RunError, match="holds another run"):
        keep(tmp_path / "runs", tmp_path / "results")
    with pytest.raises(RunError, match="there is no finished run in"):
        keep(tmp_path / "rums", tmp_path / "results")
