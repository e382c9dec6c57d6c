"""Faults of the store and of what a disk refuses, one by one. Not covered here: real kills and processes (tests/campaigns)."""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SMALL, FakeRun
from killed_run import forked
from test_store import ANSWER, DATA, TRAIN, never, text_stage, wasted

from iterative_ft import loop
from iterative_ft import stages as stage_modules
from iterative_ft.config.check import check_store
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.evaluate.judge_card import Labelled, judged_by
from iterative_ft.loop import plan
from iterative_ft.machine import files
from iterative_ft.records.folder import LOCK
from iterative_ft.store import Kind, Stage, Store, clearing, references, stage_key, stages
from iterative_ft.store.layout import KINDS, MARKER
from iterative_ft.store.manifest import record_digest

Run = Callable[..., FakeRun]
Captured = pytest.CaptureFixture[str]
DIGEST_OF_HELLO = "ee1b688719c1cc25673621afa429a66b"  # of text_stage("hello"), as the first version of the store had it


def edit(stage: Stage, **changes: Any) -> None:
    manifest = json.loads((stage.path / "manifest.json").read_text())
    (stage.path / "manifest.json").write_text(json.dumps(manifest | changes))


def how_had(root: Path, text: str = "hello") -> str:
    events: list[Any] = []
    text_stage(Store(root, on_event=events.append), text)
    return events[-1].how


def gc(root: Path, *flags: str) -> int:
    return clearing.main(["gc", str(root), "--yes", *flags])


def everything(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*")}


# -- A12: what a manifest says is believed as it was written, or not at all ----------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"info": {"n": 6}}, {"label": "other"}, {"seconds": 1e6}, {"created": "never"}, {"inputs": {}}]
)
def test_a12_an_edited_manifest_is_not_believed(tmp_path: Path, capsys: Captured, change: dict[str, Any]) -> None:
    stage = text_stage(Store(tmp_path), "hello")
    edit(stage, **change)
    assert how_had(tmp_path) == "built"
    assert "damaged" in capsys.readouterr().err
    assert text_stage(Store(tmp_path), "hello").info == {"n": 5}
    edit(stage, **change)
    assert Store(tmp_path).find("data", stage.key) is None, "nor by its key"


def test_a12_inputs_are_held_against_the_key_also_where_no_digest_covers_them(tmp_path: Path) -> None:
    stage = text_stage(Store(tmp_path), "hello")
    edit(stage, inputs={"text": "other"}, record=None)
    manifest = json.loads((stage.path / "manifest.json").read_text())
    del manifest["record"]
    (stage.path / "manifest.json").write_text(json.dumps(manifest))
    assert how_had(tmp_path) == "built"


def test_a12_manifests_of_older_versions_are_accepted_and_content_digests_are_what_they_were(tmp_path: Path) -> None:
    stage = text_stage(Store(tmp_path), "hello")
    manifest = json.loads((stage.path / "manifest.json").read_text())
    assert manifest["record"] == record_digest(manifest)
    assert stage.digest == DIGEST_OF_HELLO
    del manifest["record"]
    (stage.path / "manifest.json").write_text(json.dumps(manifest, indent=3))
    assert Store(tmp_path).stage(DATA, {"text": "hello"}, never, "again").digest == stage.digest


def test_a12_info_with_keys_that_json_turns_into_text_is_no_damage(tmp_path: Path) -> None:
    made = Store(tmp_path).stage(DATA, {"a": (1, 2)}, lambda out: {"marks": {10: "x", 9: "y"}, "pair": (1, 2)}, "made")
    again = Store(tmp_path).stage(DATA, {"a": (1, 2)}, never, "again")
    assert made.info == again.info == {"marks": {"10": "x", "9": "y"}, "pair": [1, 2]}


def test_a1_info_that_is_not_finite_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="trained: a number that is not finite") as caught:
        Store(tmp_path).stage(TRAIN, {}, lambda out: {"adapter_norm": float("nan")}, "trained")
    assert "\n" not in str(caught.value)
    assert not list(Store(tmp_path).stages())


# -- B1: gc knows its object ---------------------------------------------------------------------------------------------------


