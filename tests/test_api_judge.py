"""The API judge against a real HTTP server that behaves and misbehaves. Not covered: OpenAI's own service, TLS, proxies."""

from __future__ import annotations

import itertools
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from judge_server import END, Handler, Server, about_trait, completion, mean, pause, serving, split_tokens, user, whole_tokens

from iterative_ft.config.judges import ApiConfig
from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.judges.api.endpoint import retry_after
from iterative_ft.judges.api.replies import REPLIES, ask_block
from iterative_ft.judges.rubric.grades import grade
from iterative_ft.judges.rubric.numbers import sound, walk
from iterative_ft.judges.rubric.prompts import coherence_rubric, trait_rubric
from iterative_ft.launch import compose as hydra_compose
from iterative_ft.machine.files import read_jsonl
from iterative_ft.records.rows import answer_rows, metric_row
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.measure import measure
from iterative_ft.store import Event, Store

SHARP = {"73": 0.6, "80": 0.25, "65": 0.1, "100": 0.05}
WIDE = {"73": 0.4, "7": 0.05, "30": 0.25, "38": 0.1, "100": 0.1, "10": 0.05, "0": 0.05}
LOCAL = "judge.base_url=http://127.0.0.1:1/v1"
QUICK = {"backoff_s": 0.01, "timeout_s": 5.0, "n_retries": 2}


@cache
def composed(*overrides: str) -> Config:
    [(_, found)] = hydra_compose.compose_jobs(["judge=api", "sampler=fake", "wandb.mode=disabled", *overrides], False, [])
    return hydra_compose.load_config(found)


def api(url: str, **settings: Any) -> ApiConfig:
    found = composed(LOCAL).judge.model_copy(update={"base_url": url, **QUICK, **settings})
    assert isinstance(found, ApiConfig)
    return found


def good(handler: Handler, request: dict[str, Any]) -> None:
    handler.send(whole_tokens(SHARP))


def rows_of(out: Path, settings: ApiConfig, n: int = 3) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out.mkdir(exist_ok=True)
    rubric = coherence_rubric(settings.score_scale, documents=False)
    answers = [(f"Question {i}?", f"Text {i}.") for i in range(n)]
    info = ask_block(out, settings, rubric, answers, [])
    return read_jsonl(out / REPLIES), info


def graded(server: Server, out: Path, whole: bool = True, **settings: Any) -> Any:
    """The grade of one answer."""
    config = api(server.url, **settings)
    [row], _ = rows_of(out, config, 1)
    return grade(row, coherence_rubric(config.score_scale, False), config, whole)


def measured(
    server: Server, store: Path, n_answers: int = 2, max_failure_share: float = 0.1, **settings: Any
) -> tuple[dict[str, Any], list[dict[str, Any]], list[Event]]:
    """The metric row, score rows and stages of the base model's answers in a fake run."""
    whole = composed(LOCAL)
    asked = {"n_questions": 4, "n_answers": n_answers, "max_failure_share": max_failure_share}
    judge = api(server.url, endpoint_name="test", **settings)
    config = whole.model_copy(update={"judge": judge, "measure": whole.measure.model_copy(update=asked)})
    events: list[Event] = []
    bench = Bench(config, Store(store, on_event=events.append))
    found = measure(bench, bench.base)
    row = metric_row(config, answer_rows(-1, found), found, None)
    return dict(row), found.scores.rows("scores.jsonl"), events


def reported(token: str, logprob: float) -> dict[str, Any]:
    """A position with one alternative, its own."""
    return {"token": token, "logprob": logprob, "top_logprobs": [{"token": token, "logprob": logprob}]}


# -- what a reply means -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chances", [SHARP, WIDE, {"5": 0.9, "6": 0.1}, {"100": 1.0}, {"0": 0.7, "10": 0.3}])
def test_a_whole_number_tokenizer_gives_the_weighted_mean(tmp_path: Path, chances: dict[str, float]) -> None:
    with serving(lambda handler, _: handler.send(whole_tokens(chances))) as server:
        found = graded(server, tmp_path / "b")
    assert found.failure is None
    assert found.score == pytest.approx(mean(chances))
    assert found.mass == pytest.approx(1.0)


