"""What the stages of one run share: its config, store, device, base model, codec and engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from iterative_ft import fake
from iterative_ft.config.judges import EngineConfig
from iterative_ft.config.model import JudgeModelConfig
from iterative_ft.config.schema import Config
from iterative_ft.machine.device import resolve_device
from iterative_ft.models.codec import Codec, TokenizerCodec
from iterative_ft.models.forward import Reader, reading_dtype
from iterative_ft.models.policy import Policy
from iterative_ft.sampling import engine
from iterative_ft.sampling.interface import Sampler
from iterative_ft.sampling.transformers import TransformersSampler
from iterative_ft.sampling.vllm import VLLMSampler
from iterative_ft.stages.expected import expected_file
from iterative_ft.stages.model import base_of, model_stage
from iterative_ft.store import Event, Stage, Store

SAMPLERS: dict[str, Callable[[Config, str, Codec], Sampler]] = {
    "vllm": VLLMSampler,
    "transformers": TransformersSampler,
    "fake": lambda config, device, codec: fake.FakeSampler(),
}


class Bench:
    """One run's tools. What is heavy is made when it is first asked for."""

    def __init__(
        self,
        config: Config,
        store: Store,
        on_step: Callable[[int, int, float], None] | None = None,
        plan: Callable[[], list[Event]] | None = None,
        other_cells: Callable[[Policy], list[Event]] | None = None,
    ) -> None:
        """What is not told is not looked ahead for.

        Args:
            plan: gives the stages of the run in their order, and which of them are still to be built.
            other_cells: the same of other cells of a sweep, as far as they may want something of a policy.
        """
        self.config = config
        self.store = store
        self.device = resolve_device(config.device)
        self.on_step = on_step
        self.starts: list[float] = []
        self.started: Sampler | None = None
        self.make_plan, self.other_cells = plan, other_cells
        self.plans: dict[str, list[Event]] = {}
        self.expected: dict[str, Path] = {}  # by the policy's digest

    def plan(self, policy: Policy) -> list[Event]:
        """The run's plan as it stood when this policy was there first: what it is to write is known then."""
        if policy.digest not in self.plans:
            mine = [] if self.make_plan is None else self.make_plan()
            self.plans[policy.digest] = mine + ([] if self.other_cells is None else self.other_cells(policy))
        return self.plans[policy.digest]

    @cached_property
    def model(self) -> Stage:
        """The base model's stage."""
        return model_stage(self.config, self.store)

    @cached_property
    def base(self) -> Policy:
        """The untouched model."""
        return base_of(self.config, self.model, self.store.dry_run)

    @cached_property
    def codec(self) -> Codec:
        return fake.FakeCodec() if self.config.fake else TokenizerCodec(self.base.model, self.config.model)

    @property
    def sampler(self) -> Sampler:
        """The engine of this process; where it does not run, or runs for another model, it is started with the base model."""
        started = time.monotonic()
        config = self.config
        sampler = engine.shared_sampler(
            config, self.device, self.model.digest, lambda: SAMPLERS[config.sampler.name](config, self.device, self.codec)
        )
        if sampler is not self.started:
            sampler.load(self.with_expected(self.base))
            self.started = sampler
            self.starts.append(time.monotonic() - started)
        return sampler

    @property
    def engine_start_s(self) -> float:
        """Seconds that engines took to start, that of a second model which judges among them."""
        return sum(self.starts)

    @cached_property
    def judging(self) -> Bench:
        """With judge=engine: the bench whose base model judges, this one or that of the model that the judge names."""
        judge, model = self.config.judge, self.config.model
        if not isinstance(judge, EngineConfig) or judge.model is None or self.config.fake:
            return self
        other = JudgeModelConfig(
            name="judge",
            path=judge.model,
            revision=judge.revision,
            dtype=model.dtype,
            chat=True,
            system_prompt=None,
            chat_template_kwargs=judge.chat_template_kwargs,
            end_token=None,
            document_end_token=None,
            trust_remote_code=False,  # the run's own is trusted by its name alone
        )
        config = self.config.model_copy(update={"model": other})
        found = Bench(config, self.store)
        found.starts = self.starts
        found.model = model_stage(config, self.store, f"judge's model {judge.model}", {"role": "judge's checkpoint"})
        return found

    def with_expected(self, policy: Policy) -> Policy:
        """The policy with what a sampler is to be held against when it serves it."""
        if self.config.fake or policy.expected is not None:
            return policy
        if policy.digest not in self.expected:
            self.expected[policy.digest] = expected_file(self.store, policy, self.reader)
        return replace(policy, expected=self.expected[policy.digest])

    @property
    def reader(self) -> Reader:
        """The base model for forward passes outside the engine."""
        model = self.config.model
        return Reader(str(self.base.model), self.device, model.trust_remote_code, reading_dtype(self.device, model.dtype))

    @property
    def reads_in(self) -> dict[str, str]:
        """The precision of forward passes, for keys of what they give; on a CPU it is always the same."""
        return {"reads_in": self.reader.dtype} if self.device == "cuda" else {}

    def free_device(self) -> None:
        """Have the engine of this process give its device back early; what runs on a GPU in a process of its own claims it."""
        engine.sleep()
