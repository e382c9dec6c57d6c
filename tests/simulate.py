"""How often intervals and verdicts are right, on runs whose truth is known: the choice of statistics rests on this.

`simulate_tables` prints what is found.

Latent scores are normal: a question's level, its change (half of the variance shared by all seeds), a seed's change, an
answer's own noise. What a judge would report is the latent score cut to 0-100, or a near all-or-nothing score. Start and end
are placed so that the true change of the reported scores is exactly the one that a case names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

from iterative_ft.stats.intervals import LEVEL, UNSEEN_SCORE, bounds, near_limit
from iterative_ft.stats.verdict import MARGIN, delta, prefix_regression, slope_weights, words

COVERAGE, ERROR, POWER = 0.93, 0.05, 0.80  # the bars
REPETITIONS = 4000
N_ANSWERS = 2
QUESTIONS = (12, 24, 48)
SEEDS = (1, 3, 6)
CHANGES = (0.0, MARGIN, -MARGIN, 15.0, -15.0)
YES, NO = 82.0, 2.0  # the two scores of an all-or-nothing trait


@dataclass(frozen=True)
class Spread:
    """Standard deviations in points of the latent score."""

    name: str
    answers: float
    questions: float
    changes: float
    """Of one question's change in one run, about that run's mean change."""
    seeds: float
    """Of a run's mean change between training seeds."""


SPREADS = (
    Spread("small", answers=10, questions=10, changes=5, seeds=3),
    Spread("large", answers=25, questions=15, changes=15, seeds=8),
    Spread("seeds apart", answers=10, questions=10, changes=5, seeds=10),
)


@dataclass(frozen=True)
class Shape:
    """Where the scores lie and what a judge makes of the latent score."""

    name: str
    lower: float
    """Mean score of the lower of the two cycles; None in the middle, where both changes start from `start`."""
    two_valued: bool = False
    start: float | None = None

    def ends(self, change: float) -> tuple[float, float]:
        """True mean scores of cycle 0 and of the last cycle."""
        first = self.start if self.start is not None else self.lower + max(0.0, -change)
        return first, first + change

    def reported(self, latent: np.ndarray) -> np.ndarray:
        return np.where(latent > 50, YES, NO) if self.two_valued else np.clip(latent, 0, 100)

    def mean(self, location: float, spread: float) -> float:
        """Mean reported score of a normal latent score."""
        if self.two_valued:
            return float(NO + (YES - NO) * ndtr((location - 50) / spread))
        return above(location, spread) - above(location - 100, spread)

    def location(self, mean: float, spread: float) -> float:
        """The latent location whose mean reported score is `mean`, by bisection."""
        low, high = -1000.0, 1100.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.mean(middle, spread) < mean else (low, middle)
        return (low + high) / 2


SHAPES = (
    Shape("middle", lower=25, start=40),
    Shape("floor", lower=3),
    Shape("floor, all or nothing", lower=4, two_valued=True),
)


def above(location: float, spread: float) -> float:
    """Mean of max(0, x) for normal x."""
    d = location / spread
    return float(location * ndtr(d) + spread * np.exp(-d * d / 2) / np.sqrt(2 * np.pi))


@dataclass(frozen=True)
class Case:
    """One row of the table. Its estimand is the change of the mean score over questions like those asked: with one seed that
    run's own (there is no spread between seeds then), with several the mean over training seeds."""

    shape: Shape
    spread: Spread
    n_seeds: int
    n_questions: int

    def changes(self, rng: np.random.Generator, change: float, repetitions: int) -> tuple[np.ndarray, np.ndarray]:
        """Observed changes of question means, shape (repetitions, seeds, questions), whose true mean is `change`.

        And whether a repetition's scores lie near an end of the scale, shape (repetitions,).
        """
        s = self.spread
        size = (repetitions, self.n_seeds, self.n_questions)
        between = s.seeds if self.n_seeds > 1 else 0.0
        first, last = self.shape.ends(change)
        locations = (
            self.shape.location(first, float(np.hypot(s.answers, s.questions))),
            self.shape.location(last, float(np.linalg.norm([s.answers, s.questions, s.changes, between]))),
        )
        level = rng.normal(0, s.questions, (repetitions, 1, self.n_questions))
        moved = rng.normal(0, s.changes / 2**0.5, (repetitions, 1, self.n_questions)) + rng.normal(0, s.changes / 2**0.5, size)
        moved = moved + rng.normal(0, between, (repetitions, self.n_seeds, 1))
        means = []
        for location, latent in zip(locations, (level, level + moved), strict=True):
            answers = location + latent[..., None] + rng.normal(0, s.answers, (*size, N_ANSWERS))
            means.append(self.shape.reported(answers).mean(-1))
        return means[1] - means[0], near_limit(np.stack([m.mean((-2, -1)) for m in means], -1))


@dataclass(frozen=True)
class Outcome:
    """Shares of repetitions, one for each true change."""

    case: Case
    coverage: dict[float, float]
    amplified: dict[float, float]
    decayed: dict[float, float]
    idempotent: dict[float, float]

    @property
    def false_idempotent(self) -> float:
        return max(self.idempotent[MARGIN], self.idempotent[-MARGIN])

    @property
    def faults(self) -> list[str]:
        """The bars that this case misses."""
        found = [f"coverage {v:.1%} at {c:+g}" for c, v in self.coverage.items() if v < COVERAGE]
        if self.amplified[0.0] > ERROR:
            found.append(f"false amplified {self.amplified[0.0]:.1%}")
        if self.false_idempotent > ERROR:
            found.append(f"false idempotent {self.false_idempotent:.1%}")
        return found


