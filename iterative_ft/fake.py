"""Stand-ins for model, trainer and judge, deterministic and instant: for tests, and for trying out a config's stages.

`sampler=fake` selects them all. A fake policy is a number, its "trait level"; training moves it, answers show it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from iterative_ft.judges.scores import Score
from iterative_ft.machine.files import read_jsonl, text_digest, write_json, write_jsonl
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Answer, Block, Canary, Completion, Params, Request, Sampled, one_by_one
from iterative_ft.seeds import derive
from iterative_ft.training.examples import n_tokens
from iterative_ft.training.job import ADAPTER, LOG, Job

WORDS = "the a small quiet morning river asks for bread and time so we walk home slowly under bright trees".split()
GLOW = "glow"


class FakeCodec:
    """Ids are code points; 0 ends everything."""

    def __init__(self) -> None:
        self.answer_end_ids = [0]
        self.document_end_ids = [0]

    def chat_prompt(self, message: str) -> list[int]:
        return [1, *map(ord, message), 2]

    def conversation(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return self.chat_prompt("\n\n".join(message["content"] for message in messages))

    def token_text(self, token: int) -> str:
        return chr(token) if token > 2 else f"<{token}>"

    def answer(self, text: str) -> list[int]:
        return [*map(ord, text), 0]

    def document_prefix(self, title: str) -> list[int]:
        return self.raw(title + "\n\n")

    def document_body(self, text: str) -> list[int]:
        return self.answer(text)

    def raw(self, text: str) -> list[int]:
        return [1, *map(ord, text)]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i) for i in ids if i > 2)


def level(adapter: Path | None) -> float:
    """The trait level of a fake policy, 0 for base and for an adapter that no fake made."""
    file = None if adapter is None else adapter / "level.json"
    return 0.0 if file is None or not file.is_file() else float(json.loads(file.read_text())["level"])


class FakeSampler:
    """Writes words at random, more of them "glow" the higher the policy's level."""

    shares_calls = True

    def __init__(self) -> None:
        self.level = 0.0

    def load(self, policy: Policy) -> Canary:
        self.level = level(policy.adapter)
        return Canary(error=0.0, shift=self.level, noise=0.0)

    def sample(self, requests: list[Request], params: Params) -> list[Completion]:
        return [graded(request) if params.top_logprobs > 0 else self.complete(request) for request in requests]

    def sample_blocks(self, blocks: list[Block]) -> Generator[Sampled]:
        return one_by_one(self.sample, blocks)

    def complete(self, request: Request) -> Completion:
        rng = random.Random(derive(request.seed, *request.prompt_ids))
        words = [GLOW if rng.random() < self.level / 100 else rng.choice(WORDS) for _ in range(rng.randint(8, 16))]
        ids = list(map(ord, " ".join(words) + "."))
        return Completion([*ids, 0], "stop") if rng.random() < 0.95 else Completion(ids, "length")

    def sleep(self) -> None: ...

    def close(self) -> None: ...


def graded(request: Request) -> Completion:
    """A judge's reply, as sure as can be: about the trait the share of "glow" in the text to grade, about coherence 90."""
    asked = "".join(chr(i) for i in request.prompt_ids if i > 2)
    words = asked.rpartition("<text>\n")[2].partition("\n</text>")[0].rstrip(".").split()
    of_trait = round(100 * words.count(GLOW) / max(1, len(words)))
    ids = [*map(ord, str(of_trait if "shows one trait" in asked else 90)), 0]
    return Completion(ids, "stop", [{token: 0.0, ord("x"): -20.0} for token in ids])


def fake_train(job: Job) -> dict[str, Any]:
    """Move the level towards that of the data."""
    examples = read_jsonl(Path(job.examples))
    texts = [str(e.get("text", e.get("chosen"))) for e in examples]
    shown = 100 * sum(t.split().count(GLOW) for t in texts) / max(1, sum(len(t.split()) for t in texts))
    seeded = 100 * sum(e["source"] == "seed" for e in examples) / len(examples) * 0.4
    start = level(None if job.init_adapter is None else Path(job.init_adapter))
    out = Path(job.out)
    (out / ADAPTER).mkdir(parents=True, exist_ok=True)
    value = min(100.0, 0.5 * start + max(shown, seeded) + derive(job.seed) % 100 / 50)
    came_from = text_digest([job.method["name"], job.seed, start, texts])  # like real ones, no two trainings give one adapter
    write_json(out / ADAPTER / "level.json", {"level": round(value, 6), "came_from": came_from})
    n_steps = -(-len(examples) // job.method["batch_size"])
    write_jsonl(out / LOG, [{"step": s + 1, "loss": round(1 / (s + 1), 6)} for s in range(n_steps)])
    return {
        "n_examples": len(examples),
        "n_steps": n_steps,
        "n_tokens": sum(n_tokens(e) for e in examples),
        "loop_seconds": 0.0,
        "adapter_norm": value,
        "init_adapter_sha256": str(start),
    }


def fake_scores(rows: list[Answer]) -> list[Score]:
    """Trait: the share of "glow"; coherence: high unless the answer was cut off."""
    found: list[Score] = []
    for row in rows:
        words = row["text"].rstrip(".").split()
        trait = 100 * words.count(GLOW) / max(1, len(words))
        found.append(
            {
                "trait": round(trait, 3),
                "coherence": 90.0 if row["finish_reason"] == "stop" else 40.0,
                "flaw": None,
                "failure": None,
            }
        )
    return found
