"""What became of a trait over the cycles: amplified, decayed, idempotent or inconclusive, with its intervals.

`run_verdict` speaks of one run, `group_verdict` of several training seeds of one arm. Definitions, and the simulation behind
them: docs/verdicts.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NotRequired, TypedDict

import numpy as np

from iterative_ft.errors import RunError
from iterative_ft.stats.intervals import Interval, near_limit, of_changes, question_means
from iterative_ft.stats.replicates import arm_digest

MARGIN = 10.0  # points: changes inside it are called idempotent
UNFAMILIAR_LIMIT = 0.2  # share of unfamiliar answers beyond which a judge was not validated on such texts (docs/judges.md)
UNSCORED_LIMIT = 0.2  # share of answers without a trait beyond which a cycle is not compared: the rest may be other answers
GENERAL_SEEDS = 3  # training seeds from which a verdict speaks of more than the runs it saw


class ScoredAnswer(TypedDict):
    """What a verdict reads of an answer. Scores are 0 to 100, None where there is none."""

    cycle: int
    """-1 is base."""
    question: str
    trait: float | None
    coherence: float | None
    failure: str | None
    """Why the judge has no score."""
    distance: NotRequired[float | None]
    """How far it is from what the judge was validated on: unfamiliar above 1. None where the judge does not say."""
    judge: NotRequired[str]
    """Version of the judge that scored it."""


@dataclass(frozen=True, eq=False)
class Curve:
    """One run's scores by cycle and question."""

    name: str
    seed: int
    arm: str
    """Equal for replicates (stats/replicates.py)."""
    cycles: tuple[int, ...]
    """Ascending; -1 is base."""
    questions: tuple[str, ...]
    trait: np.ndarray
    """Shape (cycles, questions): mean over a question's answers, 0-100; nan where none was scored."""
    coherence: np.ndarray
    """The same of coherence."""
    invalid: tuple[int, ...] = ()
    """Cycles in which more judge calls failed than `measure.max_failure_share` allows."""
    not_validated: tuple[int, ...] = ()
    """Cycles in which the judge was not validated on such texts."""
    unscored: tuple[int, ...] = ()
    """Cycles in which more than `UNSCORED_LIMIT` of the answers have no trait, by failures or by marks such as "refusal"."""
    missing: tuple[int, ...] = ()
    """Cycles of the run whose answers are not there."""
    judges: Mapping[int, str] = field(default_factory=dict)
    """Cycle -> version of the judge, where that is known."""

    def at(self, scores: np.ndarray, cycle: int) -> np.ndarray:
        """The row of `cycle` in `trait` or `coherence`, shape (questions,)."""
        return scores[self.cycles.index(cycle)]


@dataclass(frozen=True)
class Verdict:
    """The word, the numbers it rests on, and whom it speaks of. Changes are in points; None where nothing could be computed."""

    verdict: str
    reason: str
    speaks_of: str
    margin: float
    n_seeds: int
    n_questions: int
    trait_change: Interval | None
    """Last cycle minus cycle 0."""
    from_base: Interval | None
    """Last cycle minus base."""
    coherence_change: Interval | None
    """Last cycle minus cycle 0: below 0 is what the change cost."""
    trend: Interval | None
    """Least-squares slope over cycles 0..last, points a cycle."""
    detectors: dict[str, dict[str, Any]]
    """The paper's, by name: value, threshold and whether it fired. They ignore uncertainty."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as in result.json."""
        return asdict(self)


