"""Sections `model` and `lora`: what is trained."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from iterative_ft.config.section import Name, PositiveInt, Precision, Section
from iterative_ft.machine.device import training_dtype


def free_arguments(value: dict[str, Any], section: str) -> dict[str, Any]:
    """Arguments of a chat template that the code does not set itself."""
    taken = sorted(
        {"conversation", "messages", "add_generation_prompt", "tokenize", "return_dict", "chat_template"} & set(value)
    )
    if taken:
        raise ValueError(f"{section}.chat_template_kwargs.{taken[0]} is set by the code: remove it")
    if "strftime_now" in value:
        try:
            datetime.fromisoformat(value["strftime_now"])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{section}.chat_template_kwargs.strftime_now={value['strftime_now']!r} is no day: write it as 2025-07-01"
            ) from error
    return value


class ModelConfig(Section):
    name: Name
    path: str
    revision: str | None
    dtype: Literal["auto"] | Precision
    chat: bool
    system_prompt: str | None
    chat_template_kwargs: dict[str, Any]
    end_token: str | None
    document_end_token: str | None
    trust_remote_code: bool

    setting: ClassVar[str] = "model.path"
    """What names the model, for messages."""
    without_template: ClassVar[str] = "set model.chat=false and method=sdf, or name an instruct model"
    """The remedy where it has no chat template."""

    @property
    def named(self) -> str:
        """The setting that names the model, with its value."""
        return f"{self.setting}={self.path}"

    @property
    def section(self) -> str:
        """The section that its settings stand in."""
        return self.setting.split(".", maxsplit=1)[0]

    @field_validator("dtype", mode="before")
    @classmethod
    def settled(cls, value: Any) -> Any:
        """What "auto" is on this machine, so that a run's record and its keys say what was used."""
        return training_dtype() if value == "auto" else value

    @field_validator("chat_template_kwargs")
    @classmethod
    def template_arguments_are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        return free_arguments(value, "model")


class JudgeModelConfig(ModelConfig):
    """The model that judge.model names, as a section like the run's own. It is made of the judge's; no config holds it."""

    setting = "judge.model"
    without_template = "name an instruct model"


class LoraConfig(Section):
    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]
