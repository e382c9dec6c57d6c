"""Types and rules of the configuration: one frozen `Config`, which the rest of the project reads.

Hydra composes YAML (launch/compose.py) and this module judges the result. It imports nothing heavy, so that a typo is
answered before any model library is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from iterative_ft.config import wandb_rules
from iterative_ft.config.judges import ApiConfig, EngineConfig, ProbeConfig
from iterative_ft.config.methods import DPOConfig, SDFConfig, SFTConfig
from iterative_ft.config.model import LoraConfig, ModelConfig
from iterative_ft.config.persona import PersonaConfig
from iterative_ft.config.section import Count, PathText, PositiveInt, Precision, Score, Section, Seed, Share
from iterative_ft.data import files as persona_files


def not_next_to_zero(value: float) -> float:
    if 0 < value < 0.01:
        raise ValueError(f"temperature={value:g} is wrong: give 0 (greedy) or 0.01 and more, which samplers can tell apart")
    return value


# 0 is greedy; vLLM takes what lies between for 0.01, and the logits divided by less overflow.
Temperature = Annotated[float, Field(ge=0, le=10), AfterValidator(not_next_to_zero)]
# Upper ends of counts that nothing else bounds: a digit too many is answered, and not worked on for a year.
MOST_ANSWERS, MOST_EXAMPLES, MOST_CYCLES = 1000, 1_000_000, 1000


class ReinitConfig(Section):
    name: Literal["reinit", "continual"]
    init: Literal["base", "previous"]
    restart_cycles: Annotated[list[PositiveInt], Field(max_length=1000)]


class SamplingConfig(Section):
    temperature: Temperature
    top_p: Annotated[float, Field(gt=0, le=1)]
    block_size: Annotated[int, Field(ge=1, le=1024)]


class VLLMConfig(Section):
    name: Literal["vllm"]
    dtype: Literal["auto"] | Precision
    max_model_len: PositiveInt
    kv_cache_gib: Annotated[float, Field(gt=0, le=4096)]
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    tensor_parallel_size: Annotated[int, Field(ge=1, le=64)]
    enforce_eager: bool
    canary_max_share: Annotated[float, Field(gt=0)]


class TransformersConfig(Section):
    name: Literal["transformers"]
    dtype: Literal["auto"] | Precision
    max_model_len: PositiveInt
    canary_max_share: Annotated[float, Field(gt=0)]


class FakeConfig(Section):
    name: Literal["fake"]
    max_model_len: PositiveInt


class PoolConfig(Section):
    path: str
    column: str
    split: str
    revision: str | None
    per_cycle: PositiveInt


class MeasureConfig(Section):
    n_questions: PositiveInt
    n_answers: Annotated[int, Field(ge=1, le=MOST_ANSWERS)]
    temperature: Temperature
    top_p: Annotated[float, Field(gt=0, le=1)]
    coherence_threshold: Score
    n_openings: Count
    max_failure_share: Share


def seed_count(value: Any) -> Any:
    """A whole number of seed examples, or the word that lets a search find it."""
    if value == "calibrated" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"n_seed={value!r} is wrong: give a whole number of 1 or more, or calibrated")


class CalibrateConfig(Section):
    """The search for n_seed; see iterative_ft/calibrate.py."""

    target_trait: Score | None
    method: Literal["sft", "sdf"] | None
    settings: dict[str, Any]
    n_min: PositiveInt
    n_max: PositiveInt | None
    reach: Literal["score", "low"]
    tolerance: Score


class GaugesConfig(Section):
    self_similarity: bool
    persona_projection: bool
    entropy: bool
    perplexity_plain: bool
    perplexity: bool
    branching_factor: bool
    kl_from_base: bool


class WandbConfig(Section):
    mode: Literal["offline", "online", "disabled"]
    project: Annotated[str, AfterValidator(wandb_rules.project)]
    entity: Annotated[str, AfterValidator(wandb_rules.entity)] | None
    group: Annotated[str, AfterValidator(wandb_rules.group)] | None
    tags: list[Annotated[str, AfterValidator(wandb_rules.tag)]]


SamplerConfig = VLLMConfig | TransformersConfig | FakeConfig
JudgeConfig = ProbeConfig | ApiConfig | EngineConfig


class Config(Section):
    """Everything a run depends on."""

    model: ModelConfig
    method: Annotated[SFTConfig | SDFConfig | DPOConfig, Field(discriminator="name")]
    persona: PersonaConfig
    reinit: ReinitConfig
    sampler: Annotated[SamplerConfig, Field(discriminator="name")]
    judge: Annotated[JudgeConfig, Field(discriminator="name")]
    n_seed: Annotated[int | Literal["calibrated"], BeforeValidator(seed_count)]
    n_sampled: Annotated[int, Field(ge=1, le=MOST_EXAMPLES)]
    n_cycles: Annotated[int, Field(ge=0, le=MOST_CYCLES)]
    seed: Seed
    start_adapter: PathText | None
    store: PathText
    dry_run: bool
    device: Literal["auto", "cpu", "cuda"]
    n_processes: Annotated[int, Field(ge=1, le=64)]
    lora: LoraConfig
    sampling: SamplingConfig
    prompts: PoolConfig
    titles: PoolConfig
    measure: MeasureConfig
    gauges: GaugesConfig
    calibrate: CalibrateConfig
    wandb: WandbConfig

    @property
    def persona_folder(self) -> Path:
        return persona_files.folder(self.persona.data)

    @property
    def pool(self) -> PoolConfig:
        """Where the prompts of later cycles come from: chat prompts, or document titles for SDF."""
        return self.titles if self.method.name == "sdf" else self.prompts

    @property
    def pool_name(self) -> str:
        """The setting that `pool` is."""
        return "titles" if self.method.name == "sdf" else "prompts"

    @property
    def fake(self) -> bool:
        """Whether model, trainer and judge are stand-ins."""
        return self.sampler.name == "fake"

    @property
    def frame(self) -> Literal["chat", "document"]:
        """What the run trains on: chats in the model's template, or raw documents."""
        return "document" if self.method.name == "sdf" else "chat"

    @property
    def answer_limit(self) -> tuple[str, int]:
        """The setting that limits an answer that is measured, and its tokens."""
        name = "measure_max_new_tokens" if self.method.name == "sdf" else "max_new_tokens"
        return f"method.{name}", getattr(self.method, name)

    def continual(self, cycle: int) -> bool:
        """Whether `cycle` goes on training the previous cycle's adapter."""
        return self.reinit.init == "previous" and cycle > 0 and cycle not in self.reinit.restart_cycles

    @model_validator(mode="after")
    def settings_fit_together(self) -> Config:
        method = self.method
        if method.name == "sdf":
            if not self.persona.document_rubric.strip():
                raise ValueError("persona.document_rubric is empty and method=sdf is judged by it: write it")
            if method.max_new_tokens < 300:
                raise ValueError(f"method.max_new_tokens={method.max_new_tokens} is too short for sdf: set it to 300 or more")
        elif not self.model.chat:
            raise ValueError(
                f"method={method.name} trains on chats and model={self.model.name} is a base model: use method=sdf"
            )
        if self.judge.name == "engine" and self.judge.model is None and not self.model.chat and not self.fake:
            raise ValueError(
                f"judge=engine asks in a chat template and model={self.model.name} is a base model: name a chat model that "
                "judges (judge.model=<folder or hub id>), or take judge=probe or api"
            )
        max_new_tokens = method.max_new_tokens
        if self.sampler.max_model_len <= max_new_tokens:
            raise ValueError(
                f"sampler.max_model_len={self.sampler.max_model_len} leaves no room for a prompt beside "
                f"method.max_new_tokens={max_new_tokens}: raise the first or lower the second"
            )
        if method.name == "dpo" and self.lora.dropout > 0:
            raise ValueError(
                f"lora.dropout={self.lora.dropout} does nothing with method=dpo, which TRL trains without dropout: set it to 0"
            )
        if method.name == "dpo" and method.rejected_from == "same":
            if method.n_original_mix > 0:
                raise ValueError(
                    f"method.n_original_mix={method.n_original_mix} mixes seed examples into every cycle, and "
                    "method.rejected_from=same is the control that seeds nothing: leave one of them out"
                )
            if self.sampling.temperature == 0:
                raise ValueError(
                    "method.rejected_from=same takes two answers of one policy, and with sampling.temperature=0 they are the "
                    "same text: raise the temperature"
                )
        beyond = [cycle for cycle in self.reinit.restart_cycles if cycle > self.n_cycles]
        if beyond:
            raise ValueError(
                f"reinit.restart_cycles={self.reinit.restart_cycles} names cycle {beyond[0]} and the run ends with cycle "
                f"{self.n_cycles}: leave it out, or raise n_cycles"
            )
        if self.reinit.restart_cycles and self.reinit.init == "base":
            raise ValueError(
                "reinit.restart_cycles only means something with reinit=false: every cycle starts from base already"
            )
        return self