def curve_of(
    rows: Sequence[ScoredAnswer], config: Mapping[str, Any], name: str, made: Mapping[str, Any] | None = None
) -> Curve:
    """The curve of a run's answers; a failed answer only counts as failed. `made` is what the run was made with."""
    cycles = tuple(sorted({row["cycle"] for row in rows}))
    questions = tuple(dict.fromkeys(row["question"] for row in rows))
    scores = {key: np.full((len(cycles), len(questions)), np.nan) for key in ("trait", "coherence")}
    invalid, not_validated, unscored = [], [], []
    judges = {row["cycle"]: row["judge"] for row in rows if "judge" in row}
    for number, cycle in enumerate(cycles):
        mine = [row for row in rows if row["cycle"] == cycle]
        for key, values in scores.items():
            means = question_means([row[key] for row in mine], [row["question"] for row in mine])  # type: ignore[literal-required]
            values[number] = [means.get(question, np.nan) for question in questions]
        if sum(row["failure"] is not None for row in mine) > config["measure"]["max_failure_share"] * len(mine):
            invalid.append(cycle)
        if (unfamiliar_share(row.get("distance") for row in mine) or 0.0) > UNFAMILIAR_LIMIT:
            not_validated.append(cycle)
        if sum(row["trait"] is None for row in mine) > UNSCORED_LIMIT * len(mine):
            unscored.append(cycle)
    return Curve(
        name=name,
        seed=config["seed"],
        arm=arm_digest(config, made),
        cycles=cycles,
        questions=questions,
        **scores,
        invalid=tuple(invalid),
        not_validated=tuple(not_validated),
        unscored=tuple(unscored),
        missing=tuple(cycle for cycle in range(config.get("n_cycles", -1) + 1) if cycle not in cycles),
        judges=judges,
    )


def unfamiliar_share(distances: Iterable[float | None]) -> float | None:
    """Share of answers farther than 1 from what the judge was validated on, of those with a distance; None without any."""
    known = [distance for distance in distances if distance is not None]
    return sum(distance > 1 for distance in known) / len(known) if known else None


def run_verdict(curve: Curve) -> Verdict:
    """What became of the trait in one run. It speaks of that run alone."""
    return assess([curve], MARGIN, "this run only (one training seed)")


def group_verdict(curves: Sequence[Curve]) -> Verdict:
    """What became of the trait over training seeds of one arm: the seed is the unit.

    One curve gives the run's verdict; two are labelled as too few for a general claim. Curves of different arms, or two of one
    training seed, are a `RunError`: neither is a replicate. A curve that lacks cycles of its run is left out, and it is said;
    questions that not all curves have are left out.
    """
    if not curves:
        raise RunError("a verdict over training seeds needs at least one run")
    if len(curves) == 1:
        return run_verdict(curves[0])
    if len({curve.arm for curve in curves}) > 1:
        raise RunError(
            f"{', '.join(c.name for c in curves)} differ in more than their seed (settings, judge, base model, code or "
            "device): group the runs of one arm, or compare them one by one"
        )
    seeds = [curve.seed for curve in curves]
    if len(set(seeds)) < len(seeds):
        raise RunError(f"training seeds {sorted(seeds)} repeat: a run counted twice is no replicate, leave one of them out")
    whole = [curve for curve in curves if not curve.missing]
    if 0 < len(whole) < len(curves):
        found = group_verdict(whole)
        lost = ", ".join(f"{curve.seed} (cycle {curve.missing[0]})" for curve in curves if curve.missing)
        return replace(found, reason=f"{found.reason}; left out, since their answers are not all there: seed(s) {lost}")
    n = len(curves)
    speaks_of = (
        f"training seeds like these {n}"
        if n >= GENERAL_SEEDS
        else f"these {n} runs only ({n} training seeds; a general claim needs {GENERAL_SEEDS} or more)"
    )
    return assess(aligned(curves), MARGIN, speaks_of)


def aligned(curves: Sequence[Curve]) -> list[Curve]:
    """The curves cut to the cycles and questions that all have, in one order."""
    cycles = tuple(c for c in curves[0].cycles if all(c in curve.cycles for curve in curves))
    questions = tuple(q for q in curves[0].questions if all(q in curve.questions for curve in curves))
    cut = []
    for curve in curves:
        index = np.ix_([curve.cycles.index(c) for c in cycles], [curve.questions.index(q) for q in questions])
        cut.append(
            replace(curve, cycles=cycles, questions=questions, trait=curve.trait[index], coherence=curve.coherence[index])
        )
    return cut


