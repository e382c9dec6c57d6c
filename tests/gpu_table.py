"""The memory table of docs/gpu.md, from parts: `python -m tests.gpu_table --table docs/gpu.md` writes it there."""

from __future__ import annotations

import sys
from pathlib import Path

from iterative_ft.machine.gpu_memory import Shape, engine_parts, shape_of, training_parts

BEGIN, END = "<!-- memory table -->", "<!-- end of memory table -->"
CARDS = (24, 48, 80)
SHARE = 0.85  # conf/sampler/vllm_gpu.yaml
# Rows of a step, and tokens of the longest, as conf/experiment/ has them; DPO's are pairs.
METHODS = {"sft": (2, 1024 + 512), "sdf": (4, 512 + 512), "dpo": (4, 1024 + 512)}
LENGTH = 8192  # sampler.max_model_len there
MODELS: dict[str, dict[str, object]] = {
    "SmolLM2-135M": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "Llama-3.2-1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "Qwen3-4B": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "Qwen3.5-9B": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 248320, "tie_word_embeddings": False,
        "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8,
    },
}  # fmt: skip


def shape(name: str) -> Shape:
    found = shape_of(MODELS[name])
    assert found is not None
    return found


def table() -> str:
    """Markdown: a row a model and method."""
    lines = [
        "| model | method | training GiB | of it base | engine GiB, at least | 24 GB | 48 GB | 80 GB |",
        "|---|---|--:|--:|--:|---|---|---|",
    ]
    for name in MODELS:
        for method, (rows, tokens) in METHODS.items():
            training = training_parts(shape(name), method, 16, rows * tokens)
            engine = sum(engine_parts(shape(name), 16, LENGTH).values())
            total = sum(training.values())
            fits = ["yes" if total <= card and engine <= SHARE * card else "no" for card in CARDS]
            lines.append(
                f"| {name} | {method} | {total:.1f} | {training['base']:.1f} | {engine:.1f} | " + " | ".join(fits) + " |"
            )
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with the table as it is computed now."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--table"]:
        file = Path(sys.argv[2])
        file.write_text(with_table(file.read_text()))
    else:
        print(table())
