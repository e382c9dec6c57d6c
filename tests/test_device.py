"""A GPU has one owner: nothing uses it beside an engine that is awake, on any way through a run, a calibration or a sweep.

There is no GPU here. The engine is a recording stand-in, and so is what starts a child process; all between them is the real
code with device=cuda. Not covered: what vLLM's sleep leaves on a real GPU (`make gpu-check`).
"""

from __future__ import annotations

import json
import resource
import runpy
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from test_shipped_sweeps import CUT, NAMES, n_cells
from tiny import save_adapter

from iterative_ft.errors import RunError
from iterative_ft.machine import device, process
from iterative_ft.models.expected import EXPECTED
from iterative_ft.models.policy import Policy
from iterative_ft.sampling import engine
from iterative_ft.sampling.interface import Block, Canary, Completion, Params, Request, Sampled, one_by_one
from iterative_ft.seeds import derive
from iterative_ft.stages import look as looking
from iterative_ft.stages.bench import SAMPLERS
from iterative_ft.training.job import ADAPTER, LOG

WIDTH = 64


@dataclass
class Record:
    """What used the device, in order, and whether an engine was awake then."""

    adapter: Path
    awake: int = 0
    uses: list[tuple[str, bool]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    @property
    def beside_the_engine(self) -> list[str]:
        return [name for name, awake in self.uses if awake]

    def start(self, command: list[str], environment: dict[str, str]) -> int:
        """In place of a child process on the GPU: its result by hand."""
        folder = Path(command[-1])
        job = process.read(folder / "job")
        name = job["function"].split(":")[1]
        self.uses.append((name, self.awake > 0))
        process.write(folder / "result", getattr(self, name)(**job["arguments"]))
        return 0

    def train_here(self, job: dict[str, Any]) -> dict[str, Any]:
        out = Path(job["out"])
        shutil.copytree(self.adapter, out / ADAPTER, dirs_exist_ok=True)
        (out / EXPECTED).write_text("")
        (out / LOG).write_text(json.dumps({"step": 1, "loss": derive(job["seed"], job["method"]) / 2**40}) + "\n")
        return {
            "n_examples": 1,
            "n_steps": 1,
            "n_tokens": 1,
            "loop_seconds": 0.0,
            "init_adapter_sha256": "x",
            "adapter_norm": 1.0,
        }

    def states_here(self, texts: list[str], pieces: list[int], dtype: str, **_: Any) -> list[np.ndarray]:
        assert dtype == "bfloat16", "a GPU that trains a model in bfloat16 may not hold it in float32"
        return [np.stack([vector(f"{text} {i}", WIDTH) for i in range(1 + n)]) for text, n in zip(texts, pieces, strict=True)]

    def replies_here(self, pairs: list[Any], dtype: str, **_: Any) -> np.ndarray:
        assert dtype == "bfloat16"
        return np.stack([vector(str(pair), 2 * WIDTH) for pair in pairs])

    def token_values_here(self, sequences: list[Any], kl: bool, dtype: str, **_: Any) -> dict[str, Any]:
        nll = [np.abs(vector(str(rest), len(rest))) for _, rest in sequences]
        return {"nll": nll, "entropy": nll, "kl": nll if kl else [], **self.sequence_states_here(sequences, dtype)}

    def sequence_states_here(self, sequences: list[Any], dtype: str, **_: Any) -> dict[str, np.ndarray]:
        assert dtype == "bfloat16"
        states = np.stack([vector(str(sequence), WIDTH) for sequence in sequences])
        return {"prompt": states, "answer": states}

    def expected_here(self, dtype: str, **_: Any) -> dict[str, Any]:
        assert dtype == "bfloat16"
        return {"ids": [[1, 2]], "logs": [[-1.0]]}


def vector(text: str, n: int) -> np.ndarray:
    """Numbers that a text always has."""
    return np.random.default_rng(derive(text)).normal(size=n)


class Engine:
    """An engine on a GPU, as far as its owner sees it."""

    shares_calls = False

    def __init__(self, record: Record) -> None:
        self.record, self.is_awake, self.policy = record, False, ""

    def set_awake(self, awake: bool) -> None:
        self.record.awake += int(awake) - int(self.is_awake)
        self.is_awake = awake

    def load(self, policy: Policy) -> Canary:
        assert policy.expected is not None
        self.set_awake(True)
        self.policy = policy.digest
        self.record.loads.append(policy.name)
        return Canary(0.0, 0.1, 0.0)

    def sample(self, requests: list[Request], params: Params) -> list[Completion]:
        assert self.is_awake
        return [
            Completion([90 + derive(self.policy, r.seed, i) % 100 for i in range(8)] + [params.end_ids[0]], "stop")
            for r in requests
        ]

    def sample_blocks(self, blocks: list[Block]) -> Generator[Sampled]:
        return one_by_one(self.sample, blocks)

    def sleep(self) -> None:
        self.set_awake(False)

    close = sleep


@pytest.fixture
def record(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """A machine with one GPU."""
    engine.close_sampler()
    found = Record(save_adapter(tiny_model, tmp_path / "adapter", size=0.1))
    monkeypatch.setattr(process, "start", found.start)
    monkeypatch.setattr(device, "visible_gpus", lambda: ["0"])
    monkeypatch.setitem(SAMPLERS, "vllm", lambda config, where, codec: Engine(found))
    monkeypatch.setattr(looking, "examine", lambda config, download=True: None)
    monkeypatch.setattr(looking.FirstLook, "once_stored", lambda self, bench: None)
    monkeypatch.setattr("iterative_ft.judges.embedder.KEPT", {})
    monkeypatch.setattr(
        "iterative_ft.judges.embedder.embedded",
        lambda texts, name: np.stack([(v := vector(text, 32)) / np.linalg.norm(v) for text in texts]),
    )
    # The engine draws tokens by chance: whether the judge knows their words is none of this.
    monkeypatch.setattr("iterative_ft.judges.probe.familiar.LEAST_KNOWN", 0.0)
    monkeypatch.setattr("iterative_ft.judges.probe.lexicon.KNOWN_FROM", 200)  # texts: few words are learnt faster
    monkeypatch.setattr("iterative_ft.launch.sweep.write_page", lambda done, file: None)
    yield found
    engine.close_sampler()


@pytest.fixture
def command(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`command("-m", "+sweep=…")`: train.py in this process, on the GPU, with the tiny model."""

    def call(*arguments: str) -> int:
        settings = [
            "model=custom", f"model.path={tiny_model}", "model.name=tiny", f"store={tmp_path / 'store'}", "device=cuda",
            "model.end_token='<|im_end|>'", "model.document_end_token='<|endoftext|>'", "lora.rank=4", "lora.alpha=8",
            "sampler.max_model_len=8192", "method.max_length=8192", "wandb.mode=disabled", *CUT,
        ]  # fmt: skip
        folder = "sweep" if "-m" in arguments else "run"
        monkeypatch.setattr(
            sys, "argv", [str(ROOT / "train.py"), *arguments, *settings, f"hydra.{folder}.dir={tmp_path / 'out'}"]
        )
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return call


GAUGES = ["gauges.perplexity=true", "gauges.branching_factor=true", "gauges.kl_from_base=true"]


def test_a_run_gives_the_device_back_before_training_judging_and_gauges(record: Record, command: Callable[..., int]) -> None:
    assert command("method=dpo", "reinit=false", "n_seed=16", "n_sampled=32", *GAUGES) == 0
    kinds = Counter(name for name, _ in record.uses)
    assert kinds["train_here"] == 3
    assert {"expected_here", "states_here", "token_values_here", "sequence_states_here"} <= kinds.keys()
    assert record.beside_the_engine == []
    assert len(record.loads) > 4, "after each sleep the policy is loaded, and so checked, again"


def test_a_calibration_does_too(record: Record, command: Callable[..., int]) -> None:
    n = ["n_seed=calibrated", "calibrate.target_trait=0", "calibrate.n_min=8", "calibrate.n_max=16", "n_sampled=32"]
    assert command("method=sft", "reinit=true", *n) == 0
    assert Counter(name for name, _ in record.uses)["train_here"] >= 4
    assert record.beside_the_engine == []


def test_the_record_would_notice(record: Record, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "sleep", lambda self: None)
    assert command("method=sft", "reinit=true", "n_seed=16", "n_sampled=32") == 0
    assert {"train_here", "states_here"} <= set(record.beside_the_engine)


def test_what_no_stage_thought_of_takes_the_device_as_well(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a process on the GPU is behind the engine's sleep, without asking for it."""
    served = Engine(record)
    monkeypatch.setitem(engine.HELD, "key", served)
    served.set_awake(True)
    process.run_isolated(vector, "cpu", text="a", n=2)
    assert served.is_awake
    monkeypatch.setattr(Record, "vector", lambda self, **_: 1, raising=False)
    assert process.run_isolated(vector, "cuda", text="a", n=2) == 1
    assert record.uses == [("vector", False)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "smoke" else pytest.mark.long) for n in NAMES])
def test_no_work_on_the_device_beside_an_awake_engine_in_any_sweep(
    name: str, record: Record, command: Callable[..., int], tmp_path: Path
) -> None:
    more = ["model.chat=true", "model.dtype=bfloat16", *GAUGES]  # the study's sweeps ask for float32
    if name == "mitigations":  # words drawn by chance are never coherent: keep them all, by way of the filter
        more += ["method.coherence_filter=null,0", "reinit.restart_cycles=[],[2]"]  # and there are two cycles here
    assert command("-m", f"+sweep={name}", *more) == 0
    kinds = Counter(use for use, _ in record.uses)
    print(f"\n{name}: {n_cells(name)} cells, {len(record.uses)} uses of the device ({dict(kinds)}), none beside the engine")
    assert record.beside_the_engine == []
    assert kinds["train_here"] == len(list((tmp_path / "store" / "train").iterdir())) >= 3
    assert kinds["expected_here"] == 1, "base's is written once, in all cells"


def test_the_transformers_sampler_leaves_the_gpu_and_is_checked_when_it_comes_back(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that calls itself a GPU."""
    import torch
    from test_sampling import sampler_of
    from tiny import policy_of

    sampler = sampler_of(tiny_model, tmp_path)
    base, mine = policy_of(tiny_model), policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "mine", size=0.1))
    sampler.load(base)
    sampler.load(mine)
    moves: list[str] = []
    monkeypatch.setattr(sampler.base, "to", lambda where: moves.append(where) or sampler.base)
    checks: list[str] = []
    real = sampler.check
    monkeypatch.setattr(sampler, "check", lambda policy: (checks.append(policy.name), real(policy)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    sampler.device = "cuda"
    sampler.sleep()
    sampler.sleep()
    sampler.device = "cpu"
    assert moves == ["cpu"]
    sampler.load(mine)
    assert (moves, checks) == (["cpu", "cpu"], ["policy[0]"])
    sampler.load(mine)
    assert len(checks) == 1
    ids = sampler.watch.expected(mine).ids
    sampler.device = "cuda"
    sampler.sleep()
    sampler.device = "cpu"
    monkeypatch.setattr(
        "iterative_ft.sampling.transformers.token_logs", lambda net, texts: [[-1.0] * (len(t) - 1) for t in ids]
    )
    with pytest.raises(RunError, match="does not serve"):
        sampler.load(mine)
    assert sampler.loaded is None


def test_pages_given_back_read_as_zeros_and_what_lies_beside_them_stays() -> None:
    page = resource.getpagesize()
    memory = np.ones(64 * page, dtype=np.uint8)
    begin, n_bytes = 100, 60 * page
    device.give_pages_back(memory.ctypes.data + begin, n_bytes)
    assert memory[:begin].all()
    assert memory[begin + n_bytes :].all()
    assert memory[begin : begin + n_bytes].sum() < 2 * page, "all but the parts of pages at both ends"
    memory[:] = 2
    assert memory.sum() == 2 * memory.size
    device.give_pages_back(memory.ctypes.data, page // 2)  # not a whole page
    assert memory.sum() == 2 * memory.size
