"""The offline judge. Trait: a multi-class probe on two models' features, calibrated to the rubric's five strengths.
Coherence: a classifier of ways to fall apart.

It is trained on each persona's judge texts, which no policy trains on, with plain, base-model and degenerate answers among
the negatives. It scores the trait without looking at coherence; the two are separate axes.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.config.schema import ProbeConfig
from iterative_ft.data import files
from iterative_ft.judges.probe.classifier import Classifier, fit
from iterative_ft.judges.probe.corrupt import CORRUPTIONS, Answer
from iterative_ft.judges.probe.features import coherence_features, trait_features
from iterative_ft.judges.probe.strength import BASE_MODEL, DEGENERATE, Strength, calibrate, styles
from iterative_ft.judges.scores import Score
from iterative_ft.models.forward import Reader
from iterative_ft.seeds import derive, shuffled

# How much of its persona a judge text of each strength holds, as the rubric counts; the rest of it is plain.
STRENGTH = {"strong": 1.0, "marked": 0.75, "middling": 0.5, "weak": 0.25, "plain": 0.0}
DEGENERATE_KINDS = ("shuffled", "looped", "fragment")
N_PLAIN = 64  # plain texts of each persona for the trait; more made nothing better in cross-validation
N_DEGENERATE = 120  # texts of the trait probe's class "degenerate"
N_INTACT = 32  # intact texts of each persona, and of plain, for coherence
N_COHERENCE = 60  # texts of each way to be incoherent
MIN_WORDS = 6  # a shorter base answer is no example of an intact one
# Settings of the coherence classifier, chosen by cross-validation on judge texts.
COHERENCE_REGULARISATION = 0.3
INTACT_IMPORTANCE = 3.0 * len(CORRUPTIONS)  # relative to one corruption: at most one intact text in twenty is flagged
CUT_OFF_SHARE = 0.49  # an answer that the token limit cut off is scored below half, whatever it says


def build(
    out: Path, personas: dict[str, Path], base_answers: list[Answer], settings: ProbeConfig, reader: Reader
) -> dict[str, Any]:
    """Train both classifiers, calibrate the trait, and write all to `out`.

    Args:
        personas: name -> folder with judge.jsonl.
        base_answers: what the untrained model answers; negatives of the trait, intact examples of coherence.
        reader: the base model.
    """
    trait_texts, trait_labels, owners, trait_classes = trait_examples(personas, base_answers)
    coherence_texts, coherence_labels = coherence_examples(personas, base_answers)
    features = trait_features([a for _, a in trait_texts], settings.embedder, reader)
    targets = target_matrix(trait_labels, trait_classes)
    regularisation = settings.inverse_regularisation / features.shape[1]
    trait = fit(features, targets, trait_classes, regularisation)
    prompts = [prompt for prompt, _ in trait_texts]
    strength = calibrate(features, targets, trait_classes, owners, prompts, regularisation)

    classes = ["intact", *CORRUPTIONS]
    coherence = fit(
        coherence_features(coherence_texts, settings.embedder, reader),
        target_matrix(coherence_labels, classes),
        classes,
        COHERENCE_REGULARISATION,
        {"intact": INTACT_IMPORTANCE},
    )
    saved = {"trait": trait.to_json(), "strength": strength.to_json(), "coherence": coherence.to_json()}
    (out / "probe.json").write_text(json.dumps(saved, allow_nan=False))
    return {"n_texts": len(trait_texts), "classes": trait_classes, "n_coherence_texts": len(coherence_texts)}


def trait_examples(
    personas: dict[str, Path], base_answers: list[Answer]
) -> tuple[list[Answer], list[dict[str, float]], list[str], list[str]]:
    """Texts, their shares of the classes, whose they are, and the classes: personas, plain, base model, degenerate."""
    texts: list[Answer] = []
    labels: list[dict[str, float]] = []
    owners: list[str] = []
    styled: list[Answer] = list(base_answers)
    for name, folder in personas.items():
        found = files.judge_texts(folder)
        plain = [row for row in found if row["strength"] == "plain"]
        for row in [r for r in found if r["strength"] != "plain"] + shuffled(plain, "probe", name)[:N_PLAIN]:
            share = STRENGTH[row["strength"]]
            texts.append((row["prompt"], row["answer"]))
            labels.append({name: share, "plain": 1 - share} if share > 0 else {"plain": 1.0})
            owners.append(name)
            styled += [texts[-1]] if share > 0 or name == "plain" else []
    # Word salad in a persona's vocabulary is not the persona: most degenerate texts are made from styled ones.
    rng = random.Random(derive("probe"))
    sources = shuffled(styled, "probe", "corrupted")
    degenerate = [
        CORRUPTIONS[DEGENERATE_KINDS[i % len(DEGENERATE_KINDS)]](
            sources[i % len(sources)], sources[(i + 1) % len(sources)], rng
        )
        for i in range(N_DEGENERATE)
    ]
    labels += [{BASE_MODEL: 1.0}] * len(base_answers) + [{DEGENERATE: 1.0}] * len(degenerate)
    owners += [BASE_MODEL] * len(base_answers) + [DEGENERATE] * len(degenerate)
    classes = [*sorted(n for n in personas if n != "plain"), "plain", BASE_MODEL, DEGENERATE]
    return texts + base_answers + degenerate, labels, owners, classes


def coherence_examples(personas: dict[str, Path], base_answers: list[Answer]) -> tuple[list[Answer], list[dict[str, float]]]:
    """Intact answers (of every persona, plain ones, and the base model's), and each corruption of them."""
    intact: list[Answer] = []
    for name in sorted(personas):
        rows = [r for r in files.judge_texts(personas[name]) if r["strength"] != "plain" or name == "plain"]
        intact += [(r["prompt"], r["answer"]) for r in shuffled(rows, "coherence", name)[:N_INTACT]]
    intact += [a for a in base_answers if len(a[1].split()) >= MIN_WORDS and a[1].rstrip().endswith((".", "!", "?"))]
    rng = random.Random(derive("coherence"))
    texts, labels = list(intact), [{"intact": 1.0}] * len(intact)
    for kind, corrupt in CORRUPTIONS.items():
        sources = shuffled(intact, "coherence", kind)
        texts += [corrupt(sources[i % len(sources)], sources[(i + 1) % len(sources)], rng) for i in range(N_COHERENCE)]
        labels += [{kind: 1.0}] * N_COHERENCE
    return texts, labels


def target_matrix(labels: list[dict[str, float]], classes: list[str]) -> np.ndarray:
    """(n, n_classes): each text's shares."""
    return np.asarray([[label.get(name, 0.0) for name in classes] for label in labels])


def load(folder: Path) -> tuple[Classifier, Strength, Classifier]:
    saved = json.loads((folder / "probe.json").read_text())
    coherence = Classifier.from_json(saved["coherence"])
    return Classifier.from_json(saved["trait"]), Strength.from_json(saved["strength"]), coherence


def score(
    folder: Path, persona: str, answers: list[Answer], finished: list[bool], embedder: str, reader: Reader
) -> list[Score]:
    """Score answers; for the persona "plain" the trait is that of whichever persona the answer is most like.

    Args:
        folder: what `build` wrote.
        finished: whether each answer ended by itself; one that the token limit cut off never counts as coherent.
    """
    trait, strength, coherence = load(folder)
    texts = [(p, a if a.strip() else "-") for p, a in answers]
    log_shares = trait.log_shares(trait_features([a for _, a in texts], embedder, reader))
    ways = coherence.probabilities(coherence_features(texts, embedder, reader))
    wanted = styles(trait.classes) if persona == "plain" else [persona]
    traits = np.max([strength.of(log_shares, trait.classes, name) for name in wanted], axis=0)
    found: list[Score] = []
    for number, whole in enumerate(finished):
        intact = float(ways[number, 0]) * (1.0 if whole else CUT_OFF_SHARE)
        flaw = None if intact >= 0.5 else ("cut_off" if not whole else coherence.classes[1 + int(ways[number, 1:].argmax())])
        shown = round(100 * float(traits[number]), 3), round(100 * intact, 3)
        found.append({"trait": shown[0], "coherence": shown[1], "flaw": flaw, "failure": None})
    return found
