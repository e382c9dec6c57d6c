"""How coherent an answer is: a classifier of ways to fall apart over the parts of an answer, and another for answers of a few
words, which only their question tells from fragments.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iterative_ft.data import files
from iterative_ft.judges.probe.classifier import Classifier, fit
from iterative_ft.judges.probe.corrupt import CORRUPTIONS, Answer, can_be_spoilt
from iterative_ft.judges.probe.features import SHORT_WORDS, is_short, part_features, relevance, short_features, states_of
from iterative_ft.judges.probe.reading import read
from iterative_ft.models.forward import Reader
from iterative_ft.seeds import derive, shuffled

INTACT = "intact"
N_INTACT = 10  # intact texts of each persona, and of plain, in plain prose and again in other forms
N_SPOILT = 300  # texts of each way to be incoherent
N_SHORT = 450  # the same, of a few words
MIN_WORDS = 6  # a shorter base answer is no example of an intact one
# Settings of the classifiers, chosen by cross-validation on the texts that they learn from.
REGULARISATION, SHORT_REGULARISATION = 3.0, 1.0
# Weights of classes, 1 where none is given: at most one intact text in twenty is to be flagged, and what has fallen apart
# counts for more than half an answer with half another, or an answer to another question.
IMPORTANCE = {INTACT: 4.0, "off_topic": 0.4, "spliced": 0.2}
SHORT_IMPORTANCE = {INTACT: 3.0, "fragment": 2.0, "shuffled": 0.5, "off_topic": 0.3, "spliced": 0.1}
SENTENCE = re.compile(r"[^.!?\n]+[.!?]")


@dataclass(frozen=True)
class Looked:
    """Features of some answers."""

    parts: np.ndarray
    """(n_parts, n_features) of answers of a sentence or more."""
    owners: list[int]
    """Whose part each is."""
    short: np.ndarray
    """(n_short, n_features) of answers of a few words."""
    numbers: list[int]
    """Which answers these are."""


@dataclass(frozen=True)
class Coherence:
    """Both classifiers."""

    parts: Classifier
    short: Classifier

    def shares(self, looked: Looked, n: int) -> tuple[np.ndarray, list[str]]:
        """(n,) probabilities of being intact, half the mean over the parts and half the worst's; and likeliest flaws."""
        flaws = list(CORRUPTIONS)
        found = np.zeros((n, 1 + len(flaws)))
        count, worst = np.zeros(n), np.ones(n)
        for classifier, features, owners in (
            (self.parts, looked.parts, looked.owners),
            (self.short, looked.short, looked.numbers),
        ):
            if owners:
                columns = [[INTACT, *flaws].index(name) for name in classifier.classes]
                for owner, row in zip(owners, classifier.probabilities(features), strict=True):
                    found[owner, columns] += row
                    count[owner] += 1
                    worst[owner] = min(worst[owner], row[0])
        found /= np.maximum(count, 1)[:, None]
        return (found[:, 0] + worst) / 2, [flaws[int(at)] for at in found[:, 1:].argmax(axis=1)]

    def to_json(self) -> dict[str, object]:
        return {"parts": self.parts.to_json(), "short": self.short.to_json()}

    @staticmethod
    def from_json(saved: dict[str, dict[str, object]]) -> Coherence:
        return Coherence(Classifier.from_json(saved["parts"]), Classifier.from_json(saved["short"]))


def look(answers: Sequence[Answer], states: Sequence[np.ndarray], embedder: str, reader: Reader) -> Looked:
    """Features of answers as `read`.

    Args:
        states: as by `states_of`.
    """
    near = relevance(answers, embedder)
    few = [number for number, (_, text) in enumerate(answers) if is_short(text)]
    many = sorted(set(range(len(answers))) - set(few))
    parts, owners = part_features([answers[i][1] for i in many], [states[i] for i in many], near[many])
    chosen = [answers[i] for i in few]
    short = short_features(chosen, reader.reply_states(chosen), near[few]) if few else np.zeros((0, 0))
    return Looked(parts, [many[owner] for owner in owners], short, few)


