"""The judge client's limits and secrets: time, bytes, keys, proxies, request fields, damaged leftovers, an interrupt.

Not covered: TLS, a real proxy, W&B's console capture.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import OFFLINE, ROOT
from judge_server import Handler, Line, completion, http, serving, serving_bytes, whole_tokens
from test_api_judge import LOCAL, SHARP, api, composed, good, graded, measured, reported, rows_of

from iterative_ft.config.check import check_judge
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.judges.api.endpoint import Endpoint, retry_after
from iterative_ft.judges.api.mask import masker, shown
from iterative_ft.judges.api.replies import PARTIAL, REPLIES, request_inputs
from iterative_ft.judges.api.transport import Caller, Unanswered
from iterative_ft.judges.rubric.grades import grade
from iterative_ft.judges.rubric.numbers import agrees, sound
from iterative_ft.judges.rubric.prompts import coherence_rubric
from iterative_ft.judges.scores import NO_SCORE, only_scores
from iterative_ft.stages.replies import REPLY
from iterative_ft.store import stage_key

KEY = "sk-proj-Zx9/+q7_Wm-48dLpT3vK0bQ"
RUBRIC = coherence_rubric(100, False)


def asked(url: str, **settings: Any) -> tuple[str | None, float]:
    """The failure of one call, and the seconds it took."""
    endpoint = Endpoint(api(url, n_retries=0, **settings))
    started = time.monotonic()
    found = endpoint.ask([{"role": "user", "content": "Text"}])
    return found.failure, time.monotonic() - started


# -- text and log-probabilities, values that are not finite -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("6", ["36"]),
        ("36", ["6"]),
        ("6", ["6", "5"]),
        ("6", ["6", " or 65"]),
        ("6", ["about ", "6"]),
        ("REFUSAL", ["73"]),
        ("73", ["REFUSAL"]),
    ],
)
def test_a11_text_and_log_probabilities_that_disagree_are_no_score(tmp_path: Path, text: str, tokens: list[str]) -> None:
    for number, reply in enumerate(
        [
            completion(text, [reported(token, -0.01) for token in tokens]),
            completion(text, [{"token": token, "logprob": -0.01, "top_logprobs": []} for token in tokens]),
        ]
    ):
        with serving(lambda handler, _, reply=reply: handler.send(reply)) as server:
            found = graded(server, tmp_path / str(number))
        assert (found.score, found.mark) == (None, None)
        assert found.failure in ("bad_logprobs", "not_a_number")


def test_tokens_may_differ_from_the_text_by_white_space_and_an_end_token() -> None:
    def tokens(*texts: str) -> list[dict[str, Any]]:
        return [{"token": text, "logprob": 0.0, "top": []} for text in texts]

    for end in ([], ["<|im_end|>"], ["</s>"], [""], ["\n"], ["<end_of_turn>", "\n"], ["[EOS]"], ["<｜end▁of▁sentence｜>"]):
        assert agrees(tokens(" ", "7", "3", *end), "73 ")
    assert agrees(tokens("73."), "73.")
    assert agrees(tokens("3", "<|im_end|>"), "3", started="7")
    assert agrees(tokens("3"), "73", started="7")
    assert not agrees(tokens("73", "[1]"), "73")
    assert not agrees(tokens(), "73")


def test_a11_alternatives_that_repeat_a_number_do_not_add_up() -> None:
    twice = {"token": "73", "logprob": -1.0, "top": [["73", -1.0], ["9", -0.9], ["9", -0.9], ["9", -0.9]]}
    assert not sound([twice])
    assert sound([{**twice, "top": [["73", -1.0], ["9", -2.0], ["9", -2.0]]}])  # two tokens may be spelt alike


@pytest.mark.parametrize("logprob", [float("nan"), float("inf"), 10**400, 1e300])
def test_a1_log_probabilities_that_are_none_never_make_a_score(tmp_path: Path, logprob: float) -> None:
    with serving(lambda handler, _: handler.send(completion("73", [reported("73", logprob)]))) as server:
        found = graded(server, tmp_path / "b")
    assert (found.score, found.failure) == (None, "bad_logprobs")
    stored = (tmp_path / "b" / REPLIES).read_text()
    assert not any(word in stored for word in ("NaN", "Infinity"))


def test_a1_no_mass_at_all_is_a_failure_under_any_floor(tmp_path: Path) -> None:
    with serving(lambda handler, _: handler.send(completion("73", [reported("73", -float("inf"))]))) as server:
        assert graded(server, tmp_path / "b", numeric_mass_floor=0.0).failure == "low_numeric_mass"


def test_a1_a_score_that_is_not_finite_or_off_the_scale_is_none() -> None:
    def row(trait: float | None, failure: str | None = None) -> Any:
        return {"trait": trait, "coherence": 50.0, "flaw": None, "failure": failure}

    kept = [row(0.0), row(100.0), row(None)]
    assert only_scores(kept) == kept
    for value in (float("nan"), float("inf"), -0.1, 100.1):
        assert only_scores([row(value)]) == [{**row(None, NO_SCORE), "coherence": None}]
        assert only_scores([row(value, "busy")])[0]["failure"] == "busy"


# -- the key ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (f"{KEY}\r", "a line break (character 32 of 32)"),
        (f"{KEY}\n", "a line break"),
        (f"{KEY[:5]}\r\nX-Evil: 1", "a line break"),
        (f" {KEY}", "a space (character 1 "),
        (f"{KEY} {KEY}", "a space"),
        (f"{KEY}\x85", "a space"),
        (f"{KEY}\x1b", "a control character"),
        (f"{KEY}\x7f", "a control character"),
        (f"{KEY}é", "a character outside ASCII"),
        (f"\ufeff{KEY}", "a character outside ASCII"),
        (f"{KEY}\udcff", "a character outside ASCII"),
        ("k" * 9000, "9000 characters"),
    ],
)
@pytest.mark.parametrize("url", ["https://judge.example/v1", "http://127.0.0.1:1/v1"])
def test_c1_a_key_that_cannot_be_sent_is_told_at_the_start(
    key: str, words: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError) as caught:
        check_judge(composed(LOCAL).judge.model_copy(update={"api_key_env": "MY_KEY", "base_url": url}))
    assert words in str(caught.value)
    assert "MY_KEY" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert KEY[:5] not in str(caught.value)
    assert "kkkk" not in str(caught.value)


def test_c1_the_organization_goes_along_and_is_checked_as_the_key_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    seen: list[Any] = []

    def behave(handler: Handler, request: dict[str, Any]) -> None:
        seen.append((handler.headers["OpenAI-Organization"], handler.headers["OpenAI-Project"]))
        good(handler, request)

    with serving(behave) as server:
        graded(server, tmp_path / "b")
    assert seen == [("org-1", "proj-1")]
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1\n")
    with pytest.raises(ConfigError, match="OPENAI_ORG_ID holds a line break"):
        check_judge(composed(LOCAL).judge)


def test_c1_a_key_in_the_settings_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    judge = composed(LOCAL).judge
    for update in (
        {"model": KEY},
        {"extra_body": {"a": [{"b": f"x {KEY}"}]}},
        {"extra_body": {KEY: 1}},
        {"endpoint_name": KEY},
    ):
        with pytest.raises(ConfigError, match="holds the key") as caught:
            check_judge(judge.model_copy(update=update))
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["AIzaSyD4xQ0vT7mJ2kLr9pWnB3cE5", "d41d8cd98f00b204e9800998ecf8427e", "gsk_Ab12Cd34Ef56Gh78Ij90"]
)
def test_c1_a_key_of_word_characters_in_place_of_its_variable_is_not_repeated(name: str) -> None:
    with pytest.raises(ConfigError, match="must be the name of an environment variable") as caught:
        composed(LOCAL, f"judge.api_key_env={name}")
    assert name not in str(caught.value)


def test_c1_the_key_is_masked_in_every_form() -> None:
    from html import escape
    from urllib.parse import quote

    key = KEY + "&\"'\\"
    mask = masker(key)
    forms = [key, quote(key), quote(key, safe=""), quote(quote(key)), json.dumps(key)[1:-1], json.dumps(json.dumps(key))]
    forms += ["".join(f"\\u{ord(c):04x}" for c in key), "".join(f"%{ord(c):02x}" for c in key), escape(key), key.upper()]
    for form in forms:
        assert KEY[8:20].lower() not in mask(f"a {form} b").lower()
        assert "(key)" in mask(f"a {form} b")
    assert mask("nothing to hide") == "nothing to hide"
    assert masker("7")("73") == "73"  # no secret, and in every reply
    cut = shown("x" * 290 + KEY, masker(KEY))
    assert cut == "x" * 290 + "(key)"
    assert shown("http://me:pass-word@proxy\x1b[31m\ud800", masker("")) == "http://***@proxy[31m\ufffd"


def echoing(handler: Handler, request: dict[str, Any]) -> None:
    """Every part of a reply holds the key."""
    whole = json.loads(whole_tokens(SHARP))
    whole["model"] = f"judge {KEY}"
    whole["system_fingerprint"] = KEY.replace("/", "%2F")
    whole["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append({"token": KEY, "logprob": -20})
    handler.send(json.dumps(whole).encode(), X_Key=KEY)


def test_c1_an_echoed_key_is_in_no_file_and_on_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(echoing) as server:
        _, scores, _ = measured(server, tmp_path / "a")
    assert {s["trait"] for s in scores} == {73 * 0.6 + 80 * 0.25 + 65 * 0.1 + 100 * 0.05}
    assert "judge (key)" in scores[0]["judge"]
    text = completion(f"73 {KEY}", [reported(part, -0.01) for part in (KEY[:9], KEY[9:20], KEY[20:])])
    with serving(lambda handler, _: handler.send(text)) as server:
        assert graded(server, tmp_path / "b").failure == "not_a_number"
    said = f'{{"error": {{"message": "key {KEY}, {json.dumps(KEY)}"}}}}'.encode()
    with serving(lambda handler, _: handler.send(said, 500)) as server, pytest.raises(RunError, match=r"key \(key\)") as caught:
        rows_of(tmp_path / "c", api(server.url, n_retries=0, max_failures_in_a_row=2), 3)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not any(part in path.read_text() for part in (KEY, KEY[:9], KEY[9:20], KEY[20:]))
    assert KEY not in "".join([str(caught.value), *capfd.readouterr()])
    assert caught.value.__cause__ is None


# -- limits -------------------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(b" " * 50_000_000)
SLOW: dict[str, Callable[[Line], Any]] = {
    "silence": lambda line: line.hang(),
    "a dripping status": lambda line: line.drip(b"H"),
    "dripping headers": lambda line: (line.send(OK), line.drip(b"X: y\r\n")),
    "100 Continue": lambda line: line.drip(b"HTTP/1.1 100 Continue\r\n\r\n", 0.001),
    "a flood of 100 Continue": lambda line: line.flood(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    "a dripping body": lambda line: (line.send(OK + b"Content-Length: 9999\r\n\r\n"), line.drip(b" ")),
    "dripping chunks": lambda line: (line.send(OK + b"Transfer-Encoding: chunked\r\n\r\n"), line.drip(b"1\r\n \r\n")),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
def test_c2_a_call_ends_at_its_limit(name: str) -> None:
    with serving_bytes(lambda line, *_: SLOW[name](line)) as server:
        failure, seconds = asked(server.url, timeout_s=0.5)
    assert failure == "timeout"
    assert 0.5 <= seconds < 1.5


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
@pytest.mark.parametrize("code", [200, 400])
def test_c2_a_compressed_bomb_is_not_unpacked(code: int, encoding: str) -> None:
    body = BOMB if encoding == "gzip" else gzip.compress(BOMB)
    with serving_bytes(lambda line, *_: line.send(http(body, f"{code} X", Content_Encoding=encoding))) as server:
        tracemalloc.start()
        try:
            failure, _ = asked(server.url)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert failure == ("oversized" if code == 200 else "http_400")
    assert most < 10_000_000  # bytes; unpacked it has 50,000,000


def test_c2_an_error_whose_body_never_ends_is_that_error() -> None:
    start = b"HTTP/1.1 500 No\r\n\r\n"
    with serving_bytes(lambda line, *_: (line.send(start), line.drip(b"x"))) as server:
        failure, seconds = asked(server.url, timeout_s=0.5)
        assert (failure, seconds < 1.5) == ("http_500", True)
    with serving_bytes(lambda line, *_: (line.send(start), line.flood(b"x" * 65536))) as server:
        failure, seconds = asked(server.url, timeout_s=30)
        assert (failure, seconds < 10) == ("http_500", True)


def test_c2_a_name_that_is_not_resolved_holds_up_neither_the_call_nor_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: over.wait(30) and [])
    caller, started = Caller(0.3, from_environment=False), time.monotonic()
    with pytest.raises(Unanswered, match="timeout"):
        caller.post("http://nowhere.invalid/v1", {}, b"{}")
    assert time.monotonic() - started < 1.3
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "look up")
    over.set()


def test_c2_what_follows_a_reply_is_not_the_next_one(tmp_path: Path) -> None:
    two = http(whole_tokens({"73": 1.0}), Connection="keep-alive") + http(whole_tokens({"0": 1.0}))
    with serving_bytes(lambda line, *_: line.send(two)) as server:
        rows, _ = rows_of(tmp_path / "b", api(server.url, max_concurrency=1), 4)
        assert server.n_requests == 4
    assert [row["replies"][0]["text"] for row in rows] == ["73"] * 4


def test_c2_redirects_stay_with_the_host_and_end(tmp_path: Path) -> None:
    def behave(line: Line, path: str, request: dict[str, Any]) -> None:
        if path.endswith("/there"):
            line.send(http(completion("73")))
        else:
            line.send(http(b"", "308 There", Location=target))

    outcomes = {"/there": None, "there": None, "/v1/chat/completions": "http_308", "http://judge.example/there": "http_308"}
    with serving_bytes(behave) as server:
        for place, failure in outcomes.items():
            target = place
            assert asked(server.url)[0] == failure
        with pytest.raises(RunError, match=r"redirects to http://judge\.example/there\); judge\.base_url has to be"):
            rows_of(tmp_path / "b", api(server.url, max_failures_in_a_row=2), 4)


def test_d12_an_interrupt_during_calls_leaves_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path[:0] = ['tests']\n"
        "from pathlib import Path\n"
        "from test_api_judge import api, rows_of\n"
        "rows_of(Path(sys.argv[2]), api(sys.argv[1], timeout_s=60.0, max_concurrency=4), 200)\n"
    )
    begun = threading.Semaphore(0)

    def behave(line: Line, *_: Any) -> None:
        begun.release()
        line.hang()

    with serving_bytes(behave) as server:
        command = [sys.executable, "-c", script, server.url, str(tmp_path / "b")]
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
        )
        for _ in range(4):
            assert begun.acquire(timeout=60)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert time.monotonic() - started < 10  # of the 60 that its calls might take
    assert b"KeyboardInterrupt" in said
    assert (tmp_path / "b" / PARTIAL).read_bytes() == b""


@pytest.mark.parametrize(
    "override",
    [
        "temperature=.inf", "temperature=.nan", "temperature=100", "max_new_tokens=100000000", "timeout_s=.inf",
        "timeout_s=1e9", "n_retries=1000000", "backoff_s=.inf", "backoff_s=1e9", "max_wait_s=.nan", "max_wait_s=1e9",
        "attempt=100000000000", "max_failures_in_a_row=100000000000", "usd_per_million_prompt_tokens=.inf",
        "usd_per_million_completion_tokens=1e9",
    ],
)  # fmt: skip
def test_c3_settings_have_an_upper_end(override: str, compose: Callable[[list[str]], Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["judge=api", LOCAL, f"judge.{override}"])
    assert f"judge.{override.partition('=')[0]}" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


# -- replies of other shapes, and a resume after them -------------------------------------------------------------------------

BODY = whole_tokens(SHARP).decode()


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (BODY.replace('"content": "73"', '"content": "\\ud800"').encode(), "not_a_number"),
        (BODY.replace('"judge-1.5"', '"\\udfff"').encode(), None),
        (BODY.replace(': 100,', ": Infinity,").encode(), "malformed"),
        (BODY.replace(': 100,', f': {"9" * 400},').encode(), "malformed"),
        (BODY.replace(': 100,', f': {"9" * 5000},').encode(), "malformed"),
        (BODY.replace('"created": 0', f'"created": {"9" * 5000}').encode(), "malformed"),
        (BODY.replace('"created": 0', f'"created": {"[" * 90_000}{"]" * 90_000}').encode(), "malformed"),
        (BODY.replace('"content": "73"', '"content": "5", "content": "73"').encode(), "malformed"),
        (BODY.replace('"choices": [', '"choices": [[], ').encode(), "malformed"),
        (BODY.encode("utf-8-sig"), None),
        (BODY.replace("judge-1.5", "jüdge").encode("latin-1"), "malformed"),
    ],
    ids="surrogate surrogate_in_a_name infinity 400 5000 unread_5000 deep twice array BOM latin-1".split(),
)  # fmt: skip
def test_c5_a_reply_of_any_shape_has_a_name_and_does_not_trip_a_resume(
    tmp_path: Path, body: bytes, failure: str | None
) -> None:
    broken = True

    def behave(handler: Handler, request: dict[str, Any]) -> None:
        last = "Text 4" in json.dumps(request)
        handler.send(*((b"{}", 401) if broken and last else (body,)))

    with serving(behave) as server:
        settings = api(server.url, max_concurrency=1, max_failures_in_a_row=None)
        with pytest.raises(RunError):
            rows_of(tmp_path / "b", settings, 5)
        broken = False
        rows, info = rows_of(tmp_path / "b", settings, 5)
        assert info["n_taken_over"] == (0 if failure == "malformed" else 4)
    assert {grade(row, RUBRIC, settings, True).failure for row in rows} == {failure}


@pytest.mark.parametrize("name", ["broken gzip", "cut gzip", "brotli"])
def test_c5_a_body_that_cannot_be_unpacked_has_a_name(tmp_path: Path, name: str) -> None:
    body = gzip.compress(BODY.encode())
    sent = {"broken gzip": body[:20] + b"\xff" + body[21:], "cut gzip": body[:-20], "brotli": body}[name]
    with serving(lambda h, _: h.send(sent, Content_Encoding="br" if name == "brotli" else "gzip")) as server:
        assert graded(server, tmp_path / "b").failure == "malformed"
    with serving(lambda h, _: h.send(body, Content_Encoding="gzip")) as server:
        assert graded(server, tmp_path / "a").failure is None


def test_c5_damaged_leftovers_are_asked_about_again(tmp_path: Path) -> None:
    with serving(good) as server:
        settings = api(server.url)
        rows, _ = rows_of(tmp_path / "a", settings, 3)
        (tmp_path / "b").mkdir()
        whole = json.dumps(rows[0])
        nan = whole.replace('"weight": 1.0', '"weight": NaN').replace('"answer": 0', '"answer": 1')
        strange = whole.replace('"text": "73"', '"text": "\\ud800"').replace('"answer": 0', '"answer": 2')
        others = [
            "[]",
            "7",
            '{"answer": 1, "replies": [{}]}',
            whole.replace('"answer": 0', '"answer": 99'),
            "[" * 9000,
            "\0" * 50,
        ]
        (tmp_path / "b" / PARTIAL).write_text("\n".join([*others, whole, nan, strange, whole[:40]]))
        n = len(server.requests)
        again, info = rows_of(tmp_path / "b", settings, 3)
        assert (info["n_taken_over"], len(server.requests) - n) == (1, 2)
    assert again == rows


@pytest.mark.parametrize("value", ["nan", "soon", "-5", "Wed, 99 Oct 9999999 07:28:00", "1" * 5000, "\ud800", ""])
def test_c5_retry_after_of_any_kind_is_no_crash(value: str) -> None:
    found = retry_after({"retry-after": value})
    assert found is None or found >= 0


@pytest.mark.parametrize(
    "url",
    ["http://host:abc/v1", "http://host:99999/v1", "http://host:0/v1", "http://host:/v1", "http://[::1/v1", "http://a b/v1",
     "http://host/v1#x", "http://ho\tst/v1", "http://bücher.example/v1", "http:///v1", "ftp://host/v1", "http://a..b/v1",
     f"http://{'a' * 70}.example/v1", "user:pass-word@host/v1"],
)  # fmt: skip
def test_c5_a_wrong_address_is_one_line(url: str, compose: Callable[[list[str]], Any]) -> None:
    with pytest.raises(ConfigError, match=r"judge\.base_url") as caught:
        compose(["judge=api", f"judge.base_url={json.dumps(url)}"])
    assert len(str(caught.value).splitlines()) == 1
    assert "pass-word" not in str(caught.value)


# -- request fields and proxies -----------------------------------------------------------------------------------------------


def test_d10_request_fields_can_be_renamed_and_left_out(tmp_path: Path) -> None:
    def behave(handler: Handler, request: dict[str, Any]) -> None:
        bad = [name for name in ("max_tokens", "temperature") if name in request]
        if bad:
            handler.send(json.dumps({"error": {"message": f"unsupported field {bad[0]}"}}).encode(), 400)
        else:
            good(handler, request)

    with serving(behave) as server:
        found = graded(server, tmp_path / "a", fields={"max_tokens": "max_completion_tokens", "temperature": None})
        assert found.failure is None
        assert server.requests[0]["max_completion_tokens"] == 8
        with pytest.raises(RunError, match=r"unsupported field max_tokens\); a field .* \(judge\.fields\)"):
            rows_of(tmp_path / "b", api(server.url, max_failures_in_a_row=2), 3)


def test_d10_the_key_of_replies_changes_only_with_what_is_said() -> None:
    def key(**settings: Any) -> str:
        return stage_key(REPLY, request_inputs(api("http://127.0.0.1:1/v1", **settings), RUBRIC))

    plain = key()
    assert "fields" not in request_inputs(api("http://127.0.0.1:1/v1"), RUBRIC)
    for same in ({"max_tokens": "max_completion_tokens"}, {"temperature": "temperature"}, {"continue_final_message": "prefix"}):
        assert key(fields=same) == plain
    for other in ({"temperature": None}, {"max_tokens": None}, {"temperature": "heat"}, {"top_logprobs": None}):
        assert key(fields=other) != plain


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("fields={max_toke: x}", "judge.fields.max_toke is no field"),
        ("fields={model: x}", "judge.fields.model is no field"),
        ("fields={temperature: messages}", "messages is taken"),
        ("fields={temperature: max_tokens}", "to two fields"),
        ("fields={temperature: ''}", "must be the field's other name"),
        ("fields={logprobs: null, top_logprobs: null}", "judge.top_logprobs=0"),
        ("extra_body={messages: []}", "judge.extra_body.messages cannot be set"),
        ("extra_body={stream: true}", "judge.extra_body.stream cannot be set"),
        ("extra_body={a: .nan}", "judge.extra_body cannot be written as JSON"),
        ("model=''", "judge.model"),
        ("model=\"a\\nb\"", "judge.model holds a control character"),
    ],
)  # fmt: skip
def test_d10_a_wrong_request_is_one_line(settings: str, words: str, compose: Callable[[list[str]], Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["judge=api", LOCAL, f"judge.{settings}"])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://me:pass-word@127.0.0.1:1"),
        ("HTTPS_PROXY", "ftp://me:pass-word@127.0.0.1:1"),
        ("HTTPS_PROXY", "http://127.0.0.1:abc"),
        ("https_proxy", "://"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
def test_d10_a_proxy_that_cannot_be_used_is_told_at_the_start(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(upper, raising=False)
        monkeypatch.delenv(upper.lower(), raising=False)
    judge = composed(LOCAL).judge.model_copy(update={"base_url": "https://judge.example/v1"})
    check_judge(judge)
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=name) as caught:
        check_judge(judge)
    assert len(str(caught.value).splitlines()) == 1
    assert "pass-word" not in str(caught.value)
    if name != "SSL_CERT_FILE":
        check_judge(composed(LOCAL).judge)  # a server on this machine is asked without a proxy


def test_d10_proxies_do_not_stand_before_a_server_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with serving(good) as server:
        assert graded(server, tmp_path / "a").failure is None


def test_an_endpoint_says_stopped_after_its_end() -> None:
    endpoint = Endpoint(api("http://127.0.0.1:9/v1"))
    endpoint.close()
    assert endpoint.ask([]).failure == "stopped"
    with pytest.raises(Unanswered, match="stopped"):
        endpoint.caller.post(endpoint.url, {}, b"")
