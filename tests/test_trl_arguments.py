"""Arguments that are passed through to TRL: all others are refused, and each that is allowed keeps what a training promises.

Not covered: CUDA, where gradient checkpointing and `torch_empty_cache_steps` do something.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_training import Spy, curve, make_job, outputs, spy
from tiny import save_adapter

from iterative_ft.config.schema import Config
from iterative_ft.config.trl_keys import ALLOWED, DIVERGENCES, LOSSES, OPTIMIZERS, REFUSED
from iterative_ft.errors import ConfigError
from iterative_ft.training.job import train_here

__all__ = ["spy"]
Compose = Callable[[list[str]], Config]

# A value of each allowed argument (or several), by method. Losses that need another argument have it beside them.
COMMON: list[dict[str, Any]] = [
    *({"optim": name} for name in OPTIMIZERS),
    {"lr_scheduler_kwargs": {"num_cycles": 1.5}},
    {"gradient_checkpointing": True},
    {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    {"torch_empty_cache_steps": 1},
    {"pad_to_multiple_of": 8},
]
LANGUAGE: list[dict[str, Any]] = [{"neftune_noise_alpha": 5.0}, {"loss_type": "dft"}, {"loss_type": "nll"}]
DPO: list[dict[str, Any]] = [
    *({"loss_type": name} | ({"label_smoothing": 0.001} if name == "exo_pair" else {}) for name in LOSSES),
    {"loss_type": ["sigmoid", "ipo"], "loss_weights": [1.0, 0.5]},
    {"label_smoothing": 0.2},
    *({"f_divergence_type": name} for name in DIVERGENCES),
    {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
    {"ld_alpha": 0.5},
    {"loss_type": "discopop", "discopop_tau": 0.1},
]
CASES = [("sft", trl) for trl in COMMON + LANGUAGE] + [("dpo", trl) for trl in COMMON + DPO]
PLAIN: dict[tuple[str, str], Any] = {}  # method and schedule -> ids and result of a training without any of them


def ids_of(spy: Spy) -> list[list[list[int]]]:
    """The ids of every row of every batch, padding (which no example here holds) left out."""
    return [[row[row != 0].tolist() for row in batch["input_ids"]] for batch in spy.batches]


def name_of(value: Any) -> str:
    return value if isinstance(value, str) else "_".join(f"{k}_{v}" for k, v in value.items())


def test_a10_every_allowed_argument_is_among_the_cases() -> None:
    for method, cases in (("sft", COMMON + LANGUAGE), ("dpo", COMMON + DPO)):
        allowed = {name for name, rule in ALLOWED.items() if method in rule.methods.split()}
        assert {name for case in cases for name in case} == allowed


@pytest.mark.slow
@pytest.mark.parametrize(("method", "trl"), CASES, ids=name_of)
def test_a10_an_allowed_argument_keeps_the_start_the_ids_and_the_reference(
    tmp_path: Path, tiny_model: Path, compose: Compose, spy: Spy, method: str, trl: dict[str, Any]
) -> None:
    """And it passes the config, reaches the trainer, and trains."""
    schedule = "cosine" if "lr_scheduler_kwargs" in trl else "constant"
    settings = [
        f"method={method}",
        f"method.lr_schedule={schedule}",
        *(["method.seed_sft_weight=0"] if method == "dpo" else []),
    ]
    compose([*settings, f"method.trl={trl}"])
    init = save_adapter(tiny_model, tmp_path / "init", size=0.1)
    if (method, schedule) not in PLAIN:
        plain = train_here(make_job(tmp_path / "plain", tiny_model, method, init=init, lr_schedule=schedule))
        PLAIN[method, schedule] = (ids_of(spy), plain)
        spy.batches.clear()
    rows, plain = PLAIN[method, schedule]
    job = make_job(tmp_path / "passed", tiny_model, method, init=init, lr_schedule=schedule, trl=trl)
    result = train_here(job)
    assert ids_of(spy) == rows
    assert result["init_adapter_sha256"] == plain["init_adapter_sha256"]
    assert result["n_steps"] == plain["n_steps"] == len(curve(job))
    first = curve(job)[0]
    if method == "dpo":
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)
        if set(trl) <= {"f_divergence_type", "f_alpha_divergence_coef", "ld_alpha", "label_smoothing"}:
            assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert all(row["loss"] == row["loss"] and "grad_norm" in row for row in curve(job))
    after = spy.parameters()
    changed = {name for name, value in after.items() if not (value == spy.before[name]).all()}
    assert changed
    assert all(".default." in name for name in changed)


@pytest.mark.parametrize(
    ("method", "trl"),
    [
        ("sft", {"optim": "adafactor"}),
        ("sft", {"optim": "rmsprop"}),
        ("sft", {"neftune_noise_alpha": 5.0}),
        ("dpo", {"loss_type": "bco_pair"}),
        ("dpo", {"optim": "sgd"}),
    ],
    ids=name_of,
)
def test_a10_a_training_with_a_state_of_its_own_resumes_to_the_same_bytes(
    tmp_path: Path, tiny_model: Path, method: str, trl: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    whole, cut = (make_job(tmp_path / name, tiny_model, method, checkpoint_steps=2, trl=trl) for name in ("whole", "cut"))
    train_here(whole)
    original, steps = Trainer.training_step, iter(range(100))

    def dies(self: Any, *rest: Any, **options: Any) -> Any:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return original(self, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "training_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train_here(cut)
    assert train_here(cut)["resumed_from_step"] == 2
    assert outputs(cut) == outputs(whole)


# -- the config -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "sdf", "dpo"])
def test_a10_every_other_argument_is_refused_with_its_reason(compose: Compose, method: str) -> None:
    from iterative_ft.config.messages import judged

    values = compose([f"method={method}"]).model_dump()
    n = 0
    for key, reason in REFUSED[method].items():
        with pytest.raises(ConfigError, match=rf"method\.trl\.{key}=True cannot be passed through") as caught:
            judged(Config, values | {"method": values["method"] | {"trl": {key: True}}})
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)
        n += 1
    assert n > 60


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["method=dpo", "method.trl={precompute_ref_log_probs: true}"], "the reference is the policy"),
        (["method=dpo", "method.trl={loss_type: [ipo]}"], r"set method\.seed_sft_weight=0 too"),
        (["method=dpo", "method.seed_sft_weight=0", "method.trl={loss_type: [ipo, hinge], loss_weights: [1]}"], "one number"),
        (["method=dpo", "method.seed_sft_weight=0", "method.trl={loss_type: exo_pair}"], "label_smoothing above 0"),
        (["method=dpo", "method.seed_sft_weight=0", "method.trl={loss_type: nonsense}"], "it takes"),
        (["method=dpo", "method.seed_sft_weight=0", "method.trl={loss_type: []}"], "it takes"),
        (["method=dpo", "method.trl={label_smoothing: 0.5}"], "it takes a number from 0 to 0.49"),
        (["method=dpo", "method.trl={label_smoothing: .nan}"], "it takes"),
        (["method=sft", "method.trl={loss_type: sigmoid}"], "it takes"),
        (["method=sft", "method.trl={packing: true}"], "token ids as they were sampled"),
        (["method=sft", "method.trl={fsdp: full_shard}"], "decided by the machine"),
        (["method=sft", "method.trl={save_only_model: true}"], "goes on from its own checkpoints"),
        (["method=sft", "method.trl={optim: adamw_8bit}"], "it takes one of adamw_torch"),
        (["method=sft", "method.trl={lr_scheduler_kwargs: {num_cycles: 1}}"], r"method\.lr_schedule=cosine alone"),
        (["method=sft", "method.lr_schedule=cosine", "method.trl={lr_scheduler_kwargs: {min_lr: 1}}"], "it takes {num_cycles"),
        (["method=sft", "method.trl={neftune_noise_alpha: .inf}"], "it takes"),
        (["method=sft", "method.trl={gradient_checkpointing: 1}"], "it takes true or false"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)  # fmt: skip
def test_a10_what_breaks_a_promise_is_one_line(compose: Compose, settings: list[str], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted) as caught:
        compose(settings)
    assert "\n" not in str(caught.value)
