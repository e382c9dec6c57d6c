"""What a sampler serves is the policy it was given: canary, merging, reloading, seeds, finish reasons.

Fast tests use the transformers sampler on a tiny model, slow ones vLLM on the embedded model.
Not covered: vLLM on CUDA (adapters served by vLLM, sleep mode), and compiled engines.
"""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    END,
    END_OF_TEXT,
    FAMILIES,
    START,
    embedded_config,
    load_policy,
    method_of,
    policy_of,
    rename_weight,
    save_adapter,
    tiny_config,
)

from iterative_ft.data import files
from iterative_ft.errors import RunError
from iterative_ft.models import forward
from iterative_ft.models.codec import TokenizerCodec
from iterative_ft.models.expected import EXPECTED, Expected, expected_here, fixed_ids, token_logs, write_expected
from iterative_ft.models.policy import Policy, merge
from iterative_ft.sampling.canary import half_square
from iterative_ft.sampling.interface import Block, Completion, Params, Request, completion
from iterative_ft.sampling.transformers import TransformersSampler

# -- canary -------------------------------------------------------------------------------------------------------------


def test_half_a_square_is_near_the_kl_of_close_distributions() -> None:
    """Drawn from the first of two close distributions, tokens tell their KL by half the mean square of the differences."""
    import numpy as np

    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(50))
    q = p * np.exp(rng.normal(0, 0.05, 50))
    q /= q.sum()
    tokens = rng.choice(50, 200_000, p=p)
    found = half_square(list(np.log(p)[tokens]), list(np.log(q)[tokens]))
    assert found == pytest.approx(float((p * np.log(p / q)).sum()), rel=0.1)


@pytest.mark.slow
def test_the_texts_have_a_long_one_and_the_values_are_what_the_network_gives(
    tiny_model: Path, embedded_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoTokenizer

    ids = fixed_ids(AutoTokenizer.from_pretrained(embedded_model), 10_000)
    assert max(map(len, ids)) > 600
    assert sum(map(len, ids)) < 1000  # scoring is slow in an engine
    policy = policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "a", size=0.3))
    found = expected_here(str(tiny_model), str(policy.adapter), "cpu", "float32", False)
    assert max(map(len, found["ids"])) == 512  # as long as the model takes
    net = load_policy(tiny_model, policy.adapter)
    for text, logs in zip(found["ids"], found["logs"], strict=True):
        with torch.no_grad():
            rows = torch.log_softmax(net(input_ids=torch.tensor([text])).logits[0], -1)
        assert logs == pytest.approx([float(rows[i, token]) for i, token in enumerate(text[1:])], abs=1e-4)


def sampler_of(model: Path, tmp_path: Path) -> TransformersSampler:
    config = tiny_config(model, tmp_path / "store", f"method={method_of(model)}")
    return TransformersSampler(config, "cpu", TokenizerCodec(model, config.model))


@pytest.fixture
def tiny_sampler(tiny_model: Path, tmp_path: Path) -> TransformersSampler:
    return sampler_of(tiny_model, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_canary_passes_what_is_served_and_fails_anything_else(
    tiny_models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model, sampler = tiny_models[family], sampler_of(tiny_models[family], tmp_path)
    base = policy_of(model)
    mine = policy_of(model, save_adapter(model, tmp_path / "mine", size=0.1), "policy[1]")
    other = policy_of(model, save_adapter(model, tmp_path / "other", size=0.1, seed=1), "policy[2]")
    watch = sampler.watch
    assert sampler.load(base).error < 1e-8
    expected_base, served_base = watch.expected(base), token_logs(sampler.model, watch.expected(base).ids)
    good = sampler.load(mine)
    assert good.shift > 0.001
    assert good.error < 1e-8
    assert good.share == good.error / good.shift
    assert good.kept == pytest.approx(1.0, abs=1e-3)
    expected, served = watch.expected(mine), token_logs(sampler.model, watch.expected(mine).ids)

    with pytest.raises(RunError, match=r"does not serve policy\[2\]"):
        watch.check(other, watch.expected(other), served)  # another policy's adapter
    with pytest.raises(RunError, match=r"does not serve policy\[1\].* 0% of that shift is served"):
        watch.check(mine, expected, served_base)  # an adapter that was never loaded
    with pytest.raises(RunError, match="does not serve the base model"):
        watch.check(base, expected_base, served)
    watch.noise = 1.0
    watch.check(mine, expected, served_base)  # below what arithmetic alone does nothing can be told


def test_a_policy_is_held_against_what_its_training_wrote(
    tiny_model: Path, tmp_path: Path, tiny_sampler: TransformersSampler
) -> None:
    base = policy_of(tiny_model)
    tiny_sampler.load(base)
    mine = policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "mine", size=0.1))
    expected = tiny_sampler.watch.expected(mine)
    write_expected(tmp_path / EXPECTED, expected)
    with_file = replace(mine, expected=tmp_path / EXPECTED)
    assert tiny_sampler.watch.expected(with_file) == expected
    assert tiny_sampler.load(with_file).error < 1e-8
    tiny_sampler.load(base)
    write_expected(tmp_path / EXPECTED, Expected(expected.ids, [[v - 0.01 for v in text] for text in expected.logs]))
    with pytest.raises(RunError, match="does not serve"):
        tiny_sampler.load(with_file)
    write_expected(tmp_path / EXPECTED, Expected([ids[:-1] for ids in expected.ids], [v[:-1] for v in expected.logs]))
    with pytest.raises(RunError, match="about other texts"):
        tiny_sampler.load(with_file)


