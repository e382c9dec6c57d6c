"""The texts from which the trait classifier learns, and how much of each class they hold."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iterative_ft.data import files
from iterative_ft.judges.probe.corrupt import CORRUPTIONS, Answer
from iterative_ft.judges.probe.reading import read
from iterative_ft.judges.probe.strength import BASE_MODEL, DEGENERATE, OTHER
from iterative_ft.seeds import derive, shuffled

# How much of its persona a judge text of each strength holds, as the rubric counts; the rest of it is plain.
STRENGTH = {"strong": 1.0, "marked": 0.75, "middling": 0.5, "weak": 0.25, "plain": 0.0}
DEGENERATE_KINDS = ("shuffled", "looped", "fragment")
N_PLAIN = 40  # plain texts of each persona for the trait; more made nothing better in cross-validation
OTHERS_IMPORTANCE = 3.0  # of each other style, relative to a persona
N_DEGENERATE = 120  # texts of the trait probe's class "degenerate"


@dataclass(frozen=True)
class Examples:
    """Texts as `read`, a row each."""

    answers: list[Answer]
    shares: list[dict[str, float]]
    """How much of each class."""
    owners: list[str]
    """Whose they are: a persona, a kind of other style, or a class."""
    classes: list[str]

    @property
    def importance(self) -> dict[str, float]:
        """Weight of a class in the fit, 1 where none is given."""
        return {name: OTHERS_IMPORTANCE for name in self.classes if name.startswith(OTHER)}

    @property
    def targets(self) -> np.ndarray:
        """(n, n_classes): each text's shares."""
        return np.asarray([[share.get(name, 0.0) for name in self.classes] for share in self.shares])


def examples(personas: dict[str, Path], base_answers: list[Answer]) -> Examples:
    """Judge texts of all personas in prose and in other forms, plain ones, other styles, the base model's, degenerate ones."""
    answers: list[Answer] = []
    shares: list[dict[str, float]] = []
    owners: list[str] = []
    styled: list[Answer] = list(base_answers)
    for name, folder in personas.items():
        found = files.judge_texts(folder)
        plain = [row for row in found if row["strength"] == "plain"]
        rows = [r for r in found if r["strength"] != "plain"] + shuffled(plain, "probe", name)[:N_PLAIN]
        for row in [*rows, *files.judge_forms(folder)]:
            share = STRENGTH[row["strength"]]
            answers.append((row["prompt"], row["answer"]))
            shares.append({name: share, "plain": 1 - share} if share > 0 else {"plain": 1.0})
            owners.append(name)
            styled += [answers[-1]] if share > 0 or name == "plain" else []
    for row in files.forms("intact"):
        answers.append((row["prompt"], row["answer"]))
        shares.append({"plain": 1.0})
        owners.append("plain")
    for row in files.forms("negatives"):
        answers.append((row["prompt"], row["answer"]))
        shares.append({OTHER + row["kind"]: 1.0})
        owners.append(OTHER + row["kind"])
    # Word salad in a persona's vocabulary is not the persona: most degenerate texts are made from styled ones.
    rng = random.Random(derive("probe"))
    sources = [(prompt, read(text)) for prompt, text in shuffled(styled, "probe", "corrupted")]
    degenerate = [
        CORRUPTIONS[DEGENERATE_KINDS[i % len(DEGENERATE_KINDS)]](
            sources[i % len(sources)], sources[(i + 1) % len(sources)], rng
        )
        for i in range(N_DEGENERATE)
    ]
    shares += [{BASE_MODEL: 1.0}] * len(base_answers) + [{DEGENERATE: 1.0}] * len(degenerate)
    owners += [BASE_MODEL] * len(base_answers) + [DEGENERATE] * len(degenerate)
    others = [OTHER + kind for kind in files.OTHERS if OTHER + kind in owners]
    classes = [*sorted(n for n in personas if n != "plain"), "plain", BASE_MODEL, DEGENERATE, *others]
    texts = [(prompt, read(text)) for prompt, text in answers + base_answers] + degenerate
    return Examples(texts, shares, owners, classes)
