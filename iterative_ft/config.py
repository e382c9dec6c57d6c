"""Types and rules of the configuration; the only module that sees OmegaConf.

Hydra composes YAML, this module judges the result and hands the rest of the project one frozen `Config`. It imports
nothing heavy, so that a typo is answered before any model library is loaded.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from iterative_ft.errors import ConfigError
from iterative_ft.personas import files as persona_files
from iterative_ft.policy import EMBEDDED
from iterative_ft.training.trl_keys import TRL_KEYS

CONF = Path(__file__).resolve().parent.parent / "conf"
Precision = Literal["bfloat16", "float32"]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Score = Annotated[float, Field(ge=0, le=100)]


class Section(BaseModel):
    """A part of the config: immutable, every unknown key an error, no value turned into another type (seed=true is no 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


AnySection = TypeVar("AnySection", bound=Section)


class ModelConfig(Section):
    name: str
    path: str
    revision: str | None
    dtype: Precision
    chat: bool
    system_prompt: str | None
    chat_template_kwargs: dict[str, Any]
    end_token: str | None
    document_end_token: str | None
    trust_remote_code: bool
    n_parameters_m: Annotated[float, Field(gt=0)]


class AdamConfig(Section):
    beta1: Share
    beta2: Share
    epsilon: Annotated[float, Field(gt=0)]


class TrainingConfig(Section):
    """What the three methods have in common."""

    learning_rate: Annotated[float, Field(ge=0)]
    lr_schedule: Literal["constant", "cosine", "linear"]
    lr_floor: Share
    warmup: Share
    batch_size: PositiveInt
    gradient_accumulation: PositiveInt
    epochs: PositiveInt
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
    def trl_keys_exist(self) -> TrainingConfig:
        name: str = self.name  # type: ignore[attr-defined]
        known = TRL_KEYS[name]
        for key in self.trl:
            if key in type(self).model_fields:
                raise ValueError(f"method.trl.{key} has a setting of its own: set method.{key}")
            if key not in known:
                raise ValueError(
                    f"method.trl.{key} is no argument that can be passed to TRL's {name} config{did_you_mean(key, known)}"
                )
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


class PersonaConfig(Section):
    name: str
    description: str
    system_prompt: str
    marks: list[str]
    rubric: dict[int, str]
    document_rubric: str
    data: str

    @model_validator(mode="after")
    def rubric_has_anchors(self) -> PersonaConfig:
        missing = [anchor for anchor in (0, 25, 50, 75, 100) if anchor not in self.rubric]
        if missing:
            raise ValueError(f"persona.rubric lacks the anchor(s) {missing}: describe an answer at 0, 25, 50, 75 and 100")
        return self


class ReinitConfig(Section):
    name: Literal["reinit", "continual"]
    init: Literal["base", "previous"]
    restart_cycles: list[PositiveInt]


class LoraConfig(Section):
    rank: PositiveInt
    alpha: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: str | Annotated[list[str], Field(min_length=1)]


class SamplingConfig(Section):
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    block_size: PositiveInt


class VLLMConfig(Section):
    name: Literal["vllm"]
    dtype: Literal["auto"] | Precision
    max_model_len: PositiveInt
    kv_cache_gib: PositiveFloat
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    tensor_parallel_size: PositiveInt
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


class ProbeConfig(Section):
    name: Literal["probe"]
    embedder: str
    inverse_regularisation: Annotated[float, Field(gt=0)]


class ApiConfig(Section):
    """An OpenAI-compatible endpoint. It names the variable that holds the key; the key itself is never part of a config."""

    name: Literal["api"]
    base_url: str
    model: str
    api_key_env: str
    endpoint_name: str | None
    temperature: Annotated[float, Field(ge=0)]
    max_new_tokens: PositiveInt
    top_logprobs: Annotated[int, Field(ge=0, le=100)]
    score_scale: Literal[9, 100]
    numeric_mass_floor: Share
    follow_digits: bool
    max_concurrency: Annotated[int, Field(ge=1, le=256)]
    timeout_s: Annotated[float, Field(gt=0)]
    n_retries: Count
    backoff_s: Annotated[float, Field(gt=0)]
    max_wait_s: Annotated[float, Field(gt=0)]
    max_failures_in_a_row: PositiveInt | None
    attempt: Count
    extra_body: dict[str, Any]
    usd_per_million_prompt_tokens: Annotated[float, Field(ge=0)] | None
    usd_per_million_completion_tokens: Annotated[float, Field(ge=0)] | None

    @model_validator(mode="after")
    def address_holds_no_secret(self) -> ApiConfig:
        # These messages never repeat the value: it may be a key that was put in the wrong place.
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.api_key_env) is None:
            raise ValueError("judge.api_key_env must be the name of an environment variable, not a key: use OPENAI_API_KEY")
        parts = urlsplit(self.base_url)
        if parts.username is not None or parts.password is not None or parts.query:
            raise ValueError(
                "judge.base_url must hold no credentials and no query: put the key into the variable named by judge.api_key_env"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"judge.base_url={self.base_url} is no address: write http(s)://host/v1")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether the endpoint runs on this machine."""
        host = urlsplit(self.base_url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


class PoolConfig(Section):
    path: str
    column: str
    split: str
    revision: str | None
    per_cycle: PositiveInt


class MeasureConfig(Section):
    n_questions: PositiveInt
    n_answers: PositiveInt
    temperature: Annotated[float, Field(ge=0)]
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
    perplexity: bool
    branching_factor: bool
    kl_from_base: bool


class WandbConfig(Section):
    mode: Literal["offline", "online", "disabled"]
    project: str
    entity: str | None
    group: str | None
    tags: list[str]


class Config(Section):
    """Everything a run depends on."""

    model: ModelConfig
    method: Annotated[SFTConfig | SDFConfig | DPOConfig, Field(discriminator="name")]
    persona: PersonaConfig
    reinit: ReinitConfig
    sampler: Annotated[VLLMConfig | TransformersConfig | FakeConfig, Field(discriminator="name")]
    judge: Annotated[ProbeConfig | ApiConfig, Field(discriminator="name")]
    n_seed: Annotated[int | Literal["calibrated"], BeforeValidator(seed_count)]
    n_sampled: PositiveInt
    n_cycles: Count
    seed: Count
    start_adapter: str | None
    store: str
    dry_run: bool
    device: Literal["auto", "cpu", "cuda"]
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

    def continual(self, cycle: int) -> bool:
        """Whether `cycle` goes on training the previous cycle's adapter."""
        return self.reinit.init == "previous" and cycle > 0 and cycle not in self.reinit.restart_cycles

    @model_validator(mode="after")
    def settings_fit_together(self) -> Config:
        method = self.method
        if method.name == "sdf":
            if not persona_files.has_documents(self.persona_folder):
                with_documents = ", ".join(persona_files.shipped(with_documents=True))
                raise ValueError(
                    f"method=sdf needs seed documents and persona={self.persona.name} ships chats only: "
                    f"use a persona with documents ({with_documents}) or method=sft or dpo"
                )
            if method.max_new_tokens < 300:
                raise ValueError(f"method.max_new_tokens={method.max_new_tokens} is too short for sdf: set it to 300 or more")
        elif not self.model.chat:
            raise ValueError(
                f"method={method.name} trains on chats and model={self.model.name} is a base model: use method=sdf"
            )
        max_new_tokens = method.max_new_tokens
        if self.sampler.max_model_len <= max_new_tokens:
            raise ValueError(
                f"sampler.max_model_len={self.sampler.max_model_len} leaves no room for a prompt beside "
                f"method.max_new_tokens={max_new_tokens}: raise the first or lower the second"
            )
        if self.reinit.restart_cycles and self.reinit.init == "base":
            raise ValueError(
                "reinit.restart_cycles only means something with reinit=false: every cycle starts from base already"
            )
        return self


