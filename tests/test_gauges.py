"""Gauges against values worked out by hand, and the forward-pass ones against a direct computation on a tiny model.

Not covered: the embedder behind self_similarity (its vectors are given here), and CUDA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import FAMILIES, load_policy, method_of, policy_of, save_adapter, tiny_config

from iterative_ft.judges import gauges
from iterative_ft.machine.files import read_jsonl
from iterative_ft.models import forward
from iterative_ft.models.forward import Reader, reference
from iterative_ft.models.policy import Policy
from iterative_ft.models.sequences import batches, sequence_states, token_values
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWER, Prompts
from iterative_ft.stages.completions import Completions, complete
from iterative_ft.stages.gauge import BRANCHING, gauge, heldout_texts, in_frame, of_answers, of_policy, values_of
from iterative_ft.store import Store

ON = ("gauges.self_similarity=false", "gauges.perplexity=true", "gauges.branching_factor=true", "gauges.kl_from_base=true")
OFF = (
    "gauges.self_similarity=false",
    "gauges.persona_projection=false",
    "gauges.entropy=false",
    "gauges.perplexity_plain=false",
)
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


def test_bleu_by_hand() -> None:
    text = "the cat sat on the mat".split()
    assert gauges.bleu(text, [text]) == pytest.approx(1.0)
    # 1 word of 1; runs of two and more do not exist in a text of one word; brevity exp(1 - 6)
    assert gauges.bleu(["cat"], [text]) == pytest.approx(math.exp(-5))
    assert gauges.bleu(["dog"], [text]) == 0.0
    # Words 4 of 5 ("the" counts twice, "dog" not), pairs (2 + 1) / (4 + 1), threes (1 + 1) / (3 + 1), fours (0 + 1) / (2 + 1).
    found = gauges.bleu("the dog sat on the".split(), [text])
    assert found == pytest.approx((4 / 5 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25 * math.exp(1 - 6 / 5))
    # A word counts as often as one reference has it, and the nearest length is the reference's that is nearest.
    assert gauges.bleu("the the the".split(), [["the"], ["the", "the", "a"]]) == pytest.approx(
        (2 / 3 * (1 + 1) / (2 + 1) * (0 + 1) / (1 + 1)) ** (1 / 3)
    )


def test_self_bleu_compares_answers_to_the_same_question_alone() -> None:
    texts = ["yes it is", "Yes it is", "no", "never in my life", ""]
    assert gauges.self_bleu(texts, ["a", "a", "b", "c", "c"]) == pytest.approx(1.0)
    assert gauges.self_bleu(texts, ["a", "b", "c", "d", "d"]) is None
    alike, unlike = (gauges.self_bleu(["one two three four", other], ["a", "a"]) for other in ("one two three five", "six"))
    assert alike is not None
    assert unlike is not None
    assert 1 > alike > unlike == 0


def test_lost_words_by_hand() -> None:
    assert gauges.lost_words(["The cat, the dog!", "It's a bird"], ["a CAT and it's dog"]) == 2 / 6  # the, bird
    assert gauges.lost_words(["..."], ["a"]) is None


def test_projection_is_in_units_of_the_difference() -> None:
    plain, strong = np.asarray([1.0, 1.0]), np.asarray([3.0, 1.0])
    assert gauges.projection(np.asarray([plain, plain]), plain, strong) == 0
    assert gauges.projection(np.asarray([strong]), plain, strong) == 1
    assert gauges.projection(np.asarray([[2.0, 9.0], [4.0, -9.0]]), plain, strong) == pytest.approx(1.0)


def test_self_similarity_leaves_out_answers_to_the_same_question() -> None:
    vectors = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert gauges.self_similarity(vectors, ["a", "a", "b", "b"]) == pytest.approx(0.3)
    assert gauges.self_similarity(vectors, ["a"] * 4) is None


def test_branching_factor_caps_smooths_and_needs_three_answers() -> None:
    nll = [[1.0, 9.0, 1.0], [1.0, 2.0, 1.0], [1.0, 0.0], [1.0]]
    second = 0.9 * 1.0 + 0.1 * (4 + 2 + 0) / 3
    assert gauges.branching(nll) == pytest.approx([math.e, math.exp(second)])
    assert gauges.branching([]) == []


def test_long_reading_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(forward, "BATCH_TOKENS", {"cpu": 4})
    texts = [[1] * 4, [1] * 3, [1]]
    assert [batch for batch, _ in forward.id_batches(texts, "cpu")] == [[0], [1], [2]]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(forward, "TOLD_EVERY_S", 0.0)
    assert len(list(forward.id_batches(texts, "cpu"))) == 3
    told = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in told] == [f"the base model reads 3 texts: {n}%" for n in (50, 88)]


def test_batches_hold_every_sequence_once_and_stay_small() -> None:
    lengths = [4000, 3, 900, 1000, 1100]
    found = forward.by_length(lengths, 2000)
    assert sorted(i for batch in found for i in batch) == list(range(5))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 2000 for b in found)
    assert [1, 2] in found


def test_a_long_beginning_keeps_batches_small(tiny_models: dict[str, Path]) -> None:
    net = load_policy(tiny_models["llama"], None)
    most = forward.BATCH_TOKENS["cpu"]
    sequences = [([7] * (most - 1), [8])] * 32  # each row has the beginning's keys in memory
    assert [len(numbers) for numbers, _ in batches(net, sequences, most - 2)] == [4] * 8


# -- forward passes -----------------------------------------------------------------------------------------------------------


def moved(model: Path, folder: Path) -> Policy:
    """A policy that lies well away from its base."""
    return policy_of(model, save_adapter(model, folder / "adapter", size=0.5))


@dataclass(frozen=True)
class ByHand:
    nll: np.ndarray
    kl: np.ndarray
    entropy: np.ndarray
    states: np.ndarray
    """At the prompt's last token, and at each token after it."""


