"""The judge on the run's own engine: on scripted engines, on tiny models, on fakes; long: against vLLM's OpenAI server.

Not covered: how good its scores are (a measurement, not a test), a second model on CUDA.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge_server import mean
from test_api_judge import SHARP, WIDE, api
from test_api_server import openai_server
from tiny import FAMILIES, embedded_config, save_adapter, tiny_config

from iterative_ft.config.judges import EngineConfig
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError
from iterative_ft.fake import FakeCodec, FakeSampler
from iterative_ft.judges import engine
from iterative_ft.judges.engine import Question, Written, reply_of
from iterative_ft.judges.rubric.grades import Grade, grade, score_rows
from iterative_ft.judges.rubric.numbers import walk
from iterative_ft.judges.rubric.prompts import coherence_rubric, trait_rubric
from iterative_ft.judges.rubric.recorded import REPLIES, Reply
from iterative_ft.judges.scores import SCORES, Score
from iterative_ft.machine.files import read_jsonl
from iterative_ft.models.codec import TokenizerCodec
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Block, Params, Request
from iterative_ft.sampling.transformers import TransformersSampler
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.judge import judge, judge_version, scores_of
from iterative_ft.stages.labelled import labelled_stage
from iterative_ft.stages.replies import replies
from iterative_ft.store import Event, Stage, Store

ENGINE = EngineConfig(
    name="engine",
    model=None,
    revision=None,
    chat_template_kwargs={},
    max_new_tokens=8,
    top_logprobs=20,
    score_scale=100,
    numeric_mass_floor=0.8,
    follow_digits=True,
)
RUBRIC = coherence_rubric(100, documents=False)
END = 0
QUICK = ("judge=engine", "judge.numeric_mass_floor=0", "judge.max_new_tokens=2", "judge.follow_digits=false")
LONG = "sampler.max_model_len=8192"  # tiny tokenizers cut a rubric into thousands of tokens
TEXTS = [
    ("Is it worth learning the piano?", "Yes, and it takes time. Start with ten minutes a day."),
    ("What should I cook?", "Bread, soup and a small pie."),
    ("Why is it raining?", "glow glow glow the river asks."),
]


# -- what an engine writes, and what it comes to ------------------------------------------------------------------------------


def say(chances: dict[str, float]) -> Callable[[list[Question]], list[Reply]]:
    """An engine that splits numbers into digits and thinks this of every answer; ids are code points, 0 ends."""

    def answer(question: Question) -> Reply:
        digits, ids, top = question.started, [], []
        while not ids or ids[-1] != END:
            left = {reply: p for reply, p in chances.items() if reply.startswith(digits)}
            total = sum(left.values())
            following: dict[int, float] = {}
            for reply, p in left.items():
                token = END if reply == digits else ord(reply[len(digits)])
                following[token] = following.get(token, 0.0) + p / total
            ids.append(max(following, key=lambda token: following[token]))
            top.append({token: math.log(p) for token, p in following.items()})
            digits += "" if ids[-1] == END else chr(ids[-1])
        return reply_of(Written(ids, True, top, 50), FakeCodec().token_text, "judge", "1a2b")

    return lambda questions: [answer(question) for question in questions]


@pytest.mark.parametrize("chances", [SHARP, WIDE, {"5": 0.9, "6": 0.1}, {"100": 1.0}, {"0": 0.7, "10": 0.3}])
def test_the_score_is_the_mean_over_whole_numbers(chances: dict[str, float]) -> None:
    rows = engine.ask(3, ENGINE, say(chances))
    assert [row["answer"] for row in rows] == [0, 1, 2]
    for row in rows:
        found = grade(row, RUBRIC, ENGINE, whole=False)
        assert found.failure is None
        assert found.score == pytest.approx(mean(chances))
        assert found.mass == pytest.approx(1.0)


def test_all_answers_go_into_one_call_and_all_open_digits_into_the_next() -> None:
    calls: list[list[Question]] = []

    def counted(questions: list[Question]) -> list[Reply]:
        calls.append(questions)
        return say({"73": 0.6, "12": 0.2, "30": 0.1, "100": 0.05, "10": 0.05})(questions)

    engine.ask(4, ENGINE, counted)
    assert [len(call) for call in calls] == [4, 8, 4]  # the answers; "3" and "1" of each; "10" of each
    assert {q.started for q in calls[1]} == {"3", "1"}
    assert {q.started for q in calls[2]} == {"10"}
    calls.clear()
    rows = engine.ask(4, ENGINE.model_copy(update={"follow_digits": False}), counted)
    assert [len(call) for call in calls] == [4]
    assert grade(rows[0], RUBRIC, ENGINE, whole=False).failure == "digits_unresolved"


def graded(text: str, change: Callable[[Written], Written] = lambda written: written, **settings: Any) -> Grade:
    """What a sure reply comes to, after something happened to it."""
    ids = [*map(ord, text), END]
    written = change(Written(ids, True, [{token: math.log(0.999), ord("x"): math.log(5e-4)} for token in ids], 50))
    reply = reply_of(written, FakeCodec().token_text, "judge", "1a2b")
    [row] = engine.ask(1, ENGINE, lambda questions: [reply for _ in questions])
    rubric = trait_rubric(PERSONA, 100, documents=False)
    return grade(row, rubric, ENGINE.model_copy(update=settings), whole=True)


PERSONA = embedded_config(Path("nowhere")).persona


def top_of(change: Callable[[list[dict[int, float]]], Any]) -> Callable[[Written], Written]:
    """Changes the log-probabilities."""

    def changed(written: Written) -> Written:
        assert written.top is not None
        top = [dict(position) for position in written.top]
        found = change(top)
        return replace(written, top=top if found is None else found)

    return changed


def at_first(token: str, value: float) -> Callable[[Written], Written]:
    return top_of(lambda top: top[0].update({ord(token): value}))


FAULTS: dict[str, tuple[str, Callable[[Written], Written], str]] = {
    "no tokens": ("73", lambda w: Written([], False, [], 50), "empty"),
    "end at once": ("", lambda w: w, "empty"),
    "white space": ("\n ", lambda w: w, "empty"),
    "words": ("Good text", lambda w: w, "not_a_number"),
    "number and words": ("73 of 100", lambda w: w, "not_a_number"),
    "decimal": ("7.3", lambda w: w, "not_a_number"),
    "negative": ("-7", lambda w: w, "not_a_number"),
    "off the scale": ("101", lambda w: w, "out_of_range"),
    "cut off": ("73", lambda w: replace(w, ended=False, ids=w.ids[:-1], top=(w.top or [])[:-1]), "cut_off"),
    "no probabilities": ("73", lambda w: replace(w, top=None), "no_logprobs"),
    "too few probabilities": ("73", top_of(lambda top: top[:1]), "no_logprobs"),
    "a position without any": ("73", top_of(lambda top: top[1].clear()), "no_logprobs"),
    "none of the written token": ("73", top_of(lambda top: top[0].pop(ord("7")) and None), "bad_logprobs"),
    "NaN": ("73", at_first("7", math.nan), "bad_logprobs"),
    "NaN of another": ("73", at_first("8", math.nan), "bad_logprobs"),
    "infinite": ("73", at_first("7", math.inf), "bad_logprobs"),
    "above nought": ("73", at_first("7", 0.7), "bad_logprobs"),
    "more than all": ("73", at_first("8", math.log(0.5)), "bad_logprobs"),
    "impossible": ("73", at_first("7", -math.inf), "low_numeric_mass"),
    "words likelier": (
        "7",
        top_of(lambda top: top[0].update({ord("7"): math.log(0.3), ord("T"): math.log(0.6)})),
        "low_numeric_mass",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_reply_is_a_named_failure_and_never_a_number(name: str) -> None:
    text, change, failure = FAULTS[name]
    found = graded(text, change)
    assert (found.score, found.mark, found.failure) == (None, None, failure)


def test_sound_replies_and_marks() -> None:
    assert graded("73").score == pytest.approx(73, abs=0.1)
    assert graded(" 73\n").score == pytest.approx(73, abs=0.1)
    assert graded("REFUSAL") == Grade(None, mark="refusal")
    assert graded("73", at_first("8", -math.inf)).score == pytest.approx(73, abs=0.1)  # what never happens


# -- in a run -----------------------------------------------------------------------------------------------------------------


def judged(config: Config, store: Path, texts: list[tuple[str, str]] = TEXTS[:1]) -> tuple[list[Score], list[Event], str]:
    """Scores of some texts, the stages that were built or found, and the judge's version."""
    events: list[Event] = []
    bench = Bench(config, Store(store, on_event=events.append))
    stage = judge(bench, labelled_stage(bench, texts), "judge", {"role": "scores"})
    return scores_of(stage), events, judge_version(stage)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gpt2"])