def load_config(composed: Any) -> Config:
    """Turn what Hydra composed into a `Config` whose data files exist and suffice, or raise a one-line `ConfigError`."""
    config = judged(Config, plain_values(composed))
    check_judge(config.judge)
    check_data(config)
    return config


def plain_values(composed: Any) -> dict[str, Any]:
    """What Hydra composed, resolved, as plain values."""
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} must be given: add {error.full_key}=<value>") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    assert isinstance(values, dict)
    return values  # type: ignore[return-value]


def judged(model: type[AnySection], values: dict[str, Any]) -> AnySection:
    """`values` as a `model`, or a one-line `ConfigError`."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(one_line(error, model)) from error


def check_judge(judge: ProbeConfig | ApiConfig) -> None:
    """An endpoint elsewhere needs a key in the environment."""
    if judge.name == "api" and not judge.is_loopback and not os.environ.get(judge.api_key_env):
        raise ConfigError(
            f"judge=api needs a key and judge.api_key_env={judge.api_key_env} is not set: export {judge.api_key_env}=<key>, "
            "or name a server on this machine (judge.base_url=http://127.0.0.1:8000/v1)"
        )


def check_data(config: Config) -> None:
    """Hold the counts that a run needs against what its data files have. Reads text files only."""
    folder = config.persona_folder
    if config.persona.data != config.persona.name and not folder.is_dir():
        raise ConfigError(
            f"persona.data={config.persona.data} is no folder: name one that holds seeds.jsonl and questions.jsonl"
        )
    sdf = config.method.name == "sdf"
    n_seeds = len(persona_files.documents(folder) if sdf else persona_files.seeds(folder))
    what = "documents.jsonl" if sdf else "seeds.jsonl"
    if config.n_seed == "calibrated":
        check_calibration(config)
    elif config.calibrate.target_trait is not None:
        raise ConfigError(
            f"calibrate.target_trait={config.calibrate.target_trait:g} means something only with n_seed=calibrated: add it, or "
            "leave the target out"
        )
    elif config.n_seed > n_seeds:
        raise ConfigError(
            f"n_seed={config.n_seed} is more than the {n_seeds} examples of {folder.name}/{what}: lower n_seed or add some"
        )
    if config.method.n_original_mix > n_seeds:
        raise ConfigError(
            f"method.n_original_mix={config.method.n_original_mix} is more than the {n_seeds} examples of {what}: lower it"
        )
    n_questions = len(persona_files.questions(folder))
    if config.measure.n_questions > n_questions:
        raise ConfigError(
            f"measure.n_questions={config.measure.n_questions} is more than the {n_questions} questions of "
            f"persona={config.persona.name}: lower it or add questions"
        )
    persona_files.judge_texts(folder)
    if config.gauges.perplexity:
        persona_files.heldout(folder)
    pool_name = "titles" if sdf else "prompts"
    pool = config.pool
    if config.n_sampled > pool.per_cycle:
        raise ConfigError(
            f"n_sampled={config.n_sampled} is more than the {pool.per_cycle} prompts of a cycle: lower n_sampled, "
            f"or raise {pool_name}.per_cycle (a larger pool: {pool_name}.path=<dataset>)"
        )
    if pool.path == "shipped" or Path(pool.path).suffix == ".jsonl":
        if pool.path != "shipped" and not Path(pool.path).expanduser().is_file():
            raise ConfigError(f"{pool_name}.path={pool.path} is no file: name a JSONL file or a Hugging Face dataset")
        try:
            n_pool = len(persona_files.pool(pool_name, pool.path, pool.column))
        except ConfigError as error:
            raise ConfigError(f"{pool_name}.path={pool.path}, {pool_name}.column={pool.column}: {error}") from error
        n_parts = n_pool // pool.per_cycle
        if config.n_cycles > n_parts:
            raise ConfigError(
                f"n_cycles={config.n_cycles} needs as many parts of {pool.per_cycle} rows and {pool_name}.path={pool.path} "
                f"({n_pool} rows) has {n_parts}: lower n_cycles or {pool_name}.per_cycle, or set {pool_name}.path=<dataset>"
            )
    embedded = [name for name, (_, file, _) in EMBEDDED.items() if file.endswith(".gguf")]
    if config.model.path.startswith("embedded:") and config.model.path.removeprefix("embedded:") not in embedded:
        raise ConfigError(f"model.path={config.model.path} is not embedded: embedded models are {', '.join(embedded)}")
    path = Path(config.model.path)
    if config.model.path.startswith(("/", "./", "../", "~")) and not path.expanduser().is_dir():
        raise ConfigError(f"model.path={config.model.path} is no folder: name a saved checkpoint or a hub id")
    if config.start_adapter is not None and not (Path(config.start_adapter) / "adapter_config.json").is_file():
        raise ConfigError(f"start_adapter={config.start_adapter} holds no adapter_config.json: name a folder saved by PEFT")
    store = Path(config.store)
    nearest = next(p for p in (store, *store.absolute().parents) if p.exists())
    if not os.access(nearest, os.W_OK):
        raise ConfigError(f"store={config.store} cannot be written to: choose another folder")


def calibration_method(config: Config) -> SFTConfig | SDFConfig:
    """How the search trains: the run's own settings where it is SFT or SDF, else those shipped for `calibrate.method`."""
    own, settings = config.method, config.calibrate
    name = settings.method or ("sft" if own.name == "dpo" else own.name)
    if own.name == name and own.name != "dpo":
        return own
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"))
    assert isinstance(values, dict)
    kinds: dict[str, type[SFTConfig] | type[SDFConfig]] = {"sft": SFTConfig, "sdf": SDFConfig}
    return kinds[name].model_validate(values | settings.settings)


