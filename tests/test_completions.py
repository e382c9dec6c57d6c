"""Blocks of several prompts in few engine calls: what is stored, who builds it, and what a kill loses. On fakes and stubs."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, FakeRun
from filelock import FileLock, Timeout

from iterative_ft import fake
from iterative_ft.config.schema import Config
from iterative_ft.loop import run
from iterative_ft.machine.files import write_jsonl
from iterative_ft.sampling import vllm
from iterative_ft.sampling.interface import Block, Completion, Params, Request, Sampled
from iterative_ft.stages.blocks import SAMPLE
from iterative_ft.store import Store, stage_key
from iterative_ft.store.ahead import claimed, put
from iterative_ft.store.layout import LOCKS
from iterative_ft.store.stages import AHEAD

Run = Callable[..., FakeRun]
Compose = Callable[[list[str]], Config]
MANY = ["n_sampled=40", "n_seed=40", "measure.n_questions=20", "measure.n_answers=2", "prompts.per_cycle=64"]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of blocks of each time that blocks were handed to the sampler."""
    found: list[int] = []
    real = fake.FakeSampler.sample_blocks

    def counted(self: fake.FakeSampler, blocks: list[Block]) -> Generator[Sampled]:
        found.append(len(blocks))
        return real(self, blocks)

    monkeypatch.setattr(fake.FakeSampler, "sample_blocks", counted)
    return found


def digests(run: FakeRun) -> dict[str, str]:
    return {
        f"{s['kind']}/{s['key']}": json.loads((run.store / s["kind"] / s["key"] / "manifest.json").read_text())["digest"]
        for s in run.stages
    }


def test_each_policy_is_handed_all_that_the_run_wants_of_it_at_once(fake_run: Run, handed: list[int]) -> None:
    run = fake_run("method=dpo", "n_cycles=2", *MANY)
    written = [s for s in run.stages if s["kind"] in ("sample", "answer")]
    assert sum(handed) == len(written), "nothing was sampled twice, or for nobody"
    assert len(handed) == 4, "base, and policies 0 to 2"
    assert all(s["how"] == "built" for s in written)


def test_one_call_a_block_gives_the_same_stages(fake_run: Run, monkeypatch: pytest.MonkeyPatch, handed: list[int]) -> None:
    together = fake_run("method=dpo", "n_cycles=2", *MANY, store="a")
    monkeypatch.setattr(fake.FakeSampler, "shares_calls", False)
    handed.clear()
    apart = fake_run("method=dpo", "n_cycles=2", *MANY, store="b")
    assert set(handed) == {1}
    assert digests(together) == digests(apart)
    assert together.measured == apart.measured


def test_seconds_of_blocks_add_up_to_the_time_that_passed(fake_run: Run) -> None:
    run = fake_run("method=dpo", "n_cycles=1", *MANY)
    times = run.json("result.json")["time"]
    spent = sum(value for name, value in times.items() if name in ("time/sample_s", "time/answer_s"))
    assert 0 <= spent <= times["time/total_s"]


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[None]:
    """Another process holds a lock: what a fork inherits of ours would not count."""
    code = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print(1, flush=True); sys.stdin.readline()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.communicate(b"\n", timeout=30)


def test_a_block_that_another_process_builds_is_left_to_it(fake_run: Run, compose: Compose, tmp_path: Path) -> None:
    config = compose([*SMALL, *MANY, "wandb.mode=disabled", f"store={tmp_path / 'store'}"])
    first, last = [s["key"] for s in fake_run(*MANY, store="elsewhere").stages if s["kind"] == "sample"][:2]  # of base
    store = Store(tmp_path / "store")
    lock = store.root / LOCKS / f"sample-{last}"
    lock.parent.mkdir(parents=True)
    with held_elsewhere(lock):
        process = multiprocessing.get_context("fork").Process(target=run, args=(config, tmp_path / "run", "python train.py"))
        process.start()
        while store.find("sample", first) is None:
            assert process.is_alive()
            process.join(0.05)
        process.join(0.5)
        assert process.is_alive(), "it waits for the block that we hold, and has built the others"
        assert store.find("sample", last) is None
    process.join(60)
    assert process.exitcode == 0
    assert store.find("sample", last) is not None


def test_others_have_a_claimed_block_as_soon_as_it_is_stored(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path), [(SAMPLE, {"number": number}) for number in range(2)]
    with claimed(store, wanted) as mine:
        assert mine == [0, 1]
        put(store, *wanted[0], lambda out: write_jsonl(out / "a.jsonl", []), "first")
        lock = FileLock(store.root / LOCKS / f"sample-{stage_key(*wanted[0])}")
        lock.acquire(timeout=0)
        lock.release()
        with pytest.raises(Timeout):
            FileLock(store.root / LOCKS / f"sample-{stage_key(*wanted[1])}").acquire(timeout=0)
    AHEAD.clear()