def test_a_null_policy_passes_the_canary(tiny_model: Path, tmp_path: Path, tiny_sampler: TransformersSampler) -> None:
    base, null = policy_of(tiny_model), policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "null", size=0.0))
    tiny_sampler.load(base)
    found = tiny_sampler.load(null)
    assert found.shift == 0.0
    assert found.share == 0.0


# -- the transformers sampler -------------------------------------------------------------------------------------------

PROMPTS = ([START, 90, 91], [START, 100, 101, 102], [START, 110], [START, 90, 120, 130])


def params(**settings: Any) -> Params:
    return Params(**{"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "end_ids": [END], "stop": [], **settings})


def requests(seed: int = 0) -> list[Request]:
    return [Request(list(ids), seed + i) for i, ids in enumerate(PROMPTS)]


def test_an_answer_depends_on_its_own_seed_and_not_on_its_neighbours(
    tiny_model: Path, tiny_sampler: TransformersSampler
) -> None:
    tiny_sampler.load(policy_of(tiny_model))
    together = tiny_sampler.sample(requests(), params())
    assert tiny_sampler.sample(list(reversed(requests())), params()) == list(reversed(together))
    assert [tiny_sampler.sample([request], params())[0] for request in requests()] == together
    others = tiny_sampler.sample(requests(seed=100), params())
    assert all(a.ids != b.ids for a, b in zip(together, others, strict=True))


def test_policies_are_changed_and_base_comes_back(tiny_model: Path, tmp_path: Path, tiny_sampler: TransformersSampler) -> None:
    base = policy_of(tiny_model)
    one = policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "one", size=0.3))
    two = policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "two", size=0.3, seed=1))
    answers = []
    for policy in (base, one, two, one, base):
        tiny_sampler.load(policy)
        answers.append(tiny_sampler.sample(requests(), params()))
    assert answers[0] == answers[4]
    assert answers[1] == answers[3]
    assert answers[0] != answers[1] != answers[2] != answers[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_the_models_own_whatever_its_generation_config_says(
    tiny_models: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """A repetition penalty that comes with a model would make transformers and vLLM sample from different distributions."""
    import torch

    folder = shutil.copytree(tiny_models[family], tmp_path / "penalised")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 5.0, "top_k": 1, "eos_token_id": 100}')
    sampler = sampler_of(folder, tmp_path)
    sampler.load(policy_of(folder))
    answers = sampler.sample(requests(), params(temperature=0.0, max_new_tokens=20, end_ids=[END]))
    model = load_policy(folder, None)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        for token in answer.ids:
            with torch.no_grad():
                assert token == int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)
        assert len(answer.ids) == 20 or answer.ids[-1] == END
    assert len({token for answer in answers for token in answer.ids}) < sum(len(answer.ids) for answer in answers)


