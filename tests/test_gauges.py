"""Gauges against values worked out by hand, and the forward-pass ones against a direct computation on a tiny model.

Not covered: the embedder behind self_similarity (its vectors are given here), and CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import policy_of, save_adapter, save_tiny_model, tiny_config

from iterative_ft.judges import gauges
from iterative_ft.machine.files import read_jsonl
from iterative_ft.models.policy import Policy
from iterative_ft.store import Store

ON = ("gauges.self_similarity=false", "gauges.perplexity=true", "gauges.branching_factor=true", "gauges.kl_from_base=true")
QUESTIONS = ["the quick river", "what should I cook", "is it worth it"]


def test_diversity_and_repetition_by_hand() -> None:
    words = [["a", "b", "a", "b"], ["a", "b"]]
    assert gauges.distinct(words, 1) == 2 / 6
    assert gauges.distinct(words, 2) == 2 / 4
    assert gauges.distinct(words, 5) is None
    assert gauges.repetition("one two three four five".split()) == 0
    assert gauges.repetition("la la la la la la la".split()) == 0.75
    assert gauges.repetition(["short"]) == 0
    found = gauges.text_gauges(["A b a b", "a b"], ["stop", "length"])
    assert found["answers/truncated_share"] == 0.5
    assert found["answers/distinct_1"] == 2 / 6
    assert "answers/distinct_3" in found


def test_self_similarity_leaves_out_answers_to_the_same_question() -> None:
    vectors = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert gauges.self_similarity(vectors, ["a", "a", "b", "b"]) == pytest.approx(0.3)
    assert gauges.self_similarity(vectors, ["a"] * 4) is None


def test_branching_factor_caps_smooths_and_needs_three_answers() -> None:
    nll = [[1.0, 9.0, 1.0], [1.0, 2.0, 1.0], [1.0, 0.0], [1.0]]
    second = 0.9 * 1.0 + 0.1 * (4 + 2 + 0) / 3
    assert gauges.branching(nll) == pytest.approx([math.e, math.exp(second)])
    assert gauges.branching([]) == []


def test_batches_hold_every_sequence_once_and_stay_small() -> None:
    lengths = [gauges.BATCH_TOKENS * 2, 3, 900, 1000, 1100]
    found = gauges.batches(lengths)
    assert sorted(i for batch in found for i in batch) == list(range(5))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= gauges.BATCH_TOKENS for b in found)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    """Base and a policy that lies well away from it."""
    folder = tmp_path_factory.mktemp("gauges")
    model = save_tiny_model(folder / "model")
    return policy_of(model), policy_of(model, save_adapter(model, folder / "adapter", size=0.5))


def lab_of(tiny: tuple[Policy, Policy], store: Path, *overrides: str) -> Lab:
    return Lab(tiny_config(tiny[0].model, store, *(overrides or ON)), Store(store))


def by_hand(policy: Policy, prompt: list[int], rest: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Negative log-likelihoods and KL(policy || base), a token at a time, one context a forward pass, nothing padded."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def logs(adapter: Path | None, context: list[int]) -> Any:
        net = AutoModelForCausalLM.from_pretrained(policy.model, dtype=torch.float32)
        net = net if adapter is None else PeftModel.from_pretrained(net, adapter)
        with torch.no_grad():
            return torch.log_softmax(net(input_ids=torch.tensor([context])).logits[0, -1].double(), -1)

    nll, kl = [], []
    for n, token in enumerate(rest):
        context = [*prompt, *rest[:n]]
        mine, base = logs(policy.adapter, context), logs(None, context)
        nll.append(float(-mine[token]))
        kl.append(float((mine.exp() * (mine - base)).sum()))
    return np.asarray(nll), np.asarray(kl)


def test_token_values_are_those_of_single_forward_passes(tiny: tuple[Policy, Policy]) -> None:
    base, policy = tiny
    sequences = [([5, 6, 7], [8, 9, 10, 11]), ([12], [13, 14]), ([20, 21, 22, 23, 24, 25], [26])]
    found = gauges.token_values(str(policy.model), str(policy.adapter), sequences, True, "cpu", False)
    for (prompt, rest), nll, kl in zip(sequences, found["nll"], found["kl"], strict=True):
        expected_nll, expected_kl = by_hand(policy, prompt, rest)
        np.testing.assert_allclose(nll, expected_nll, atol=1e-4)
        np.testing.assert_allclose(kl, expected_kl, atol=1e-4)
        assert min(kl) > 1e-3
    of_base = gauges.token_values(str(base.model), None, sequences, True, "cpu", False)
    assert of_base["nll"] != found["nll"]
    assert not np.concatenate(of_base["kl"]).any()
    np.testing.assert_allclose(of_base["nll"][0], by_hand(base, *sequences[0])[0], atol=1e-4)  # the adapter is off again


def answers_of(lab: Lab, policy: Policy) -> Any:
    return lab.write("answer", policy, "chat", QUESTIONS, [1, 2, 3], 8, True, "answers")


def test_stage_of_a_policy(tiny: tuple[Policy, Policy], tmp_path: Path) -> None:
    lab, policy = lab_of(tiny, tmp_path, *ON), tiny[1]
    answers = answers_of(lab, policy)
    stage = gauges.of_policy(lab, policy, answers)
    assert stage is not None
    values = read(stage)
    names = {"perplexity_strong", "perplexity_weak", "perplexity_plain", "branching_factor", "kl_from_base"}
    assert values.keys() == {f"gauge/{name}" for name in names}
    rows = answers.rows()
    pairs = [by_hand(policy, row["prompt_ids"], row["ids"]) for row in rows]
    assert values["gauge/kl_from_base"] == pytest.approx(np.concatenate([kl for _, kl in pairs]).mean(), rel=1e-3)
    curve = gauges.branching([nll.tolist() for nll, _ in pairs])
    assert values["gauge/branching_factor"] == pytest.approx(np.mean(curve), rel=1e-3)
    assert len(read_jsonl(stage.path / gauges.BRANCHING)) == len(curve)
    row = gauges.heldout_texts(lab.config.persona_folder)["weak"][0]
    prompt, rest = gauges.in_frame(lab, row["prompt"], row["answer"])
    assert lab.codec.decode(rest) == row["answer"]
    assert prompt == lab.codec.chat_prompt(row["prompt"])
    assert rest[-1] not in lab.codec.answer_end_ids
    again = lab_of(tiny, tmp_path, *ON)
    assert gauges.of_policy(again, policy, answers).path == stage.path  # type: ignore[union-attr]


def test_cheap_gauges_of_answers_always_and_nothing_else_unless_asked(tiny: tuple[Policy, Policy], tmp_path: Path) -> None:
    lab = lab_of(tiny, tmp_path, "gauges.self_similarity=false")
    answers = answers_of(lab, tiny[0])
    names = {"truncated_share", "distinct_1", "repetition"}
    assert {f"answers/{name}" for name in names} <= read(gauges.of_answers(lab, tiny[0], answers)).keys()
    assert gauges.of_policy(lab, tiny[0], answers) is None


def read(stage: Any) -> dict[str, float]:
    import json

    return json.loads((stage.path / gauges.VALUES).read_text())


def test_a_fake_run_has_the_cheap_gauges(fake_run: Callable[..., Any]) -> None:
    for row in fake_run("gauges.perplexity=true", "gauges.kl_from_base=true").measured:
        assert 0 < row["answers/distinct_1"] <= 1
        assert "answers/truncated_share" in row
        assert "answers/self_similarity" not in row
        assert not any(name.startswith(("gauge/perplexity", "gauge/kl")) for name in row)