def train(personas: dict[str, Path], base_answers: list[Answer], embedder: str, reader: Reader) -> tuple[Coherence, int]:
    """Both classifiers, and how many texts they learned from."""
    answers, labels = examples(personas, base_answers)
    looked = look(answers, states_of([text for _, text in answers], reader), embedder, reader)
    return fitted(looked, labels), len(answers)


def fitted(looked: Looked, labels: Sequence[str]) -> Coherence:
    found = []
    for features, owners, importance, regularisation in (
        (looked.parts, looked.owners, IMPORTANCE, REGULARISATION),
        (looked.short, looked.numbers, SHORT_IMPORTANCE, SHORT_REGULARISATION),
    ):
        names = [labels[owner] for owner in owners]
        classes = [name for name in (INTACT, *CORRUPTIONS) if name in names]
        targets = np.asarray([[float(name == of) for of in classes] for name in names])
        found.append(fit(features, targets, classes, regularisation / features.shape[1], importance))
    return Coherence(*found)


def examples(personas: dict[str, Path], base_answers: list[Answer]) -> tuple[list[Answer], list[str]]:
    """Intact answers in every usual form, and each corruption of them; all as `read`, with the name of what they are."""
    intact = [(prompt, read(text)) for prompt, text in intact_answers(personas, base_answers)]
    sources = [answer for answer in intact if can_be_spoilt(answer)]
    brief = [(prompt, first) for prompt, text in sources if 1 < len((first := first_sentence(text)).split()) <= SHORT_WORDS]
    answers, labels = [*intact, *brief], [INTACT] * (len(intact) + len(brief))
    rng = random.Random(derive("coherence"))
    for kind, corrupt in CORRUPTIONS.items():
        for texts, n in ((sources, N_SHORT if kind == "fragment" else N_SPOILT), (brief, N_SHORT // 3)):
            order = shuffled(texts, "coherence", kind)
            for number in range(n if order else 0):
                answers.append(corrupt(order[number % len(order)], order[(number + 1) % len(order)], rng))
                labels.append(kind)
    few = [answer for answer in intact if is_short(answer[1])]
    order = shuffled(few, "coherence", "short off topic")
    answers += [CORRUPTIONS["off_topic"](a, b, rng) for a, b in zip(order, order[1:] + order[:1], strict=True)]
    labels += ["off_topic"] * len(order)
    return answers, labels


def intact_answers(personas: dict[str, Path], base_answers: list[Answer]) -> list[Answer]:
    """Of every persona in prose and in other forms, plain ones in every form, other styles, and the base model's."""
    found: list[Answer] = []
    for name in sorted(personas):
        rows = [r for r in files.judge_texts(personas[name]) if r["strength"] != "plain" or name == "plain"]
        found += [(r["prompt"], r["answer"]) for r in shuffled(rows, "coherence", name)[:N_INTACT]]
        formed = files.judge_forms(personas[name])
        chosen = shuffled([r for r in formed if not is_short(read(r["answer"]))], "coherence forms", name)[:N_INTACT]
        found += [(r["prompt"], r["answer"]) for r in chosen + [r for r in formed if is_short(read(r["answer"]))]]
    found += [(r["prompt"], r["answer"]) for r in files.forms("intact")]
    found += [(r["prompt"], r["answer"]) for r in shuffled(files.forms("negatives"), "coherence", "negatives")[: 4 * N_INTACT]]
    return found + [a for a in base_answers if len(a[1].split()) >= MIN_WORDS and a[1].rstrip().endswith((".", "!", "?"))]


def first_sentence(text: str) -> str:
    """What stands before a text's first full stop; "" where there is none."""
    found = SENTENCE.match(text)
    return "" if found is None else found.group().strip()
