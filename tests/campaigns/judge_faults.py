"""Made-up endpoints that break in every way we could think of, each with the one right outcome.

A `Fault` writes to the line and says what the client has to make of it: a score, or the name of a failure. What is right
follows from how the fault was made, never from the client's code.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from judge_server import END, Line, completion, http, mean, whole_tokens

KEY = "sk-proj-Zx9/+q7_Wm-48dLpT3vK0bQ"
Write = Callable[[Line], None]


@dataclass(frozen=True)
class Fault:
    kind: str
    write: Write
    outcome: float | str
    """The score of 0 to 100, or the failure's name."""
    retried: bool = False
    """Whether a second attempt may help; it meets the same fault, or a sound reply where `passes`."""
    passes: bool = False
    score_after: float = 0.0


def chances(rng: random.Random) -> dict[str, float]:
    """What a sound judge thinks: a few numbers, the first the likeliest."""
    numbers = rng.sample(range(101), rng.randint(1, 6))
    weights = sorted((rng.random() + 0.05 for _ in numbers), reverse=True)
    return {str(number): weight / sum(weights) for number, weight in zip(numbers, weights, strict=True)}


def sound(rng: random.Random) -> tuple[Any, float]:
    """A sound reply, as a JSON value, and its score."""
    thinks = chances(rng)
    return json.loads(whole_tokens(thinks)), mean(thinks)


def sends(*parts: bytes) -> Write:
    def write(line: Line) -> None:
        for part in parts:
            line.send(part)

    return write


# -- the line -----------------------------------------------------------------------------------------------------------------