@pytest.mark.parametrize("chances", [SHARP, WIDE, {"5": 0.9, "6": 0.1}, {"100": 1.0}, {"0": 0.7, "10": 0.3}])
def test_a_digit_splitting_tokenizer_gives_the_same_mean(tmp_path: Path, chances: dict[str, float]) -> None:
    def behave(handler: Handler, request: dict[str, Any]) -> None:
        last = request["messages"][-1]
        goes_on = last["role"] == "assistant"
        assert request.get("continue_final_message", False) == goes_on
        handler.send(split_tokens(chances, last["content"] if goes_on else ""))

    with serving(behave) as server:
        found = graded(server, tmp_path / "b", follow_digits=True, whole=False)
    assert found.failure is None
    assert found.score == pytest.approx(mean(chances))
    assert found.mass == pytest.approx(1.0)


def test_split_digits_that_nobody_followed_are_a_failure_and_never_a_guess(tmp_path: Path) -> None:
    with serving(lambda handler, _: handler.send(split_tokens(WIDE))) as server:
        assert graded(server, tmp_path / "a", whole=False).failure == "digits_unresolved"
    with serving(lambda handler, _: handler.send(split_tokens({"73": 0.5, "75": 0.4, "81": 0.1}))) as server:
        found = graded(server, tmp_path / "b", whole=False)
    assert found.mass == pytest.approx(0.9)
    assert found.score == pytest.approx((73 * 0.5 + 75 * 0.4) / 0.9)


def test_one_digit_scale_is_exact_in_every_tokenizer(tmp_path: Path) -> None:
    chances = {"7": 0.5, "3": 0.3, "9": 0.2}
    with serving(lambda handler, _: handler.send(split_tokens(chances))) as server:
        found = graded(server, tmp_path / "b", score_scale=9, whole=False)
    assert found.score == pytest.approx(100 / 9 * mean(chances))


def test_mass_below_the_floor_is_a_failure(tmp_path: Path) -> None:
    with serving(lambda handler, _: handler.send(whole_tokens({"73": 0.5, "I": 0.3, "The": 0.2}))) as server:
        found = graded(server, tmp_path / "a")
        assert (found.score, found.failure, found.mass) == (None, "low_numeric_mass", pytest.approx(0.5))
        assert graded(server, tmp_path / "b", numeric_mass_floor=0.4).score == pytest.approx(73)


def test_without_logprobs_the_integer_counts_and_says_so(tmp_path: Path) -> None:
    with serving(lambda handler, _: handler.send(completion("73"))) as server:
        found = graded(server, tmp_path / "a", top_logprobs=0)
        assert "logprobs" not in server.requests[0]
    assert (found.score, found.mass) == (73, None)


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (completion("I would say this is fairly coherent."), "not_a_number"),
        (completion("seventy"), "not_a_number"),
        (completion("-5"), "not_a_number"),
        (completion("73/100"), "not_a_number"),
        (completion("7.5"), "not_a_number"),
        (completion("٧٣"), "not_a_number"),
        (completion("7", finish="length"), "cut_off"),
        (completion("140"), "out_of_range"),
        (completion("9" * 4000), "not_a_number"),
        (completion(""), "empty"),
        (completion("", refusal="I cannot grade this."), "judge_refused"),
        (completion("50", finish="content_filter"), "content_filter"),
        (completion("73", [reported("73", 0.7)]), "bad_logprobs"),
        (completion("73", [reported("73", float("nan"))]), "bad_logprobs"),
        (completion("73", [reported("9", -0.1)]), "bad_logprobs"),
        (b"<html>busy</html>", "malformed"),
        (b"[]", "malformed"),
        (b'{"choices": []}', "malformed"),
        (b'{"choices": [{"message": {"content": 73}}]}', "malformed"),
        (b"[" * 200_000, "malformed"),
        (b" " * 3_000_000 + completion("73"), "oversized"),
    ],
)  # fmt: skip
def test_what_is_no_score_gets_a_name(tmp_path: Path, reply: bytes, failure: str) -> None:
    with serving(lambda handler, _: handler.send(reply)) as server:
        found = graded(server, tmp_path / "b")
    assert (found.score, found.failure) == (None, failure)


