"""How many seed examples make a trait of a wanted strength: `n_seed=calibrated calibrate.target_trait=40`.

Bisection over n_seed for the smallest whose cycle 0 reaches the target. It takes for granted that more seed examples make a
stronger trait, says so, and tells when its own probes contradict that. A probe is a cycle 0 like any other: its stages are in
the store, so a run with that n_seed, and the same search run again, cost nothing.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from iterative_ft.config import Config, calibration_method, most_seeds
from iterative_ft.errors import RunError
from iterative_ft.lab import Lab
from iterative_ft.measure.intervals import over_questions
from iterative_ft.results import scores_of
from iterative_ft.store import Store


@dataclass(frozen=True)
class Probe:
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
    probes: list[Probe]
    """In the order in which they were made."""
    contradictions: list[str]
    """Pairs of probes in which more seed examples made a weaker trait, beyond both intervals."""

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"assumes": "the trait of cycle 0 grows with n_seed"}

    @property
    def text(self) -> str:
        """One line for the screen."""
        chosen = next(probe for probe in self.probes if probe.n_seed == self.n_seed)
        inside = "the target is inside its interval" if chosen.low <= self.target_trait else "all of its interval is above"
        return (
            f"n_seed={self.n_seed} is the smallest found whose cycle 0 ({self.method}) reaches {self.target_trait:g}: "
            f"{probe_text(chosen)}, {inside}; {len(self.probes)} probes"
        )


def calibrate(config: Config, store: Store) -> Calibration:
    """Search for the smallest n_seed whose cycle 0 reaches `calibrate.target_trait`.

    Raises:
        RunError: not even calibrate.n_max examples reach it.
    """
    target = config.calibrate.target_trait
    assert target is not None
    probes: dict[int, Probe] = {}
    print(
        f"calibrating n_seed in {bounds(config)[0]}..{bounds(config)[1]} by {calibration_method(config).name}: at most "
        f"{most_probes(config)} trainings, taking for granted that more seed examples make a stronger trait"
    )

    def reached(n: int) -> bool:
        probes[n] = probe(config, store, n)
        word = "reaches" if probes[n].reached else "misses"
        print(f"calibrate: n_seed={n}: {probe_text(probes[n])} {word} {target:g}", flush=True)
        return probes[n].reached

    low, high = bounds(config)
    if not reached(high):
        raise RunError(
            f"calibrate.target_trait={target:g} is not reached by n_seed={high} ({probe_text(probes[high])}): "
            "lower the target, raise calibrate.n_max, or train harder (learning_rate, epochs)"
        )
    while low < high:
        middle = (low + high) // 2
        if reached(middle):
            high = middle
        else:
            low = middle + 1
    found = Calibration(
        n_seed=high,
        target_trait=target,
        method=calibration_method(config).name,
        reach=config.calibrate.reach,
        probes=list(probes.values()),
        contradictions=contradictions(list(probes.values())),
    )
    print(found.text)
    for line in found.contradictions:
        print(f"warning: {line}: the smallest n_seed may be another; more questions or another seed would tell")
    return found


def probe(config: Config, store: Store, n: int) -> Probe:
    """Train and measure a cycle 0 on `n` seed examples."""
    lab = Lab(with_n_seed(config, n), store)
    trained = lab.train(lab.seed_data(), init=lab.base_policy(), cycle=0)
    scores = scores_of(lab.measure(trained.policy))
    failed = sum(failure is not None for failure in scores.failures)
    if failed > config.measure.max_failure_share * len(scores.failures):
        raise RunError(f"calibration stopped at n_seed={n}: the judge failed on {failed} of {len(scores.failures)} answers")
    interval = over_questions(scores.trait, scores.questions)
    if interval is None:
        raise RunError(f"calibration stopped at n_seed={n}: no answer could be scored")
    settings = config.calibrate
    assert settings.target_trait is not None
    decisive = interval.mean if settings.reach == "score" else interval.low
    return Probe(n, interval.mean, interval.low, interval.high, decisive >= settings.target_trait - settings.tolerance)


def at_most(config: Config) -> Config:
    """The run with the largest n_seed that a search may find; any other run as it is."""
    return config.model_copy(update={"n_seed": bounds(config)[1]}) if config.n_seed == "calibrated" else config


def with_n_seed(config: Config, n: int) -> Config:
    """The run whose cycle 0 is the probe of `n` seed examples: by the calibration's method, all else as in `config`."""
    return config.model_copy(update={"n_seed": n, "method": calibration_method(config)})


def bounds(config: Config) -> tuple[int, int]:
    """Smallest and largest n_seed that the search considers."""
    settings = config.calibrate
    return settings.n_min, most_seeds(config) if settings.n_max is None else settings.n_max


def most_probes(config: Config) -> int:
    """Trainings that the search takes at most: one at n_max, then one a halving."""
    low, high = bounds(config)
    return 1 + math.ceil(math.log2(high - low + 1))


def contradictions(probes: list[Probe]) -> list[str]:
    """Neighbouring probes in which the trait falls with more seed examples, their intervals apart."""
    ordered = sorted(probes, key=lambda p: p.n_seed)
    return [
        f"n_seed={more.n_seed} made a weaker trait than n_seed={less.n_seed} ({probe_text(more)} against {probe_text(less)})"
        for less, more in pairwise(ordered)
        if more.high < less.low
    ]


def probe_text(probe: Probe) -> str:
    return f"trait {probe.score:.1f} [{probe.low:.1f}, {probe.high:.1f}]"


def dry_text(config: Config) -> str:
    """What a dry run says of a run that is to be calibrated."""
    low, high = bounds(config)
    return (
        f"n_seed=calibrated: the search decides, with at most {most_probes(config)} trainings of cycle 0 between n_seed={low} "
        f"and {high}, each a stored stage; the plan below is for n_seed={high}, the most it can be, and leaves the search out"
    )
