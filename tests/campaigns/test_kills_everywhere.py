"""Invariant 1 at every call of a run and at random moments: killed or out of disk, then resumed, it ends as if nothing was.

On fakes, in forked processes, with SIGKILL and ENOSPC. Not covered: loss of power, real training (tests/test_long.py).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed_run import forked
from small_runs import TOLD, counted, disturbed, finished, outcome, prepared, run_small

from iterative_ft.store import clearing

OVERRIDES = ["method=sft", "n_cycles=0", "n_seed=4", "measure.n_questions=3"]
CONTINUAL = ["method=dpo", "reinit=false", "n_cycles=1", "n_seed=4", "n_sampled=4", "measure.n_questions=3"]
MARGIN_S = 120.0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What a run comes to that nothing disturbs, and all that it asks of the disk."""
    base = tmp_path_factory.mktemp("undisturbed")
    prepared(*OVERRIDES)
    assert forked(counted, base, OVERRIDES) == 0
    return outcome(base), (base / "calls").read_text().split("\n")


def cases(calls: list[str]) -> Iterator[tuple[int, str]]:
    """Every call by number, and every way in which it can go wrong."""
    for at, call in enumerate(calls, 1):
        yield at, "kill"
        yield at, "once"
        if call == "write":
            yield at, "torn"
        if call in ("open", "write"):
            yield at, "full"


def strike(base: Path, at: int, how: str, told: dict[str, Any]) -> str:
    """Run on a disk that goes wrong, resume on a sound one. Returns what became of the first."""
    code = forked(disturbed, base, OVERRIDES, at, how)
    if how in ("kill", "torn"):
        assert code == -signal.SIGKILL, (at, how, code)
    else:
        assert code in (0, TOLD), f"call {at}, {how}: neither one line nor a run that did without"
    before = finished(base)
    assert forked(run_small, base, OVERRIDES) == 0, (at, how)
    after = finished(base)
    assert {name: after[name] for name in before} == before, f"call {at}, {how}: a finished stage was lost or written again"
    found = outcome(base)
    assert found == told, (at, how)
    shutil.rmtree(base)
    return {0: "went on", TOLD: "told", -signal.SIGKILL: "killed"}[code]


def run_cases(chosen: list[tuple[int, str]], told: dict[str, Any], tmp_path: Path) -> Counter[tuple[str, str]]:
    seen: Counter[tuple[str, str]] = Counter()
    for at, how in chosen:
        (tmp_path / "case").mkdir()
        seen[how, strike(tmp_path / "case", at, how, told)] += 1
    return seen


def test_a_run_asks_the_disk_for_all_that_is_tried(undisturbed: tuple[dict[str, Any], list[str]]) -> None:
    told, calls = undisturbed
    assert {"open", "write", "fsync", "mkdir", "rename", "replace"} <= set(calls)
    assert len(calls) > 100
    assert told["left"] == []


def test_some_calls_go_wrong(undisturbed: tuple[dict[str, Any], list[str]], tmp_path: Path) -> None:
    told, calls = undisturbed
    chosen = random.Random(12).sample(list(cases(calls)), 24)
    assert run_cases(chosen, told, tmp_path).total() == 24


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("how", ["kill", "torn", "full", "once"])
def test_every_call_goes_wrong(
    undisturbed: tuple[dict[str, Any], list[str]], tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told, calls = undisturbed
    chosen = [case for case in cases(calls) if case[1] == how]
    seen = run_cases(chosen, told, tmp_path)
    with capsys.disabled():
        became = ", ".join(f"{n} {what}" for (_, what), n in sorted(seen.items()))
        print(f"\n{how}: {len(chosen)} of {len(calls)} calls of a run went wrong ({became}); 0 differences after resuming")


# -- at random moments ---------------------------------------------------------------------------------------------------------


def killed_at_random(base: Path, rng: random.Random, duration_s: float) -> int:
    """Kill a run again and again, with `gc --yes` in between, until it ends by itself. Returns how often."""
    kills = 0
    while True:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            process = multiprocessing.get_context("fork").Process(target=run_small, args=(base, CONTINUAL))
            process.start()
        process.join(rng.uniform(0.0, duration_s) if kills < 12 else MARGIN_S)
        before = finished_now(base)
        if process.exitcode is None:
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
        if process.exitcode == 0:
            return kills
        assert process.exitcode == -signal.SIGKILL, process.exitcode
        kills += 1
        before |= finished(base)
        if rng.random() < 0.5 and (base / "store" / "iterative_ft_store.json").exists():
            assert clearing.main(["gc", str(base / "store"), "--yes", "--forget-missing"]) == 0
        after = finished(base)
        assert {name: after.get(name) for name in before} == before, "a finished stage was lost or written again"


def finished_now(base: Path) -> dict[str, tuple[bytes, int]]:
    """The same beside a run that goes on."""
    try:
        return finished(base)
    except FileNotFoundError:
        return {}


def random_kills(tmp_path: Path, wanted: int) -> tuple[int, int]:
    (tmp_path / "alone").mkdir()
    prepared(*CONTINUAL)
    started = time.monotonic()
    assert forked(run_small, tmp_path / "alone", CONTINUAL) == 0
    duration_s, told = time.monotonic() - started, outcome(tmp_path / "alone")
    rng, kills, chains = random.Random(1), 0, 0
    while kills < wanted:
        base = tmp_path / "chain"
        base.mkdir()
        kills += killed_at_random(base, rng, duration_s)
        chains += 1
        assert outcome(base) == told, f"chain {chains}"
        shutil.rmtree(base)
    return kills, chains


def test_a_few_kills_at_random(tmp_path: Path) -> None:
    assert random_kills(tmp_path, 6)[0] >= 6


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_kills_at_random(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kills, chains = random_kills(tmp_path, 200)
    with capsys.disabled():
        print(f"\n{kills} kills at random moments in {chains} runs; 0 differences in digests, rows, answers and verdict")
