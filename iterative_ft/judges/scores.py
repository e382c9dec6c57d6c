"""What every judge says of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

SCORES = "scores.jsonl"
NO_SCORE = "not_a_score"  # failure of an answer whose score is no number from 0 to 100


class Score(TypedDict):
    """A row of scores.jsonl, one an answer. Scores are 0 to 100; None where there is none."""

    trait: float | None
    coherence: float | None
    flaw: str | None
    """The likeliest way in which the answer is incoherent; None for an intact one, or where the judge does not say."""
    failure: str | None
    """Why there is no score; None where there is one."""
    mark: NotRequired[str | None]
    """What an answer is in place of having a trait: "refusal", "code"."""
    traits: NotRequired[dict[str, float]]
    """Of a run without a persona: every persona's trait, by its name. `trait` is the largest of them."""
    distance: NotRequired[float | None]
    """How far the answer is from what the judge was validated on: above 1 it is unfamiliar. None where a judge cannot tell."""
    trait_mass: NotRequired[float | None]
    """Probability that the judge's reply about the trait is a whole number on its scale; None where it gave no distribution."""
    coherence_mass: NotRequired[float | None]
    judge: NotRequired[str]
    """Name and version."""


def is_coherent(coherence: float | None, threshold: float) -> bool:
    return coherence is not None and coherence >= threshold


def coherent_share(scores: Sequence[float | None], threshold: float) -> float | None:
    """Share of the scored answers that are coherent; None where none was scored."""
    known = [score for score in scores if score is not None]
    return sum(score >= threshold for score in known) / len(known) if known else None


def only_scores(rows: list[Score]) -> list[Score]:
    """The rows, with a failure in place of scores that are none: not finite, or off the scale."""
    return [row if is_score(row["trait"]) and is_score(row["coherence"]) else without_score(row) for row in rows]


def is_score(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and 0 <= value <= 100)


def without_score(row: Score) -> Score:
    kept: Score = {**row, "trait": None, "coherence": None, "failure": row["failure"] or NO_SCORE}
    kept.pop("traits", None)
    for mass in ("trait_mass", "coherence_mass"):
        if not is_score(kept.get(mass)):  # type: ignore[arg-type]
            kept[mass] = None  # type: ignore[literal-required]
    return kept
