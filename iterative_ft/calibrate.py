"""How many seed examples make a trait of a wanted strength: `n_seed=calibrated calibrate.target_trait=40`.

Bisection over n_seed for the smallest whose cycle 0 reaches the target. It takes for granted that more seed examples make a
stronger trait, says so, and tells when its own trials contradict that. A trial is a cycle 0 like any other: its stages are in
the store, so a run with that n_seed, and the same search run again, cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from iterative_ft.config.calibration import calibration_method, most_seeds
from iterative_ft.config.schema import Config
from iterative_ft.errors import RunError
from iterative_ft.records.rows import answer_rows
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.data import seed_data
from iterative_ft.stages.endings import check_endings
from iterative_ft.stages.measure import ask, measure
from iterative_ft.stages.train import train
from iterative_ft.stats.intervals import over_questions
from iterative_ft.store import Event, Store


@dataclass(frozen=True)
class Trial:
    """A cycle 0 that was trained and measured; low and high bound the 95 % interval over questions."""

    n_seed: int
    score: float
    low: float
    high: float
    reached: bool


@dataclass(frozen=True)
class Calibration:
    """What a search found, as a run's manifest keeps it."""

    n_seed: int
    target_trait: float
    method: str
    reach: str
    trials: list[Trial]
    """In the order in which they were made."""
    contradictions: list[str]
    """Pairs of trials in which more seed examples made a weaker trait, beyond both intervals."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"assumes": "the trait of cycle 0 grows with n_seed"}

    @property
    def text(self) -> str:
        """One line for the screen."""
        chosen = next(trial for trial in self.trials if trial.n_seed == self.n_seed)
        inside = "the target is inside its interval" if chosen.low <= self.target_trait else "all of its interval is above"
        return (
            f"n_seed={self.n_seed} is the smallest found whose cycle 0 ({self.method}) reaches {self.target_trait:g}: "
            f"{trial_text(chosen)}, {inside}; {len(self.trials)} trials"
        )


def calibrate(config: Config, store: Store) -> Calibration:
    """Search for the smallest n_seed whose cycle 0 reaches `calibrate.target_trait`.

    Raises:
        RunError: not even calibrate.n_max examples reach it.
    """
    target = config.calibrate.target_trait
    assert target is not None
    trials: dict[int, Trial] = {}
    print(
        f"calibrating n_seed in {bounds(config)[0]}..{bounds(config)[1]} by {calibration_method(config).name}: at most "
        f"{most_trials(config)} trainings, taking for granted that more seed examples make a stronger trait"
    )

    def reached(n: int) -> bool:
        trials[n] = try_out(config, store, n)
        word = "reaches" if trials[n].reached else "misses"
        print(f"calibrate: n_seed={n}: {trial_text(trials[n])} {word} {target:g}", flush=True)
        return trials[n].reached

    _, high = bounds(config)
    bench = Bench(with_n_seed(config, high), store)
    check_endings(bench, ask(bench, bench.base))
    n_seed = search(config, reached)
    if n_seed is None:
        more = "" if high == most_seeds(config) else ", raise calibrate.n_max"
        harder = "method.learning_rate, method.epochs"
        if calibration_method(config) is not config.method:
            harder = "+calibrate.settings.learning_rate=<value>, or .epochs"
        raise RunError(
            f"calibrate.target_trait={target:g} is not reached by n_seed={high} ({trial_text(trials[high])}): "
            f"lower the target{more}, or train harder ({harder})"
        )
    found = Calibration(
        n_seed=n_seed,
        target_trait=target,
        method=calibration_method(config).name,
        reach=config.calibrate.reach,
        trials=list(trials.values()),
        contradictions=contradictions(list(trials.values())),
    )
    print(found.text)
    for line in found.contradictions:
        print(f"warning: {line}: the smallest n_seed may be another; more questions or another seed would tell")
    return found


def search(config: Config, reached: Callable[[int], bool]) -> int | None:
    """The smallest n_seed that reaches the target, by bisection; None where not even the largest does."""
    low, high = bounds(config)
    if not reached(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle + 1
    return high


class Unknown(Exception):
    """A trial is still to be made."""


def found_before(config: Config) -> int | None:
    """What the search of a run finds, where the store holds all its trials; None where it does not, or nothing was found."""
    store = Store(Path(config.store), dry_run=True, on_event=stop_at_pending)
    try:
        return search(config, lambda n: try_out(config, store, n).reached)
    except (Unknown, RunError):
        return None


def stop_at_pending(event: Event) -> None:
    if event.how == "pending":
        raise Unknown


def try_out(config: Config, store: Store, n: int) -> Trial:
    """Train and measure a cycle 0 on `n` seed examples."""
    bench = Bench(with_n_seed(config, n), store)
    trained = train(bench, seed_data(bench), init=bench.base, cycle=0)
    measured = measure(bench, trained.policy, of_base=ask(bench, bench.base))
    if store.dry_run and not all(store.intact(stage) for stage in (*measured.asked.answers.stages, measured.scores)):
        raise Unknown  # damaged: it will be built again
    answers = answer_rows(0, measured)
    failed = sum(answer["failure"] is not None for answer in answers)
    if failed > config.measure.max_failure_share * len(answers):
        raise RunError(f"calibration stopped at n_seed={n}: the judge failed on {failed} of {len(answers)} answers")
    interval = over_questions([answer["trait"] for answer in answers], [answer["question"] for answer in answers])
    if interval is None:
        raise RunError(f"calibration stopped at n_seed={n}: no answer could be scored")
    settings = config.calibrate
    assert settings.target_trait is not None
    decisive = interval.mean if settings.reach == "score" else interval.low
    return Trial(n, interval.mean, interval.low, interval.high, decisive >= settings.target_trait - settings.tolerance)


def settled(config: Config) -> Config | None:
    """The run with the n_seed that its search found, None while that is to be made; a run without a search as it is."""
    n_seed = found_before(config) if config.n_seed == "calibrated" else config.n_seed
    return None if n_seed is None else config.model_copy(update={"n_seed": n_seed})


def with_likely_seeds(config: Config) -> Config:
    """The same, with the largest n_seed that a search may find where it is still to be made."""
    return settled(config) or config.model_copy(update={"n_seed": bounds(config)[1]})


def with_n_seed(config: Config, n: int) -> Config:
    """The run whose cycle 0 is the trial of `n` seed examples: by the calibration's method, all else as in `config`."""
    return config.model_copy(update={"n_seed": n, "method": calibration_method(config)})