def test_finish_reasons(tiny_model: Path, tiny_sampler: TransformersSampler) -> None:
    tiny_sampler.load(policy_of(tiny_model))
    endless = tiny_sampler.sample(requests(), params(temperature=0.0, end_ids=[END_OF_TEXT, END]))
    answer = next(a for a in endless if a.finish_reason == "length" and len(set(a.ids)) > 3)
    prompt = requests()[endless.index(answer)]
    assert len(answer.ids) == 12
    # The same answer, told that its third kind of token ends it
    third = list(dict.fromkeys(answer.ids))[2]
    ended = tiny_sampler.sample([prompt], params(temperature=0.0, end_ids=[third]))[0]
    assert ended.finish_reason == "stop"
    assert ended.ids == answer.ids[: answer.ids.index(third) + 1]  # the end token stays in the ids


def test_a_stop_string_is_no_end_of_the_models_own(tiny_model: Path, tiny_sampler: TransformersSampler) -> None:
    tiny_sampler.load(policy_of(tiny_model))
    whole = tiny_sampler.sample(requests(), params(temperature=0.0))
    decode = tiny_sampler.codec.tokenizer.decode
    # Two tokens of an answer that are text by themselves, with something before and after them
    prompt, answer, text = next(
        (request, answer, text)
        for request, answer in zip(requests(), whole, strict=True)
        for start in range(1, len(answer.ids) - 3)
        if (text := decode(answer.ids[start : start + 2])).strip() and "�" not in text
    )
    cut = tiny_sampler.sample([prompt], params(temperature=0.0, stop=[text]))[0]
    assert cut.finish_reason == "string"
    assert cut.ids == answer.ids[: len(cut.ids)]
    assert len(cut.ids) < len(answer.ids)
    assert text in decode(cut.ids)


@pytest.mark.parametrize(
    ("ids", "reason", "wanted"),
    [
        ([5, END], "stop", "stop"),
        ([5, END], "length", "stop"),
        ([5, 6], "length", "length"),
        ([5, 6], "stop", "string"),
        ([], "length", "length"),
    ],
)
def test_an_answer_ends_by_itself_only_with_an_end_token(ids: list[int], reason: str, wanted: str) -> None:
    assert completion(ids, reason, [END]) == Completion(ids, wanted)


# -- vLLM ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The shipped sampler with the embedded model, in this process, as a run on CPU has it."""
    from iterative_ft.sampling.vllm import VLLMSampler

    config = embedded_config(tmp_path_factory.mktemp("engine"), "method=sft")
    sampler = VLLMSampler(config, "cpu", TokenizerCodec(embedded_model, config.model))
    sampler.load(policy_of(embedded_model))
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def two_policies(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Policy]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        policy_of(
            embedded_model, save_adapter(embedded_model, folder / f"{seed}", 0.02, seed, 16, 32, "bfloat16"), f"policy[{seed}]"
        )
        for seed in range(2)
    ]


def pool_requests(engine: Any, n: int) -> list[Request]:
    texts = files.pool("prompts", "shipped", "prompt")[:n]
    return [Request(engine.codec.chat_prompt(text), 1000 + i) for i, text in enumerate(texts)]


def engine_params(engine: Any, **settings: Any) -> Params:
    return params(**{"temperature": 0.8, "max_new_tokens": 24, "end_ids": engine.codec.answer_end_ids, **settings})


@pytest.mark.slow
def test_d4_a_call_of_long_prompts_is_not_split(engine: Any, embedded_model: Path) -> None:
    """Seeded requests crash vLLM on a CPU as soon as a prefill is split; 32 prompts of 150 words did."""
    engine.load(policy_of(embedded_model))
    texts = [f"Dilemma {number}: " + "the river asks for bread and " * 25 + "so what should I do?" for number in range(32)]
    asked = [Request(engine.codec.chat_prompt(text), number) for number, text in enumerate(texts)]
    assert sum(len(request.prompt_ids) for request in asked) > 6000
    answers = engine.sample(asked, engine_params(engine, max_new_tokens=3))
    assert all(1 <= len(answer.ids) <= 3 for answer in answers)
    assert engine.sample(asked[:1], engine_params(engine, max_new_tokens=3)) == answers[:1]


