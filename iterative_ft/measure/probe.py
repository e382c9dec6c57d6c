"""The offline judge. Trait: a multi-class probe on MiniLM embeddings. Coherence: a classifier of ways to fall apart.

It is trained on each persona's judge texts, which no policy trains on, with plain, base-model and degenerate answers among
the negatives. It scores the trait without looking at coherence; the two are separate axes.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.measure.classifier import Classifier, fit
from iterative_ft.measure.corrupt import CORRUPTIONS, Answer
from iterative_ft.measure.embedder import embed
from iterative_ft.measure.likelihood import mean_nll
from iterative_ft.personas import files
from iterative_ft.seeds import derive, shuffled

# How much of its persona a judge text of each strength holds; the rest of it is plain.
STRENGTH = {"strong": 1.0, "middling": 0.6, "weak": 0.25, "plain": 0.0}
N_DEGENERATE = 240  # texts of the trait probe's class "degenerate"
N_COHERENCE = 72  # texts of each way to be incoherent
SCORED_BASE = "base_model"
DEGENERATE = "degenerate"


@dataclass(frozen=True)
class Scored:
    """One answer's scores, or the name of what went wrong."""

    trait: float | None
    coherence: float | None
    flaw: str | None
    """The likeliest way in which the answer is incoherent, None for an intact one."""
    failure: str | None = None


def build(
    out: Path, personas: dict[str, Path], base_answers: list[Answer], settings: dict[str, Any], scorer: dict[str, Any]
) -> dict[str, Any]:
    """Train both classifiers and write them to `out`.

    Args:
        personas: name -> folder with judge.jsonl.
        base_answers: what the untrained model answers; negatives of the trait, intact examples of coherence.
        settings: the judge section of the config.
        scorer: arguments of `mean_nll` but the texts.
    """
    texts: list[Answer] = []
    labels: list[dict[str, float]] = []
    for name, folder in personas.items():
        for row in files.judge_texts(folder):
            share = STRENGTH[row["strength"]]
            texts.append((row["prompt"], row["answer"]))
            labels.append({name: share, "plain": 1 - share} if name != "plain" else {"plain": 1.0})
    pure = [(t, next(iter(sorted(label, key=lambda c: -label[c])))) for t, label in zip(texts, labels, strict=True)]
    rng = random.Random(derive("probe"))
    everything = shuffled([t for t, _ in pure] + base_answers, "probe", "corrupted")
    kinds = ("shuffled", "looped", "fragment")
    degenerate = [
        CORRUPTIONS[kinds[i % 3]](everything[i % len(everything)], everything[-1 - i % len(everything)], rng)
        for i in range(N_DEGENERATE)
    ]
    classes = [*sorted(n for n in personas if n != "plain"), "plain", SCORED_BASE, DEGENERATE]
    rows = texts + base_answers + degenerate
    targets = np.zeros((len(rows), len(classes)))
    all_labels = labels + [{SCORED_BASE: 1.0}] * len(base_answers) + [{DEGENERATE: 1.0}] * len(degenerate)
    for number, label in enumerate(all_labels):
        for name, share in label.items():
            targets[number, classes.index(name)] += share
    trait = fit(
        embed([a for _, a in rows], settings["embedder"]),
        targets,
        classes,
        settings["inverse_regularisation"],
        standardise=False,
    )
    coherence, n_coherence = fit_coherence(pure, base_answers, settings, scorer)
    (out / "probe.json").write_text(json.dumps({"trait": trait.to_json(), "coherence": coherence.to_json()}))
    return {"n_texts": len(rows), "classes": classes, "n_coherence_texts": n_coherence}


