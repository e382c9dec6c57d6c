"""Stage `labelled`: texts made elsewhere, as if a policy had answered with them, for judges to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from iterative_ft.machine.files import text_digest, write_jsonl
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWERS
from iterative_ft.stages.completions import Completions
from iterative_ft.store import Kind

LABELLED = Kind("labelled", 1)
BLOCK = 32  # texts a stage


def labelled_stage(bench: Bench, texts: Sequence[tuple[str, str]], reasons: Sequence[str] | None = None) -> Completions:
    """Prompts and texts as completions, in blocks.

    Args:
        reasons: why each text ended, "stop" or "length"; None where all ended by themselves.
    """
    stages = []
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        ended = None if reasons is None else list(reasons[start : start + BLOCK])

        def build(out: Path, block: Sequence[tuple[str, str]] = block, ended: list[str] | None = ended) -> None:
            rows = [
                {"prompt": prompt, "text": text, "finish_reason": reason, "seed": 0, "ids": []}
                for (prompt, text), reason in zip(block, ended or ["stop"] * len(block), strict=True)
            ]
            write_jsonl(out / ANSWERS, rows)

        label = f"labelled texts {start // BLOCK + 1}"
        inputs = {"labelled": text_digest(list(block)), **({} if ended is None else {"ended": ended})}
        stages.append(bench.store.stage(LABELLED, inputs, build, label, {"role": "labelled"}))
    return Completions(stages)