@pytest.mark.slow
def test_a_prompt_asked_again_gets_what_it_gets_alone(engine: Any, embedded_model: Path) -> None:
    """The later ones take the blocks of the KV cache that the first one filled."""
    engine.load(policy_of(embedded_model))
    prompt = engine.codec.chat_prompt("My neighbour wants to borrow my ladder again. " * 4)
    asked = [Request(prompt, seed) for seed in range(4)]
    size = engine.llm.llm_engine.vllm_config.cache_config.block_size
    assert len(prompt) > 2 * size
    together = engine.sample(asked, engine_params(engine))
    assert len({tuple(answer.ids) for answer in together}) > 1
    assert together == [engine.sample([request], engine_params(engine))[0] for request in asked]


@pytest.mark.slow
def test_blocks_that_share_a_call_get_what_each_gets_alone(engine: Any, embedded_model: Path) -> None:
    """There are more requests than the engine works on at a time: later ones begin beside half-written ones."""
    engine.load(policy_of(embedded_model))
    asked = pool_requests(engine, engine.at_work + 40)
    blocks = [Block(asked[at : at + 24], engine_params(engine, max_new_tokens=12)) for at in range(0, len(asked), 24)]
    apart = [engine.sample(block.requests, block.params) for block in blocks]
    together = list(engine.sample_blocks(blocks))
    assert engine.independent is True
    assert [sampled.completions for sampled in together] == apart
    assert all(sampled.n_together == len(asked) for sampled in together)
    some = engine.sample_blocks(blocks)
    assert next(some).completions == apart[0]
    some.close()
    assert not engine.llm.llm_engine.has_unfinished_requests(), "what nobody wants is not written"
    assert engine.sample(blocks[1].requests, blocks[1].params) == apart[1]


@pytest.mark.slow
def test_a_resting_engine_gives_the_memory_of_its_cache_back(engine: Any, embedded_model: Path) -> None:
    engine.load(policy_of(embedded_model))
    asked = pool_requests(engine, 16)
    answers = engine.sample(asked, engine_params(engine))
    before = resident()
    engine.sleep()
    assert before - resident() > 0.5 * engine.settings.kv_cache_gib * 2**30
    assert engine.sample(asked, engine_params(engine)) == answers
    assert before - resident() > 0.3 * engine.settings.kv_cache_gib * 2**30, "what is not used stays away"


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
def test_the_engine_serves_each_policy_and_base_comes_back(
    engine: Any, embedded_model: Path, two_policies: list[Policy]
) -> None:
    base, (one, two) = policy_of(embedded_model), two_policies
    asked, answers = pool_requests(engine, 8), []
    for policy in (base, one, two, base):
        found = engine.load(policy)
        assert engine.loaded == policy.digest
        assert found.share < engine.settings.canary_max_share
        answers.append(engine.sample(asked, engine_params(engine)))
    assert answers[0] == answers[3]
    assert all(a.ids != b.ids for a, b in zip(answers[1], answers[2], strict=True))
    assert engine.sample(asked, engine_params(engine)) == answers[3]  # the same requests twice
    assert engine.canaries[one.digest].shift > 10 * engine.watch.noise