def test_kinds_are_those_that_the_code_makes() -> None:
    modules = [
        importlib.import_module(f"{stage_modules.__name__}.{m.name}") for m in pkgutil.iter_modules(stage_modules.__path__)
    ]
    made = {value.name for module in modules for value in vars(module).values() if isinstance(value, Kind)}
    assert made == KINDS
    with pytest.raises(ValueError, match="KINDS"):
        Kind("other", 1)


def test_b1_gc_and_ls_refuse_what_is_no_store(fake_run: Run, tmp_path: Path, capsys: Captured) -> None:
    run = fake_run("n_cycles=0")
    (tmp_path / "empty").mkdir()
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "data" / "rows.jsonl").write_text("{}")
    before = everything(tmp_path)
    capsys.readouterr()
    for folder in (
        tmp_path,
        run.folder,
        tmp_path / "empty",
        tmp_path / "project",
        run.store / "train",
        run.folder / "config.json",
    ):
        for command in (["gc", str(folder), "--yes", "--forget-missing"], ["ls", str(folder)]):
            assert clearing.main(command) == 2, folder
            said = capsys.readouterr()
            assert said.out == ""
            assert said.err.count("\n") == 1
            assert "is no store" in said.err
            assert str(folder) in said.err
    assert everything(tmp_path) == before


def test_b1_an_unmarked_store_of_an_older_version_goes_on_working(fake_run: Run, capsys: Captured) -> None:
    run = fake_run("n_cycles=0")
    assert (run.store / MARKER).is_file()
    (run.store / MARKER).unlink()
    for reference in (run.store / ".refs").iterdir():  # as they were
        said = json.loads(reference.read_text())
        reference.write_text(json.dumps({"run": said["run"], "stages": said["stages"]}))
    capsys.readouterr()
    assert clearing.main(["ls", str(run.store)]) == 0
    assert capsys.readouterr().out.count("runs 1") == len(run.stages)
    assert gc(run.store) == 0
    assert fake_run("n_cycles=0").built() == []
    assert not (run.store / MARKER).exists(), "nothing was made: it may be one that is only read"
    (run.store / "notes.txt").write_text("mine")
    assert clearing.main(["ls", str(run.store)]) == 2
    assert fake_run("n_cycles=1").built() != []
    assert clearing.main(["ls", str(run.store)]) == 0, "marked by the first stage that was made in it"


def test_b1_gc_touches_known_kinds_and_keys_only_and_follows_no_link(tmp_path: Path, capsys: Captured) -> None:
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    text_stage(Store(store, run_folder=tmp_path / "run"), "kept")
    key = "0" * 20
    for path in (
        elsewhere / key / "a.txt",  # what links point at
        elsewhere / "linked" / "a.txt",
        store / "runs" / key / "a.txt",  # no kind
        store / "data" / "mine" / "a.txt",  # no key
        store / "data" / ("A" * 20) / "a.txt",
        store / ".work" / "mine" / "a.txt",
        store / ".work" / f"runs-{key}" / "a.txt",
        store / ".trash" / "mine" / "a.txt",
        store / "data" / "notes.txt" / "a.txt",
        store / "mine.txt" / "a.txt",
    ):
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    (store / "train").symlink_to(elsewhere)
    (store / "data" / ("1" * 20)).symlink_to(elsewhere / "linked")
    (store / ".work" / f"train-{key}").symlink_to(elsewhere / "linked")
    (store / ".trash" / f"data-{key}.ab").symlink_to(elsewhere / "linked")
    (store / "judge").write_text("a file in place of a kind")
    before = everything(tmp_path) - {f"store/.trash/data-{key}.ab"}
    assert gc(store, "--forget-missing") == 0
    assert everything(tmp_path) == before
    assert "left alone" in capsys.readouterr().out
    assert clearing.main(["ls", str(store)]) == 0
    listed = capsys.readouterr().out
    assert "(a link)" in listed
    assert "kept" in listed


# -- B2: gc beside runs --------------------------------------------------------------------------------------------------------


def test_b2_gc_reads_references_again_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = text_stage(Store(tmp_path / "store", run_folder=tmp_path / "gone"), "hello")
    shutil.rmtree(tmp_path / "gone")
    real = clearing.garbage

    def looked(*arguments: Any) -> Any:
        found = real(*arguments)
        assert [waste.key for waste in found] == [stage.key]
        text_stage(Store(tmp_path / "store", run_folder=tmp_path / "new"), "hello")  # a run comes between look and removal
        return found

    monkeypatch.setattr(clearing, "garbage", looked)
    assert gc(tmp_path / "store", "--forget-missing") == 0
    assert how_had(tmp_path / "store") == "stored"