def bounds(config: Config) -> tuple[int, int]:
    """Smallest and largest n_seed that the search considers."""
    settings = config.calibrate
    return settings.n_min, most_seeds(config) if settings.n_max is None else settings.n_max


def most_trials(config: Config) -> int:
    """Trainings that the search takes at most: one at n_max, then one a halving."""
    low, high = bounds(config)
    return 1 + math.ceil(math.log2(high - low + 1))


def contradictions(trials: list[Trial]) -> list[str]:
    """Neighbouring trials in which the trait falls with more seed examples, their intervals apart."""
    ordered = sorted(trials, key=lambda p: p.n_seed)
    return [
        f"n_seed={more.n_seed} made a weaker trait than n_seed={less.n_seed} ({trial_text(more)} against {trial_text(less)})"
        for less, more in pairwise(ordered)
        if more.high < less.low
    ]


def trial_text(trial: Trial) -> str:
    return f"trait {trial.score:.1f} [{trial.low:.1f}, {trial.high:.1f}]"


def dry_text(config: Config) -> str:
    """What a dry run says of a run that is to be calibrated."""
    low, high = bounds(config)
    n_seed = found_before(config)
    if n_seed is not None:
        return f"n_seed=calibrated: the store holds the search, which found n_seed={n_seed}"
    return (
        f"n_seed=calibrated: the search decides, with at most {most_trials(config)} trainings of cycle 0 between n_seed={low} "
        f"and {high}, each a stored stage; the plan below is for n_seed={high}, the most it can be, and leaves the search out"
    )