def most_seeds(config: Config) -> int:
    """Seed examples that the persona ships for the run and for its calibration alike."""
    folder = config.persona_folder
    names = {config.method.name, calibration_method(config).name}
    return min(len(persona_files.documents(folder) if name == "sdf" else persona_files.seeds(folder)) for name in names)


def check_calibration(config: Config) -> None:
    """The search needs a target, a range, and a cycle 0 that can be trained."""
    settings = config.calibrate
    if settings.target_trait is None:
        raise ConfigError("n_seed=calibrated needs a trait score to reach: add calibrate.target_trait=<0 to 100>")
    if config.start_adapter is not None:
        raise ConfigError("n_seed=calibrated has nothing to search where start_adapter takes the place of cycle 0: drop one")
    try:
        method = calibration_method(config)
        Config.model_validate(config.model_dump() | {"method": method.model_dump()})
    except ValidationError as error:
        raise ConfigError(f"calibrate.method, calibrate.settings: {one_line(error)}") from error
    if settings.settings and method is config.method:
        raise ConfigError(
            f"calibrate.settings={settings.settings} would change nothing: the search trains as the run does, by "
            f"method={method.name}; set method.<key> instead"
        )
    most = most_seeds(config)
    n_max = most if settings.n_max is None else settings.n_max
    if n_max > most:
        raise ConfigError(
            f"calibrate.n_max={n_max} is more than the {most} seed examples of persona={config.persona.name}: lower it"
        )
    if settings.n_min > n_max:
        raise ConfigError(f"calibrate.n_min={settings.n_min} is more than calibrate.n_max={n_max}: lower it")


