"""What a GPU asks of the settings: ranks that vLLM has room for, batches that divide, no more GPUs than there are."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError
from iterative_ft.machine import gpu_memory
from iterative_ft.machine.device import n_gpus, resolve_device

MOST_RANK = 512  # of an adapter that vLLM serves
LEAST_BLOCK = 128  # requests in flight, below which a GPU mostly waits
PROMPT = 512  # tokens, for estimates


def check_gpu(config: Config) -> None:
    """Raise a one-line `ConfigError` for a setting that a GPU does not take. Where no GPU is seen nothing is counted."""
    if config.fake:
        return
    method, sampler = config.method, config.sampler
    if resolve_device(config.device) == "cpu":
        if config.n_processes > 1:
            raise ConfigError(
                f"n_processes={config.n_processes} means GPUs, and this run is on a CPU: set n_processes=1 (or device=cuda, "
                "where a job will have GPUs)"
            )
        return
    seen = n_gpus()
    if sampler.name == "vllm" and config.lora.rank > MOST_RANK:
        raise ConfigError(f"lora.rank={config.lora.rank} is more than vLLM serves on a GPU ({MOST_RANK}): lower it")
    if method.batch_size % config.n_processes != 0:
        raise ConfigError(
            f"method.batch_size={method.batch_size} does not divide among n_processes={config.n_processes} GPUs: make it a "
            "multiple"
        )
    if seen == 0:
        return
    for name, wanted in gpus_asked(config).items():
        if wanted > seen:
            raise ConfigError(f"{name}={wanted} is more than the {seen} GPU{'s' * (seen > 1)} seen here: lower it")


def gpus_asked(config: Config) -> dict[str, int]:
    """Settings that ask for GPUs, and how many."""
    sampler = config.sampler
    return {
        "n_processes": config.n_processes,
        "sampler.tensor_parallel_size": sampler.tensor_parallel_size if sampler.name == "vllm" else 1,
    }


def gpus_taken(config: Config) -> int:
    """GPUs that a run works on at once; 1 on a CPU."""
    return 1 if config.fake or resolve_device(config.device) == "cpu" else max(gpus_asked(config).values())


def look_at_gpu(config: Config, settings: Mapping[str, Any], notes: list[str], facts: list[str]) -> None:
    """Hold a model's config.json against the GPU.

    Raises:
        ConfigError: the model needs a library that is not there, or more memory than the GPU has.
    """
    if config.fake or resolve_device(config.device) != "cuda":
        return
    text = settings.get("text_config") or settings
    if "linear_attention" in (text.get("layer_types") or []) and importlib.util.find_spec("fla") is None:
        raise ConfigError(
            f"model={config.model.name} has layers of linear attention, an order of magnitude slower without the package "
            "flash-linear-attention: pip install flash-linear-attention"
        )
    if config.sampler.name == "vllm" and (config.sampler.enforce_eager or config.sampling.block_size < LEAST_BLOCK):
        notes.append(
            f"enforce_eager={str(config.sampler.enforce_eager).lower()} with sampling.block_size={config.sampling.block_size} "
            "leaves a GPU waiting: set sampler=vllm_gpu sampling.block_size=256"
        )
    shape, has = gpu_memory.shape_of(settings), gpu_memory.gpu_gib()
    if shape is None:
        return
    training, engine = needs(config, shape)
    facts.append(f"by its parts a training takes about {training:.0f} GiB of each GPU, the engine {engine:.0f} or more")
    if has is None:
        return
    if training > has:
        raise ConfigError(
            f"training model={config.model.name} takes about {training:.0f} GiB of each GPU, which has {has:.0f}: lower "
            "method.batch_size or method.max_length, raise n_processes, or take a smaller model"
        )
    if config.sampler.name == "vllm":
        share = config.sampler.gpu_memory_utilization
        if engine > share * has:
            raise ConfigError(
                f"sampler.gpu_memory_utilization={share:g} of {has:.0f} GiB is less than the {engine:.0f} GiB that model="
                f"{config.model.name} takes with sampler.max_model_len={config.sampler.max_model_len}: raise the share or "
                "sampler.tensor_parallel_size, or lower the length"
            )


def needs(config: Config, shape: gpu_memory.Shape) -> tuple[float, float]:
    """GiB of each GPU that a training takes whose longest rows come together, and the engine."""
    method = config.method
    rows = method.batch_size // config.n_processes * (2 if method.name == "dpo" else 1)
    size = 2 if config.model.dtype == "bfloat16" else 4
    tokens = rows * min(method.max_length, method.max_new_tokens + PROMPT)
    training = gpu_memory.training_parts(shape, method.name, config.lora.rank, tokens, size, config.n_processes)
    n_engine = gpus_asked(config)["sampler.tensor_parallel_size"]
    wide = 4 if config.sampler.name == "vllm" and config.sampler.dtype == "float32" else 2
    engine = gpu_memory.engine_parts(shape, config.lora.rank, config.sampler.max_model_len, wide, n_engine)
    return sum(training.values()), sum(engine.values())