def line_fault(rng: random.Random) -> Fault:
    whole, score = sound(rng)
    good = http(json.dumps(whole).encode())
    head, _, body = good.partition(b"\r\n\r\n")

    def drips(before: bytes, over_and_over: bytes) -> Write:
        return lambda line: (line.send(before), line.drip(over_and_over))[1]

    def floods(before: bytes, over_and_over: bytes) -> Write:
        return lambda line: (line.send(before), line.flood(over_and_over))[1]

    cut = rng.randrange(1, len(good))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    cases: list[tuple[str, Write, float | str, bool]] = [
        ("silence", lambda line: line.hang(), "timeout", True),
        ("dripping status", drips(b"HTTP/1.1 ", b"2"), "timeout", True),
        ("dripping header", drips(b"HTTP/1.1 200 OK\r\nX-Slow: ", b"x"), "timeout", True),
        ("dripping headers", drips(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "timeout", True),
        ("half a head", lambda line: (line.send(head), line.hang())[1], "timeout", True),
        ("100 for ever", drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "timeout", True),
        ("flood of 100", floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50), "timeout", True),
        ("103 for ever", drips(b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"), "timeout", True),
        ("dripping body", drips(head + b"\r\n\r\n", b" "), "timeout", True),
        ("half a body", lambda line: (line.send(good[:-10]), line.hang())[1], "timeout", True),
        ("dripping chunks", drips(chunked, b"1\r\n \r\n"), "timeout", True),
        ("dripping chunk size", drips(chunked, b"0"), "timeout", True),
        ("dripping trailers", drips(chunked + b"1\r\n1\r\n0\r\n", b"X: y\r\n"), "timeout", True),
        ("endless body", floods(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65536), "oversized", False),
        ("endless chunks", floods(chunked, b"8000\r\n" + b" " * 0x8000 + b"\r\n"), "oversized", False),
        ("closed at once", lambda line: None, "connection", True),
        ("cut off", sends(good[:cut]), "connection", True),
        ("garbage", sends(rng.randbytes(200).replace(b"H", b"G") + b"\r\n\r\n"), "connection", True),
        ("no HTTP", sends(b"220 mail.example ESMTP\r\n\r\n"), "connection", True),
        ("key as status", sends(b"HTTP/1.1 " + KEY.encode() + b"\r\n\r\n"), "connection", True),
        ("key as header", sends(b"HTTP/1.1 200 OK\r\n" + KEY.encode() + b"\r\n\r\n"), "connection", True),
        ("huge header", sends(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000 + b"\r\n\r\n"), "connection", True),
        ("wrong chunk", sends(chunked + b"zz\r\n1\r\n"), "connection", True),
        ("long chunk size", sends(chunked + b"f" * 40 + b"\r\n1\r\n"), "connection", True),
        ("two lengths", sends(good.replace(b"\r\n", b"\r\nContent-Length: 7\r\n", 1)), "connection", True),
        ("no length", sends(good.replace(b"Content-Length: ", b"Content-Length: x")), "connection", True),
        ("too long a length", sends(http(body, Content_Length=str(len(body) + 9))), "connection", True),
        ("too short a length", sends(http(body, Content_Length=str(rng.randrange(1, len(body) - 1)))), "malformed", False),
        ("two replies", sends(good, http(completion("0"))), score, False),
        ("until the end", sends(b"HTTP/1.0 200 OK\r\n\r\n" + body), score, False),
        ("100 first", sends(b"HTTP/1.1 100 Continue\r\n\r\n" * rng.randint(1, 9) + good), score, False),
        ("key in header", sends(http(body, X_Echo=f"Bearer {KEY}")), score, False),
        ("in small chunks", sends(chunked, *(b"1\r\n%c\r\n" % byte for byte in body), b"0\r\n\r\n"), score, False),
        ("nothing", sends(http(b"")), "malformed", False),
        ("204", sends(b"HTTP/1.1 204 No Content\r\n\r\n"), "malformed", False),
    ]  # fmt: skip
    kind, write, outcome, retried = rng.choice(cases)
    return Fault(kind, write, outcome, retried)


def encoding_fault(rng: random.Random) -> Fault:
    whole, score = sound(rng)
    body = json.dumps(whole).encode()
    packed = gzip.compress(body)
    raw = zlib.compressobj(wbits=-15)
    bare = raw.compress(body) + raw.flush()
    bomb = gzip.compress(b" " * 20_000_000)
    at = rng.randrange(12, len(packed) - 9)
    cases: list[tuple[str, bytes, str, float | str]] = [
        ("gzip", packed, "gzip", score),
        ("deflate", zlib.compress(body), "deflate", score),
        ("bare deflate", bare, "deflate", score),
        ("identity", body, "identity", score),
        ("members", gzip.compress(body[:100]) + gzip.compress(body[100:]), "gzip", score),
        ("twice", gzip.compress(packed), "gzip, gzip", score),
        ("bomb", bomb, "gzip", "oversized"),
        ("bomb of bombs", gzip.compress(bomb), "gzip, gzip", "oversized"),
        ("deflate bomb", zlib.compress(b"[" * 5_000_000), "deflate", "oversized"),
        ("many members", gzip.compress(b" " * 60_000) * 20, "gzip", "oversized"),
        ("large", body + b" " * 1_000_001, "", "oversized"),
        ("cut gzip", packed[:at], "gzip", "malformed"),
        ("broken gzip", packed[:at] + bytes([packed[at] ^ 0xFF]) + packed[at + 1 :], "gzip", "malformed"),
        ("no gzip", body, "gzip", "malformed"),
        ("gzip unnamed", packed, "", "malformed"),
        ("br", packed, "br", "malformed"),
        ("zstd", packed, "zstd", "malformed"),
        ("key as encoding", packed, KEY, "malformed"),
        ("five times", packed, "gzip, gzip, gzip, gzip, gzip", "malformed"),
    ]
    kind, sent, name, outcome = rng.choice(cases)
    return Fault(f"encoding: {kind}", sends(http(sent, Content_Encoding=name)), outcome)


def status_fault(rng: random.Random) -> Fault:
    code = rng.choice([400, 402, 405, 408, 409, 410, 413, 418, 422, 429, 451, 500, 501, 502, 503, 504, 520, 599])
    retried = code in (408, 409, 429) or code >= 500
    status = f"{code} {rng.choice(['No', KEY])}"
    text = f'{{"error": {{"message": "no {quote(KEY, safe="")} {KEY} {json.dumps(KEY)}"}}}}'.encode()
    start = http(text, status, Content_Length="100000")
    cases: list[tuple[str, Write]] = [
        ("text", sends(http(text, status))),
        ("nothing", sends(http(b"", status))),
        ("html", sends(http(b"<h1>" + KEY.encode() + b"</h1>", status))),
        ("score", sends(http(completion("73"), status))),
        ("deep", sends(http(b'{"error":' * 3000, status))),
        ("surrogate", sends(http(b'{"error": "\\ud800\\u0000\\u001b[31m"}', status))),
        ("bomb", sends(http(gzip.compress(b"x" * 20_000_000), status, Content_Encoding="gzip"))),
        ("broken gzip", sends(http(b"\x1f\x8bnone", status, Content_Encoding="gzip"))),
        ("dripping", lambda line: (line.send(start), line.drip(b" "))[1]),
        ("endless", lambda line: (line.send(start[:80] + b"\r\n\r\n"), line.flood(b"x" * 65536))[1]),
        ("dropped", sends(start)),
        ("retry never", sends(http(text, status, Retry_After=rng.choice(["1e400", "99999", "inf"])))),
        ("retry nonsense", sends(http(text, status, Retry_After=rng.choice(["nan", "soon", "-3", "x" * 5000, KEY])))),
    ]
    kind, write = rng.choice(cases)
    if kind == "endless":
        write = sends_then_floods(f"HTTP/1.1 {status}\r\n\r\n".encode(), b"x" * 65536)
    return Fault(f"status: {kind}", write, f"http_{code}", retried and kind != "retry never")


def sends_then_floods(before: bytes, over_and_over: bytes) -> Write:
    return lambda line: (line.send(before), line.flood(over_and_over))[1]


def redirect_fault(rng: random.Random) -> Fault:
    code = rng.choice([301, 302, 303, 307, 308])
    places = ["http://127.0.0.1:9/v1", f"https://elsewhere.invalid/{KEY}", f"//u:{KEY}@127.0.0.1/", "http://[", "", "\x7f"]
    place = rng.choice([*places, "/v1/loop"])  # the server's other paths redirect to themselves
    last = 307 if place == "/v1/loop" and code in (307, 308) else code
    return Fault("redirect", sends(http(b"", f"{code} Elsewhere", Location=place)), f"http_{last}")


# -- the reply ----------------------------------------------------------------------------------------------------------------

ODD: list[Any] = [[], {}, [1], {"a": 1}, 7, 7.5, True, False]


def shape_fault(rng: random.Random) -> Fault:
    """A part of a sound reply is replaced by something of another kind."""
    whole, _ = sound(rng)
    choice, odd = whole["choices"][0], [x for x in ODD if x is not False]
    kind, outcome = "", "malformed"

    def put(place: dict[str, Any], key: str, values: list[Any]) -> None:
        place[key] = rng.choice(values)

    no_list = [x for x in ODD if not isinstance(x, list)] + ["x"]
    no_map = [x for x in ODD if not isinstance(x, dict)] + ["x"]
    entry = choice["logprobs"]["content"][0]
    places: list[tuple[str, dict[str, Any], str, list[Any]]] = [
        ("choices", whole, "choices", [[], None, "x", {}, 0, [None], ["x"], [[]], [{}], [7]]),
        ("message", choice, "message", [*no_map, None]),
        ("content", choice["message"], "content", ODD),
        ("refusal", choice["message"], "refusal", [x for x in odd if not isinstance(x, str)]),
        ("finish_reason", choice, "finish_reason", [*ODD, "x" * 500]),
        ("logprobs", choice, "logprobs", no_map),
        ("logprobs.content", choice["logprobs"], "content", [x for x in no_list if x != []]),
        ("position", choice["logprobs"], "content", [[None], ["x"], [[]], [{}], [7]]),
        ("token", entry, "token", [*ODD, None]),
        ("logprob", entry, "logprob", [[], {}, "x", "-0.1", True, None]),
        ("top_logprobs", entry, "top_logprobs", [x for x in no_list if x != []]),
        ("alternative", entry, "top_logprobs", [[None], ["x"], [{}], [{"token": "7"}], [{"token": "7", "logprob": "x"}]]),
        ("usage", whole, "usage", [x for x in no_map if x != {}]),
        ("count", whole["usage"], "prompt_tokens", [[], {}, "x", "7", True, -1, 10**10, 1e300, 10**400]),
        ("model", whole, "model", [*ODD, "x" * 5000]),
        ("fingerprint", whole, "system_fingerprint", [*ODD, "x" * 5000]),
    ]
    kind, place, key, values = rng.choice(places)
    put(place, key, values)
    return Fault(f"shape: {kind}", sends(http(json.dumps(whole).encode())), outcome)


def harmless_fault(rng: random.Random) -> Fault:
    """What is not read may be anything, and what is only recorded may be strange: the score stands."""
    whole, score = sound(rng)
    choice = whole["choices"][0]
    top = choice["logprobs"]["content"][0]["top_logprobs"]
    strange = rng.choice(["\ud800", "\udfff\udfff", "\x00\x1b[31m", "‮", KEY, quote(KEY, safe=""), "a\nb", "𝟟", ""])
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("unread", lambda: whole.update(created=rng.choice([10**400, -1, None, [[]], {"a": {}}, 1e308, KEY]))),
        ("model", lambda: whole.update(model=strange)),
        ("no model", lambda: whole.pop("model")),
        ("fingerprint", lambda: whole.update(system_fingerprint=strange)),
        ("no usage", lambda: whole.update(usage=rng.choice([None, {}]))),
        ("no counts", lambda: whole.update(usage={"prompt_tokens": None})),
        ("more choices", lambda: whole["choices"].append(rng.choice([None, {}, choice]))),
        ("finish reason", lambda: choice.update(finish_reason=rng.choice([None, strange]))),
        ("end token", lambda: choice["logprobs"]["content"].append({"token": END, "logprob": 0.0, "top_logprobs": []})),
        (
            "alternative",
            lambda: top.append({"token": strange or "x", "logprob": -900}),
        ),
        ("never", lambda: top.append({"token": "x", "logprob": -math.inf})),
        ("refusal", lambda: choice["message"].update(refusal=rng.choice([None, ""]))),
    ]
    kind, change = rng.choice(cases)
    change()
    text = json.dumps(whole)
    body = rng.choice([text.encode(), text.encode("utf-8-sig"), text.encode("utf-16"), text.encode("utf-32")])
    return Fault(f"harmless: {kind}", sends(http(body)), score)


def text_fault(rng: random.Random) -> Fault:
    """Bodies that are no JSON, or one that says two things."""
    whole, _ = sound(rng)
    text = json.dumps(whole)
    depth = rng.choice([1000, 50_000, 400_000])
    digits = "9" * rng.choice([5000, 50_000])
    endless = rng.choice(["Infinity", "NaN", "1e999"])

    def created(value: str) -> bytes:
        return text.replace('"created": 0', f'"created": {value}').encode()

    def counted(value: str) -> bytes:
        return text.replace('"prompt_tokens": 100', f'"prompt_tokens": {value}').encode()

    bodies = [
        ("no JSON", b"<html>busy</html>"),
        ("scalar", rng.choice([b"73", b'"73"', b"null", b"true", b"[]", b"{}", b"[73]", b"NaN"])),
        ("deep", b"[" * depth),
        ("deep in place", created("[" * 50_000 + "]" * 50_000)),
        ("long number", created(digits)),
        ("infinite count", counted(endless)),
        ("long count", counted("9" * 400)),
        ("twice", text.replace('"choices"', '"choices": [], "choices"').encode()),
        ("content twice", text.replace('"content": "', f'"content": "{rng.randint(0, 100)}", "content": "', 1).encode()),
        ("two values", text.encode() * 2),
        ("cut", text[: rng.randrange(1, len(text) - 1)].encode()),
        ("latin-1", text.replace("judge-1.5", "jüdge").encode("latin-1")),
        ("NUL", text.encode() + b"\0"),
        ("noise", rng.randbytes(300)),
        ("stream", b"data: " + text.encode() + b"\n\ndata: [DONE]\n\n"),
    ]
    kind, body = rng.choice(bodies)
    return Fault(f"text: {kind}", sends(http(body)), "malformed")


def number_fault(rng: random.Random) -> Fault:
    """Replies that are chat completions, and no score."""
    whole, _ = sound(rng)
    choice = whole["choices"][0]
    message, entry = choice["message"], choice["logprobs"]["content"][0]
    written = int(message["content"])
    other = str(rng.choice([n for n in range(101) if n != written]))

    def says(text: str) -> Callable[[], None]:
        return lambda: message.update(content=text)

    def reports(value: Any) -> Callable[[], None]:
        return lambda: rng.choice([entry, entry["top_logprobs"][0]]).update(logprob=value)

    def tokens(*texts: str) -> Callable[[], None]:
        found = [{"token": t, "logprob": -0.01, "top_logprobs": [{"token": t, "logprob": -0.01}]} for t in texts]
        return lambda: choice["logprobs"].update(content=found)

    def alternatives(*found: tuple[str, float]) -> list[dict[str, Any]]:
        return [{"token": token, "logprob": logprob} for token, logprob in found]

    top, nothing = entry["top_logprobs"], rng.choice([None, {}, {"content": None}, {"content": []}])
    twins = [{"token": other, "logprob": math.log(0.2)}] * 5
    cases: list[tuple[str, Callable[[], Any], float | str]] = [
        ("text", says(rng.choice(["fine", "seventy", "-5", "7.5", "73/100", "٧٣", "9" * 4000, "1e1", "0x10"])), "not_a_number"),
        ("surrogate", says(rng.choice(["\ud800", "7\udc00", "\ud8003"])), "not_a_number"),
        ("key", says(rng.choice([KEY, f"7 {KEY}", quote(KEY, safe="")])), "not_a_number"),
        ("empty", says(rng.choice(["", " ", "\n", '"."'])), "empty"),
        ("no content", lambda: message.update(content=None), "empty"),
        ("out of range", says(str(rng.randint(101, 999))), "out_of_range"),
        ("cut off", lambda: choice.update(finish_reason="length"), "cut_off"),
        ("filtered", lambda: choice.update(finish_reason="content_filter"), "content_filter"),
        ("refused", lambda: message.update(refusal=rng.choice(["no", KEY])), "judge_refused"),
        ("another text", says(other), "bad_logprobs"),
        ("another token", tokens(other), "bad_logprobs"),
        ("more tokens", tokens(str(written), other), "bad_logprobs"),
        ("words after", tokens(str(written), " of 100"), "bad_logprobs"),
        ("words before", tokens("about ", str(written)), "bad_logprobs"),
        ("key in tokens", tokens(KEY[:9], KEY[9:20], KEY[20:]), "bad_logprobs"),
        ("key as token", tokens(KEY), "bad_logprobs"),
        ("many tokens", tokens(*[str(written)] * 3000), "bad_logprobs"),
        ("not finite", reports(rng.choice([math.nan, math.inf])), "bad_logprobs"),
        ("above nought", reports(rng.choice([0.7, 10**400, 1e300])), "bad_logprobs"),
        ("too much", lambda: top.extend(alternatives(("a", -0.5), ("b", -0.5), ("c", -0.5))), "bad_logprobs"),
        ("twins", lambda: top.extend([*twins, *twins]), "bad_logprobs"),
        ("impossible", lambda: entry.update(logprob=-math.inf, top_logprobs=alternatives(("x", -1))), "low_numeric_mass"),
        ("words likelier", lambda: entry.update(logprob=-3.0, top_logprobs=alternatives(("The", -0.1))), "low_numeric_mass"),
        ("no logprobs", lambda: choice.update(logprobs=nothing), float(written)),
        ("no alternatives", lambda: entry.update(top_logprobs=rng.choice([None, []])), float(written)),
        ("no alternatives, another", lambda: (entry.update(top_logprobs=[]), message.update(content=other)), "bad_logprobs"),
    ]  # fmt: skip
    kind, change, outcome = rng.choice(cases)
    change()
    return Fault(f"reply: {kind}", sends(http(json.dumps(whole).encode())), outcome)


MAKERS = (line_fault, encoding_fault, status_fault, redirect_fault, shape_fault, harmless_fault, text_fault, number_fault)


def faults(n: int, seed: int) -> list[Fault]:
    """`n` faults, as many of every maker; of those that another attempt may mend, every third is mended by it."""
    rng = random.Random(seed)
    found = []
    for number in range(n):
        fault = MAKERS[number % len(MAKERS)](rng)
        if fault.retried and number % 3 == 0:
            fault = Fault(fault.kind, fault.write, fault.outcome, True, passes=True, score_after=float(number % 101))
        found.append(fault)
    return found
