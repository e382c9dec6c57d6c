"""Invariant 10 beside `gc`: processes that run on one store, with `gc --yes` in a loop, never crash nor build a stage twice.

On fakes, in forked processes on one machine. Runs of earlier rounds are deleted now and then, so that there is something to
remove, some of it just when a new run wants it. Not covered: network disks.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import sys
import time
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from killed_run import forked
from small_runs import outcome, prepared, run_small

from iterative_ft.store import clearing, stages

TINY = ["n_seed=4", "n_sampled=4", "measure.n_questions=3", "prompts.per_cycle=32"]
RUNS = [
    [*TINY, "method=sft", "n_cycles=1"],
    [*TINY, "method=sft", "n_cycles=1", "reinit=false"],
    [*TINY, "method=sft", "n_cycles=0", "seed=1"],
    [*TINY, "method=dpo", "n_cycles=1"],
    [*TINY, "method=dpo", "n_cycles=0", "seed=1"],
]
LIMIT_S = 300.0


@dataclass
class Campaign:
    """What happened in all rounds."""

    rounds: int = 0
    runs: int = 0
    n_built: int = 0
    clearings: int = 0
    removed: int = 0
    built_twice: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)


def slower(owner: Any, name: str, longest_s: float) -> None:
    """Wait after each call: what other processes may do between it and the next comes to happen."""
    real, rng = getattr(owner, name), random.Random(os.getpid())

    def waited(*arguments: Any, **named: Any) -> Any:
        found = real(*arguments, **named)
        time.sleep(rng.random() * longest_s)
        return found

    setattr(owner, name, waited)


def run_told(base: Path, overrides: list[str], folder: str, wait_s: float) -> None:
    """Run in a forked process; what it builds goes into <base>/built, what it says on stderr into <base>/<folder>.err."""
    real = stages.Store.build

    def build(self: stages.Store, kind: str, key: str, *arguments: Any, **named: Any) -> Any:
        stage = real(self, kind, key, *arguments, **named)
        with (base / "built").open("a") as file:
            file.write(f"{kind}/{key}\n")
        return stage

    stages.Store.build = build  # type: ignore[method-assign]
    slower(stages, "read_stage", 0.01)
    slower(stages, "write_reference", 0.003)
    time.sleep(wait_s)
    with (base / f"{folder}.err").open("w", buffering=1) as said, redirect_stderr(said):
        run_small(base, overrides, folder=folder)


def clear_in_a_loop(base: Path, number: int) -> None:
    """`gc --yes --forget-missing` until <base>/stop is there; the exit codes go into <base>/gc-<number>.codes."""
    codes = []
    slower(clearing, "garbage", 0.02)
    slower(clearing, "kept_by", 0.01)
    with (base / f"gc-{number}.out").open("w") as said, redirect_stdout(said), redirect_stderr(said):
        while not (base / "stop").exists():
            marked = (base / "store" / "iterative_ft_store.json").exists()
            codes.append(clearing.main(["gc", str(base / "store"), "--yes", "--forget-missing"]))
            if codes[-1] == 2 and not marked:
                codes[-1] = 0  # no store yet
            time.sleep(0.002)
    (base / f"gc-{number}.codes").write_text(" ".join(map(str, codes)))


def started(function: Any, *arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
        process.start()
    return process


def one_round(base: Path, rng: random.Random, number: int, alone: list[dict[str, Any]], seen: Campaign) -> None:
    """2 to 8 runs at once beside one or two `gc`s, while most runs of the rounds before are deleted."""
    (base / "built").write_text("")
    (base / "stop").unlink(missing_ok=True)
    n_runs, n_gc = rng.randint(2, 8), rng.randint(1, 2)
    chosen = [rng.randrange(len(RUNS)) for _ in range(n_runs)]
    folders = [f"run-{number}-{i}" for i in range(n_runs)]
    doomed = sorted(folder for folder in base.glob("run-*-*") if folder.is_dir() and rng.random() < 0.8)
    clearers = [started(clear_in_a_loop, base, i) for i in range(n_gc)]
    runs = [started(run_told, base, RUNS[c], f, rng.random() / 5) for c, f in zip(chosen, folders, strict=True)]
    for folder in doomed:
        time.sleep(rng.random() * 0.4 / max(1, len(doomed)))
        shutil.rmtree(folder)
    for process in runs:
        process.join(LIMIT_S)
    (base / "stop").touch()
    for process in clearers:
        process.join(LIMIT_S)
    for process, folder, which in zip(runs, folders, chosen, strict=True):
        said = (base / f"{folder}.err").read_text()
        if process.exitcode != 0 or said:
            seen.crashes.append(f"round {number}, {folder}: exit code {process.exitcode} {said}")
        elif {k: outcome(base, folder)[k] for k in ("rows", "answers", "verdict")} != alone[which]:
            seen.crashes.append(f"round {number}, {folder}: other rows than alone")
    for i, process in enumerate(clearers):
        codes = (base / f"gc-{i}.codes").read_text().split() if process.exitcode == 0 else ["crashed"]
        said = (base / f"gc-{i}.out").read_text()
        if set(codes) != {"0"}:
            seen.crashes.append(f"round {number}: gc {codes} {said[-2000:]}")
        seen.clearings += len(codes)
        seen.removed += said.count("\nremoved ") + said.startswith("removed ")
    built = Counter((base / "built").read_text().split())
    seen.built_twice += [f"round {number}: {name}" for name, n in built.items() if n > 1]
    seen.n_built += built.total()
    seen.rounds += 1
    seen.runs += n_runs


def campaign(tmp_path: Path, n_rounds: int, a_store: int) -> Campaign:
    """Rounds on one store after the other, `a_store` on each."""
    alone = []
    for number, overrides in enumerate(RUNS):
        prepared(*overrides)
        (tmp_path / f"alone-{number}").mkdir()
        assert forked(run_small, tmp_path / f"alone-{number}", overrides) == 0
        found = outcome(tmp_path / f"alone-{number}")
        alone.append({k: found[k] for k in ("rows", "answers", "verdict")})
    rng, seen = random.Random(7), Campaign()
    for number in range(n_rounds):
        base = tmp_path / f"store-{number // a_store}"
        base.mkdir(exist_ok=True)
        one_round(base, rng, number, alone, seen)
    return seen


def test_a_few_rounds_beside_gc(tmp_path: Path) -> None:
    seen = campaign(tmp_path, n_rounds=3, a_store=3)
    assert seen.crashes == []
    assert seen.built_twice == []
    assert seen.removed > 0
    assert seen.clearings > 3


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_rounds_beside_gc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = campaign(tmp_path, n_rounds=64, a_store=8)
    line = (
        f"{seen.rounds} rounds, {seen.runs} runs, {seen.n_built} stages built, {seen.clearings} times gc --yes, which removed "
    )
    line += f"{seen.removed} folders: {len(seen.crashes)} crashes, {len(seen.built_twice)} double builds"
    with capsys.disabled():
        print(f"\n{line}")
    print("\n".join(seen.crashes + seen.built_twice), file=sys.stderr)
    assert seen.crashes == []
    assert seen.built_twice == []
    assert seen.removed > 100
