"""Thousands of judge faults against the real client over loopback. Not covered: TLS, proxies, name servers that hang."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from judge_faults import KEY, Fault, faults
from judge_server import Line, completion, http, serving_bytes, user

from iterative_ft.config.judges import ApiConfig
from iterative_ft.config.schema import Config
from iterative_ft.errors import RunError
from iterative_ft.judges.api.replies import REPLIES, ask_block
from iterative_ft.judges.api.transport import Caller
from iterative_ft.judges.rubric.grades import grade, score_rows
from iterative_ft.judges.rubric.prompts import coherence_rubric
from iterative_ft.machine.files import read_jsonl

TIMEOUT_S = 4.0
RUBRIC = coherence_rubric(100, documents=False)


class Campaign:
    """The endpoint of all faults: which one a request meets stands in its text."""

    def __init__(self, found: list[Fault]) -> None:
        self.faults, self.lock = found, threading.Lock()
        self.asked: Counter[int] = Counter()
        self.stops_at: int | None = None

    def __call__(self, line: Line, path: str, request: dict[str, Any]) -> None:
        if path != "/v1/chat/completions":
            line.send(http(b"", "307 Again", Location=path))
            return
        number = int(re.findall(r"Text (\d+)\.", user(request))[0])
        with self.lock:
            if number == self.stops_at:
                line.send(http(b'{"error": {"message": "no such key: ' + KEY.encode() + b'"}}', "401 No"))
                return
            self.asked[number] += 1
            attempt = self.asked[number]
        fault = self.faults[number]
        if fault.passes and attempt > 1:
            line.send(http(completion(str(int(fault.score_after)))))
        else:
            fault.write(line)

    def outcome(self, fault: Fault) -> float | str:
        return fault.score_after if fault.passes else fault.outcome


def campaign(
    n: int, seed: int, concurrency: int, out: Path, config: Config, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    seconds: list[float] = []
    post = Caller.post

    def timed(*arguments: Any) -> Any:
        started = time.monotonic()
        try:
            return post(*arguments)
        finally:
            seconds.append(time.monotonic() - started)

    monkeypatch.setattr(Caller, "post", timed)
    made = Campaign(faults(n, seed))
    answers = [(f"Question {i}?", f"Text {i}.") for i in range(n)]
    out, other = out / "a", out / "b"
    out.mkdir(parents=True)
    other.mkdir()
    with serving_bytes(made) as server:
        settings = {"base_url": server.url, "timeout_s": TIMEOUT_S, "n_retries": 1, "backoff_s": 0.01, "max_wait_s": 5.0}
        settings |= {"max_concurrency": concurrency, "max_failures_in_a_row": None}
        judge = config.judge.model_copy(update=settings)
        assert isinstance(judge, ApiConfig)
        made.stops_at = n // 2
        with pytest.raises(RunError, match="answers 401") as caught:
            ask_block(out, judge, RUBRIC, answers, [])
        said = [str(caught.value)]
        before = set(made.asked)
        made.asked.clear()
        with (out / "partial.jsonl").open("ab") as file:
            file.write(b'{"answer": 3, "replies": []}\n[]\n\xff\xfe\n' + b"[" * 10_000 + b'\n{"answer": 4, "repl')
        made.stops_at = None
        info = ask_block(out, judge, RUBRIC, answers, [])
        n_had = len(before - set(made.asked))
        down = judge.model_copy(update={"max_failures_in_a_row": 1})
        failing_one = next(answers[number] for number, fault in enumerate(made.faults) if failing(fault))
        with pytest.raises(RunError, match="in a row") as stopped:
            ask_block(other, down, RUBRIC, [failing_one], [])
        said.append(str(stopped.value))
    rows = read_jsonl(out / REPLIES)
    graded = [grade(row, RUBRIC, judge, whole=True) for row in rows]
    invented, wrong = 0, []
    for fault, row, found in zip(made.faults, rows, graded, strict=True):
        right = made.outcome(fault)
        got: float | str | None = found.failure if found.score is None else found.score
        same = got == right if isinstance(right, str) else isinstance(got, float | int) and abs(got - right) < 1e-9
        if not same:
            invented += found.score is not None
            wrong.append(f"{fault.kind}: {got} in place of {right}; {str(row['replies'][0])[:300]}")
    n_attempts = sum(1 + fault.retried for fault in made.faults)
    scored = sum(not isinstance(made.outcome(fault), str) for fault in made.faults)
    scores = score_rows(rows, rows, (RUBRIC, RUBRIC), judge, "v")
    named = Counter(f"coherence_{made.outcome(f)}" for f in made.faults if isinstance(made.outcome(f), str))
    texts = [*said, *capfd.readouterr(), *(path.read_text() for path in out.parent.rglob("*") if path.is_file())]
    n_keys = sum(KEY.lower() in text.lower() for text in texts)
    kinds = len({fault.kind for fault in made.faults})
    print(f"{n} faults of {kinds} kinds, {n_attempts} calls: {scored} scores, {n - scored} named failures")
    print(f"{invented} invented scores, {len(wrong)} wrong outcomes, {n_keys} texts with the key")
    print(f"longest call {max(seconds):.2f} s under a limit of {TIMEOUT_S:g} s")
    assert not wrong, "\n".join(wrong[:30])
    assert (invented, n_keys) == (0, 0)
    assert max(seconds) < TIMEOUT_S + 1
    assert info["n_attempts"] == n_attempts
    assert Counter(s["failure"] for s in scores if s["failure"] is not None) == named
    assert 0 < info["n_taken_over"] == n_had  # what was had is not asked about again, and all else is


def failing(fault: Fault) -> bool:
    return not fault.passes and isinstance(fault.outcome, str) and fault.outcome.startswith("http_5")


def test_a_few_judge_faults(tmp_path: Path, compose: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    config = compose(["judge=api", "judge.base_url=http://127.0.0.1:1/v1", "sampler=fake"])
    campaign(48, 1, 16, tmp_path / "out", config, monkeypatch, capfd)


@pytest.mark.long
def test_judge_faults(tmp_path: Path, compose: Any, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    config = compose(["judge=api", "judge.base_url=http://127.0.0.1:1/v1", "sampler=fake"])
    campaign(2800, 12, 32, tmp_path / "out", config, monkeypatch, capfd)