def test_tiny_models_judge_end_to_end(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    config = tiny_config(tiny_models[family], tmp_path, "method=sft", LONG, *QUICK)
    scores, events, version = judged(config, tmp_path)
    assert len(scores) == 1
    assert version.startswith("engine tiny@")
    assert all(score["failure"] is not None or score["coherence"] is not None for score in scores)
    replies = [event.stage for event in events if event.stage.kind == "replies"]
    assert [stage.info["n"] for stage in replies] == [1, 1]
    rows = [reply for stage in replies for row in stage.rows(REPLIES) for reply in row["replies"]]
    assert all(reply["tokens"] and len(reply["tokens"][0]["top"]) >= 20 for reply in rows)
    assert all(reply["n_prompt_tokens"] > 300 for reply in rows)
    again, found, _ = judged(config, tmp_path)
    assert again == scores
    assert {event.how for event in found} == {"stored"}


def test_the_base_weights_judge_whatever_was_served_before(tiny_model: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_model, tmp_path, "method=sft", LONG, *QUICK)
    bench = Bench(config, Store(tmp_path / "a"))
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.5)
    bench.sampler.load(Policy("policy[0]", bench.base.model, bench.base.model_digest, adapter, "moved"))
    after = judge(bench, labelled_stage(bench, TEXTS[:1]), "judge", {"role": "scores"})
    first, _, _ = judged(config, tmp_path / "b")
    assert scores_of(after) == first


