"""The search for n_seed on fakes, with a trainer whose trait grows with its seed examples. Not covered: real, noisy models."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeRun

from iterative_ft import fake
from iterative_ft.calibrate import Trial, contradictions, found_before, settled, with_likely_seeds
from iterative_ft.config.calibration import calibration_method
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.launch.cli import dry_run
from iterative_ft.machine.files import write_json

Run = Callable[..., FakeRun]
Compose = Callable[[list[str]], Config]
SEARCH = ["n_seed=calibrated", "method=sft", "n_cycles=0"]


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the trait grow with the examples of cycle 0; the list says how many each training had."""
    original = fake.fake_train
    counts: list[int] = []

    def growing(job: Any) -> dict[str, Any]:
        result = original(job)
        counts.append(result["n_examples"])
        level = 100 * (1 - math.exp(-result["n_examples"] / 40))
        write_json(Path(job.out) / "adapter" / "level.json", {"level": level, "came_from": str(result["n_examples"])})
        return result

    monkeypatch.setattr(fake, "fake_train", growing)
    return counts


@pytest.mark.parametrize("target", [5, 20, 60, 90])
def test_finds_the_smallest_that_reaches_the_target(fake_run: Run, trained: list[int], target: int) -> None:
    run = fake_run(*SEARCH, f"calibrate.target_trait={target}")
    n, n_max = run.json("config.json")["n_seed"], 142
    found = run.json("manifest.json")["calibration"]
    assert found["n_seed"] == n
    assert found["target_trait"] == target
    assert "grows" in found["assumes"]
    scores = {trial["n_seed"]: trial["score"] for trial in found["trials"]}
    assert scores[n] >= target
    assert n == 2 or scores[n - 1] < target, "the one below it was tried and misses"
    assert len(trained) == len(scores) <= math.log2(n_max - 1) + 2
    assert max(trained) == n_max


def test_every_trial_is_a_stored_stage(fake_run: Run) -> None:
    first = fake_run(*SEARCH, "calibrate.target_trait=40")
    n = first.json("config.json")["n_seed"]
    assert not [label for label in first.built() if "policy" in label], "the run itself trains nothing more"
    assert {"base model", "train policy[0] from base"} <= {stage["label"] for stage in first.stages}
    assert fake_run(f"n_seed={n}", "method=sft", "n_cycles=0").built() == []
    again = fake_run(*SEARCH, "calibrate.target_trait=40")
    assert again.built() == []
    assert again.json("manifest.json")["calibration"] == first.json("manifest.json")["calibration"]


def test_a_dpo_run_is_calibrated_by_sft_and_goes_on_with_dpo(fake_run: Run) -> None:
    run = fake_run("n_seed=calibrated", "method=dpo", "n_cycles=1", "calibrate.target_trait=40")
    assert run.json("manifest.json")["calibration"]["method"] == "sft"
    assert run.json("config.json")["method"]["name"] == "dpo"
    assert run.manifest("train policy[0] from base")["inputs"]["method"]["name"] == "dpo"


def test_a_trial_that_is_damaged_is_made_again(fake_run: Run) -> None:
    first = fake_run(*SEARCH, "calibrate.target_trait=40")
    trial = next(stage for stage in first.stages if stage["label"].startswith("answers of policy[0]"))
    store = Path(first.json("config.json")["store"])
    (store / trial["kind"] / trial["key"] / "answers.jsonl").unlink()
    assert found_before(first.config.model_copy(update={"n_seed": "calibrated"})) is None
    again = fake_run(*SEARCH, "calibrate.target_trait=40")
    assert again.json("manifest.json")["calibration"] == first.json("manifest.json")["calibration"]


def test_the_lower_end_may_have_to_reach_the_target(fake_run: Run) -> None:
    by_mean = fake_run(*SEARCH, "calibrate.target_trait=40").json("manifest.json")["calibration"]
    by_low = fake_run(*SEARCH, "calibrate.target_trait=40", "calibrate.reach=low").json("manifest.json")["calibration"]
    assert by_low["n_seed"] > by_mean["n_seed"]
    assert next(p["low"] for p in by_low["trials"] if p["n_seed"] == by_low["n_seed"]) >= 40
    close = fake_run(*SEARCH, "calibrate.target_trait=40", "calibrate.tolerance=10").json("manifest.json")["calibration"]
    assert close["n_seed"] < by_mean["n_seed"]


def test_a_target_out_of_reach_says_what_to_do(fake_run: Run, trained: list[int]) -> None:
    with pytest.raises(RunError, match=r"target_trait=90 is not reached by n_seed=10 .*: lower the target"):
        fake_run(*SEARCH, "calibrate.target_trait=90", "calibrate.n_max=10")
    assert trained == [10]