def killed_in_block(config: Config, folder: Path, number: int) -> None:
    """Run until the `number`-th block comes out of the sampler, and die there."""
    left = [number]

    def dying(sample: Any, blocks: list[Block]) -> Generator[Sampled]:
        for sampled in one_by_one(sample, blocks):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield sampled

    one_by_one = fake.one_by_one
    fake.one_by_one = dying  # type: ignore[assignment]
    run(config, folder, "python train.py")


def test_a_kill_inside_a_call_loses_no_block_that_was_done(compose: Compose, tmp_path: Path) -> None:
    config = compose([*SMALL, *MANY, "wandb.mode=disabled", f"store={tmp_path / 'store'}"])
    context = multiprocessing.get_context("fork")
    process = context.Process(target=killed_in_block, args=(config, tmp_path / "run", 4))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    kept = [stage for stage in Store(tmp_path / "store").stages() if stage.kind in ("sample", "answer")]
    assert len(kept) == 3
    result = run(config, tmp_path / "run", "python train.py")
    stages = json.loads((result.folder / "manifest.json").read_text())["stages"]
    assert {s["key"] for s in stages if s["how"] == "stored"} >= {stage.key for stage in kept}


# -- the engine ---------------------------------------------------------------------------------------------------------------

PARAMS = Params(temperature=1.0, top_p=1.0, max_new_tokens=40, end_ids=[0], stop=[])


class StubEngine(vllm.VLLMSampler):
    """An engine whose tokens follow from the request alone or, when `leaky`, from how many are beside it as well."""

    def __init__(self, leaky: bool) -> None:
        self.device, self.dtype, self.independent, self.leaky = "cpu", "float32", None, leaky
        self.room = lambda: 8192  # type: ignore[method-assign]
        self.calls: list[int] = []

    at_work = 128  # type: ignore[assignment]

    def stream(self, blocks: list[Block]) -> Generator[Sampled]:
        n = sum(len(block.requests) for block in blocks)
        self.calls.append(n)
        shift = n if self.leaky else 0
        for block in blocks:
            ids = [[r.seed + shift + i for i in range(block.params.max_new_tokens)] for r in block.requests]
            yield Sampled([Completion(one, "length") for one in ids], 1.0, n)


def blocks_of(*sizes: int, n_prompt: int = 5) -> list[Block]:
    return [Block([Request([7] * n_prompt, 100 * k + i) for i in range(size)], PARAMS) for k, size in enumerate(sizes)]


def test_a_large_call_is_proved_once_and_then_trusted(capsys: pytest.CaptureFixture[str]) -> None:
    engine, alone = StubEngine(leaky=False), StubEngine(leaky=False)
    found = [s.completions for s in engine.sample_blocks(blocks_of(32, 32, 10, 2, 2))]
    assert engine.calls == [4, 78], "the proof, and one call"
    assert found == [alone.sample(block.requests, PARAMS) for block in blocks_of(32, 32, 10, 2, 2)]
    list(engine.sample_blocks(blocks_of(32, 32)))
    assert engine.calls == [4, 78, 64]
    assert capsys.readouterr().out == ""


def test_where_neighbours_matter_each_block_is_a_call_of_its_own_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    engine, alone = StubEngine(leaky=True), StubEngine(leaky=True)
    found = [s.completions for s in engine.sample_blocks(blocks_of(32, 20))]
    assert found == [alone.sample(block.requests, PARAMS) for block in blocks_of(32, 20)]
    assert engine.shares_calls is False
    assert "each block is a call of its own" in capsys.readouterr().out
    engine = StubEngine(leaky=True)
    engine.room = lambda: 850  # type: ignore[method-assign]
    list(engine.sample_blocks(blocks_of(100, 20, 100, 20, n_prompt=6)))
    assert engine.calls == [2, 120, 100, 20, 100, 20], "the second shared call is not tried"
    assert capsys.readouterr().out.count("each block is a call of its own") == 1
    engine.calls.clear()
    list(engine.sample_blocks(blocks_of(32, 20)))
    assert engine.calls == [32, 20]


def test_calls_hold_the_limits_of_the_engine() -> None:
    assert [len(call) for call in vllm.calls(blocks_of(*[32] * 6), 128, 8192)] == [6]
    long = vllm.calls(blocks_of(32, 32, 32, n_prompt=150), 128, 8192)  # 4,832 tokens a block
    assert [len(call) for call in long] == [1, 1, 1]
    few = vllm.calls(blocks_of(32, 32, 32, n_prompt=150), 50, 8192)  # 7,550 tokens of 50 that may begin together
    assert [len(call) for call in few] == [3]


@pytest.mark.parametrize(
    ("device", "dtype", "shares"), [("cpu", "float32", True), ("cpu", "bfloat16", False), ("cuda", "float32", False)]
)
def test_only_float32_on_a_cpu_goes_together(device: str, dtype: str, shares: bool) -> None:
    engine = StubEngine(leaky=False)
    engine.device, engine.dtype = device, dtype
    assert engine.shares_calls is shares