def test_b2_a_stage_that_gc_takes_while_a_run_looks_at_it_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    stage = text_stage(Store(tmp_path, run_folder=tmp_path / "run"), "hello")
    real, calls = stages.read_stage, []

    def slow(*arguments: Any) -> Any:
        found = real(*arguments)
        if not calls:
            calls.append(1)
            shutil.rmtree(stage.path)
        return found

    monkeypatch.setattr(stages, "read_stage", slow)
    assert how_had(tmp_path) == "built"
    assert "damaged" not in capsys.readouterr().err


def test_b2_a_stage_is_taken_away_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = text_stage(Store(tmp_path, run_folder=tmp_path / "run"), "hello")
    shutil.rmtree(tmp_path / "run")

    def killed(path: Path) -> None:
        assert not stage.path.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(clearing, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        gc(tmp_path, "--forget-missing")
    monkeypatch.undo()
    assert len(list((tmp_path / ".trash").iterdir())) == 1
    assert gc(tmp_path) == 0
    assert not list((tmp_path / ".trash").iterdir()), "what a killed gc left, the next one removes"


def test_b2_an_attempt_keeps_what_the_attempts_before_it_used(fake_run: Run) -> None:
    run = fake_run("n_cycles=1", folder="run")
    keys = {s["key"] for s in run.stages}
    store = Store(run.store, run_folder=run.folder)
    store.use(f"model/{run.stages[0]['key']}")  # the same command again has come to its first stage
    assert not wasted(run.store, forget_missing=True)
    again = fake_run("n_cycles=0", folder="run")  # ends with fewer
    assert wasted(run.store, forget_missing=True).keys() == keys - {s["key"] for s in again.stages} != set()


# -- B3: what is still wanted --------------------------------------------------------------------------------------------------


def test_b3_checkpoints_and_replies_of_a_run_are_kept(tmp_path: Path) -> None:
    root, run = tmp_path / "store", tmp_path / "run"

    def half(out: Path) -> None:
        (out / "partial.jsonl").write_text("paid for\n")
        raise RuntimeError("broke")

    with pytest.raises(RuntimeError):
        Store(root, run_folder=run).stage(TRAIN, {}, half, "half", resumable=("partial.jsonl",))
    work = root / ".work" / f"train-{stage_key(TRAIN, {})}"
    assert gc(root, "--forget-missing") == 0
    assert (work / "partial.jsonl").is_file()
    shutil.rmtree(run)
    assert gc(root) == 0
    assert (work / "partial.jsonl").is_file(), "the run may be on another machine"
    assert gc(root, "--forget-missing") == 0
    assert not work.exists()


def test_b3_work_of_a_stage_that_is_finished_by_now_goes(tmp_path: Path) -> None:
    stage = text_stage(Store(tmp_path, run_folder=tmp_path / "run"), "hello")
    work = tmp_path / ".work" / f"data-{stage.key}"
    work.mkdir()
    assert gc(tmp_path) == 0
    assert not work.exists()
    assert how_had(tmp_path) == "stored"


@pytest.mark.parametrize("old", [False, True], ids=["today's references", "references of older versions"])
def test_b3_run_folders_that_moved_with_the_store_are_found(fake_run: Run, tmp_path: Path, old: bool, capsys: Captured) -> None:
    run = fake_run("n_cycles=0", folder="outputs/runs/one", store="outputs/store")
    gone = fake_run("n_cycles=0", "seed=1", folder="outputs/runs/two", store="outputs/store")
    theirs = {s["key"] for s in gone.stages} - {s["key"] for s in run.stages}
    for reference in (run.store / ".refs").iterdir() if old else ():
        said = json.loads(reference.read_text())
        reference.write_text(json.dumps({"run": said["run"], "stages": said["stages"]}))
    (tmp_path / "outputs").rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "runs" / "two")
    store = tmp_path / "moved" / "store"
    doomed = wasted(store, forget_missing=True)
    assert doomed.keys() == theirs
    assert not wasted(store)
    capsys.readouterr()
    assert gc(store) == 0
    assert "two (host" in capsys.readouterr().out, "who is not seen is told"


