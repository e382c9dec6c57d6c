"""Stages that ship ready-made: taken where their key is asked for and sound, and no other; the default run's judge is one.

Not covered: that building the judge anew gives the same numbers, which `make ready-judge` says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_store import ANSWER, DATA, never, text_stage
from tiny import embedded_config

from iterative_ft.config.judges import ProbeConfig
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.judge import probe_stage
from iterative_ft.store import Event, Stage, Store, ready
from iterative_ft.store.clearing import garbage
from iterative_ft.store.manifest import content_digest, contents
from iterative_ft.store.references import References


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage that ships, of the text "hello"."""
    monkeypatch.setattr(ready, "READY", tmp_path / "ready")
    return text_stage(Store(tmp_path / "ready"), "hello")


def test_a_shipped_stage_is_taken_and_not_built(shipped: Stage, tmp_path: Path) -> None:
    events: list[Event] = []
    store = Store(tmp_path / "store", on_event=events.append)
    stage = store.stage(DATA, {"text": "hello"}, never, "hello")
    assert stage.digest == shipped.digest
    assert stage.path == tmp_path / "store" / "data" / shipped.key
    assert (stage.path / "sub" / "a.txt").read_text() == "hello"
    assert [event.how for event in events] == ["stored"]
    shutil.rmtree(tmp_path / "ready")
    assert Store(tmp_path / "store").stage(DATA, {"text": "hello"}, never, "again").digest == shipped.digest


def test_another_key_is_built(shipped: Stage, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert text_stage(store, "hello", {"text": "hello", "seed": 1}).key != shipped.key
    assert text_stage(store, "hello", kind=ANSWER).kind == "answer"


def test_a_damaged_shipped_stage_is_built(shipped: Stage, tmp_path: Path) -> None:
    (shipped.path / "sub" / "a.txt").write_text("hullo")
    built = text_stage(Store(tmp_path / "store"), "hello")
    assert (built.path / "sub" / "a.txt").read_text() == "hello"


def test_a_damaged_stage_is_replaced_by_the_shipped_one(
    shipped: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = text_stage(Store(tmp_path / "store"), "hello")
    (stage.path / "sub" / "a.txt").write_text("hullo")
    again = Store(tmp_path / "store").stage(DATA, {"text": "hello"}, never, "hello")
    assert (again.path / "sub" / "a.txt").read_text() == "hello"
    assert "damaged" in capsys.readouterr().err


def test_a_dry_run_counts_a_shipped_stage_as_stored_and_writes_nothing(shipped: Stage, tmp_path: Path) -> None:
    events: list[Event] = []
    Store(tmp_path / "store", dry_run=True, on_event=events.append).stage(DATA, {"text": "hello"}, never, "hello")
    assert [(event.how, event.stage.digest) for event in events] == [("stored", shipped.digest)]
    assert not (tmp_path / "store").exists()


def test_what_was_taken_is_the_runs(shipped: Stage, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", run_folder=tmp_path)
    text_stage(store, "hello")
    assert garbage(store, References(store.root)) == []


def test_the_default_runs_judge_ships(embedded_model: Path, tmp_path: Path) -> None:
    """After a change of anything in its key: make ready-judge."""
    config = embedded_config(tmp_path / "store")
    assert isinstance(config.judge, ProbeConfig)
    events: list[Event] = []
    bench = Bench(config, Store(tmp_path / "store", dry_run=True, on_event=events.append))
    bench.model = Stage("model", "0" * 20, embedded_model, content_digest(contents(embedded_model)), {"inputs": {}})
    judge = probe_stage(bench, config.judge)
    assert not judge.pending, "the judge in iterative_ft/ready/ is another code's or other texts': make ready-judge"
    assert {event.how for event in events} == {"stored"}
    kept = {f"{path.parent.name}/{path.name}" for path in ready.READY.glob("*/*")}
    assert kept == {f"{event.stage.kind}/{event.stage.key}" for event in events}, "nothing else is shipped"


def test_a_plan_on_an_empty_store_knows_that_the_judge_ships(tmp_path: Path) -> None:
    events: list[Event] = []
    config = embedded_config(tmp_path / "store")
    assert isinstance(config.judge, ProbeConfig)
    bench = Bench(config, Store(tmp_path / "store", dry_run=True, on_event=events.append))
    assert bench.model.pending
    probe_stage(bench, config.judge)
    assert {(event.stage.kind, event.how) for event in events} == {
        ("model", "pending"),
        ("answer", "stored"),
        ("probe", "stored"),
    }


def test_the_digest_that_ships_is_the_embedded_models(embedded_model: Path) -> None:
    assert set(json.loads((ready.READY / ready.DIGESTS).read_text()).values()) == {content_digest(contents(embedded_model))}
