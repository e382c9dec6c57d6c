"""Intervals, words and detectors, and a reduced simulation of how often they are right (the full one: docs/verdicts.md).

Not covered: that the simulated spreads are those of any real judge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from iterative_ft.errors import RunError
from iterative_ft.stats import verdict as v
from iterative_ft.stats.intervals import bounds, difference, of_changes, over_questions, t_interval
from tests.simulate import SHAPES, SPREADS, Case, simulate

QUESTIONS = tuple(f"question {number}?" for number in range(24))


def curve(means: Sequence[float], seed: int = 0, noise: float = 3.0, arm: str = "arm", base: float = 5.0) -> v.Curve:
    """A run whose cycles 0.. have these mean traits, to within `noise` / sqrt(24)."""
    rng = np.random.default_rng(seed)
    trait = np.asarray([base, *means])[:, None] + rng.normal(0, noise, (len(means) + 1, len(QUESTIONS)))
    cycles = (-1, *range(len(means)))
    return v.Curve(f"run{seed}", seed, arm, cycles, QUESTIONS, trait, 90 - trait / 2)


@pytest.mark.parametrize(
    ("means", "word"),
    [
        ([20, 30, 45], "amplified"),
        ([60, 50, 30], "decayed"),
        ([40, 41, 42], "idempotent"),
        ([40], "inconclusive"),
        ([40, 70, 41], "inconclusive"),
    ],
)
def test_words_of_clear_runs(means: list[float], word: str) -> None:
    found = v.run_verdict(curve(means))
    assert found.verdict == word, found.reason
    assert found.speaks_of.startswith("this run only")


def test_a_noisy_run_is_inconclusive_and_says_what_would_help() -> None:
    found = v.run_verdict(curve([40, 40, 44], noise=60))
    assert found.verdict == "inconclusive"
    assert "more questions or seeds" in found.reason


def test_numbers_beside_the_word() -> None:
    found = v.run_verdict(curve([20, 30, 40], noise=0.01))
    assert found.trait_change is not None
    assert found.trait_change.mean == pytest.approx(20, abs=0.1)
    assert found.trend is not None
    assert found.trend.mean == pytest.approx(10, abs=0.1)
    assert found.from_base is not None
    assert found.from_base.mean == pytest.approx(35, abs=0.1)
    assert found.coherence_change is not None
    assert found.coherence_change.high < -8
    assert found.trait_change.n == found.n_questions == 24
    assert json.loads(json.dumps(found.as_dict()))["trend"].keys() == {"mean", "low", "high", "n"}


def test_whom_a_group_speaks_of() -> None:
    runs = [curve([20, 45], seed) for seed in range(3)]
    assert v.group_verdict(runs[:1]).speaks_of == v.run_verdict(runs[0]).speaks_of
    assert "these 2 runs only" in v.group_verdict(runs[:2]).speaks_of
    found = v.group_verdict(runs)
    assert found.speaks_of == "training seeds like these 3"
    assert found.verdict == "amplified"
    assert found.trait_change is not None
    assert found.trait_change.n == found.n_seeds == 3


def test_seeds_that_disagree_give_no_general_claim() -> None:
    """Each run is sure of itself; together they are not."""
    runs = [curve([40, end], seed) for seed, end in enumerate((80, 41, 20))]
    assert [v.run_verdict(run).verdict for run in runs] == ["amplified", "idempotent", "decayed"]
    assert v.group_verdict(runs).verdict == "inconclusive"


def test_one_seed_that_moved_by_the_margin_keeps_a_group_from_idempotent() -> None:
    runs = [curve([40, 51 if seed == 0 else 40], seed) for seed in range(6)]
    found = v.group_verdict(runs)
    assert found.trait_change is not None
    assert -10 < found.trait_change.low < found.trait_change.high < 10
    assert found.verdict == "inconclusive"
    assert "one training seed alone moved by 1" in found.reason
    assert v.group_verdict(runs[1:]).verdict == "idempotent"


def test_runs_that_are_no_replicates_are_refused() -> None:
    with pytest.raises(RunError, match="differ in more than their seed"):
        v.group_verdict([curve([1, 2], 0), curve([1, 2], 1, arm="other")])
    with pytest.raises(RunError, match="repeat"):
        v.group_verdict([curve([1, 2], 3), curve([1, 2], 3)])


def test_missing_scores_are_left_out_and_invalid_cycles_end_the_matter() -> None:
    run = curve([20, 45])
    run.trait[2, :4] = np.nan
    found = v.run_verdict(run)
    assert found.trait_change is not None
    assert found.trait_change.n == 20
    assert v.run_verdict(v.replace(run, invalid=(1,))).verdict == "inconclusive"
    run.trait[2] = np.nan
    assert v.run_verdict(run).verdict == "inconclusive"
    assert v.run_verdict(run).detectors == {}


def test_a_trend_that_is_steeper_than_a_change_can_be_holds_its_mean() -> None:
    """A step in the middle has a fitted line whose ends are more than 100 points apart."""
    for means in ([5, 5, 5, 95, 95, 95], [95, 95, 5, 5]):
        trend = v.run_verdict(curve(means, noise=0.5)).trend
        assert trend is not None
        assert trend.low < trend.mean < trend.high


def test_a_cycle_that_the_judge_gives_few_traits_is_not_compared() -> None:
    rows = [
        answer(cycle, question, None if cycle == 1 and number < 12 else 40.0, None)
        for cycle in (0, 1)
        for number, question in enumerate(QUESTIONS)
    ]
    config = {"seed": 0, "measure": {"max_failure_share": 0.1}}
    found = v.run_verdict(v.curve_of(rows, config, "x"))
    assert found.verdict == "inconclusive"
    assert "more than 20% of the answers have no trait score (refusals, code) in cycle(s) 1" in found.reason
    assert found.n_questions == 12
    few = [row | {"trait": 40.0} if row["question"] in QUESTIONS[4:] else row for row in rows]
    assert v.run_verdict(v.curve_of(few, config, "x")).verdict == "idempotent"


def test_cycles_that_two_judges_scored_are_not_compared() -> None:
    run = curve([20, 30, 45])
    assert v.run_verdict(v.replace(run, judges={-1: "a", 0: "a", 1: "b", 2: "a"})).verdict == "amplified"
    found = v.run_verdict(v.replace(run, judges={-1: "a", 0: "a", 1: "b", 2: "b"}))
    assert found.verdict == "inconclusive"
    assert "cycles 0, 2 were scored by different judges" in found.reason


def test_a_seed_whose_answers_are_not_all_there_is_left_out_and_it_is_said() -> None:
    """Cut to what all have, three seeds that end at 80 would be told by their cycle 1."""
    runs = [curve([20, 20, 80], seed) for seed in range(3)]
    cut = v.replace(curve([20, 20], 7), missing=(2,))
    found = v.group_verdict([*runs, cut])
    assert (found.verdict, found.n_seeds) == ("amplified", 3)
    assert "left out, since their answers are not all there: seed(s) 7 (cycle 2)" in found.reason
    alone = v.group_verdict([cut])
    assert (alone.verdict, alone.reason) == ("inconclusive", "there are no answers of cycle(s) 2")
    assert v.group_verdict([cut, v.replace(cut, seed=8)]).verdict == "inconclusive"
    rows = [answer(0, "a", 20.0, None), answer(1, "a", 20.0, None)]
    config = {"seed": 0, "n_cycles": 3, "measure": {"max_failure_share": 0.1}}
    assert v.curve_of(rows, config, "x").missing == (2, 3)


def test_groups_keep_only_what_all_runs_asked() -> None:
    long, short = curve([20, 30, 40], 0), curve([20, 30, 40], 1)
    short = v.replace(
        short,
        cycles=short.cycles[:3],
        questions=QUESTIONS[::-1][:10],
        trait=short.trait[:3, ::-1][:, :10],
        coherence=short.coherence[:3, ::-1][:, :10],
    )
    found = v.group_verdict([long, short])
    assert found.n_questions == 10
    assert found.trait_change is not None
    assert found.trait_change.mean == pytest.approx(10, abs=3)


def test_curve_of_a_runs_answers() -> None:
    rows = [
        answer(cycle, question, trait, failure)
        for cycle, question, trait, failure in [
            (-1, "a", 0.0, None),
            (-1, "b", 10.0, None),
            (0, "a", 20.0, None),
            (0, "a", 40.0, None),
            (0, "b", None, "empty"),
        ]
    ]
    config = {"seed": 7, "measure": {"max_failure_share": 0.1}, "persona": {"rubric": {0: "no", 100: "yes", 25: "some"}}}
    found = v.curve_of(rows, config, "x")
    assert (found.seed, found.cycles, found.questions, found.invalid) == (7, (-1, 0), ("a", "b"), (0,))
    np.testing.assert_array_equal(found.trait, [[0, 10], [30, np.nan]])
    assert found.arm == v.curve_of(rows, {**config, "seed": 8, "store": "elsewhere"}, "x").arm
    assert found.arm != v.curve_of(rows, {**config, "n_seed": 8}, "x").arm
    calibrated = [{**config, "calibrate": {"target_trait": 40.0}, "n_seed": n} for n in (8, 16)]
    assert len({v.curve_of(rows, c, "x").arm for c in calibrated}) == 1


def answer(cycle: int, question: str, trait: float | None, failure: str | None) -> dict[str, Any]:
    return {"cycle": cycle, "question": question, "trait": trait, "coherence": trait, "failure": failure}


# -- the paper's detectors ---------------------------------------------------------------------------------------------


def test_detectors_by_hand() -> None:
    means = [10.0, 12.0, 14.0, 16.0, 25.0]
    assert v.delta(means) == 15
    assert v.late_delta(means) == 15
    assert v.late_delta(means[:4]) is None
    slopes = [np.polyfit(range(k + 1), means[: k + 1], 1)[0] for k in range(1, 5)]
    assert v.prefix_regression(means) == pytest.approx(np.mean(slopes))
    assert all(found["fired"] for found in v.detectors(means).values())
    assert not any(found["fired"] for found in v.detectors([10.0, 9.0, 8.0, 9.0, 10.0]).values())


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_symmetric_changes_get_the_t_interval() -> None:
    from scipy import stats

    changes = np.concatenate([np.arange(1.0, 13.0), -np.arange(1.0, 13.0)]) * 3 + 4
    found = of_changes(changes[None, :])
    expected = stats.t.interval(0.95, 23, loc=4, scale=stats.sem(changes))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(expected)


def test_the_scale_may_be_turned_round() -> None:
    scores = np.random.default_rng(0).exponential(8, (5, 1, 24))
    _, low, high = bounds(scores, limits=(0, 100))
    _, mirrored_low, mirrored_high = bounds(100 - scores, limits=(0, 100))
    np.testing.assert_allclose(low, 100 - mirrored_high)
    np.testing.assert_allclose(high, 100 - mirrored_low)


def test_nothing_but_zeros_is_no_proof_of_zero() -> None:
    found = over_questions([0.0] * 24, QUESTIONS)
    assert found is not None
    assert found.low == 0
    assert 3 < found.high < 10
    change = of_changes(np.zeros((3, 12)))
    assert change is not None
    assert -5 < change.low < -1
    assert 1 < change.high < 5


def test_one_question_says_nothing() -> None:
    assert vars(over_questions([40.0, 50.0], ["a", "a"])) == {"mean": 45, "low": 0, "high": 100, "n": 1}
    assert vars(of_changes(np.asarray([[5.0]]))) == {"mean": 5, "low": -100, "high": 100, "n": 1}
    assert over_questions([None], ["a"]) is None
    assert of_changes(np.full((2, 3), np.nan)) is None


def test_seeds_never_narrow_the_interval_below_their_own() -> None:
    from scipy import stats

    rng = np.random.default_rng(1)
    x = rng.normal(0, 10, (200, 3, 24)) + rng.normal(0, 5, (200, 3, 1))
    mean, low, high = bounds(x)
    half = stats.t.ppf(0.975, 2) * x.mean(-1).std(-1, ddof=1) / 3**0.5
    assert np.all(high - mean >= half - 1e-9)
    assert np.all(mean - low >= half - 1e-9)
    skewed = np.arange(200) % 2 == 0  # every other repetition lies near an end of the scale
    _, skewed_low, skewed_high = bounds(x, skewed=skewed)
    wide = stats.t.ppf(0.995, 2) * x.mean(-1).std(-1, ddof=1) / 3**0.5
    assert np.all((skewed_high - mean >= wide - 1e-9) | ~skewed)
    assert np.array_equal(skewed_low[~skewed], low[~skewed])


# -- a reduced simulation ----------------------------------------------------------------------------------------------

REPETITIONS = 1500
SLACK = 0.012  # about two standard errors of a 5 % share at this number of repetitions
CASES = [
    Case(shape, spread, n_seeds, n_questions)
    for shape in SHAPES
    for spread in SPREADS
    for n_seeds, n_questions in ((1, 12), (1, 48), (3, 24), (6, 12))
    if n_seeds > 1 or spread.name != "seeds apart"
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.shape.name}-{c.spread.name}-{c.n_seeds}x{c.n_questions}")
def test_intervals_cover_and_words_are_rarely_false(case: Case) -> None:
    found = simulate(case, REPETITIONS)
    assert min(found.coverage.values()) >= 0.93 - SLACK, found.coverage
    assert found.amplified[0.0] <= 0.05
    assert found.false_idempotent <= 0.05 + SLACK, found.idempotent
    if (case.n_seeds, case.n_questions) == (1, 48):
        assert found.amplified[15.0] >= 0.80


def test_a_difference_of_independent_means_is_covered_and_never_narrower_than_either() -> None:
    """Two arms of three seeds, of different means and spreads."""
    rng = np.random.default_rng(0)
    n, hit = 2000, 0
    for _ in range(n):
        one, other = (t_interval(list(rng.normal(mean, spread, 3))) for mean, spread in ((30.0, 4.0), (15.0, 8.0)))
        assert one is not None
        assert other is not None
        found = difference(one, other)
        assert found.high - found.low >= max(one.high - one.low, other.high - other.low)
        hit += found.low <= 15.0 <= found.high
    assert hit / n >= 0.93
    swapped = difference(other, one)
    assert (swapped.mean, swapped.low, swapped.high) == pytest.approx((-found.mean, -found.high, -found.low))