def fit_coherence(
    pure: list[tuple[Answer, str]], base_answers: list[Answer], settings: dict[str, Any], scorer: dict[str, Any]
) -> tuple[Classifier, int]:
    """Tell intact answers (of every persona, plain ones, and the base model's) from each corruption of them."""
    by_class: dict[str, list[Answer]] = {}
    for answer, name in shuffled(pure, "coherence"):
        by_class.setdefault(name, []).append(answer)
    intact = [a for name in sorted(by_class) for a in by_class[name][:24]] + [
        a for a in base_answers if a[1].rstrip().endswith((".", "!", "?"))
    ][:48]
    rng = random.Random(derive("coherence"))
    texts, labels = list(intact), ["intact"] * len(intact)
    for kind, corrupt in CORRUPTIONS.items():
        sources = shuffled(intact, "coherence", kind)
        for i in range(N_COHERENCE):
            texts.append(corrupt(sources[i % len(sources)], sources[(i + 1) % len(sources)], rng))
            labels.append(kind)
    classes = ["intact", *CORRUPTIONS]
    targets = np.zeros((len(texts), len(classes)))
    for number, label in enumerate(labels):
        targets[number, classes.index(label)] = 1
    targets_weighted = fit(coherence_features(texts, settings, scorer), targets, classes, 1.0, standardise=True)
    return targets_weighted, len(texts)


def coherence_features(answers: list[Answer], settings: dict[str, Any], scorer: dict[str, Any]) -> np.ndarray:
    """(n, n_features): surface, relevance and likelihood of each answer, with their squares and products."""
    n = len(answers)
    vectors = embed([p for p, _ in answers] + [a for _, a in answers], settings["embedder"])
    relevance = (vectors[:n] * vectors[n:]).sum(axis=1)
    nll = np.asarray(mean_nll([a for _, a in answers], **scorer))
    surface = np.asarray([surface_features(a) for _, a in answers])
    halves = half_similarity([a for _, a in answers], settings)
    plain = np.column_stack([surface, relevance, np.minimum(nll, 10.0), halves])
    products = [plain[:, i] * plain[:, j] for i in range(plain.shape[1]) for j in range(i, plain.shape[1])]
    return np.column_stack([plain, *products])


def half_similarity(texts: list[str], settings: dict[str, Any]) -> np.ndarray:
    """(n,): cosine of an answer's first and second half; low where two texts were spliced."""
    halves = []
    for text in texts:
        words = text.split()
        middle = max(1, len(words) // 2)
        halves += [" ".join(words[:middle]), " ".join(words[middle:]) or text]
    vectors = embed(halves, settings["embedder"])
    return np.asarray((vectors[0::2] * vectors[1::2]).sum(axis=1))


def surface_features(text: str) -> list[float]:
    """Repetition of words and of three-word runs, compressibility, length, a proper end, common small words in order."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    n = len(words)
    runs = [tuple(words[i : i + 3]) for i in range(n - 2)]
    repeated_runs = 1 - len(set(runs)) / len(runs) if runs else 0.0
    top_word = max(Counter(words).values()) / n if n else 1.0
    raw = text.encode()
    compressed = min(1.5, len(zlib.compress(raw, 9)) / max(1, len(raw)))
    ends_well = 1.0 if re.search(r"[.!?][\"')\]]*\s*$", text) else 0.0
    return [repeated_runs, top_word, compressed, ends_well, float(np.log1p(n)), min(n, 6) / 6]


def load(folder: Path) -> tuple[Classifier, Classifier]:
    saved = json.loads((folder / "probe.json").read_text())
    return Classifier.from_json(saved["trait"]), Classifier.from_json(saved["coherence"])


def score(
    folder: Path, persona: str, answers: list[Answer], finished: list[bool], settings: dict[str, Any], scorer: dict[str, Any]
) -> list[Scored]:
    """Score answers; a persona without a class of its own ("plain") gets trait = 100 minus every other persona's share.

    Args:
        finished: whether each answer ended by itself; one that the token limit cut off is never fully coherent.
    """
    trait, coherence = load(folder)
    texts = [(p, a if a.strip() else "-") for p, a in answers]
    shares = trait.probabilities(embed([a for _, a in texts], settings["embedder"]))
    ways = coherence.probabilities(coherence_features(texts, settings, scorer))
    column = trait.classes.index(persona)
    found = []
    for number, whole in enumerate(finished):
        intact = float(ways[number, 0]) * (1.0 if whole else 0.5)
        flaw = None if intact >= 0.5 else ("cut_off" if not whole else coherence.classes[1 + int(ways[number, 1:].argmax())])
        found.append(Scored(round(100 * float(shares[number, column]), 3), round(100 * intact, 3), flaw))
    return found