def test_b3_where_a_run_folder_cannot_be_looked_at_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text_stage(Store(tmp_path / "store", run_folder=tmp_path / "run"), "hello")

    def denied(folder: Path) -> bool:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(references, "stat_folder", denied)
    assert not wasted(tmp_path / "store", forget_missing=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"run": "/x"}', '{"run": "/x", "stages": "all"}', '{"stages": [1]}', "\ud800"]
)
def test_b3_a_damaged_reference_keeps_everything(tmp_path: Path, capsys: Captured, text: str) -> None:
    text_stage(Store(tmp_path, run_folder=tmp_path / "run"), "hello")
    (reference,) = (tmp_path / ".refs").glob("*.json")
    reference.write_text(text, errors="surrogatepass")
    assert gc(tmp_path) == 0
    assert how_had(tmp_path) == "stored"
    assert str(reference) in capsys.readouterr().out
    assert clearing.main(["ls", str(tmp_path)]) == 0


def test_b3_stages_without_a_run_folder_are_kept(tmp_path: Path) -> None:
    stage = text_stage(Store(tmp_path), "hello")
    assert not wasted(tmp_path)
    assert wasted(tmp_path, forget_missing=True) == {stage.key: "no run uses it"}


def test_b3_stages_of_the_judge_card_are_referred_to_by_its_folder(
    tmp_path: Path, compose: Callable[[list[str]], Config]
) -> None:
    config = compose([*SMALL, f"store={tmp_path / 'store'}", "method=sft"])
    judged_by({"misaligned": config}, [Labelled("Why?", "So.", "misaligned", "strong", 4)], False, tmp_path / "card")
    users = references.References(tmp_path / "store").users(forget_missing=True)
    assert {name.split("/")[0] for name in users} >= {"labelled", "judge"}
    assert {tuple(runs) for runs in users.values()} == {(str(tmp_path / "card"),)}


# -- B6: leftovers of killed writes --------------------------------------------------------------------------------------------


def test_b6_leftovers_of_killed_writes_are_never_content(tmp_path: Path) -> None:
    def build(out: Path) -> None:
        files.write_jsonl(out / "log.jsonl", [{"step": 1}])

    clean = Store(tmp_path / "clean").stage(TRAIN, {}, build, "built", resumable=("log.jsonl",))
    work = tmp_path / "store" / ".work" / f"train-{clean.key}"
    (work / "adapter").mkdir(parents=True)
    for name in (".writing-log.jsonl.1", ".manifest.json.77", ".nfs0000", "manifest.json", "adapter/tmp1", "tmpabc"):
        (work / name).write_text('{"half')
    (work / "link").symlink_to(tmp_path)
    (work / "log.jsonl").write_text('{"step": 1}\n{"st')
    stage = Store(tmp_path / "store").stage(TRAIN, {}, build, "built", resumable=("log.jsonl",))
    assert stage.digest == clean.digest
    assert {p.name for p in stage.path.iterdir()} == {"log.jsonl", "manifest.json"}
    (stage.path / ".nfs0001").write_text("a deleted file that somebody has open")
    assert Store(tmp_path / "store").stage(TRAIN, {}, never, "again").digest == clean.digest


def test_b6_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"a": object()})
    assert {p.name for p in tmp_path.iterdir()} == {"a.json"}
    assert json.loads((tmp_path / "a.json").read_text()) == 1


def test_b6_gc_removes_old_leftovers_among_the_references(tmp_path: Path) -> None:
    text_stage(Store(tmp_path, run_folder=tmp_path / "run"), "hello")
    old, new = tmp_path / ".refs" / ".writing-a.json.1", tmp_path / ".refs" / ".writing-b.json.2"
    for file in (old, new):
        file.write_text("{")
    os.utime(old, (1e9, 1e9))
    assert gc(tmp_path) == 0
    assert not old.exists()
    assert new.exists(), "somebody may be writing it"


def test_b6_a_run_folder_is_rid_of_leftovers(fake_run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".writing-result.json.1").write_text("{")
    run = fake_run("n_cycles=0", folder="run")
    assert not list(run.folder.glob(".writing-*"))


