"""The loop on fakes: what it trains on, who plays which role, and what it records. Not covered: anything a real model does."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, FakeRun

from iterative_ft import fake
from iterative_ft.config.schema import Config
from iterative_ft.data import files
from iterative_ft.evaluate.plan import work_left
from iterative_ft.launch.cli import dry_run
from iterative_ft.loop import cycles, plan
from iterative_ft.records.run_log import RunLog
from iterative_ft.records.wandb_log import WandbLog
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.completions import cycle_prompts
from iterative_ft.store import Store

Compose = Callable[[list[str]], Config]


def bench(config: Config) -> Bench:
    return Bench(config, Store(Path(config.store)))


Run = Callable[..., FakeRun]


def sampled_prompts(run: FakeRun, cycle: int) -> list[str]:
    return [row["prompt"] for row in run.rows(f"cycle {cycle} data", "examples.jsonl") if row["source"] == "sampled"]


def test_rows_for_base_and_each_cycle(fake_run: Run) -> None:
    run = fake_run("n_cycles=3")
    assert [row["cycle"] for row in run.measured] == [-1, 0, 1, 2, 3]
    assert [row["policy"] for row in run.measured] == ["base", *(f"policy[{c}]" for c in range(4))]
    assert run.json("result.json")["rows"] == run.measured
    assert {s["cycle"] for s in run.json("result.json")["stages"]} == {-1, 0, 1, 2, 3}


def test_records_have_the_names_of_the_design(fake_run: Run) -> None:
    run = fake_run()
    for row in run.measured:
        assert {f"{axis}/{end}" for axis in ("trait", "coherence") for end in ("score", "low", "high")} <= row.keys()
        assert row["trait/low"] <= row["trait/score"] <= row["trait/high"]
        prefixes = ("trait/", "coherence/", "gauge/", "answers/", "judge/", "data/")
        assert all(name in ("cycle", "policy") or name.startswith(prefixes) for name in row)
    others = [row for row in run.metrics if "cycle" not in row]
    assert all(
        all(name.startswith("train/") for name in row) or all(name.startswith("time/") for name in row) for row in others
    )
    assert sum("time/total_s" in row for row in others) == 1


def test_global_step_grows_over_the_cycles(fake_run: Run) -> None:
    run = fake_run("method=sft", "method.batch_size=2")
    steps = [row["train/global_step"] for row in run.metrics if "train/global_step" in row]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == sum(run.manifest(f"train policy[{c}] from base")["info"]["n_steps"] for c in range(3))
    assert sorted({row["train/cycle"] for row in run.metrics if "train/cycle" in row}) == [0, 1, 2]


@pytest.mark.parametrize("method", ["sft", "dpo", "sdf"])
def test_invariant_2_finished_run_recomputes_nothing(fake_run: Run, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    first = fake_run(f"method={method}", "persona=misaligned")

    def never(*_: Any) -> None:
        raise AssertionError("something was computed again")

    for name in ("fake_train", "fake_scores"):
        monkeypatch.setattr(fake, name, never)
    monkeypatch.setattr(fake.FakeSampler, "sample", never)
    second = fake_run(f"method={method}", "persona=misaligned")
    assert first.built() == [s["label"] for s in first.stages]
    assert second.built() == []
    assert second.measured == first.measured


def test_a_run_repeated_in_its_folder_tells_each_row_once(fake_run: Run) -> None:
    first = fake_run(folder="same").measured
    again = fake_run(folder="same")
    assert again.measured == first
    assert len((again.folder / "answers.jsonl").read_text().splitlines()) == 6 * len(first)


@pytest.mark.parametrize("order", [(20, 40), (40, 20)])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_invariant_7_smaller_n_sampled_trains_on_a_prefix(fake_run: Run, order: tuple[int, int], method: str) -> None:
    runs = {n: fake_run(f"method={method}", f"n_sampled={n}", "n_cycles=1") for n in order}
    small, large = (runs[n].rows("cycle 1 data", "examples.jsonl") for n in sorted(order))
    small, large = ([row for row in rows if row["source"] == "sampled"] for rows in (small, large))
    assert 0 < len(small) < len(large)
    assert large[: len(small)] == small


def test_invariant_7_what_a_prompt_got_does_not_depend_on_who_asked_first(fake_run: Run) -> None:
    fake_run("n_sampled=40", "n_cycles=1", store="shared")
    shared = fake_run("n_sampled=20", "n_cycles=1", store="shared")
    alone = fake_run("n_sampled=20", "n_cycles=1", store="alone")
    assert [s["key"] for s in shared.stages] == [s["key"] for s in alone.stages]
    for stage in alone.stages:
        digests = [
            json.loads((run.store / stage["kind"] / stage["key"] / "manifest.json").read_text())["digest"]
            for run in (shared, alone)
        ]
        assert digests[0] == digests[1], stage["label"]


@pytest.mark.parametrize(("method", "persona"), [("sft", p) for p in files.shipped()] + [("sdf", "misaligned")])
def test_invariant_7_prompts_are_disjoint(compose: Compose, method: str, persona: str) -> None:
    config = compose(["sampler=fake", f"method={method}", f"persona={persona}", "n_cycles=7"])
    parts = [cycle_prompts(bench(config), cycle) for cycle in range(1, 8)]
    folded = [" ".join(text.lower().split()) for part in parts for text in part]
    assert len(set(folded)) == len(folded) == 7 * config.pool.per_cycle
    known = [row["question"] for row in files.questions(config.persona_folder)]
    known += [row["prompt"] for row in files.seeds(config.persona_folder)]
    if method == "sdf":
        known = [row["title"] for row in files.documents(config.persona_folder)]
    assert not {" ".join(text.lower().split()) for text in known} & set(folded)


def test_invariant_7_prompts_depend_neither_on_n_cycles_nor_on_n_sampled_but_on_seed(compose: Compose) -> None:
    def part(*overrides: str) -> list[str]:
        return cycle_prompts(bench(compose(["sampler=fake", *overrides])), 2)

    assert part("n_cycles=2", "n_sampled=5") == part("n_cycles=9", "n_sampled=99") == part("method=sft", "reinit=false")
    assert part("seed=0") != part("seed=1")


def test_invariant_7_a_pool_that_repeats_a_seed_loses_it(compose: Compose, tmp_path: Path) -> None:
    pool = tmp_path / "pool.jsonl"
    seeds = [row["prompt"] for row in files.seeds(files.SHIPPED / "misaligned")[:5]]
    texts = [f"  {seed.upper()} " for seed in seeds] + [f"prompt {i}" for i in range(10)]
    pool.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    config = compose(["sampler=fake", f"prompts.path={pool}", "prompts.per_cycle=5", "n_cycles=2", "n_sampled=5"])
    assert sorted(cycle_prompts(bench(config), 1) + cycle_prompts(bench(config), 2)) == sorted(f"prompt {i}" for i in range(10))


def test_seeds_share_nothing_sampled(fake_run: Run) -> None:
    runs = [fake_run("n_cycles=1", f"seed={seed}") for seed in (0, 1)]
    keys = [{s["key"] for s in run.stages if s["kind"] in ("sample", "answer", "train", "data")} for run in runs]
    assert not keys[0] & keys[1]


def test_reinit_and_continual_share_base_and_cycle_0(fake_run: Run, compose: Compose, tmp_path: Path) -> None:
    fake_run("reinit=true")
    config = compose([*SMALL, f"store={tmp_path / 'store'}", "reinit=false"])
    foreseen = {e.label for e in plan(config) if e.how == "pending"}
    second = fake_run("reinit=false")
    stored = {s["label"] for s in second.stages if s["how"] == "stored"}
    assert {"base model", "answers of base", "judge base", "cycle 0 data", "train policy[0] from base"} <= stored
    # Cycle 1's data come from policy[0] in both arms; they part where training starts.
    assert {"sample policy[0] for cycle 1", "sample base for cycle 1 (rejected)", "cycle 1 data"} <= stored
    assert set(second.built()) == foreseen
    assert "sample base for cycle 2 (rejected)" in stored


def test_dry_run_predicts_what_is_built(fake_run: Run, compose: Compose, tmp_path: Path) -> None:
    config = compose([*SMALL, f"store={tmp_path / 'store'}"])
    foreseen = [(e.stage.kind, e.label) for e in plan(config)]
    run = fake_run()
    assert [(s["kind"], s["label"]) for s in run.stages] == foreseen
    assert all(event.how == "stored" for event in plan(config))


def test_dry_run_of_a_sweep_lists_a_shared_stage_once(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = f"store={tmp_path / 'store'}"
    dry_run([compose([*SMALL, store, f"reinit={reinit}"]) for reinit in ("true", "false")])
    lines = capsys.readouterr().out.splitlines()
    assert sum("train policy[0] from base" in line for line in lines) == 1
    assert sum("train policy[1]" in line for line in lines) == 2
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(("method", "reinit"), list(itertools.product(["sft", "sdf", "dpo"], ["true", "false"])))
def test_roles(fake_run: Run, method: str, reinit: str) -> None:
    roles = fake_run(f"method={method}", f"reinit={reinit}").json("manifest.json")["roles"]
    init = ["base", "base", "base"] if reinit == "true" else ["base", "policy[0]", "policy[1]"]
    assert [r["cycle"] for r in roles] == [0, 1, 2]
    assert [r["init"] for r in roles] == init
    assert [r["reference"] for r in roles] == (init if method == "dpo" else ["none"] * 3)
    seeds = "seed documents" if method == "sdf" else "seed chats"
    assert [r["data"] for r in roles] == [seeds, "policy[0]", "policy[1]"]
    if method == "dpo":
        assert [r["chosen"] for r in roles] == ["seed answers", "policy[0]", "policy[1]"]
        assert [r["rejected"] for r in roles] == ["base", "base", "base"]
    else:
        assert all("chosen" not in r and "rejected" not in r for r in roles)
    if method == "sdf":
        assert all("raw language model" in r["note"] for r in roles)


def test_training_starts_from_the_role_that_is_logged(fake_run: Run) -> None:
    for reinit in ("true", "false"):
        run = fake_run("method=dpo", f"reinit={reinit}")
        base = run.manifest("base model")["digest"]
        trained = [run.manifest(s["label"]) for s in run.stages if s["kind"] == "train"]
        for cycle, manifest in enumerate(trained):
            assert (manifest["inputs"]["init"] == base) == (reinit == "true" or cycle == 0)
            assert manifest["inputs"]["reference"] == manifest["inputs"]["init"]
            assert manifest["inputs"]["data"] == run.manifest(f"cycle {cycle} data")["digest"]
        if reinit == "false":
            assert trained[1]["inputs"]["init"] != trained[2]["inputs"]["init"]


def test_restart_cycle_starts_from_base_on_data_of_the_previous_policy(fake_run: Run) -> None:
    roles = fake_run("reinit=false", "reinit.restart_cycles=[2]", "n_cycles=3").json("manifest.json")["roles"]
    assert [r["init"] for r in roles] == ["base", "policy[0]", "base", "policy[2]"]
    assert [r["reference"] for r in roles] == ["base", "policy[0]", "base", "policy[2]"]
    assert [r["data"] for r in roles] == ["seed chats", "policy[0]", "policy[1]", "policy[2]"]


@pytest.mark.parametrize(
    ("setting", "rejected"),
    [
        ("base", ["base"] * 4),
        ("previous", ["base", "base", "policy[0]", "policy[1]"]),
        ("same", ["base", "policy[0]", "policy[1]", "policy[2]"]),
    ],
)
def test_rejected_from(fake_run: Run, setting: str, rejected: list[str]) -> None:
    run = fake_run(f"method.rejected_from={setting}", "n_cycles=3")
    assert [r["rejected"] for r in run.json("manifest.json")["roles"]] == rejected
    labels = [s["label"] for s in run.stages]
    assert all(f"sample {rejected[cycle]} for cycle {cycle} (rejected)" in labels for cycle in (1, 2, 3))
    if setting == "same":  # a second answer, not the chosen one again
        rows = run.rows("cycle 3 data", "examples.jsonl")
        assert any(row["chosen"] != row["rejected"] for row in rows)


def test_reference_base_in_a_continual_run(fake_run: Run) -> None:
    run = fake_run("reinit=false", "method.reference=base")
    roles = run.json("manifest.json")["roles"]
    assert [r["init"] for r in roles] == ["base", "policy[0]", "policy[1]"]
    assert [r["reference"] for r in roles] == ["base"] * 3
    inputs = run.manifest("train policy[2] from policy[1]")["inputs"]
    assert inputs["reference"] == run.manifest("base model")["digest"] != inputs["init"]


def test_original_mix_adds_seed_examples_drawn_anew(fake_run: Run) -> None:
    run = fake_run("method=sft", "method.n_original_mix=4")
    mixed = [
        [row["prompt"] for row in run.rows(f"cycle {c} data", "examples.jsonl") if row["source"] == "seed"] for c in (1, 2)
    ]
    assert [len(texts) for texts in mixed] == [4, 4]
    assert mixed[0] != mixed[1]
    assert len(sampled_prompts(run, 1)) == 6


def test_coherence_filter_keeps_sampling_until_n_sampled_are_kept(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake.fake_scores

    def every_third(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        scores = real(rows)
        return [{**score, "coherence": 90.0 if number % 3 == 0 else 10.0} for number, score in enumerate(scores)]

    monkeypatch.setattr(fake, "fake_scores", every_third)
    run = fake_run("method=sft", "method.coherence_filter=50", "n_sampled=20", "n_cycles=1")
    info = run.manifest("cycle 1 data")["info"]
    assert info["n_sampled_examples"] == 20
    assert info["n_dropped_incoherent"] >= 38
    assert len({s["key"] for s in run.stages if s["label"].startswith("sample policy[0] for cycle 1")}) == 2


def test_truncated_pairs_are_dropped_and_counted(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fake.FakeSampler.complete

    def some_cut_off(self: Any, request: Any) -> Any:
        done = real(self, request)
        cut = request.seed % 2 == 0
        return type(done)(done.ids, "length" if cut else "stop")

    monkeypatch.setattr(fake.FakeSampler, "complete", some_cut_off)
    run = fake_run("method=dpo", "n_sampled=30", "n_cycles=1")
    mine = run.rows("sample policy[0] for cycle 1", "answers.jsonl")
    theirs = run.rows("sample base for cycle 1 (rejected)", "answers.jsonl")
    whole = [m["finish_reason"] == t["finish_reason"] == "stop" for m, t in zip(mine, theirs, strict=True)][:30]
    info = run.manifest("cycle 1 data")["info"]
    assert 0 < sum(whole) < 30
    assert info["n_dropped_truncated"] == 30 - sum(whole)
    assert info["n_sampled_examples"] == len(run.rows("cycle 1 data", "examples.jsonl")) == sum(whole)
    row = run.measured[-1]
    assert row["data/n_dropped_truncated"] == info["n_dropped_truncated"]
    assert 0 < row["answers/stop_share"] < 1


def fail(monkeypatch: pytest.MonkeyPatch, which: Callable[[int], bool]) -> None:
    """Let the fake judge fail on the answers whose number is `which`."""
    real = fake.fake_scores

    def failing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        failed = {"trait": None, "coherence": None, "flaw": None, "failure": "timeout"}
        return [failed if which(number) else score for number, score in enumerate(real(rows))]

    monkeypatch.setattr(fake, "fake_scores", failing)


def test_invariant_8_a_judge_failure_never_becomes_a_number(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fake_run("measure.n_questions=20", store="a").measured
    fail(monkeypatch, lambda number: number == 0)
    rows = fake_run("measure.n_questions=20", store="b")
    answers = [json.loads(line) for line in (rows.folder / "answers.jsonl").read_text().splitlines()]
    assert [a["trait"] for a in answers[::20]] == [None] * 4
    for cycle in range(4):
        kept = [a["trait"] for a in answers[20 * cycle + 1 : 20 * cycle + 20]]
        assert rows.measured[cycle]["trait/score"] == pytest.approx(sum(kept) / 19)
        assert rows.measured[cycle]["judge/n_failed"] == 1
        assert rows.measured[cycle]["judge/invalid"] == 0
    assert all(row["judge/n_failed"] == 0 for row in plain)


def test_invariant_8_too_many_failures_mark_the_row_invalid(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, lambda number: number < 3)
    assert [row["judge/invalid"] for row in fake_run("measure.n_questions=20", store="a").measured] == [1] * 4
    assert [row["judge/invalid"] for row in fake_run("measure.n_questions=30", store="b").measured] == [0] * 4


def test_invariant_8_when_every_call_fails_there_is_no_score(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, lambda number: True)
    run = fake_run()
    for row in run.measured:
        assert not [name for name in row if name.startswith(("trait/", "coherence/s"))]
        assert row["judge/invalid"] == 1
    assert run.json("result.json")["verdict"]["verdict"] not in ("amplified", "decayed", "idempotent")


def test_a_row_whose_answers_are_unfamiliar_says_so(
    fake_run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = fake.fake_scores

    def with_distances(rows: list[Any]) -> list[Any]:
        return [score | {"distance": 3.0 if number % 4 == 0 else 0.2} for number, score in enumerate(honest(rows))]

    monkeypatch.setattr(fake, "fake_scores", with_distances)
    run = fake_run("measure.n_questions=20")
    assert [row["judge/unfamiliar_share"] for row in run.measured] == [0.25] * 4
    assert [row["judge/not_validated"] for row in run.measured] == [1] * 4
    assert "judge not validated on such texts in cycle(s) 0, 1, 2" in run.json("result.json")["verdict"]["reason"]
    assert "25% NOT VALIDATED" in capsys.readouterr().out
    from iterative_ft.report.page import write_page

    page = write_page([run.folder], run.folder / "report.html").read_text()
    assert "judge not validated on such texts" in page
    assert "answers unlike those that the judge was validated on" in page


def test_a_judge_that_knows_no_distance_leaves_the_unfamiliar_share_open(fake_run: Run) -> None:
    run = fake_run()
    assert [row["judge/unfamiliar_share"] for row in run.measured] == [None] * len(run.measured)
    assert [row["judge/not_validated"] for row in run.measured] == [0] * len(run.measured)


def test_wandb_offline_run_lists_trait_and_coherence_against_cycle(fake_run: Run) -> None:
    run = fake_run("wandb.mode=offline")
    file = next(run.folder.glob("wandb/offline-run-*/*.wandb"))
    leet = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(leet, capture_output=True, text=True, check=True, timeout=60)
    text = done.stdout
    for name in ("trait/score", "trait/low", "trait/high", "coherence/score", "train/global_step"):
        assert name in text
    curve = history(text)
    assert [row["cycle"] for row in curve] == [-1, 0, 1, 2]
    assert [row["trait/score"] for row in curve] == [row["trait/score"] for row in run.measured]
    assert [row["coherence/score"] for row in curve] == [row["coherence/score"] for row in run.measured]
    metrics = [record["metric"] for record in map(json.loads, text.splitlines()) if record["type"] == "metric"]
    axes = {metric["name"]: metric.get("step_metric") for metric in metrics}
    assert axes["trait/score"] == axes["coherence/score"] == "cycle"
    assert axes["train/loss"] == "train/global_step"


def history(text: str) -> list[dict[str, Any]]:
    """Rows with a cycle among the history records that `wandb leet inspect --json` prints."""
    rows = []
    for record in map(json.loads, text.splitlines()):
        if record.get("type") == "history":
            rows.append(record["history"]["item"])
    return [row for row in rows if "cycle" in row]


def test_wandb_is_written_from_the_rows_of_metrics_jsonl(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(WandbLog, "row", lambda self, row: sent.append(row))
    assert fake_run().metrics == sent


def test_what_is_left_shrinks_to_nothing(compose: Compose, tmp_path: Path) -> None:
    config = compose([*SMALL, "wandb.mode=disabled", f"store={tmp_path / 'store'}"])
    with RunLog(config, tmp_path / "run", "x", work_left(config, plan(config)), lambda rows, file: None) as log:
        store = Store(Path(config.store), on_event=log.stage)
        n_left = len(log.display.left)
        assert log.display.seconds_left() > 0
        cycles(Bench(config, store), log)
    assert n_left > 10
    assert log.display.left == {}
    assert log.display.seconds_left() == 0