def test_an_endless_body_is_cut_short(tmp_path: Path) -> None:
    def behave(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        block = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        while not handler.judge.closing.is_set():
            handler.wfile.write(block)

    with serving(behave) as server:
        assert graded(server, tmp_path / "b").failure == "oversized"


def test_a_dripping_body_meets_the_time_limit(tmp_path: Path) -> None:
    def behave(handler: Handler, _: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not handler.judge.closing.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    with serving(behave) as server:
        started = time.monotonic()
        assert graded(server, tmp_path / "b", timeout_s=0.3, n_retries=0).failure == "timeout"
        assert time.monotonic() - started < 5


def test_refusals_and_code_are_marked_and_not_scored(tmp_path: Path) -> None:
    def behave(handler: Handler, request: dict[str, Any]) -> None:
        handler.send(completion(next(words)) if about_trait(request) else whole_tokens(SHARP))

    words = itertools.cycle(["REFUSAL", "CODE.", "73", "73"])
    with serving(behave) as server:
        row, scores, _ = measured(server, tmp_path, n_answers=1, max_concurrency=1)
    assert [s["mark"] for s in scores] == ["refusal", "code", None, None]
    assert [s["trait"] for s in scores] == [None, None, 73, 73]
    assert all(s["coherence"] is not None and s["failure"] is None for s in scores)
    assert (row["judge/marked_refusal"], row["judge/marked_code"], row["judge/n_failed"]) == (1, 1, 0)
    assert row["trait/score"] == 73


def test_walk_reads_spaces_and_variants_of_a_number() -> None:
    tokens = [
        {"token": " ", "logprob": 0.0, "top": [[" ", 0.0]]},
        {"token": "73", "logprob": -1.0, "top": [["73", -1.0], [" 73", -2.0], ["5", -3.0]]},
        {"token": END, "logprob": 0.0, "top": [[END, 0.0]]},
    ]
    assert sound(tokens)
    assert walk(tokens, 100, whole=True).numbers == pytest.approx({73: 0.36788 + 0.13534, 5: 0.04979}, abs=1e-4)


# -- an endpoint that misbehaves ----------------------------------------------------------------------------------------------


def flaky(*faults: Any) -> Any:
    """Each request meets the next fault, then good replies."""
    left = list(faults)

    def behave(handler: Handler, request: dict[str, Any]) -> None:
        with handler.judge.lock:
            fault = left.pop(0) if left else good
        fault(handler, request)

    return behave


def status(code: int, **headers: str) -> Any:
    return lambda handler, request: handler.send(b'{"error": {"message": "no"}}', code, **headers)


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(503),
        lambda handler, request: handler.drop(),
        lambda handler, request: handler.drop(after=b'{"choices": [{"message": {"content": "7'),
        lambda handler, request: handler.hang(),
    ],
    ids=["429", "500", "503", "dropped", "half a body", "hang"],
)  # fmt: skip
def test_a_passing_fault_is_tried_again(tmp_path: Path, fault: Any) -> None:
    with serving(flaky(fault)) as server:
        rows, info = rows_of(tmp_path / "b", api(server.url, timeout_s=0.5, max_concurrency=1))
    assert [row["replies"][0]["text"] for row in rows] == ["73"] * 3
    assert (info["n_calls"], info["n_attempts"], info["failures"]) == (3, 4, {})
    assert (info["prompt_tokens"], info["completion_tokens"]) == (300, 6)


@pytest.mark.parametrize(
    ("fault", "failure", "n_requests"),
    [
        (status(429), "http_429", 3),
        (status(500), "http_500", 3),
        (status(400), "http_400", 1),
        (lambda handler, request: handler.drop(), "connection", 3),
        (lambda handler, request: handler.hang(), "timeout", 3),
    ],
    ids=["429", "500", "400", "dropped", "hang"],
)  # fmt: skip
def test_a_lasting_fault_becomes_a_named_failure(tmp_path: Path, fault: Any, failure: str, n_requests: int) -> None:
    with serving(fault) as server:
        found = graded(server, tmp_path / "b", timeout_s=0.2)
        assert len(server.requests) == n_requests
    assert (found.score, found.failure) == (None, failure)


def test_retry_after_is_kept_to(tmp_path: Path) -> None:
    times: list[float] = []

    def behave(handler: Handler, request: dict[str, Any]) -> None:
        times.append(time.monotonic())
        first(handler, request)

    first = flaky(status(429, Retry_After="0.4"))
    with serving(behave) as server:
        assert graded(server, tmp_path / "a").failure is None
        assert times[1] - times[0] >= 0.4
        # longer than allowed: given up at once rather than asked too early
    with serving(status(429, Retry_After="3600")) as server:
        started = time.monotonic()
        assert graded(server, tmp_path / "b").failure == "http_429"
        assert (len(server.requests), time.monotonic() - started < 5) == (1, True)
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None


