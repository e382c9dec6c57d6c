"""Proof that a sampler serves the policy it was given: log-probabilities of fixed texts, its own against those expected.

What to expect was written by the process that held the policy (models/expected.py), so that no second model is needed here. A
merge rounded to bfloat16 swallows small updates, a checkpoint that loads half-way only warns, an adapter under names that an
engine does not know is served as nothing: all of it would look like "training changed nothing".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from iterative_ft.errors import RunError
from iterative_ft.models.expected import Expected, all_finite, expected_here, read_expected
from iterative_ft.models.forward import Reader
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Canary

Logs = list[list[float]]
"""Of each text's tokens after the first: log-probability, nats."""

NOISE_FACTOR = 4.0  # an error below this many times the base model's own is arithmetic
MAX_BASE_ERROR = 0.05  # nats; what a served base model may differ from the trainer's
EXACT_BASE_ERROR = 1e-4  # the same where both compute in float32: 3e-11 on the embedded model, 2e-6 on Gemma's capped logits
EXACT_SHARE = 1e-5  # of the shift there: a whole layer of 30 left out made 8e-3 or more
EXACT_FACTOR = 16.0  # in place of NOISE_FACTOR there: a tiny Gemma that moved far had 6 times the error of its base
EXACT_NOISE = 1e-8  # nats; what float32 may differ by, whatever it did for base (3e-11 on the embedded model)
MAX_LOST = 0.1  # share of the shift that may be missing from what is served, beside what arithmetic hides
CERTAIN = 5.0  # standard errors


@dataclass
class Watch:
    """What a sampler is held against over its life: it serves base first, whose error says what arithmetic alone does."""

    max_share: float
    """Largest allowed error relative to the policy's shift from base (`sampler.canary_max_share`)."""
    max_model_len: int
    """Tokens that a request may have, the answer's included."""
    device: str
    dtype: str
    """What the sampler serves in."""
    trust_remote_code: bool = False
    base: Expected | None = None
    served_base: Logs = field(default_factory=list)
    noise: float = 0.0

    @property
    def exact(self) -> bool:
        """Whether sampler and trainer differ by float32's arithmetic alone."""
        return self.device == "cpu" and self.dtype == "float32"

    def expected(self, policy: Policy) -> Expected:
        """What `policy` gives to as much of each text as the sampler takes."""
        if policy.expected is not None:
            found = read_expected(policy.expected)
        else:  # asked for by no stage
            assert self.device == "cpu", f"{policy.name} comes without the log-probabilities to expect of it"
            adapter = None if policy.adapter is None else str(policy.adapter)
            reader = Reader(str(policy.model), self.device, self.trust_remote_code)
            found = Expected(**reader.run(expected_here, adapter=adapter))
        most = self.max_model_len - 1  # an engine writes a token behind them
        return Expected([ids[:most] for ids in found.ids], [logs[: most - 1] for logs in found.logs])

    def check(self, policy: Policy, expected: Expected, served: Logs) -> Canary:
        """Hold what is served against what is expected; raise `RunError` when it is not `policy`."""
        if policy.adapter is None:
            return self.check_base(policy, expected, served)
        assert self.base is not None, "a sampler serves base first"
        if expected.ids != self.base.ids:
            raise RunError(
                f"what to expect of {policy.name} is about other texts than what to expect of base: it was written by another "
                "version; train it again (a new store=), or take its adapter as start_adapter"
            )
        self.must_be_finite(policy, expected, served)
        mine, base = flat(expected.logs), flat(self.base.logs)
        moved = [a - b for a, b in zip(mine, base, strict=True)]
        seen = [a - b for a, b in zip(flat(served), flat(self.served_base), strict=True)]
        error, shift = half_square(mine, flat(served)), half_square(mine, base)
        kept = 1.0 if shift == 0 else sum(a * b for a, b in zip(moved, seen, strict=True)) / sum(a * a for a in moved)
        found = Canary(error, shift, self.noise, kept)
        share, noise = self.max_share, NOISE_FACTOR * self.noise
        if self.exact:
            share, noise = min(share, EXACT_SHARE), max(EXACT_FACTOR * self.noise, EXACT_NOISE)
        if not error <= noise + share * shift:
            raise RunError(
                f"the sampler does not serve {policy.name}: its error is {error:.2g} nats a token, {found.share:.1%} of the "
                f"policy's shift from base ({shift:.2g}; limit {share:.3%}), and {kept:.0%} of that shift is served; nothing "
                f"was sampled from it. {self.advice()}"
            )
        if shift > noise and abs(kept - 1) > MAX_LOST + noise / shift / 2 + CERTAIN * math.sqrt(error / shift / len(mine)):
            raise RunError(
                f"the sampler does not serve {policy.name}: {kept:.0%} of the policy's shift from base ({shift:.2g} nats a "
                f"token) is served; nothing was sampled from it. {self.advice()}"
            )
        return found

    def check_base(self, policy: Policy, expected: Expected, served: Logs) -> Canary:
        self.must_be_finite(policy, expected, served)
        error = half_square(flat(expected.logs), flat(served))
        limit = EXACT_BASE_ERROR if self.exact else MAX_BASE_ERROR
        if not error <= limit:
            raise RunError(
                f"the sampler does not serve the base model: its error is {error:.2g} nats a token against what the trainer "
                f"holds (limit {limit:.2g}); nothing was sampled from it. {self.advice()}"
            )
        if self.base is None:
            self.base, self.served_base, self.noise = expected, served, error
        return Canary(error, 0.0, self.noise)

    def must_be_finite(self, policy: Policy, expected: Expected, served: Logs) -> None:
        # Comparisons with NaN are false whatever they ask, so this comes before them.
        if [len(text) for text in served] != [len(text) for text in expected.logs]:
            raise RunError(
                f"the sampler did not score the texts that it was given ({policy.name}): nothing was sampled from it. "
                f"{self.advice()}"
            )
        if all_finite(served) and all_finite(expected.logs):
            return
        bad = next((len(ids) for ids, logs in zip(expected.ids, served, strict=True) if not all_finite([logs])), 0)
        where = f"to a text of {bad} tokens " if bad > 0 else ""
        likely = "set sampler.dtype=float32, which is wide enough for all weights, or mend its weights"
        if self.device == "cuda":
            likely = (
                "kernels for adapters are known to fail on long prompts: set VLLM_TUNED_CONFIG_FOLDER to other tile sizes, "
                "lower lora.rank, or set sampler=transformers"
            )
        raise RunError(
            f"{policy.name} as it is served gives values {where}that are not finite: nothing was sampled from it; {likely}"
        )

    def advice(self) -> str:
        """What to try on this device."""
        if self.device == "cuda":
            return "Start again; if it stays, the engine does not take this model's adapters: set sampler=transformers"
        if self.dtype != "float32":
            return "If the updates are small, set sampler.dtype=float32"
        return (
            "Start again; if it stays, set model.dtype=float32 (weights that are not saved in bfloat16 are rounded by training "
            "in it), then sampler=transformers"
        )


def flat(logs: Logs) -> list[float]:
    return [value for text in logs for value in text]


def half_square(a: list[float], b: list[float]) -> float:
    """Half the mean squared difference of log-probabilities: close to the KL in nats a token, where it is small."""
    return 0.5 * sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)
