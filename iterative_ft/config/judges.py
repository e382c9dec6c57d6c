"""Section `judge`, in each of its kinds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from iterative_ft.config import endpoint
from iterative_ft.config.model import free_arguments
from iterative_ft.config.section import Section, Share


class ProbeConfig(Section):
    name: Literal["probe"]
    embedder: str
    inverse_regularisation: Annotated[float, Field(gt=0, le=1e6)]


class ApiConfig(Section):
    """An OpenAI-compatible endpoint. It names the variable that holds the key; the key itself is never part of a config."""

    name: Literal["api"]
    base_url: str
    model: Annotated[str, Field(min_length=1, max_length=200)]
    api_key_env: str
    endpoint_name: Annotated[str, Field(max_length=200)] | None
    temperature: Annotated[float, Field(ge=0, le=10)]
    max_new_tokens: Annotated[int, Field(ge=1, le=100_000)]
    top_logprobs: Annotated[int, Field(ge=0, le=100)]
    score_scale: Literal[9, 100]
    numeric_mass_floor: Share
    follow_digits: bool
    max_concurrency: Annotated[int, Field(ge=1, le=256)]
    timeout_s: Annotated[float, Field(gt=0, le=3600)]
    n_retries: Annotated[int, Field(ge=0, le=100)]
    backoff_s: Annotated[float, Field(gt=0, le=3600)]
    max_wait_s: Annotated[float, Field(gt=0, le=86_400)]
    max_failures_in_a_row: Annotated[int, Field(ge=1, le=1_000_000)] | None
    attempt: Annotated[int, Field(ge=0, le=1_000_000)]
    fields: dict[str, str | None] | None
    extra_body: dict[str, Any]
    usd_per_million_prompt_tokens: Annotated[float, Field(ge=0, le=1_000_000)] | None
    usd_per_million_completion_tokens: Annotated[float, Field(ge=0, le=1_000_000)] | None

    @model_validator(mode="after")
    def request_can_be_made(self) -> ApiConfig:
        fault = (
            endpoint.variable_fault(self.api_key_env)
            or endpoint.name_fault(model=self.model, endpoint_name=self.endpoint_name)
            or endpoint.address_fault(self.base_url)
            or endpoint.fields_fault(self.fields or {}, self.extra_body, self.top_logprobs, self.follow_digits)
        )
        if fault is not None:
            raise ValueError(fault)
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint runs on this machine."""
        return endpoint.is_loopback(self.base_url)


class EngineConfig(Section):
    """A language model on the run's own engine, asked by the same rubrics as an endpoint."""

    name: Literal["engine"]
    model: Annotated[str, Field(min_length=1, max_length=1000)] | None
    revision: str | None
    chat_template_kwargs: dict[str, Any]
    max_new_tokens: Annotated[int, Field(ge=1, le=1000)]
    top_logprobs: Annotated[int, Field(ge=1, le=20)]
    score_scale: Literal[9, 100]
    numeric_mass_floor: Share
    follow_digits: bool

    @field_validator("chat_template_kwargs")
    @classmethod
    def template_arguments_are_free(cls, value: dict[str, Any]) -> dict[str, Any]:
        return free_arguments(value, "judge")