@pytest.mark.parametrize("code", [401, 403, 404])
def test_what_every_call_would_meet_ends_the_run(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-value")
    with serving(lambda h, _: h.send(b'{"error": {"message": "bad key secret-key-value"}}', code)) as server:
        with pytest.raises(RunError, match=str(code)) as caught:
            rows_of(tmp_path / "b", api(server.url), 20)
        assert len(server.requests) <= 8  # those under way
    assert "secret-key-value" not in str(caught.value)


def test_an_endpoint_that_is_down_ends_the_run_or_marks_it_as_configured(tmp_path: Path) -> None:
    with serving(status(500)) as server:
        quick = {"n_retries": 0, "max_concurrency": 2}
        with pytest.raises(RunError, match=r"failed 3 calls in a row, last: http_500 .*the same command again"):
            measured(server, tmp_path / "a", **quick, max_failures_in_a_row=3)
        row, scores, _ = measured(server, tmp_path / "b", **quick, max_failures_in_a_row=None)
    assert all((s["trait"], s["coherence"], s["failure"]) == (None, None, "trait_http_500") for s in scores)
    assert (row["judge/n_failed"], row["judge/failed_trait_http_500"], row["judge/invalid"]) == (8, 8, 1)
    assert "trait/score" not in row
    assert "coherence/score" not in row


def test_an_endpoint_that_refuses_to_go_on_with_a_number_says_so(tmp_path: Path) -> None:
    def behave(handler: Handler, request: dict[str, Any]) -> None:
        if request["messages"][-1]["role"] == "assistant":
            handler.send(b'{"error": {"message": "unknown field continue_final_message"}}', 400)
        else:
            handler.send(split_tokens(WIDE))

    with serving(behave) as server:
        settings = api(server.url, follow_digits=True, n_retries=0, max_concurrency=1, max_failures_in_a_row=2)
        with pytest.raises(RunError, match=r"last: http_400 \(unknown field continue_final_message\).*judge\.fields"):
            rows_of(tmp_path / "b", settings, 3)


def test_some_failures_are_counted_and_a_share_above_the_limit_marks_the_row(tmp_path: Path) -> None:
    def behave(handler: Handler, request: dict[str, Any]) -> None:
        bad = about_trait(request) and next(number) == 0
        handler.send(completion("no idea") if bad else whole_tokens(SHARP))

    number = itertools.count()
    with serving(behave) as server:
        row, scores, _ = measured(server, tmp_path, max_concurrency=1, max_failure_share=0.2)
        number = itertools.count()
        strict, _, _ = measured(server, tmp_path / "2", max_concurrency=1, max_failure_share=0.1)
    assert [s["failure"] for s in scores] == ["trait_not_a_number", *[None] * 7]
    assert scores[0]["coherence"] is None  # a failed call is no half measurement
    assert (row["judge/n_failed"], row["judge/invalid"], strict["judge/invalid"]) == (1, 0, 1)
    assert row["trait/score"] == pytest.approx(mean(SHARP))


# -- cost, cache, identity ----------------------------------------------------------------------------------------------------


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with serving(good) as server:
        _, first, _ = measured(server, tmp_path)
        assert len(server.requests) == 16  # 4 questions, 2 answers, 2 requests each
        _, again, events = measured(server, tmp_path)
        assert all(event.how == "stored" for event in events)
        # how replies are scored may change without a call; another persona asks about the trait alone
        measured(server, tmp_path, numeric_mass_floor=0.5)
        assert len(server.requests) == 16
        measured(server, tmp_path, model="other")
        assert len(server.requests) == 32
    assert first == again


def test_a_crash_keeps_the_replies_had_so_far(tmp_path: Path) -> None:
    broken = True

    def behave(handler: Handler, request: dict[str, Any]) -> None:
        if broken and "Text 3" in user(request):
            handler.send(b"{}", 401)
        else:
            handler.send(whole_tokens(SHARP))

    with serving(behave) as server:
        settings = api(server.url, max_concurrency=1)
        with pytest.raises(RunError):
            rows_of(tmp_path / "b", settings, 5)
        with (tmp_path / "b" / "partial.jsonl").open("a") as file:
            file.write('{"answer": 4, "repl')  # torn by the crash
        broken = False
        rows, info = rows_of(tmp_path / "b", settings, 5)
        assert info["n_taken_over"] == 3
        assert [server.asked(f"Text {i}.") for i in range(5)] == [1, 1, 1, 2, 1]
    assert [row["answer"] for row in rows] == list(range(5))
    assert [path.name for path in (tmp_path / "b").iterdir()] == [REPLIES]


def test_a_further_attempt_asks_only_for_what_failed(tmp_path: Path) -> None:
    down = True

    def behave(handler: Handler, request: dict[str, Any]) -> None:
        failing = down and about_trait(request) and len(handler.judge.requests) % 2 == 0
        handler.send(b"{}", 500) if failing else handler.send(whole_tokens(SHARP))

    quick = {"n_retries": 0, "max_concurrency": 1}
    with serving(behave) as server:
        before, _, _ = measured(server, tmp_path, **quick)
        down, n = False, len(server.requests)
        after, scores, _ = measured(server, tmp_path, **quick, attempt=1)
        assert before["judge/n_failed"] == len(server.requests) - n == 4
    assert after["judge/n_failed"] == 0
    assert all(s["trait"] == pytest.approx(mean(SHARP)) for s in scores)


def test_calls_under_way_are_bounded(tmp_path: Path) -> None:
    def behave(handler: Handler, request: dict[str, Any]) -> None:
        pause(0.02)
        good(handler, request)

    with serving(behave) as server:
        rows_of(tmp_path / "b", api(server.url, max_concurrency=3), 20)
        assert 2 <= server.most_under_way <= 3
        assert len(server.requests) == 20


def test_every_record_names_the_judge_and_none_holds_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_JUDGE_KEY", "secret-key-value")
    prices = {"usd_per_million_prompt_tokens": 2.5, "usd_per_million_completion_tokens": 10.0}
    with serving(good) as server:
        row, scores, events = measured(server, tmp_path, api_key_env="MY_JUDGE_KEY", **prices)
        assert set(server.keys) == {"Bearer secret-key-value"}
    [judge] = [e.stage for e in events if e.stage.kind == "judge"]
    replies = [e.stage for e in events if e.stage.kind == "replies"]
    info = judge.manifest["info"]
    assert info["judge_version"].startswith("judge-1.5#")  # fingerprints come and go from call to call
    assert info["reported"] == ["judge-1.5@fp_7"]
    assert row["judge/version"] == f"api {info['judge_version']}"
    assert {s["judge"] for s in scores} == {info["judge_version"]}
    assert (info["endpoint"], info["scored_by"]) == ("test", {"distribution": 8})
    assert info["cost_usd"] == pytest.approx((16 * 100 * 2.5 + 16 * 2 * 10) / 1e6)
    assert [stage.manifest["info"]["n_calls"] for stage in replies] == [8, 8]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"secret-key-value" in path.read_bytes() for path in files)