def test_a_failing_judge_stops_the_search(fake_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    original = fake.fake_scores
    failed = {"trait": None, "coherence": None, "flaw": None, "failure": "timeout"}
    monkeypatch.setattr(fake, "fake_scores", lambda rows: [row | failed for row in original(rows)])
    with pytest.raises(RunError, match="the judge failed on"):
        fake_run(*SEARCH, "calibrate.target_trait=40")


def test_trials_that_contradict_the_assumption_are_named() -> None:
    trials = [Trial(64, 30, 25, 35, False), Trial(8, 50, 45, 55, True), Trial(16, 40, 30, 60, True)]
    assert contradictions(trials) == []
    trials[2] = Trial(16, 20, 15, 24, False)
    assert [line.split(" (")[0] for line in contradictions(trials)] == ["n_seed=16 made a weaker trait than n_seed=8"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["n_seed=calibrated"], "add calibrate.target_trait"),
        (["calibrate.target_trait=0"], "calibrate.target_trait=0 would be read only with n_seed=calibrated"),
        (["calibrate.n_max=8", "calibrate.method=sft"], "calibrate.method=sft, calibrate.n_max=8 would be read only with"),
        (["calibrate.reach=low", "calibrate.n_min=3"], "calibrate.n_min=3, calibrate.reach=low would be read only with"),
        (["calibrate.tolerance=5"], "calibrate.tolerance=5 would be read only with"),
        (["n_seed=calibrate", "calibrate.target_trait=40"], "a whole number of 1 or more, or calibrated"),
        (["n_seed=0"], "n_seed=0 is wrong"),
        ([*SEARCH, "calibrate.target_trait=101"], "calibrate.target_trait"),
        ([*SEARCH, "calibrate.target_trait=40", "calibrate.n_max=1000"], "more than the 142 seed examples"),
        ([*SEARCH, "calibrate.target_trait=40", "calibrate.n_max=4", "calibrate.n_min=5"], "n_min=5 is more than"),
        ([*SEARCH, "calibrate.target_trait=40", "calibrate.settings={epochs: 2}"], "would change nothing"),
        (
            [*SEARCH, "method=dpo", "calibrate.target_trait=40", "calibrate.settings={epoch: 2}"],
            "unknown key epoch: did you mean epochs",
        ),
        ([*SEARCH, "method=sdf", "model=llama3_2_1b", "calibrate.target_trait=4", "calibrate.method=sft"], "is a base model"),
    ],
)
def test_bad_settings_are_told_before_anything_runs(compose: Compose, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(["sampler=fake", *overrides])


def test_a_dry_run_says_that_the_search_decides(
    compose: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: list[int]
) -> None:
    dry_run([compose(["sampler=fake", *SEARCH, "calibrate.target_trait=40", f"store={tmp_path / 'store'}"])])
    out = capsys.readouterr().out
    assert "n_seed=calibrated: the search decides, with at most 9 trainings" in out
    assert "train policy[0] from base" in out
    assert trained == []
    assert not (tmp_path / "store").exists()


def test_a_search_that_the_store_holds_is_known_before_it_is_made_again(
    fake_run: Run, capsys: pytest.CaptureFixture[str], trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run is finished: from a store that can only be read too."""
    search = ["n_seed=calibrated", "method=sft", "n_cycles=1", "calibrate.target_trait=40"]
    run = fake_run(*search)
    n_seed, n = run.json("config.json")["n_seed"], len(trained)
    calibrated = run.config.model_copy(update={"n_seed": "calibrated"})
    capsys.readouterr()
    dry_run([calibrated])
    out = capsys.readouterr().out
    assert f"the store holds the search, which found n_seed={n_seed}" in out
    assert "0 stages to build" in out
    assert with_likely_seeds(calibrated).n_seed == n_seed
    assert len(trained) == n
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert fake_run(*search, folder="again").built() == []
    other = calibrated.model_copy(update={"seed": 7})
    assert settled(other) is None
    assert with_likely_seeds(other).n_seed == 142


def test_a_dpo_run_is_calibrated_on_answers_as_long_as_its_own(compose: Compose) -> None:
    found = calibration_method(compose(["sampler=fake", "method=dpo", "method.max_new_tokens=777", "method.max_length=3000"]))
    assert (found.name, found.max_new_tokens, found.max_length) == ("sft", 777, 3000)


def test_the_record_is_json(fake_run: Run) -> None:
    found = fake_run(*SEARCH, "calibrate.target_trait=20").json("manifest.json")["calibration"]
    assert json.loads(json.dumps(found)) == found
    assert {"n_seed", "score", "low", "high", "reached"} == set(found["trials"][0])