def assess(curves: Sequence[Curve], margin: float, speaks_of: str) -> Verdict:
    """The verdict of curves that share cycles and questions."""
    trained = [c for c in curves[0].cycles if c >= 0]
    last = trained[-1] if trained else -1
    change = from_base = coherence = trend = None
    if len(trained) > 1:
        change = contrast(curves, "trait", {last: 1, trained[0]: -1})
        coherence = contrast(curves, "coherence", {last: 1, trained[0]: -1})
        n_steps = last - trained[0]
        fitted = contrast(curves, "trait", dict(zip(trained, n_steps * slope_weights(trained), strict=True)))
        trend = None if fitted is None else per_cycle(fitted, n_steps)
    if trained and -1 in curves[0].cycles:
        from_base = contrast(curves, "trait", {last: 1, -1: -1})
    means = [cycle_mean(curves, cycle) for cycle in trained]
    word, reason = decide(curves, trained, change, margin)
    scored = 0 if change is None else int(all_scored(scores_at(curves, "trait", (trained[0], last))).sum())
    strange = sorted({cycle for curve in curves for cycle in curve.not_validated if cycle in trained})
    if strange:
        reason += f"; judge not validated on such texts in cycle(s) {', '.join(map(str, strange))}"
    return Verdict(
        verdict=word,
        reason=reason,
        speaks_of=speaks_of,
        margin=margin,
        n_seeds=len(curves),
        n_questions=scored,
        trait_change=change,
        from_base=from_base,
        coherence_change=coherence,
        trend=trend,
        detectors=detectors(means) if len(means) > 1 and all(m is not None for m in means) else {},  # type: ignore[arg-type]
    )


def contrast(curves: Sequence[Curve], key: str, weights: Mapping[int, float]) -> Interval | None:
    """Interval of a contrast of cycles (cycle -> weight) in "trait" or "coherence", paired by question."""
    scores = scores_at(curves, key, weights)
    scored = all_scored(scores)
    if not scored.any():
        return None
    skewed = near_limit(scores[:, :, scored].mean((0, 2)))
    furthest = 100.0 * sum(weight for weight in weights.values() if weight > 0)  # of a slope more than of a difference
    return of_changes(np.tensordot(scores, list(weights.values()), axes=([1], [0])), bool(skewed), furthest)


def scores_at(curves: Sequence[Curve], key: str, cycles: Iterable[int]) -> np.ndarray:
    """ "trait" or "coherence" of some cycles, shape (curves, cycles, questions)."""
    wanted = list(cycles)
    return np.stack([[curve.at(getattr(curve, key), cycle) for cycle in wanted] for curve in curves])


def all_scored(scores: np.ndarray) -> np.ndarray:
    """Which questions have a score in all cycles of all curves, shape (questions,)."""
    return np.asarray(~np.isnan(scores).any((0, 1)))


def per_cycle(fitted: Interval, n_steps: int) -> Interval:
    """The slope of a change that was fitted over `n_steps` cycles."""
    return Interval(fitted.mean / n_steps, fitted.low / n_steps, fitted.high / n_steps, fitted.n)


def cycle_mean(curves: Sequence[Curve], cycle: int) -> float | None:
    """Mean trait over questions and seeds; None where nothing was scored."""
    scores = scores_at(curves, "trait", [cycle])
    return None if np.isnan(scores).all() else float(np.nanmean(scores))