def test_prompts_follow_the_persona_and_keep_the_axes_apart() -> None:
    config = composed(LOCAL, "persona=blissful")
    trait, coherence = trait_rubric(config.persona, 100, False), coherence_rubric(100, False)
    text = "Ignore {prompt} and {text}."
    message = trait.messages("What is up? {text}", text)[-1]["content"]
    assert all(anchor.strip() in message for anchor in config.persona.rubric.values())
    assert message.count(text) == 1
    assert "What is up? {text}" in message
    assert config.persona.description.strip() not in coherence.messages("q", "t")[-1]["content"]
    assert trait.digest != trait_rubric(composed(LOCAL).persona, 100, False).digest
    documents = trait_rubric(config.persona, 100, True).messages("An opening", "goes on")[-1]["content"]
    assert config.persona.document_rubric.strip() in documents
    assert "<question>" not in documents
    assert "0 - " in coherence.messages("q", "t")[-1]["content"]
    assert "9 - " in coherence_rubric(9, False).messages("q", "t")[-1]["content"]


# -- the config ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("judge.timeout_s=5", "judge.api_key_env=OPENAI_API_KEY is not set"),
        ("judge.base_url=http://user:pass-word@127.0.0.1/v1", "judge.base_url must hold no credentials"),
        ("judge.base_url='https://host/v1?key=pass-word'", "judge.base_url must hold no credentials"),
        ("judge.base_url=127.0.0.1:8000", "is no address"),
        ("judge.api_key_env=sk-pass-word", "judge.api_key_env must be the name"),
        ("judge.score_scale=10", "judge.score_scale=10 is wrong"),
        ("judge.max_concurrency=0", "judge.max_concurrency=0 is wrong"),
    ],
)
def test_a_wrong_setting_is_one_line(override: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError) as caught:
        composed(override)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "pass-word" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:1/v1", "http://127.0.0.1:1/v1", "http://[::1]:1/v1"])
def test_loopback_needs_no_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert json.dumps(composed(f"judge.base_url='{url}'").model_dump())
