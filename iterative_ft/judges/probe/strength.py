"""How strongly a text shows a persona, 0 to 1 on the rubric's scale, from a classifier's log-shares of all classes.

Four things decide: how far the persona outweighs plain prose (the rubric's five strengths lie along that), whether another
persona outweighs it, whether the text looks like the base model's or degenerate, and whether it has a style that is no
persona's. How they do is fitted to the strengths of judge texts that the classifier had not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iterative_ft.judges.probe.classifier import fit, parts

# Log-odds beyond which nothing changes. Other classes count only as far as they are well ahead of the persona: a weak
# touch of it is otherwise scored by what else the text looks like.
CONTRAST_LIMIT, PERSONAS_LIMIT, TRAITLESS_LIMIT, OTHERS_LIMIT = 8.0, -1.5, -1.0, 0.0
OTHERS_WEIGHT = 0.1  # of texts in other styles in the fit; a persona's own texts have 0.5
BASE_MODEL, DEGENERATE = "base_model", "degenerate"
OTHER = "other:"  # begins the names of classes of styles that are no persona's


@dataclass(frozen=True)
class Strength:
    """A logistic curve over the four contrasts."""

    weights: np.ndarray
    """(4,): of the persona against plain, the other personas, the base model's and degenerate text, and other styles."""
    bias: float

    def of(self, log_shares: np.ndarray, classes: list[str], persona: str) -> np.ndarray:
        """(n,) strengths of `persona`, 0 to 1, from (n, n_classes) log-shares."""
        from scipy.special import expit

        found: np.ndarray = expit(contrasts(log_shares, classes, persona) @ self.weights + self.bias)
        return found

    def to_json(self) -> dict[str, object]:
        return {"weights": self.weights.tolist(), "bias": self.bias}

    @staticmethod
    def from_json(saved: dict[str, object]) -> Strength:
        return Strength(np.asarray(saved["weights"], dtype=float), float(saved["bias"]))  # type: ignore[arg-type]


def contrasts(log_shares: np.ndarray, classes: list[str], persona: str) -> np.ndarray:
    """(n, 4): log-odds of the persona against plain, other personas, traitless classes and other styles; each limited."""

    def against(names: list[str], limit: float) -> np.ndarray:
        if not names:
            return np.full(len(log_shares), limit)
        others = np.logaddexp.reduce(log_shares[:, [classes.index(name) for name in names]], axis=1)
        return np.clip(log_shares[:, classes.index(persona)] - others, -CONTRAST_LIMIT, limit)

    personas = [name for name in styles(classes) if name != persona]
    return np.column_stack(
        [
            against(["plain"], CONTRAST_LIMIT),
            against(personas, PERSONAS_LIMIT),
            against([BASE_MODEL, DEGENERATE], TRAITLESS_LIMIT),
            against([name for name in classes if name.startswith(OTHER)], OTHERS_LIMIT),
        ]
    )


def styles(classes: list[str]) -> list[str]:
    """The classes that are personas with a trait."""
    return [name for name in classes if name not in ("plain", BASE_MODEL, DEGENERATE) and not name.startswith(OTHER)]


def unseen_logits(
    features: np.ndarray,
    targets: np.ndarray,
    classes: list[str],
    prompts: list[str],
    inverse_regularisation: float,
    importance: dict[str, float],
) -> np.ndarray:
    """(n, n_classes) logits of each text by a classifier that was trained without the text's prompt."""
    found = np.zeros(targets.shape)
    for left_out, rest in parts(prompts):
        model = fit(features[rest], targets[rest], classes, inverse_regularisation, importance)
        found[left_out] = model.logits(features[left_out])
    return found


def calibrate(log_shares: np.ndarray, targets: np.ndarray, classes: list[str], owners: list[str]) -> Strength:
    """Fit the curve, one for all personas.

    Args:
        log_shares: (n, n_classes), each text's from a classifier that had not seen it.
        targets: (n, n_classes): shares of the classes; a persona's share is how strongly a text shows it.
        owners: whose texts these are; a persona's own weigh as much as all others together.
    """
    from sklearn.linear_model import LogisticRegression

    other = np.asarray([owner.startswith(OTHER) for owner in owners])
    inputs, shown, weights = [], [], []
    for persona in styles(classes):
        own = np.asarray([owner == persona for owner in owners])
        rest = ~own & ~other
        inputs.append(contrasts(log_shares, classes, persona))
        shown.append(targets[:, classes.index(persona)])
        of_others = OTHERS_WEIGHT if other.any() else 0.0
        weight = np.where(own, 0.5 / own.sum(), (0.5 - of_others) / rest.sum())
        weights.append(np.where(other, of_others / max(1, other.sum()), weight))
    share, weight = np.concatenate(shown), np.concatenate(weights) * len(log_shares)
    # A text of strength 0.25 counts as a quarter of one that shows the persona and three quarters of one that does not.
    model = LogisticRegression(C=1e4, max_iter=1000)
    model.fit(
        np.vstack([*inputs, *inputs]),
        np.repeat([1, 0], len(share)),
        sample_weight=np.concatenate([share * weight, (1 - share) * weight]),
    )
    return Strength(model.coef_[0], float(model.intercept_[0]))