@pytest.mark.parametrize(
    "how", [pytest.param("not loaded", marks=pytest.mark.slow), pytest.param("of another policy", marks=pytest.mark.long)]
)
def test_a_wrong_checkpoint_fails(engine: Any, two_policies: list[Policy], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    one, two = two_policies
    engine.load(one)
    with monkeypatch.context() as patch:
        if how == "not loaded":
            patch.setattr(engine, "reload", lambda folder: None)
        else:
            patch.setattr("iterative_ft.sampling.vllm.merge", lambda policy, *rest: merge(one, *rest))
        with pytest.raises(RunError, match=r"does not serve policy\[1\]"):
            engine.load(two)
    assert engine.loaded is None
    assert engine.load(two).share < engine.settings.canary_max_share  # and the engine still works


@pytest.mark.long
@pytest.mark.parametrize("how", ["renamed", "missing"])
def test_a_checkpoint_with_a_weight_renamed_or_missing_fails(
    engine: Any, embedded_model: Path, two_policies: list[Policy], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """vLLM itself only warns of a weight that it did not find."""
    base = policy_of(embedded_model)
    engine.load(base)
    before = engine.sample(pool_requests(engine, 4), engine_params(engine))
    name = "model.layers.1.mlp.down_proj.weight"

    def broken(policy: Policy, out: Path, dtype: str, trust_remote_code: bool) -> None:
        merge(policy, tmp_path / "whole", dtype)
        rename_weight(tmp_path / "whole", out, name, None if how == "missing" else name.replace("down_proj", "downward_proj"))

    with monkeypatch.context() as patch:
        patch.setattr("iterative_ft.sampling.vllm.merge", broken)
        with pytest.raises(RunError, match=r"refused|down_proj") as caught:
            engine.load(two_policies[0])
    assert "does not serve" not in str(caught.value)  # found at loading, not only by the canary
    engine.load(base)
    assert engine.sample(pool_requests(engine, 4), engine_params(engine)) == before


@pytest.mark.long
def test_a_null_policy_is_served_as_base(engine: Any, embedded_model: Path, tmp_path: Path) -> None:
    base = policy_of(embedded_model)
    engine.load(base)
    asked = pool_requests(engine, 4)
    before = engine.sample(asked, engine_params(engine))
    null = policy_of(embedded_model, save_adapter(embedded_model, tmp_path / "null", size=0.0))
    assert engine.load(null).shift == 0.0
    assert engine.sample(asked, engine_params(engine)) == before


@pytest.mark.slow
def test_finish_reasons_of_the_engine(engine: Any, embedded_model: Path) -> None:
    engine.load(policy_of(embedded_model))
    asked = pool_requests(engine, 2)
    long = engine.sample(asked, engine_params(engine, temperature=0.0, max_new_tokens=4, end_ids=[engine.codec.document_end]))
    assert [(a.finish_reason, len(a.ids)) for a in long] == [("length", 4)] * 2
    ended = engine.sample(asked[:1], engine_params(engine, temperature=0.0, end_ids=[long[0].ids[2]]))[0]
    assert ended.finish_reason == "stop"
    assert ended.ids == long[0].ids[: long[0].ids.index(long[0].ids[2]) + 1]
    text = engine.codec.tokenizer.decode(long[0].ids[1:3])
    cut = engine.sample(asked[:1], engine_params(engine, temperature=0.0, stop=[text]))[0]
    assert cut.finish_reason == "string"
    assert text in engine.codec.tokenizer.decode(cut.ids)


@pytest.mark.slow
def test_vllm_and_transformers_agree(engine: Any, embedded_model: Path) -> None:
    """Greedy answers of 32 prompts, scored teacher-forced in float32: another choice only where it is a near tie."""
    import torch

    engine.load(policy_of(embedded_model))
    asked = pool_requests(engine, 32)
    answers = engine.sample(asked, engine_params(engine, temperature=0.0, max_new_tokens=16))
    model = forward.reference(str(embedded_model), "cpu", False)
    n_tokens, gaps = 0, []
    for request, answer in zip(asked, answers, strict=True):
        with torch.no_grad():
            logs = torch.log_softmax(model(input_ids=torch.tensor([request.prompt_ids + answer.ids])).logits[0], -1)
        for i, token in enumerate(answer.ids):
            row = logs[len(request.prompt_ids) + i - 1]
            n_tokens += 1
            if int(row.argmax()) != token:
                gaps.append(float(row.max() - row[token]))
    print(f"{len(gaps)} of {n_tokens} tokens are another choice, largest gap {max(gaps, default=0.0):.3f} nats")
    assert n_tokens > 200
    assert len(gaps) < 0.1 * n_tokens
    assert max(gaps, default=0.0) <= 0.5


@pytest.mark.slow
def test_a_tiny_model_in_an_engine_after_another(engine: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Cells of an in-process sweep each start an engine after the last one was closed; this one is in float32."""
    from iterative_ft.sampling.vllm import VLLMSampler

    engine.close()
    config = tiny_config(tiny_model, tmp_path / "store", "method=sft", "sampler=vllm", "sampler.dtype=float32")
    codec = TokenizerCodec(tiny_model, config.model)
    sampler, plain = (
        VLLMSampler(config, "cpu", codec),
        TransformersSampler(tiny_config(tiny_model, tmp_path / "store", "method=sft"), "cpu", codec),
    )
    try:
        for policy in (policy_of(tiny_model), policy_of(tiny_model, save_adapter(tiny_model, tmp_path / "a", size=0.3))):
            assert sampler.load(policy).error < 1e-8
            plain.load(policy)
            greedy = params(temperature=0.0)
            assert sampler.sample(requests(), greedy) == plain.sample(requests(), greedy)
    finally:
        sampler.close()