# -- B7: the full or read-only disk --------------------------------------------------------------------------------------------


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "place", ["append_jsonl", "write_json", "draw", "references", "marker", "lock", "safetensors", "torch", "quota"]
)
def test_b7_a_full_disk_is_told_in_one_line_wherever_it_strikes(
    fake_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        if place == "torch":
            raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 4928 vs 4817")
        if place == "safetensors":
            raise RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left" })')
        raise OSError(errno.EDQUOT if place == "quota" else errno.ENOSPC, "no", str(tmp_path / "file"))

    where = {
        "append_jsonl": "iterative_ft.records.run_log.append_jsonl",
        "write_json": "iterative_ft.records.run_log.write_json",
        "draw": "iterative_ft.report.pictures.draw",
        "references": "iterative_ft.store.stages.write_reference",
        "marker": "iterative_ft.store.layout.write_json",
        "lock": "iterative_ft.store.stages.FileLock.acquire",
        "safetensors": "iterative_ft.fake.fake_train",
        "torch": "iterative_ft.fake.fake_train",
        "quota": "iterative_ft.store.stages.write_json",
    }
    with monkeypatch.context() as patched:
        patched.setattr(where[place], fails)
        with pytest.raises(RunError) as caught:
            fake_run("n_cycles=0", folder="run")
    message = str(caught.value)
    assert "\n" not in message
    what = {"quota": "quota", "torch": "the disk took no more (full, most likely)"}.get(place, "disk full")
    for words in (what, "kept", "gc", "same command"):
        assert words in message
    assert fake_run("n_cycles=0", folder="run").json("result.json")["verdict"]


def test_b7_a_write_that_fails_says_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda path: files.write_json(path, 1), lambda path: files.append_jsonl(path, [{}])):
        with pytest.raises(OSError, match=r"a\.json") as caught:
            write(tmp_path / "a.json")
        assert caught.value.filename == str(tmp_path / "a.json")


def served_to_nobody(folder: Path, config: Config, told: Path) -> None:
    """Run without the rights of root, for whom nothing is read-only. In a process of its own, with all libraries loaded."""
    with told.open("w", buffering=1) as out, contextlib.redirect_stderr(out):
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            loop.run(config, folder, "python train.py")
        except RunError as error:
            print(f"RunError: {error}", file=out)
            os._exit(1)


def test_b7_a_read_only_store_serves_what_it_holds(fake_run: Run) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        place, store = Path(name), Path(name) / "store"
        place.chmod(0o777)
        run = fake_run("n_cycles=0", f"store={store}")
        (store / MARKER).unlink()  # of an older version
        folders = [store, *(p for p in store.rglob("*") if p.is_dir())]
        for path in (*folders, *(p for p in store.rglob("*") if p.is_file())):
            path.chmod(0o555 if path.is_dir() else 0o444)
        before = everything(store)
        assert forked(served_to_nobody, place / "run", run.config, place / "told") == 0, (place / "told").read_text()
        assert (place / "told").read_text().count("warning") == 1, "who clears the store does not see this run"
        rows = files.read_jsonl(place / "run" / "metrics.jsonl")
        assert [row for row in rows if "cycle" in row] == run.measured
        more = run.config.model_copy(update={"n_cycles": 1})
        assert forked(served_to_nobody, place / "more", more, place / "told") == 1
        told = (place / "told").read_text()
        assert told.startswith("RunError: ")
        assert told.count("\n") == 1
        assert "cannot be written to and lacks" in told
        assert {path.name for path in (place / "more").iterdir()} <= {LOCK}, "the command line gives the folder back"
        assert everything(store) == before
        for path in folders:
            path.chmod(0o755)


