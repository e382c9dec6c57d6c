"""Multinomial logistic regression kept as plain JSON numbers: a judge must load without unpickling anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from iterative_ft.errors import RunError

FOLDS = 4
CLIP = 5.0  # standard deviations: a text unlike all training texts must not be extrapolated to


@dataclass(frozen=True)
class Classifier:
    """Standardise and clip, then softmax of a linear map."""

    classes: list[str]
    mean: np.ndarray
    """(n_features,)"""
    scale: np.ndarray
    """(n_features,)"""
    weights: np.ndarray
    """(n_classes, n_features)"""
    bias: np.ndarray
    """(n_classes,)"""

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(n, n_classes) from (n, n_features)."""
        return np.exp(self.log_shares(features))

    def log_shares(self, features: np.ndarray) -> np.ndarray:
        """Logarithms of `probabilities`, without underflow."""
        return log_shares(self.logits(features))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(n, n_classes): how strongly each class claims a text, the other classes apart."""
        found: np.ndarray = np.clip((features - self.mean) / self.scale, -CLIP, CLIP) @ self.weights.T + self.bias
        return found

    def to_json(self) -> dict[str, object]:
        arrays = {name: getattr(self, name).round(8).tolist() for name in ("mean", "scale", "weights", "bias")}
        return {"classes": self.classes, **arrays}

    @staticmethod
    def from_json(saved: dict[str, object]) -> Classifier:
        arrays = {name: np.asarray(saved[name], dtype=float) for name in ("mean", "scale", "weights", "bias")}
        return Classifier(classes=list(saved["classes"]), **arrays)  # type: ignore[call-overload]


def parts(prompts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For cross-validation: indices of the texts that are left out, and of the rest; texts on one prompt go together.

    Prompts in sorted order are dealt out in turn to `FOLDS` parts.
    """
    deal = {prompt: number % FOLDS for number, prompt in enumerate(sorted(set(prompts)))}
    fold = np.asarray([deal[prompt] for prompt in prompts])
    for number in sorted(set(fold)):
        yield np.flatnonzero(fold == number), np.flatnonzero(fold != number)


def log_shares(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax over a row's logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def fit(
    features: np.ndarray,
    targets: np.ndarray,
    classes: list[str],
    inverse_regularisation: float,
    importance: dict[str, float] | None = None,
) -> Classifier:
    """Fit to soft targets.

    Args:
        features: (n, n_features).
        targets: (n, n_classes), rows sum to 1: how much a text belongs to each class.
        importance: total weight of a class relative to the others; 1 where none is given.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-6)
    rows, columns = np.nonzero(targets)
    weight = weights_of(targets, classes, importance)[rows, columns]
    model = LogisticRegression(C=inverse_regularisation, max_iter=2000)
    model.fit(np.clip((features - mean) / scale, -CLIP, CLIP)[rows], columns, sample_weight=weight)
    return Classifier(classes, mean, scale, *of_each_class(model))


def of_each_class(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights, (n_classes, n_features), and biases of a fitted model; of two classes scikit-learn keeps the second's."""
    if len(model.classes_) > 2:
        return model.coef_, model.intercept_
    return np.vstack([-model.coef_, model.coef_]) / 2, np.concatenate([-model.intercept_, model.intercept_]) / 2


def weights_of(targets: np.ndarray, classes: list[str], importance: dict[str, float] | None = None) -> np.ndarray:
    """(n, n_classes): how much each text's share of each class counts, so that classes count alike but for their importance.

    Raises:
        RunError: no text has any share of a class.
    """
    totals = targets.sum(axis=0)
    without = [name for name, total in zip(classes, totals, strict=True) if total == 0]
    if without:
        raise RunError(
            f"the offline judge has no texts of {', '.join(without)} to learn from: add judge texts on other prompts"
        )
    wanted = np.asarray([(importance or {}).get(name, 1.0) for name in classes])
    found: np.ndarray = targets * (len(targets) / len(classes) * wanted / totals)
    return found
