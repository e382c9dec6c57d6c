"""What every judge says of an answer."""

from __future__ import annotations

from typing import NotRequired, TypedDict

SCORES = "scores.jsonl"


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
    trait_mass: NotRequired[float | None]
    """Probability that the judge's reply about the trait is a whole number on its scale; None where it gave no distribution."""
    coherence_mass: NotRequired[float | None]
    judge: NotRequired[str]
    """Name and version."""
