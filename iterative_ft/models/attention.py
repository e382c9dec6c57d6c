"""Models whose tokens meet in full causal attention alone: their passes may be laid out anew, and begun once for many texts."""

from __future__ import annotations

from typing import Any

FAMILIES = frozenset(
    """arcee cohere ernie4_5 gemma glm glm4 gpt2 gpt_neox granite helium hunyuan_v1_dense llama mistral olmo olmo2 phi phi3
    qwen2 qwen3 seed_oss smollm3 starcoder2""".split()
)
"""Model types whose hidden states were compared with those of a padded batch (tests/test_one_row.py)."""

ROPES = frozenset({"default", "linear", "llama3", "yarn"})
"""Rotary embeddings that turn a token by its own position alone. "dynamic" and "longrope" look at the whole batch's longest."""


def bare(net: Any) -> Any:
    """A network without PEFT's shell; adapters stay in its layers."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net


def runs_own_code(net: Any) -> bool:
    """Whether a network's code came with the model, perhaps under a config and a name that transformers knows."""
    return not type(bare(net)).__module__.startswith("transformers.")


def causal_alone(config: Any) -> bool:
    """Whether in a model with this config a token depends on the tokens before it and their places, and on nothing else.

    It does when tokens meet in full causal attention alone, and know their place from `position_ids` alone (rotary embeddings,
    or GPT-2's learned ones). It does not with linear attention, convolutions or recurrence, sliding windows, ALiBi, or experts
    that are balanced over a batch. No for families that nobody compared.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return (
        config.model_type in FAMILIES
        and type(config).__module__.startswith("transformers.")  # code that came with a model may use a known name
        and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
        and not windowed
        and rope.get("rope_type", "default") in ROPES
        and not hasattr(config, "output_router_logits")
    )