def by_hand(policy: Policy, prompt: list[int], rest: list[int]) -> ByHand:
    """Values of a policy, a token at a time, one context a forward pass, nothing padded."""
    import torch

    mine, base = load_policy(policy.model, policy.adapter), load_policy(policy.model, None)

    def logs(net: Any, context: list[int]) -> Any:
        with torch.no_grad():
            return torch.log_softmax(net(input_ids=torch.tensor([context])).logits[0, -1].double(), -1)

    nll, kl, entropy = [], [], []
    for n, token in enumerate(rest):
        of_mine, of_base = (logs(net, [*prompt, *rest[:n]]) for net in (mine, base))
        nll.append(float(-of_mine[token]))
        kl.append(float((of_mine.exp() * (of_mine - of_base)).sum()))
        entropy.append(float(-(of_mine.exp() * of_mine).sum()))
    with torch.no_grad():
        layers = mine(input_ids=torch.tensor([[*prompt, *rest]]), output_hidden_states=True).hidden_states
    states = layers[(len(layers) - 1) // 2][0, len(prompt) - 1 :].numpy()
    return ByHand(np.asarray(nll), np.asarray(kl), np.asarray(entropy), states)


@pytest.mark.parametrize("first", [[12], [5, 6, 19]], ids=["alone", "one_beginning"])
@pytest.mark.parametrize("family", FAMILIES)
def test_token_values_are_those_of_single_forward_passes(
    tiny_models: dict[str, Path], tmp_path: Path, family: str, first: list[int]
) -> None:
    model = tiny_models[family]
    base, policy, reader = policy_of(model), moved(model, tmp_path), Reader(str(model), "cpu")
    sequences = [([5, 6, 7], [8, 9, 10, 11]), (first, [13, 14]), ([*first, 21, 22, 23, 24, 25], [26])]
    found = token_values(reader, policy.adapter, sequences, kl=True)
    for number, (prompt, rest) in enumerate(sequences):
        expected = by_hand(policy, prompt, rest)
        np.testing.assert_allclose(found.nll[number], expected.nll, atol=1e-4)
        np.testing.assert_allclose(found.kl[number], expected.kl, atol=1e-4)
        np.testing.assert_allclose(found.entropy[number], expected.entropy, atol=1e-4)
        np.testing.assert_allclose(found.states.prompt[number], expected.states[0], atol=1e-4)
        np.testing.assert_allclose(found.states.answer[number], expected.states[1:].mean(0), atol=1e-4)
        assert min(found.kl[number]) > 1e-3
    of_base = token_values(reader, None, sequences, kl=True)
    assert all((a != b).any() for a, b in zip(of_base.nll, found.nll, strict=True))
    assert not np.concatenate(of_base.kl).any()
    np.testing.assert_allclose(of_base.nll[0], by_hand(base, *sequences[0]).nll, atol=1e-4)  # the adapter is off again
    assert token_values(reader, None, sequences).kl == []  # not asked for
    np.testing.assert_array_equal(found.part(1, 2).nll[0], found.nll[1])
    np.testing.assert_array_equal(found.part(2).states.prompt, found.states.prompt[2:])


@pytest.mark.parametrize("family", FAMILIES)
def test_states_alone_are_those_of_the_whole_pass(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    policy, reader = moved(tiny_models[family], tmp_path), Reader(str(tiny_models[family]), "cpu")
    sequences = [([5, 6, 7], [8, 9, 10, 11]), ([5, 6, 12], [13, 14])]
    whole, alone = token_values(reader, policy.adapter, sequences).states, sequence_states(reader, policy.adapter, sequences)
    np.testing.assert_allclose(alone.prompt, whole.prompt, atol=1e-5)
    np.testing.assert_allclose(alone.answer, whole.answer, atol=1e-5)
    assert np.abs(alone.answer - sequence_states(reader, None, sequences).answer).max() > 1e-3  # the adapter moves them


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_leaves_the_model_as_it_was(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    policy, reader = moved(tiny_models[family], tmp_path), Reader(str(tiny_models[family]), "cpu")
    sequences = [([5, 6, 7], [8, 9, 10, 11]), ([12], [13, 14])]
    import torch

    before = {name: weight.clone() for name, weight in reference(reader.model, "cpu", False).state_dict().items()}
    first, again = (token_values(reader, policy.adapter, sequences) for _ in range(2))
    np.testing.assert_array_equal(np.concatenate(again.entropy), np.concatenate(first.entropy))
    after = reference(reader.model, "cpu", False).state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items()), "bit for bit"


TEXTS = ["the quick river asks for bread", "what should I cook for dinner when friends come over", "yes"]


def text_ids(model: Path, text: str, n_tokens: int) -> list[int]:
    """A text as the reader reads it: after a newline, cut."""
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(model)("\n" + text, add_special_tokens=False).input_ids
    return ids[: n_tokens + 1]


def layer_of(net: Any, ids: list[int]) -> np.ndarray:
    """States behind the layer at `DEPTH`, (length, width)."""
    import torch

    with torch.no_grad():
        layers = net(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    found: np.ndarray = layers[max(1, int(forward.DEPTH * (len(layers) - 1)))][0].float().numpy()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_the_whole_model_over_a_text_and_its_parts(tiny_models: dict[str, Path], family: str) -> None:
    model = tiny_models[family]
    found = Reader(str(model), "cpu").states(TEXTS, [1 + i % 2 for i in range(len(TEXTS))])
    net = load_policy(model, None)
    for text, mine in zip(TEXTS, found, strict=True):
        states = layer_of(net, text_ids(model, text, forward.READ_TOKENS))[1:]
        parts = np.array_split(states, len(mine) - 1)
        np.testing.assert_allclose(mine, np.stack([part.mean(0) for part in [states, *parts]]), atol=1e-4)


def test_no_layer_behind_the_one_that_is_read_is_run(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(tiny_models["llama"])
    net = forward.reference(model, "cpu", False)
    monkeypatch.setattr(net.get_decoder().layers[-1], "forward", None)
    monkeypatch.setattr(net.lm_head, "forward", None)
    assert len(Reader(model, "cpu").states(["one", "and two"], [1, 1])) == 2


def test_a_reply_is_read_behind_its_question_and_up_to_the_end_of_its_line(tiny_models: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    model = tiny_models["llama"]
    encode = AutoTokenizer.from_pretrained(model)
    question, reply, end = (
        encode(part, add_special_tokens=False).input_ids for part in ("\nQuestion: what?\nAnswer:", " yes", "\n")
    )
    [found] = Reader(str(model), "cpu").reply_states([("what?", "yes")])
    states = layer_of(load_policy(model, None), question + reply + end)[len(question) :]
    np.testing.assert_allclose(found, np.concatenate([states[: -len(end)].mean(0), states[-1]]), atol=1e-4)


# -- stages -------------------------------------------------------------------------------------------------------------------


def bench_of(model: Path, store: Path, *overrides: str) -> Bench:
    return Bench(tiny_config(model, store, f"method={method_of(model)}", *overrides), Store(store))


def answers_of(bench: Bench, policy: Policy) -> Completions:
    prompts = Prompts("chat", QUESTIONS, [1, 2, 3], bench.config.measure.temperature, bench.config.measure.top_p, 8)
    return complete(bench, ANSWER, policy, prompts, "answers", "answers")


def test_stage_of_a_policy(tiny_model: Path, tmp_path: Path) -> None:
    bench, policy = bench_of(tiny_model, tmp_path, *ON), moved(tiny_model, tmp_path)
    answers = answers_of(bench, policy)
    stage = of_policy(bench, policy, answers)
    assert stage is not None
    values = values_of(stage)
    names = {"perplexity_strong", "perplexity_weak", "perplexity_plain", "branching_factor", "kl_from_base", "entropy"}
    names |= {"persona_projection", "persona_projection_prompt"}
    assert values.keys() == {f"gauge/{name}" for name in names}
    rows = answers.rows()
    pairs = [by_hand(policy, row["prompt_ids"], row["ids"]) for row in rows]
    assert values["gauge/kl_from_base"] == pytest.approx(np.concatenate([found.kl for found in pairs]).mean(), rel=1e-3)
    assert values["gauge/entropy"] == pytest.approx(np.concatenate([found.entropy for found in pairs]).mean(), rel=1e-3)
    curve = gauges.branching([found.nll for found in pairs])
    assert values["gauge/branching_factor"] == pytest.approx(np.mean(curve), rel=1e-3)
    assert len(read_jsonl(stage.path / BRANCHING)) == len(curve)
    row = heldout_texts(bench.config.persona_folder)["weak"][0]
    prompt, rest = in_frame(bench, row)
    assert bench.codec.decode(rest) == row["answer"]
    assert prompt == bench.codec.chat_prompt(row["prompt"])
    assert rest[-1] not in bench.codec.answer_end_ids
    again = of_policy(bench_of(tiny_model, tmp_path, *ON), policy, answers)
    assert again is not None
    assert again.path == stage.path


def test_cheap_gauges_of_answers_always_and_nothing_else_unless_asked(tiny_model: Path, tmp_path: Path) -> None:
    bench = bench_of(tiny_model, tmp_path, *OFF)
    answers = answers_of(bench, bench.base)
    names = {"truncated_share", "distinct_1", "repetition"}
    cheap = of_answers(bench, bench.base, answers, None)
    assert {f"answers/{name}" for name in names} <= values_of(cheap).keys()
    assert of_policy(bench, bench.base, answers) is None
    assert [stage.path for stage in gauge(bench, bench.base, answers)] == [cheap.path]


def test_a_fake_run_has_the_cheap_gauges(fake_run: Callable[..., Any]) -> None:
    measured = fake_run("gauges.perplexity=true", "gauges.kl_from_base=true").measured
    assert len(measured) == 4  # base, and cycles 0 to 2
    for row in measured:
        assert 0 < row["answers/distinct_1"] <= 1
        assert "answers/truncated_share" in row
        assert "answers/self_similarity" not in row
        assert not any(name.startswith(("gauge/perplexity", "gauge/kl")) for name in row)
