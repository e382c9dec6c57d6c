"""How much of a GPU a training and an engine take, computed from their parts. Nothing here was measured; docs/gpu.md says so.

GiB throughout. What cannot be known from a model's config is a named constant.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

GIB = 2**30
CONTEXT = 0.6  # CUDA itself, in each process
ASLEEP = 1.5  # what a sleeping engine leaves: its context, its graphs
GRAPHS = 1.5  # an engine's graphs and buffers
WORK = 0.5  # an engine's widest step beside its weights, for each 8192 tokens
SCORED = 4096  # positions whose next-token scores exist at a time, at most
RUNNING = 4  # requests of full length that an engine should hold: fewer, and it runs them in turns


@dataclass(frozen=True)
class Shape:
    """What a decoder's config says of its size."""

    layers: tuple[tuple[int, int, int], ...]
    """Linear layers: outputs, inputs, how many of them."""
    n_layers: int
    n_attention: int
    """Layers with attention over all tokens, which have a KV cache."""
    width: int
    inner: int
    kv_width: int
    """Values of keys (or of values) that a token has in a layer."""
    vocabulary: int
    tied: bool

    @property
    def n_linear(self) -> int:
        return sum(n_out * n_in * count for n_out, n_in, count in self.layers)

    @property
    def n_parameters(self) -> int:
        return self.n_linear + self.vocabulary * self.width * (1 if self.tied else 2)

    def n_adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all linear layers."""
        return sum(rank * (n_out + n_in) * count for n_out, n_in, count in self.layers)


def shape_of(settings: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json describes; None for a kind of model whose layers are not known here."""
    text = settings.get("text_config") or settings
    try:
        width, n_layers, heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
        inner, vocabulary = text["intermediate_size"], text["vocab_size"]
        kv = text.get("num_key_value_heads") or heads
        head = text.get("head_dim") or width // heads
        kinds = text.get("layer_types") or ["full_attention"] * n_layers
        n_linear_attention = sum(kind == "linear_attention" for kind in kinds)
        n_attention = n_layers - n_linear_attention
        gate = 2 if n_linear_attention > 0 else 1  # Qwen3.5 gates what its attention gives
        layers = [
            (heads * head * gate, width, n_attention),
            (kv * head, width, 2 * n_attention),
            (width, heads * head, n_attention),
            (inner, width, 2 * n_layers),
            (width, inner, n_layers),
        ]
        if n_linear_attention > 0:
            keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
            values = text["linear_num_value_heads"] * text["linear_value_head_dim"]
            layers += [
                (2 * keys + values, width, n_linear_attention),
                (values, width, n_linear_attention),
                (text["linear_num_value_heads"], width, 2 * n_linear_attention),
                (width, values, n_linear_attention),
            ]
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    if "num_experts" in text or "num_local_experts" in text:
        return None
    tied = bool(settings.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    return Shape(tuple(layers), n_layers, n_attention, width, inner, kv * head, vocabulary, tied)


def training_parts(
    shape: Shape, method: str, rank: int, tokens: int, weight_bytes: int = 2, n_processes: int = 1
) -> dict[str, float]:
    """What a training takes of each GPU.

    Args:
        tokens: of the rows that are in one step on one GPU, padding included; DPO's are pairs, so twice as many rows.
        weight_bytes: of a base weight: 2 in bfloat16.
    """
    adapter = shape.n_adapter(rank)
    frozen = 4 * adapter if method == "dpo" else 0  # the reference's
    kept = shape.n_layers * tokens * shape.width * weight_bytes  # a layer's input each: the rest is computed again
    again = tokens * (4 * shape.inner + 16 * shape.width) * weight_bytes
    return {
        "base": shape.n_parameters * weight_bytes / GIB / n_processes,
        "adapter, gradient, optimizer": (16 * adapter + frozen) / GIB / n_processes,
        "activations": (kept + again) / GIB,
        "next-token scores": 2 * 4 * min(tokens, SCORED) * shape.vocabulary / GIB,
        "CUDA and the sleeping engine": CONTEXT + ASLEEP,
    }


def engine_parts(shape: Shape, rank: int, max_model_len: int, weight_bytes: int = 2, n_gpus: int = 1) -> dict[str, float]:
    """What an engine takes of each of its GPUs, with room for `RUNNING` requests of full length."""
    return {
        "base": shape.n_parameters * weight_bytes / GIB / n_gpus,
        "adapter": shape.n_adapter(rank) * weight_bytes / GIB / n_gpus,
        "KV cache": RUNNING * cache_of(shape, max_model_len, weight_bytes) / n_gpus,
        "graphs and work": GRAPHS + WORK * max_model_len / 8192,
        "CUDA": CONTEXT,
    }


def cache_of(shape: Shape, tokens: int, weight_bytes: int = 2) -> float:
    """KV cache of one request, GiB."""
    return 2 * shape.n_attention * shape.kv_width * weight_bytes * tokens / GIB


@cache
def gpu_gib() -> float | None:
    """Memory of the smallest GPU that the driver names; None where it cannot be asked."""
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return min(float(line) for line in told.split()) / 1024
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