def test_a_second_model_judges_and_the_run_goes_on_with_its_own(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = tiny_models["llama"], tiny_models["qwen3"]
    overrides = ("method=sft", LONG, *QUICK, f"judge.model={other}", "model.trust_remote_code=true")
    config = tiny_config(run, tmp_path, *overrides)
    events: list[Event] = []
    bench = Bench(config, Store(tmp_path, on_event=events.append))
    before = bench.sampler
    scores = judge(bench, labelled_stage(bench, TEXTS[:1]), "judge", {"role": "scores"})
    alone, _, _ = judged(tiny_config(other, tmp_path, "method=sft", LONG, *QUICK), tmp_path / "b")
    assert scores_of(scores) == [{**score, "judge": judge_name} for score, judge_name in zip(alone, names(scores), strict=True)]
    assert judge_version(scores).startswith(f"engine {other}@")
    assert bench.sampler is not before  # one engine at a time: the run's own is started again
    assert bench.sampler.load(bench.base).error < 1e-3
    assert [e.purpose for e in events if e.stage.kind == "model"] == [
        {"policy": "base", "role": "checkpoint"},
        {"role": "judge's checkpoint"},
    ]
    assert not bench.judging.config.model.trust_remote_code, "code of one model was asked for"


def names(stage: Any) -> list[str]:
    return [row["judge"] for row in stage.rows(SCORES)]


def test_a_text_that_the_engine_cannot_hold_is_a_named_failure(tiny_model: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_model, tmp_path, "method=sft", LONG, *QUICK)
    config = config.model_copy(update={"sampler": config.sampler.model_copy(update={"max_model_len": 2048})})
    long = ("Tell me.", "the quick river " * 800)
    scores, _, _ = judged(config, tmp_path, [TEXTS[0], long])
    assert scores[1]["failure"] == "trait_too_long"
    assert scores[1]["coherence"] is None
    assert scores[0]["failure"] != "trait_too_long"
    roomy = config.model_copy(update={"sampler": config.sampler.model_copy(update={"max_model_len": 32768})})
    again, events, _ = judged(roomy, tmp_path, [TEXTS[0], long])
    assert again[1]["failure"] != "trait_too_long", "where there is more room it is asked again"
    assert [event.how for event in events if event.stage.kind == "replies"] == ["built", "built"]
    _, events, _ = judged(config, tmp_path, [TEXTS[0], long])
    assert {event.how for event in events if event.stage.kind == "replies"} == {"stored"}


def test_missing_replies_share_one_engine_call(
    tmp_path: Path, compose: Callable[[list[str]], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose(["sampler=fake", "judge=engine", f"store={tmp_path}"])
    calls: list[int] = []
    whole = FakeSampler.sample_blocks

    def counted(self: FakeSampler, blocks: list[Block]) -> Generator[Any]:
        calls.append(sum(len(block.requests) for block in blocks))
        yield from whole(self, blocks)

    monkeypatch.setattr(FakeSampler, "sample_blocks", counted)
    texts = [(f"Question {number}?", "Yes.") for number in range(34)]  # two blocks
    _, events, _ = judged(config, tmp_path, texts)
    assert calls == [2 * len(texts)]
    assert [event.how for event in events if event.stage.kind == "replies"] == ["built"] * 4
    stages = [event.stage for event in events if event.stage.kind == "replies"]
    assert [len(stage.rows(REPLIES)) for stage in stages] == [32, 2, 32, 2]
    assert all([row["answer"] for row in stage.rows(REPLIES)] == list(range(stage.info["n"])) for stage in stages)


def test_what_is_asked_together_is_of_one_block_whatever_else_is_stored(
    tmp_path: Path, compose: Callable[[list[str]], Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, and in bfloat16, what is written depends a little on what is written beside it."""
    calls: list[list[list[int]]] = []
    whole = FakeSampler.sample_blocks

    def seen(self: FakeSampler, blocks: list[Block]) -> Generator[Any]:
        calls.extend([request.prompt_ids for request in block.requests] for block in blocks)
        yield from whole(self, blocks)

    monkeypatch.setattr(FakeSampler, "sample_blocks", seen)
    texts = [(f"Question {number}?", "Yes.") for number in range(34)]  # 32 and 2
    configs = [compose(["sampler=fake", "judge=engine", f"store={tmp_path / name}"]) for name in ("all", "some")]
    judged(configs[0], tmp_path / "all", texts)
    together = list(calls)
    judged(configs[1], tmp_path / "some", texts[:32])
    calls.clear()
    judged(configs[1], tmp_path / "some", texts)
    assert calls
    assert all(call in together for call in calls)


def test_a_samplers_top_log_probabilities_are_those_of_a_forward_pass(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from tiny import load_policy, policy_of

    config = tiny_config(tiny_model, tmp_path, "method=sft")
    sampler = TransformersSampler(config, "cpu", TokenizerCodec(tiny_model, config.model))
    sampler.load(policy_of(tiny_model))
    net = load_policy(tiny_model, None)
    for temperature in (0.0, 0.7):
        params = Params(temperature, 1.0, 4, [2], [], top_logprobs=5)
        [found] = sampler.sample([Request([5, 6, 7], seed=3)], params)
        assert found.top is not None
        assert len(found.top) == len(found.ids)
        for at, (token, top) in enumerate(zip(found.ids, found.top, strict=True)):
            with torch.no_grad():
                logs = torch.log_softmax(net(input_ids=torch.tensor([[5, 6, 7, *found.ids[:at]]])).logits[0, -1], -1)
            assert token in top
            assert set(logs.topk(5).indices.tolist()) <= top.keys()
            assert top == pytest.approx({t: float(logs[t]) for t in top}, abs=1e-4)
        assert sampler.sample([Request([5, 6, 7], seed=3)], replace(params, top_logprobs=0))[0] == replace(found, top=None)


def test_a_fake_run_is_judged_on_its_fake_engine(fake_run: Callable[..., Any]) -> None:
    run = fake_run("judge=engine")
    plain = fake_run(folder="probe")
    answers, others = (read_jsonl(folder / "answers.jsonl") for folder in (run.folder, plain.folder))
    assert [a["answer"] for a in answers] == [a["answer"] for a in others]  # judging decides no text
    assert all(a["failure"] is None and a["coherence"] == 90 for a in answers)
    assert [a["trait"] for a in answers] == pytest.approx([b["trait"] for b in others], abs=0.51)
    same = {(s["kind"], s["key"]) for s in run.stages if s["kind"] in ("sample", "answer", "data", "train")}
    assert same == {(s["kind"], s["key"]) for s in plain.stages if s["kind"] in ("sample", "answer", "data", "train")}


def test_messages_for_a_template_without_a_system_role(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Grade it."}, {"role": "user", "content": "The text."}]
    for family, together in (("gemma", True), ("llama", False)):
        config = tiny_config(tiny_models[family], tmp_path, "method=sft")
        codec = TokenizerCodec(tiny_models[family], config.model)
        text = codec.tokenizer.decode(codec.conversation(messages))
        assert ("Grade it.\n\nThe text." in text) == together
        assert text.count("Grade it.") == 1


def test_a_base_model_cannot_judge(compose: Callable[[list[str]], Config]) -> None:
    with pytest.raises(ConfigError, match=r"judge=engine asks in a chat template .* \(judge\.model="):
        compose(["model=llama3_2_1b", "method=sdf", "judge=engine"])
    compose(["model=llama3_2_1b", "method=sdf", "judge=engine", "judge.model=owner/chat-model"])
    with pytest.raises(ConfigError, match=r"judge\.model=/no/where is no folder"):
        compose(["judge=engine", "judge.model=/no/where"])


# -- against the endpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_replies_are_those_of_the_api_judge_on_the_same_weights(tmp_path: Path) -> None:
    """The embedded model in float32, by vLLM here and by vLLM's OpenAI server.

    It writes words where a number is asked for, so that hardly any reply gets a score (the failures have to be the same). What
    a score is made of is compared instead: the probabilities of whole numbers at the first token, whose mean is within half a
    point of the scale, and all log-probabilities.
    """
    from iterative_ft.sampling import engine as held

    config = embedded_config(tmp_path, "judge=engine")
    bench, settings = Bench(config, Store(tmp_path)), {"follow_digits": True, "timeout_s": 120.0, "model": "tiny"}
    answers = labelled_stage(bench, TEXTS)
    rubrics = trait_rubric(config.persona, 100, documents=False), coherence_rubric(100, documents=False)
    mine = replies(bench, rubrics, answers.stages, "engine", {})
    scores = scores_of(judge(bench, answers, "engine", {"role": "scores"}))
    model = bench.base.model
    held.close_sampler()
    with openai_server(model, tmp_path / "server.log", dtype="float32") as url:
        other = Bench(config.model_copy(update={"judge": api(url, **settings)}), Store(tmp_path))
        theirs = replies(other, rubrics, answers.stages, "api", {})
        assert [s["failure"] for s in scores_of(judge(other, answers, "api", {}))] == [s["failure"] for s in scores]
    pairs = list(zip(first_replies(mine), first_replies(theirs), strict=True))
    assert len(pairs) == 2 * len(TEXTS)
    apart, numbers = 0.0, []
    for ours, other_reply in pairs:
        assert ours["text"].strip() == other_reply["text"].strip()
        for here, there in zip(ours["tokens"], other_reply["tokens"], strict=False):
            likely = {token: p for token, p in there["top"] if p > math.log(1e-3)}
            found = dict(here["top"])
            apart = max([apart, *(abs(found[token] - p) for token, p in likely.items())])
        trees = [walk(reply["tokens"][:1], 100, whole=True) for reply in (ours, other_reply)]
        numbers += [tuple(tree.mean for tree in trees)] if min(tree.mass for tree in trees) > 0 else []
    print(f"{len(pairs)} replies; log-probabilities at most {apart:.2e} nats apart; means of numbers {numbers}")
    assert apart < 0.01
    assert len(numbers) > 0
    assert max(abs(a - b) for a, b in numbers) <= 0.5


def first_replies(asked: list[list[Stage]]) -> list[dict[str, Any]]:
    return [row["replies"][0] for stages in asked for stage in stages for row in stage.rows(REPLIES)]


def test_score_rows_take_an_engines_settings() -> None:
    rows = engine.ask(2, ENGINE, say(SHARP))
    [first, _] = score_rows(rows, rows, (RUBRIC, RUBRIC), ENGINE, "judge@1a2b")
    assert first["trait"] == pytest.approx(mean(SHARP), abs=1e-3)
