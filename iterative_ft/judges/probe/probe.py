"""The offline judge. Trait: a multi-class probe on two models' features and another on words, whose log-shares are added,
calibrated to the rubric's five strengths. Coherence: classifiers of ways to fall apart. And how familiar the judge is with such
texts.

It is trained on each persona's judge texts, which no policy trains on, with plain, base-model and degenerate answers and other
styles among the negatives. It scores the trait without looking at coherence; the two are separate axes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.config.judges import ProbeConfig
from iterative_ft.data import files
from iterative_ft.errors import RunError
from iterative_ft.judges.probe import familiar, lexicon, trait
from iterative_ft.judges.probe.classifier import Classifier, fit, log_shares, weights_of
from iterative_ft.judges.probe.coherence import Coherence, look
from iterative_ft.judges.probe.coherence import train as train_coherence
from iterative_ft.judges.probe.corrupt import Answer
from iterative_ft.judges.probe.familiar import LANGUAGE, Familiar
from iterative_ft.judges.probe.features import states_of, trait_features, whole
from iterative_ft.judges.probe.lexicon import Lexicon
from iterative_ft.judges.probe.reading import read
from iterative_ft.judges.probe.strength import DEGENERATE, OTHER, Strength, calibrate, styles, unseen_logits
from iterative_ft.judges.scores import Score
from iterative_ft.models.forward import Reader

FILE = "probe.json"
CUT_OFF_SHARE = 0.49  # an answer that the token limit cut off is scored below half, whatever it says


@dataclass(frozen=True)
class Probe:
    """A trained judge."""

    trait: Classifier
    lexicon: Lexicon
    strength: Strength
    coherence: Coherence
    familiar: Familiar


def build(
    out: Path, personas: dict[str, Path], base_answers: list[Answer], settings: ProbeConfig, reader: Reader
) -> dict[str, Any]:
    """Train the classifiers, calibrate the trait, find the limits of what is familiar, and write all to `out`.

    Args:
        personas: name -> folder with judge.jsonl and, where there is one, judge_forms.jsonl.
        base_answers: what the untrained model answers; negatives of the trait, intact examples of coherence.
        reader: the base model.
    """
    examples = trait.examples(personas, base_answers)
    texts, prompts = [text for _, text in examples.answers], [prompt for prompt, _ in examples.answers]
    states = states_of(texts, reader)
    features = trait_features(texts, settings.embedder, states)
    how = settings.inverse_regularisation / features.shape[1], examples.importance
    classes, targets = examples.classes, examples.targets
    unseen = unseen_logits(features, targets, classes, prompts, *how)
    weights = weights_of(targets, classes, examples.importance)
    by_words = lexicon.unseen_log_shares(texts, targets, weights, prompts)
    own = [number for number, owner in enumerate(examples.owners) if owner != DEGENERATE]
    coherence, n_coherence = train_coherence(personas, base_answers, settings.embedder, reader)
    lists, voices = (
        whole(states_of([read(row["answer"]) for row in files.forms(name)], reader)) for name in ("wordlists", "voices")
    )
    known = familiar.learn([texts[i] for i in own], [prompts[i] for i in own], whole(states)[own], lists, voices)
    known.voices.save(out)
    saved = {
        "trait": fit(features, targets, classes, *how).to_json(),
        "lexicon": lexicon.learn(texts, targets, weights).to_json(),
        "strength": calibrate(together(unseen, by_words), targets, classes, examples.owners).to_json(),
        "coherence": coherence.to_json(),
        "familiar": known.to_json(),
    }
    (out / FILE).write_text(json.dumps(saved, allow_nan=False))
    named = [name for name in classes if not name.startswith(OTHER)]
    return {"n_texts": len(texts), "classes": named, "n_coherence_texts": n_coherence}


def together(logits: np.ndarray, by_words: np.ndarray) -> np.ndarray:
    """(n, n_classes) log-shares by both probes: the sum of theirs."""
    return log_shares(log_shares(logits) + by_words)


def load(folder: Path) -> Probe:
    """The judge that `build` wrote.

    Raises:
        RunError: another version of it did.
    """
    saved = json.loads((folder / FILE).read_text())
    try:
        return Probe(
            Classifier.from_json(saved["trait"]),
            Lexicon.from_json(saved["lexicon"]),
            Strength.from_json(saved["strength"]),
            Coherence.from_json(saved["coherence"]),
            Familiar.from_json(saved["familiar"], folder),
        )
    except KeyError as error:
        raise RunError(f"{folder} holds a judge of another version, without {error}") from error


def score(
    folder: Path, persona: str, answers: list[Answer], finished: list[bool], embedder: str, reader: Reader
) -> list[Score]:
    """Score answers; for the persona "plain" by every persona, and the trait is that of whichever an answer is most like.

    Args:
        folder: what `build` wrote.
        finished: False for an answer that the token limit cut off, which never counts as coherent.
    """
    probe = load(folder)
    texts = [(prompt, read(answer)) for prompt, answer in answers]
    words = [text for _, text in texts]
    states = states_of(words, reader)
    features = trait_features(words, embedder, states)
    logits = probe.trait.logits(features)
    intact, flaws = probe.coherence.shares(look(texts, states, embedder, reader), len(texts))
    wanted = styles(probe.trait.classes) if persona == "plain" else [persona]
    shares = together(logits, probe.lexicon.log_shares(words))
    traits = {name: probe.strength.of(shares, probe.trait.classes, name) for name in wanted}
    distances = probe.familiar.distances(words, whole(states))
    found: list[Score] = []
    for number, ended in enumerate(finished):
        distance = round(float(distances[number]), 3)
        if not probe.familiar.readable(words[number]):
            unread: Score = {"trait": None, "coherence": None, "flaw": None, "failure": None, "mark": LANGUAGE}
            found.append({**unread, "distance": distance})
            continue
        empty = not answers[number][1].strip()
        share = 0.0 if empty else float(intact[number]) * (1.0 if ended else CUT_OFF_SHARE)
        flaw = None if share >= 0.5 else ("fragment" if empty else "cut_off" if not ended else flaws[number])
        shown = {name: round(100 * float(trait[number]), 3) for name, trait in traits.items()}
        score: Score = {
            "trait": max(shown.values()),
            "coherence": round(100 * share, 3),
            "flaw": flaw,
            "failure": None,
            "distance": distance,
        }
        found.append({**score, "traits": shown} if persona == "plain" else score)
    return found
