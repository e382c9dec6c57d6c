"""The store: atomic, addressed by contents, safe between processes. Not covered: network file systems, loss of power."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, FakeRun

from iterative_ft.config.schema import Config
from iterative_ft.errors import RunError
from iterative_ft.loop import plan
from iterative_ft.store import Kind, Stage, Store, stage_key
from iterative_ft.store.clearing import garbage, main
from iterative_ft.store.references import References

DATA, SAMPLE, TRAIN, ANSWER = Kind("data", 1), Kind("sample", 1), Kind("train", 1), Kind("answer", 1)


def text_stage(store: Store, text: str, inputs: dict[str, Any] | None = None, kind: Kind = DATA) -> Stage:
    return store.stage(kind, {"text": text} if inputs is None else inputs, lambda out: write(out, text), text)


def write(out: Path, text: str) -> dict[str, Any]:
    (out / "sub").mkdir(exist_ok=True)
    (out / "sub" / "a.txt").write_text(text)
    return {"n": len(text)}


def never(out: Path) -> None:
    raise AssertionError("built again")


def test_a_stage_holds_its_files_and_a_manifest(tmp_path: Path) -> None:
    stage = text_stage(Store(tmp_path), "hello")
    assert (stage.path / "sub" / "a.txt").read_text() == "hello"
    manifest = json.loads((stage.path / "manifest.json").read_text())
    assert manifest["info"] == {"n": 5}
    assert manifest["files"].keys() == {"sub/a.txt"}
    assert manifest["inputs"] == {"text": "hello"}
    assert {"label", "seconds", "created", "digest", "kind", "key"} <= manifest.keys()
    assert Store(tmp_path).stage(DATA, {"text": "hello"}, never, "again").digest == stage.digest


def test_key_changes_with_kind_code_version_and_each_input() -> None:
    inputs = {"policy": "d1", "seed": 0, "dtype": "bfloat16", "nested": {"a": [1, 2]}}
    keys = [stage_key(SAMPLE, inputs), stage_key(Kind("answer", 1), inputs)]
    keys += [stage_key(SAMPLE, {**inputs, name: "other"}) for name in inputs]
    keys.append(stage_key(SAMPLE, {**inputs, "nested": {"a": [2, 1]}}))
    keys.append(stage_key(Kind("sample", 99), inputs))
    assert len(set(keys)) == len(keys)
    assert stage_key(SAMPLE, dict(reversed(inputs.items()))) == keys[0], "the order of inputs does not matter"


def test_children_are_keyed_on_the_contents_of_their_parents(fake_run: Callable[..., FakeRun]) -> None:
    run = fake_run()
    train = run.manifest("train policy[0] from base")
    assert train["inputs"]["data"] == run.manifest("cycle 0 data")["digest"]
    assert run.manifest("judge base")["inputs"]["answers"] == [run.manifest("answers of base")["digest"]]
    assert run.manifest("cycle 1 data")["inputs"]["chosen"] == [run.manifest("sample policy[0] for cycle 1")["digest"]]
    labels = [s["label"] for s in run.stages]
    keys = {s["key"] for s in run.stages}
    for label in labels:
        assert not keys & set(re.findall(r"[0-9a-f]{20}", json.dumps(run.manifest(label)["inputs"]))), "a parent's key"


def test_invariant_10_a_folder_without_a_manifest_is_never_read(tmp_path: Path) -> None:
    final = tmp_path / "data" / stage_key(DATA, {"text": "hello"})
    final.mkdir(parents=True)
    (final / "left.txt").write_text("half")
    work = tmp_path / ".work" / f"data-{final.name}"
    work.mkdir(parents=True)
    (work / "left.txt").write_text("half")
    stage = text_stage(Store(tmp_path), "hello")
    assert stage.manifest["files"].keys() == {"sub/a.txt"}
    assert not (stage.path / "left.txt").exists()


def test_a_failed_build_leaves_no_stage(tmp_path: Path) -> None:
    def half(out: Path) -> None:
        write(out, "hello")
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        Store(tmp_path).stage(DATA, {"text": "hello"}, half, "half")
    assert not list(Store(tmp_path).stages())
    assert text_stage(Store(tmp_path), "hello").manifest["info"] == {"n": 5}


def test_a_resumable_build_finds_what_it_left(tmp_path: Path) -> None:
    def half(out: Path) -> None:
        (out / "checkpoint").write_text("1")
        raise RuntimeError("broke")

    for resumable in (("checkpoint",), ()):
        with pytest.raises(RuntimeError):
            Store(tmp_path).stage(TRAIN, {"r": list(resumable)}, half, "half", resumable=resumable)
        found: list[bool] = []
        Store(tmp_path).stage(
            TRAIN,
            {"r": list(resumable)},
            lambda out, f=found: f.append((out / "checkpoint").exists()),
            "whole",
            resumable=resumable,
        )
        assert found == [bool(resumable)]


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "manifest"])
def test_a_damaged_stage_is_found_and_rebuilt_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    stage = text_stage(Store(tmp_path), "hello")
    file = stage.path / "sub" / "a.txt"
    if damage == "changed":
        file.write_text("jello")
    elif damage == "removed":
        file.unlink()
    elif damage == "added":
        (stage.path / "more.txt").write_text("x")
    else:
        (stage.path / "manifest.json").write_text('{"kind": "da')
    events = []
    again = Store(tmp_path, on_event=events.append)
    assert text_stage(again, "hello").digest == stage.digest
    assert [event.how for event in events] == ["built"]
    assert file.read_text() == "hello"
    assert not (stage.path / "more.txt").exists()
    warning = capsys.readouterr().err
    assert "damaged" in warning
    assert str(stage.path) in warning
    assert Store(tmp_path).stage(DATA, {"text": "hello"}, never, "again").digest == stage.digest


def test_a_damaged_stage_of_a_run_is_rebuilt_alone(fake_run: Callable[..., FakeRun]) -> None:
    run = fake_run()
    stage = next(s for s in run.stages if s["label"] == "cycle 1 data")
    (run.store / "data" / stage["key"] / "examples.jsonl").write_text("{}\n")
    again = fake_run()
    assert again.built() == ["cycle 1 data"]
    assert again.measured == run.measured


def test_dry_run_writes_nothing(tmp_path: Path, compose: Callable[[list[str]], Config]) -> None:
    events = plan(compose([*SMALL, f"store={tmp_path / 'store'}"]))
    assert {event.how for event in events} == {"pending"}
    assert not list(tmp_path.iterdir())


def test_disk_full_says_what_is_kept_and_how_to_go_on(tmp_path: Path) -> None:
    def full(out: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    kept = text_stage(store, "kept")
    with pytest.raises(RunError) as caught:
        store.stage(TRAIN, {"a": 1}, full, "train policy[0] from base")
    message = str(caught.value)
    assert "\n" not in message
    for words in ("disk full", "train policy[0]", str(tmp_path), "kept", "gc", "same command"):
        assert words in message
    assert Store(tmp_path).stage(DATA, {"text": "kept"}, never, "again").digest == kept.digest


def test_other_os_errors_pass(tmp_path: Path) -> None:
    def broken(out: Path) -> None:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        Store(tmp_path).stage(DATA, {}, broken, "broken")


def slow_build(out: Path, log: Path) -> None:
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    for part in range(20):
        (out / f"{part}.txt").write_text(str(part) * 1000)
        time.sleep(0.02)


def worker(root: Path, log: Path, number: int) -> None:
    store = Store(root)
    for stage in range(2):
        found = store.stage(DATA, {"stage": stage}, lambda out: slow_build(out, log), "slow")
        files = {p.name: p.read_text() for p in found.path.glob("*.txt")}
        assert files == {f"{part}.txt": str(part) * 1000 for part in range(20)}
    (root.parent / f"done-{number}").touch()


def test_invariant_10_two_processes_never_build_a_stage_twice_nor_read_half_of_one(tmp_path: Path) -> None:
    log = tmp_path / "builds"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=worker, args=(tmp_path / "store", log, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(log.read_text().split()) == 2, "each of the two stages is built once"
    assert len(list(tmp_path.glob("done-*"))) == 2


def test_ls_lists_stages_and_their_users(fake_run: Callable[..., FakeRun], capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run("n_cycles=0")
    capsys.readouterr()
    assert main(["ls", str(run.store)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(run.stages) + 1
    assert all("runs 1" in line for line in lines[:-1])
    assert any(line.endswith("train policy[0] from base") for line in lines)
    assert main(["ls", str(run.store / "nowhere")]) == 2


def wasted(root: Path, forget_missing: bool = False) -> dict[str, str]:
    """What gc would remove: name -> why."""
    store = Store(root)
    return {waste.path.name: waste.why for waste in garbage(store, References(root), forget_missing)}


def test_gc_keeps_what_a_run_refers_to(fake_run: Callable[..., FakeRun], capsys: pytest.CaptureFixture[str]) -> None:
    run, gone = fake_run("n_cycles=1"), fake_run("n_cycles=1", "seed=1")
    assert not wasted(run.store, forget_missing=True)
    theirs = {s["key"] for s in gone.stages} - {s["key"] for s in run.stages}
    shutil.rmtree(gone.folder)
    assert not wasted(run.store), "a folder that is not seen may be on another machine"
    doomed = wasted(run.store, forget_missing=True)
    assert doomed.keys() == theirs
    capsys.readouterr()
    assert main(["gc", str(run.store), "--forget-missing"]) == 0
    assert "would remove" in capsys.readouterr().out
    assert wasted(run.store, forget_missing=True) == doomed, "without --yes nothing is removed"
    assert main(["gc", str(run.store), "--yes", "--forget-missing"]) == 0
    assert not wasted(run.store, forget_missing=True)
    assert len(list((run.store / ".refs").iterdir())) == 1, "a run that was forgotten is not told of again"
    assert not list((run.store / ".trash").iterdir())
    assert fake_run("n_cycles=1").built() == []


def test_gc_removes_crash_leftovers_but_leaves_locked_stages(tmp_path: Path) -> None:
    store = Store(tmp_path)
    keys = [letter * 20 for letter in "abc"]
    for key in keys[:2]:
        (tmp_path / ".work" / f"data-{key}").mkdir(parents=True)
    (tmp_path / "data" / keys[2]).mkdir(parents=True)
    with store.lock("data", keys[0]):
        assert wasted(tmp_path) == {f"data-{keys[1]}": "left by a crash", keys[2]: "no manifest"}


def test_stages_of_a_running_run_are_referred_to_before_they_are_built(tmp_path: Path) -> None:
    run = tmp_path / "run"
    store = Store(tmp_path / "store", run_folder=run)

    def build(out: Path) -> None:
        assert References(tmp_path / "store").users(True) == {f"data/{stage_key(DATA, {})}": [str(run)]}

    store.stage(DATA, {}, build, "built")
    assert not wasted(tmp_path / "store", forget_missing=True)


# -- invariant 11 ---------------------------------------------------------------------------------------------------------


def test_invariant_11_no_shipped_model_trusts_remote_code(compose: Callable[[list[str]], Config]) -> None:
    for file in (ROOT / "conf" / "model").glob("*.yaml"):
        assert "trust_remote_code: false" in file.read_text()
    assert compose(["sampler=fake"]).model.trust_remote_code is False


def test_invariant_11_no_secret_is_written(fake_run: Callable[..., FakeRun], monkeypatch: pytest.MonkeyPatch) -> None:
    marker = "5ecretmarker" * 3 + "4711"  # 40 characters, as W&B wants its keys
    for name in ("OPENAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, marker)
    run = fake_run("n_cycles=0", "wandb.mode=offline")
    files = [p for folder in (run.folder, run.store) for p in folder.rglob("*") if p.is_file()]
    assert any(p.suffix == ".wandb" for p in files)
    assert [p for p in files if marker.encode() in p.read_bytes()] == []