@pytest.mark.parametrize(
    "value", ["''", "'  '", "{tmp}/file", "{tmp}/file/store", "{tmp}/dead", "~nobodyknows/store", "'a\\0b'", "x" * 5000]
)
def test_b7_a_store_that_cannot_be_is_told_before_anything_is_made(
    tmp_path: Path, compose: Callable[[list[str]], Config], value: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dead").symlink_to(tmp_path / "nowhere")
    if "\\0" in value:
        config = compose([*SMALL]).model_copy(update={"store": "a\0b"})
        with pytest.raises(ConfigError, match=r"^store[=:]"):
            check_store(config)
        return
    with pytest.raises(ConfigError, match=r"^store[=:]") as caught:
        compose([*SMALL, f"store={value.format(tmp=tmp_path)}"])
    assert "\n" not in str(caught.value)


# -- B8: a coherence filter and a warm store -----------------------------------------------------------------------------------


def test_b8_a_run_killed_between_sampling_and_judging_resumes(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    filtered = ("method=sft", "method.coherence_filter=50", "n_cycles=1", "prompts.per_cycle=32")
    real = stages.Store.build

    def killed(self: Store, kind: str, key: str, inputs: Any, build: Any, label: str, resumable: Any) -> Stage:
        if label.startswith("judge samples of"):
            raise KeyboardInterrupt
        return real(self, kind, key, inputs, build, label, resumable)

    with monkeypatch.context() as patched:
        patched.setattr(stages.Store, "build", killed)
        with pytest.raises(KeyboardInterrupt):
            fake_run(*filtered, folder="run")
    resumed = fake_run(*filtered, folder="run")
    assert "sample policy[0] for cycle 1" not in resumed.built()
    assert any(label.startswith("judge samples of") for label in resumed.built())
    alone = fake_run(*filtered, store="other")
    assert resumed.measured == alone.measured


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_b8_a_plan_does_not_read_damaged_scores(fake_run: Run, damage: str) -> None:
    filtered = ("method=sft", "method.coherence_filter=50", "n_cycles=1", "prompts.per_cycle=32")
    run = fake_run(*filtered)
    stage = next(s for s in run.stages if s["label"].startswith("judge samples of"))
    scores = run.store / "judge" / stage["key"] / "scores.jsonl"
    scores.write_text('{"trait": 1') if damage == "torn" else scores.unlink()
    assert any(event.how == "pending" for event in plan(run.config))
    again = fake_run(*filtered)
    assert again.built() == [stage["label"]]
    assert again.measured == run.measured


# -- D7: damage of any shape ---------------------------------------------------------------------------------------------------


def replaced(path: Path, make: Callable[[Path], Any]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def with_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(stage: Path) -> None:
        file = stage / "manifest.json"
        changed = change(json.loads(file.read_text()))
        file.write_text(changed if isinstance(changed, str) else json.dumps(changed))

    return damage


def linked(path: Path, aside: str = "elsewhere") -> None:
    """Put a link in its place, to where it is now."""
    place = path.parent.parent / aside if path.name != "sub" else path.parent.parent / "sub"
    path.rename(place)
    path.symlink_to(place)


def dead(path: Path) -> None:
    path.symlink_to("nowhere")


def text(path: Path) -> None:
    path.write_text("x")


MANIFEST_TEXTS = {
    "null": "null", "a list": "[{}]", "a number": "7", "a text": '"x"', "empty": "", "an object": "{}", "deep": "[" * 100_000,
    "cut off": '{"kind": "da', "a huge number": '{"seconds": ' + "9" * 5000 + "}",
}  # fmt: skip
WRONG: list[tuple[str, Any]] = [
    ("files", []), ("files", {}), ("files", {"sub/a.txt": 1}), ("inputs", []), ("info", "x"), ("digest", 5), ("digest", "no"),
    ("seconds", "1"), ("seconds", True), ("seconds", float("nan")), ("seconds", 10**400), ("label", None), ("kind", "train"),
    ("key", "0" * 20),
]  # fmt: skip
DAMAGE: dict[str, Callable[[Path], Any]] = {
    **{f"manifest {name}": with_manifest(lambda m, t=told: t) for name, told in MANIFEST_TEXTS.items()},
    **{
        f"manifest without {name}": with_manifest(lambda m, n=name: {k: v for k, v in m.items() if k != n})
        for name in ("kind", "key", "label", "inputs", "info", "files", "digest", "seconds")
    },
    **{
        f"manifest {name}={str(value)[:9]}": with_manifest(lambda m, n=name, v=value: signed(m | {n: v}))
        for name, value in WRONG
    },
    "manifest not utf-8": lambda stage: (stage / "manifest.json").write_bytes(b"\xff\xfe{}"),
    "manifest a folder": lambda stage: replaced(stage / "manifest.json", Path.mkdir),
    "manifest a link": lambda stage: linked(stage / "manifest.json"),
    "manifest a dead link": lambda stage: replaced(stage / "manifest.json", dead),
    "manifest a pipe": lambda stage: replaced(stage / "manifest.json", os.mkfifo),
    "file a folder": lambda stage: replaced(stage / "sub" / "a.txt", Path.mkdir),
    "file a link": lambda stage: linked(stage / "sub" / "a.txt", "../../a"),
    "file a dead link": lambda stage: replaced(stage / "sub" / "a.txt", dead),
    "file a pipe": lambda stage: replaced(stage / "sub" / "a.txt", os.mkfifo),
    "folder a link": lambda stage: linked(stage / "sub"),
    "folder a file": lambda stage: replaced(stage / "sub", text),
    "link added": lambda stage: (stage / "more").symlink_to("/"),
    "stage a file": lambda stage: replaced(stage, text),
    "stage a link": lambda stage: linked(stage, "../elsewhere"),
    "stage a dead link": lambda stage: replaced(stage, dead),
    "kind a file": lambda stage: replaced(stage.parent, text),
    "kind a dead link": lambda stage: replaced(stage.parent, dead),
}


def signed(manifest: dict[str, Any]) -> dict[str, Any]:
    """With the digest that would cover it: what is wrong has to be noticed by its shape."""
    return manifest | {"record": record_digest(manifest)}


@pytest.mark.parametrize("name", DAMAGE)
def test_d7_damage_of_any_shape_is_rebuilt_and_told_in_one_line(tmp_path: Path, capsys: Captured, name: str) -> None:
    store = tmp_path / "store"
    stage, other = text_stage(Store(store), "hello"), text_stage(Store(store), "other", kind=ANSWER)
    DAMAGE[name](stage.path)
    plan_event = Store(store, dry_run=True).stage(DATA, {"text": "hello"}, never, "hello")
    assert plan_event.manifest["inputs"] == {"text": "hello"}
    for command in ("ls", "gc"):
        assert clearing.main([command, str(store), *(["--yes"] if command == "gc" else [])]) == 0, "they go on past it"
    said = capsys.readouterr()
    assert "other" in said.out
    assert said.err == ""
    assert text_stage(Store(store), "hello").digest == stage.digest
    warned = capsys.readouterr().err
    assert warned.count("\n") == 1, warned
    assert warned.startswith("warning: ")
    assert Store(store).stage(DATA, {"text": "hello"}, never, "again").digest == stage.digest
    assert Store(store).stage(ANSWER, {"text": "other"}, never, "again").digest == other.digest
    assert not list((store / ".work").iterdir())
    if (store / ".trash").is_dir():
        assert not list((store / ".trash").iterdir())


@pytest.mark.parametrize("name", [".work", ".locks", ".refs", ".trash", MARKER, ".locks/data-{key}", ".work/data-{key}"])
def test_d7_what_lies_in_place_of_the_stores_own_things_is_set_aside(tmp_path: Path, capsys: Captured, name: str) -> None:
    key = stage_key(DATA, {"text": "hello"})
    path = tmp_path / name.format(key=key)
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if "locks/" in name or name == MARKER else path.write_text("x")
    damaged = tmp_path / "data" / key
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text("{}")
    assert text_stage(Store(tmp_path, run_folder=tmp_path / "run"), "hello").info == {"n": 5}
    assert how_had(tmp_path) == "stored"
    assert all(line.startswith("warning: ") for line in capsys.readouterr().err.splitlines())
    assert gc(tmp_path) == 0


def test_d7_errors_that_say_nothing_about_a_stage_do_not_build_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = text_stage(Store(tmp_path), "hello")

    def none_left(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("iterative_ft.store.manifest.file_sha256", none_left)
    with pytest.raises(RunError, match="too many open files"):
        text_stage(Store(tmp_path), "hello")
    assert (stage.path / "sub" / "a.txt").is_file()


def test_d7_labels_are_printed_on_any_terminal(tmp_path: Path) -> None:
    text_stage(Store(tmp_path), "bad\n\x1b[31m\ud800 label".encode("utf-8", "replace").decode())
    done = subprocess.run(
        [sys.executable, "-m", "iterative_ft.store", "ls", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


# -- D9: ~ in paths ------------------------------------------------------------------------------------------------------------


def test_d9_the_store_may_lie_below_home(
    fake_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    fake_run("n_cycles=0", "store=~/store")
    assert (tmp_path / "home" / "store" / "model").is_dir()
    assert not (tmp_path / "~").exists()
    assert clearing.main(["ls", "~/store"]) == 0
    assert plan(fake_run("n_cycles=0", "store=~/store").config)[0].how == "stored"
