"""Types and rules of the `method` section: how a cycle trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from iterative_ft.config.messages import did_you_mean
from iterative_ft.config.section import Count, PositiveInt, Score, Section, Share
from iterative_ft.config.trl_keys import TRL_KEYS, trl_fault

Beta = Annotated[float, Field(ge=0, lt=1)]  # of Adam: at 1 its first step divides by 0
Some = Annotated[int, Field(ge=1, le=1000)]


class AdamConfig(Section):
    beta1: Beta
    beta2: Beta
    epsilon: Annotated[float, Field(gt=0)]


class TrainingConfig(Section):
    """What the three methods have in common."""

    learning_rate: Annotated[float, Field(ge=0)]
    lr_schedule: Literal["constant", "cosine", "linear"]
    lr_floor: Share
    warmup: Share
    batch_size: Some
    gradient_accumulation: Some
    epochs: Some
    weight_decay: Annotated[float, Field(ge=0)]
    adam: AdamConfig
    max_grad_norm: Annotated[float, Field(ge=0)]
    max_length: PositiveInt
    checkpoint_steps: PositiveInt
    max_new_tokens: PositiveInt
    n_original_mix: Count
    coherence_filter: Score | None
    trl: dict[str, Any]

    @model_validator(mode="after")
    def trl_arguments_fit(self) -> TrainingConfig:
        name: str = self.name  # type: ignore[attr-defined]
        known = TRL_KEYS[name]
        for key in self.trl:
            if key in type(self).model_fields:
                raise ValueError(f"method.trl.{key} has a setting of its own: set method.{key}")
            if key not in known:
                raise ValueError(
                    f"method.trl.{key} is no argument that can be passed to TRL's {name} config{did_you_mean(key, known)}"
                )
        fault = trl_fault(name, self.trl, self.lr_schedule, getattr(self, "seed_sft_weight", 0.0))
        if fault is not None:
            raise ValueError(fault)
        return self


class SFTConfig(TrainingConfig):
    name: Literal["sft"]


class SDFConfig(TrainingConfig):
    name: Literal["sdf"]
    loss_on: Literal["document", "continuation"]
    measure_max_new_tokens: PositiveInt


class DPOConfig(TrainingConfig):
    name: Literal["dpo"]
    beta: Annotated[float, Field(gt=0)]
    seed_learning_rate: Annotated[float, Field(ge=0)]
    seed_sft_weight: Annotated[float, Field(ge=0)]
    reference: Literal["init", "base"]
    rejected_from: Literal["base", "previous", "same"]