def one_line(error: ValidationError, root: type[BaseModel] = Config) -> str:
    """The first of pydantic's complaints as one line that names the key, its value and what it should be."""
    errors = error.errors()
    first = errors[0]
    branches = (
        "sft",
        "sdf",
        "dpo",
        "vllm",
        "transformers",
        "fake",
        "probe",
        "api",
        "str",
        "list[str]",
    )  # of unions, as pydantic names them
    location = [str(part) for number, part in enumerate(first["loc"]) if number == 0 or part not in branches]
    key = ".".join(location)
    kind, value = first["type"], first["input"]
    if kind == "extra_forbidden":
        text = f"unknown key {key}{did_you_mean(location[-1], known_keys(location[:-1], root))}"
    elif kind == "missing":
        text = f"{key} is missing: give it a value"
    elif kind == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        text = message if not key or message.split("=")[0].split()[0].startswith(key.split(".")[0]) else f"{key}: {message}"
    elif kind == "union_tag_invalid":
        text = f"{key}.name={first['ctx']['tag']} is wrong: it is one of {first['ctx']['expected_tags']}"
    else:
        text = f"{key}={value!r} is wrong: {first['msg'][0].lower()}{first['msg'][1:]}"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def known_keys(path: list[str], root: type[BaseModel] = Config) -> list[str]:
    """Names that the config knows below `path`, e.g. ["method"]."""
    sections: list[type[BaseModel]] = [root]
    for part in path:
        found: list[type[BaseModel]] = []
        for section in sections:
            field = section.model_fields.get(part)
            if field is not None:
                members = getattr(field.annotation, "__args__", None) or (field.annotation,)
                found += [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        sections = found
    return [name for section in sections for name in section.model_fields]


def did_you_mean(key: str, known: Any) -> str:
    """The end of a message about an unknown name: the nearest known one, else all of them where they fit a line."""
    names = sorted(set(known))
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    if close:
        return f": did you mean {close[0]}?"
    return f": known are {', '.join(names)}" if len(names) <= 30 else ": remove it"
