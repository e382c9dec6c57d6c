"""Multinomial logistic regression kept as plain JSON numbers: a judge must load without unpickling anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Classifier:
    """Standardise, then softmax of a linear map."""

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
        logits = (features - self.mean) / self.scale @ self.weights.T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        exp = np.exp(logits)
        return exp / exp.sum(axis=1, keepdims=True)

    def to_json(self) -> dict[str, object]:
        arrays = {name: getattr(self, name).round(8).tolist() for name in ("mean", "scale", "weights", "bias")}
        return {"classes": self.classes, **arrays}

    @staticmethod
    def from_json(saved: dict[str, object]) -> Classifier:
        arrays = {name: np.asarray(saved[name], dtype=float) for name in ("mean", "scale", "weights", "bias")}
        return Classifier(classes=list(saved["classes"]), **arrays)  # type: ignore[call-overload]


def fit(
    features: np.ndarray, targets: np.ndarray, classes: list[str], inverse_regularisation: float, standardise: bool
) -> Classifier:
    """Fit to soft targets, all classes of equal total weight.

    Args:
        features: (n, n_features).
        targets: (n, n_classes), rows sum to 1: how much a text belongs to each class.
    """
    from sklearn.linear_model import LogisticRegression

    mean = features.mean(axis=0) if standardise else np.zeros(features.shape[1])
    scale = np.maximum(features.std(axis=0), 1e-6) if standardise else np.ones(features.shape[1])
    rows, columns = np.nonzero(targets)
    class_weight = len(features) / (len(classes) * np.maximum(targets.sum(axis=0), 1e-9))
    weight = targets[rows, columns] * class_weight[columns]
    model = LogisticRegression(C=inverse_regularisation, max_iter=2000)
    model.fit(((features - mean) / scale)[rows], columns, sample_weight=weight)
    assert list(model.classes_) == list(range(len(classes))), "every class needs texts"
    return Classifier(classes, mean, scale, model.coef_, model.intercept_)