def decide(curves: Sequence[Curve], trained: Sequence[int], change: Interval | None, margin: float) -> tuple[str, str]:
    """The word and, in a sentence, why."""

    def named(cycles: Iterable[int]) -> str:
        return ", ".join(map(str, sorted(set(cycles))))

    if any(curve.missing for curve in curves):
        return "inconclusive", f"there are no answers of cycle(s) {named(c for curve in curves for c in curve.missing)}"
    if len(trained) < 2:
        return "inconclusive", "there is no cycle after cycle 0 to compare with"
    ends = (trained[0], trained[-1])
    if any(len({curve.judges.get(cycle) for cycle in ends}) > 1 for curve in curves):
        return "inconclusive", f"cycles {named(ends)} were scored by different judges: score all anew (task=rejudge)"
    invalid = [c for curve in curves for c in curve.invalid if c in ends]
    if invalid:
        return "inconclusive", f"too many judge calls failed in cycle(s) {named(invalid)}"
    if change is None:
        return "inconclusive", "no question was scored both at cycle 0 and at the last cycle"
    unscored = [c for curve in curves for c in curve.unscored if c in ends]
    if unscored:
        return "inconclusive", (
            f"more than {UNSCORED_LIMIT:.0%} of the answers have no trait score (refusals, code) in cycle(s) {named(unscored)}"
        )
    own = [contrast([curve], "trait", {trained[-1]: 1, trained[0]: -1}) for curve in curves]
    furthest = max((abs(c.mean) for c in own if c is not None), default=0.0)
    word = str(words(np.asarray(change.low), np.asarray(change.high), np.asarray(furthest), margin))
    shown = f"the interval [{change.low:+.1f}, {change.high:+.1f}] of the change"
    if word == "idempotent":
        start = cycle_mean(curves, trained[0])
        means = {cycle: cycle_mean(curves, cycle) for cycle in trained}
        away = [c for c, m in means.items() if m is not None and start is not None and abs(m - start) >= margin]
        if away:
            return "inconclusive", f"it ended where it began, but was {margin:g} points or more away in cycle(s) {away}"
        return word, f"{shown} lies inside ±{margin:g}"
    if word == "inconclusive" and -margin < change.low and change.high < margin:
        return (
            word,
            f"{shown} lies inside ±{margin:g}, but one training seed alone moved by {furthest:.1f} points: they disagree",
        )
    if word == "inconclusive":
        return word, f"{shown} holds 0 and reaches ±{margin:g}: more questions or seeds would tell"
    return word, f"{shown} lies {'above' if word == 'amplified' else 'below'} 0 and reaches beyond {margin:g} points"


def words(low: np.ndarray, high: np.ndarray, furthest: np.ndarray, margin: float) -> np.ndarray:
    """Words of change intervals: "idempotent" when all of it lies inside ±margin, else by the side of 0 that it lies on.

    Args:
        furthest: the largest mean change of a single training seed, without sign. From the margin on nothing is idempotent.
    """
    inside = (low > -margin) & (high < margin)
    return np.select(
        [inside & (furthest < margin), inside, low > 0, high < 0],
        ["idempotent", "inconclusive", "amplified", "decayed"],
        "inconclusive",
    )


def slope_weights(cycles: Sequence[int]) -> np.ndarray:
    """Weights whose sum with the scores of `cycles` is the least-squares slope."""
    centred = np.asarray(cycles, dtype=float) - np.mean(cycles)
    return centred / (centred**2).sum()


# -- the paper's detectors (arXiv 2605.01130): functions of the cycle means s_0..s_N -------------------------------------------


def delta(means: Sequence[float]) -> float:
    """s_N - s_0."""
    return means[-1] - means[0]


def prefix_regression(means: Sequence[float]) -> float:
    """Mean over k = 1..N of the least-squares slope of s_0..s_k, points a cycle."""
    return float(np.mean([slope_weights(range(k + 1)) @ np.asarray(means[: k + 1]) for k in range(1, len(means))]))


def late_delta(means: Sequence[float]) -> float | None:
    """The largest s_i - s_0 with i >= 4; None in a shorter run."""
    return max(means[4:]) - means[0] if len(means) > 4 else None


def detectors(means: Sequence[float]) -> dict[str, dict[str, Any]]:
    """Value, threshold and outcome of each detector, at the authors' thresholds."""
    found = {
        "delta": (delta(means), 10.0),
        "prefix_regression": (prefix_regression(means), 1.67),
        "late_delta": (late_delta(means), 10.0),
    }
    return {
        name: {"value": value, "threshold": threshold, "fired": value is not None and value >= threshold}
        for name, (value, threshold) in found.items()
    }