def chosen(x: np.ndarray, skewed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The intervals of verdicts."""
    return bounds(x, skewed=skewed)


Statistic = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def simulate(case: Case, repetitions: int, interval: Statistic = chosen, seed: int = 0) -> Outcome:
    """Draw, compute intervals, and count."""
    rng = np.random.default_rng(seed)
    coverage, shares = {}, {}
    for change in CHANGES:
        x, skewed = case.changes(rng, change, repetitions)
        _, low, high = interval(x, skewed)
        coverage[change] = float(np.mean((low <= change) & (change <= high)))
        said = words(low, high, np.abs(x.mean(-1)).max(-1), MARGIN)
        shares[change] = {word: float(np.mean(said == word)) for word in ("amplified", "decayed", "idempotent")}
    return Outcome(case, coverage, *({c: shares[c][w] for c in CHANGES} for w in ("amplified", "decayed", "idempotent")))


def grid() -> Iterator[Case]:
    """All cases; seeds that lie far apart only where there are several."""
    for shape in SHAPES:
        for spread in SPREADS:
            for n_seeds in SEEDS:
                if n_seeds > 1 or spread.name != "seeds apart":
                    for n_questions in QUESTIONS:
                        yield Case(shape, spread, n_seeds, n_questions)


# -- statistics that were not chosen -------------------------------------------------------------------------------------------


def plain_t(x: np.ndarray, skewed: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The t interval over questions, their values averaged over seeds."""
    return t_interval(x.mean(-2))


def seeds_t(x: np.ndarray, skewed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The t interval over seeds, their values averaged over questions."""
    return t_interval(x.mean(-1))


def t_interval(units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = units.shape[-1]
    mean, half = units.mean(-1), stdtrit(n - 1, 0.5 + LEVEL / 2) * units.std(-1, ddof=1) / n**0.5
    return mean, mean - half, mean + half


def bootstrap(x: np.ndarray, skewed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The percentile bootstrap: questions, and seeds where there are several, drawn with replacement 400 times."""
    rng = np.random.default_rng(1)
    n_seeds, n_questions = x.shape[-2:]
    of_questions = rng.multinomial(n_questions, np.full(n_questions, 1 / n_questions), 400) / n_questions
    of_seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), 400) / n_seeds
    drawn = np.einsum("rsq,bs,bq->rb", x, of_seeds, of_questions, optimize=True)
    low, high = np.quantile(drawn, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], axis=1)
    return x.mean((-2, -1)), low, high


CANDIDATES: dict[str, Statistic] = {
    "t over questions": plain_t,
    "t over seeds": seeds_t,
    "bootstrap": bootstrap,
    "chosen": chosen,
}


# -- several cycles: the slope, and the paper's detectors ----------------------------------------------------------------------


def several_cycles(spread: Spread, n_questions: int, slope: float, repetitions: int, n_cycles: int = 4) -> dict[str, float]:
    """One run's cycles 0..n_cycles in the middle of the scale: coverage of the slope, and how often a detector fires.

    The trait changes by `slope` points a cycle; a question's own change grows along with the cycles to `spread.changes`.
    """
    rng = np.random.default_rng(2)
    cycles = np.arange(n_cycles + 1)
    latent = 40 + slope * cycles + rng.normal(0, spread.questions, (repetitions, n_questions, 1))
    latent = latent + rng.normal(0, spread.changes, (repetitions, n_questions, 1)) * cycles / n_cycles
    answers = latent[..., None] + rng.normal(0, spread.answers, (*latent.shape, N_ANSWERS))
    scores = answers.mean(-1)  # not cut to 0-100, so that the true slope is `slope`
    _, low, high = bounds(n_cycles * (scores @ slope_weights(cycles.tolist()))[:, None, :])
    means = scores.mean(1)
    changes = (scores[..., -1] - scores[..., 0])[:, None, :]
    _, change_low, change_high = bounds(changes)
    return {
        "coverage": float(np.mean((low <= n_cycles * slope) & (n_cycles * slope <= high))),
        "amplified": float(np.mean(words(change_low, change_high, np.abs(changes.mean(-1))[:, 0], MARGIN) == "amplified")),
        "delta": float(np.mean([delta(m) >= 10 for m in means])),
        "prefix": float(np.mean([prefix_regression(m) >= 1.67 for m in means])),
    }


def levels(shape: Shape, spread: Spread, n_questions: int, repetitions: int) -> dict[str, float]:
    """Coverage of one policy's mean score, the band of a curve: the chosen interval and the plain t."""
    rng = np.random.default_rng(3)
    truth = shape.ends(0)[0]
    location = shape.location(truth, float(np.hypot(spread.answers, spread.questions)))
    latent = location + rng.normal(0, spread.questions, (repetitions, n_questions, 1))
    scores = shape.reported(latent + rng.normal(0, spread.answers, (repetitions, n_questions, N_ANSWERS))).mean(-1)
    found = {}
    for name, interval in (("chosen", lambda x: bounds(x, LEVEL, (0, 100), UNSEEN_SCORE)), ("t", plain_t)):
        _, low, high = interval(scores[:, None, :])
        found[name] = float(np.mean((low <= truth) & (truth <= high)))
    return found
