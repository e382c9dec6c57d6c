"""How strongly a text shows a persona, 0 to 1 on the rubric's scale, from a classifier's log-shares of all classes.

Three things decide: how far the persona outweighs plain prose (the rubric's five strengths lie along that), whether another
persona outweighs it, and whether the text looks like the base model's or degenerate. How they do is fitted to the strengths
of judge texts that the classifier had not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iterative_ft.judges.probe.classifier import fit

FOLDS = 4
# Log-odds beyond which nothing changes. Other classes count only as far as they are well ahead of the persona: a weak
# touch of it is otherwise scored by what else the text looks like.
CONTRAST_LIMIT, PERSONAS_LIMIT, TRAITLESS_LIMIT = 8.0, -1.5, -1.0
BASE_MODEL, DEGENERATE = "base_model", "degenerate"


@dataclass(frozen=True)
class Strength:
    """A logistic curve over the three contrasts."""

    weights: np.ndarray
    """(3,): of the persona against plain, against the other personas, and against the base model's and degenerate text."""
    bias: float

    def of(self, log_shares: np.ndarray, classes: list[str], persona: str) -> np.ndarray:
        """(n,) strengths of `persona`, 0 to 1, from (n, n_classes) log-shares."""
        return 1 / (1 + np.exp(-contrasts(log_shares, classes, persona) @ self.weights - self.bias))

    def to_json(self) -> dict[str, object]:
        return {"weights": self.weights.tolist(), "bias": self.bias}

    @staticmethod
    def from_json(saved: dict[str, object]) -> Strength:
        return Strength(np.asarray(saved["weights"], dtype=float), float(saved["bias"]))  # type: ignore[arg-type]


def contrasts(log_shares: np.ndarray, classes: list[str], persona: str) -> np.ndarray:
    """(n, 3): log-odds of the persona against plain, the other personas, and the traitless classes; each limited."""

    def against(names: list[str], limit: float) -> np.ndarray:
        others = np.logaddexp.reduce(log_shares[:, [classes.index(name) for name in names]], axis=1)
        return np.clip(log_shares[:, classes.index(persona)] - others, -CONTRAST_LIMIT, limit)

    personas = [name for name in styles(classes) if name != persona]
    return np.column_stack(
        [
            against(["plain"], CONTRAST_LIMIT),
            against(personas, PERSONAS_LIMIT),
            against([BASE_MODEL, DEGENERATE], TRAITLESS_LIMIT),
        ]
    )


def styles(classes: list[str]) -> list[str]:
    """The classes that are personas with a trait."""
    return [name for name in classes if name not in ("plain", BASE_MODEL, DEGENERATE)]


def calibrate(
    features: np.ndarray,
    targets: np.ndarray,
    classes: list[str],
    owners: list[str],
    prompts: list[str],
    inverse_regularisation: float,
) -> Strength:
    """Fit the curve, one for all personas, on log-shares from classifiers trained without the text's prompt.

    Args:
        features: (n, n_features).
        targets: (n, n_classes): shares of the classes; a persona's share is how strongly a text shows it.
        owners: whose texts these are; a persona's own weigh as much as all others together.
        prompts: texts that answer one prompt are left out together.
    """
    from sklearn.linear_model import LogisticRegression

    # Prompts in sorted order, dealt out in turn.
    deal = {prompt: number % FOLDS for number, prompt in enumerate(sorted(set(prompts)))}
    fold = np.asarray([deal[prompt] for prompt in prompts])
    unseen = np.zeros(targets.shape)
    for number in range(FOLDS):
        seen = fold != number
        unseen[~seen] = fit(features[seen], targets[seen], classes, inverse_regularisation).log_shares(features[~seen])
    inputs, shown, weights = [], [], []
    for persona in styles(classes):
        own = np.asarray([owner == persona for owner in owners])
        inputs.append(contrasts(unseen, classes, persona))
        shown.append(targets[:, classes.index(persona)])
        weights.append(np.where(own, 0.5 / own.sum(), 0.5 / (~own).sum()))
    share, weight = np.concatenate(shown), np.concatenate(weights) * len(features)
    # A text of strength 0.25 counts as a quarter of one that shows the persona and three quarters of one that does not.
    model = LogisticRegression(C=1e4, max_iter=1000)
    model.fit(
        np.vstack([*inputs, *inputs]),
        np.repeat([1, 0], len(share)),
        sample_weight=np.concatenate([share * weight, (1 - share) * weight]),
    )
    return Strength(model.coef_[0], float(model.intercept_[0]))
