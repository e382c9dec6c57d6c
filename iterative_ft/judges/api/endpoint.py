"""One OpenAI-compatible endpoint: ask it, and get a reply or the name of what went wrong. Never a made-up answer.

Waiting, retrying and giving up happen here; what a reply means is decided in numbers.py and replies.py.
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from iterative_ft.config.schema import ApiConfig
from iterative_ft.errors import RunError

MAX_BODY_BYTES = 1_000_000  # a reply of a few tokens with their alternatives has some 10 kB
RETRIED = (408, 409, 429)  # and every 5xx
FATAL = {
    401: "the key is not accepted: check the variable that judge.api_key_env names",
    403: "the key may not use this model: check judge.model and the key's rights",
    404: "there is no such model or path: check judge.model and judge.base_url",
}


class Unanswered(Exception):
    """A call that brought no reply; its text is the failure's name."""

    def __init__(self, name: str, retry: bool, wait_s: float | None = None, detail: str = "") -> None:
        super().__init__(name)
        self.retry, self.wait_s, self.detail = retry, wait_s, detail


@dataclass(frozen=True)
class Reply:
    """What the endpoint said to one request, as it said it, or why it said nothing."""

    failure: str | None
    n_attempts: int
    text: str = ""
    finish_reason: str | None = None
    tokens: list[dict[str, Any]] | None = None
    """Positions as `numbers.walk` reads them; None where the endpoint gave no log-probabilities."""
    model: str | None = None
    system_fingerprint: str | None = None
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    detail: str = ""
    """What the endpoint said about a failure, for the person who has to mend it; not recorded."""


def address(config: ApiConfig) -> str:
    """How records name the endpoint: its host and path, or the name that the config gives it."""
    parts = urlsplit(config.base_url)
    return config.endpoint_name or f"{parts.netloc}{parts.path.rstrip('/')}"


class Endpoint:
    """Asks one endpoint; safe to share between threads. `stop` ends every wait."""

    def __init__(self, config: ApiConfig) -> None:
        import openai

        self.config = config
        self.stop = threading.Event()
        self.key = os.environ.get(config.api_key_env, "")
        # A proxy set for the outside world must not stand between us and a server on this machine.
        http = openai.DefaultHttpxClient(trust_env=False) if config.is_loopback else None
        self.client = openai.OpenAI(
            base_url=config.base_url, api_key=self.key or "none", max_retries=0, timeout=config.timeout_s, http_client=http
        )

    def close(self) -> None:
        self.stop.set()
        self.client.close()

    def ask(self, messages: list[dict[str, str]], started: str = "") -> Reply:
        """Ask once, and again after waits while that may help.

        Args:
            started: digits with which the judge's reply begins; the endpoint has to go on from there.
        Raises:
            RunError: the endpoint will refuse every call alike (401, 403, 404).
        """
        if started:
            messages = [*messages, {"role": "assistant", "content": started}]
        attempt = 0
        while not self.stop.is_set():
            attempt += 1
            try:
                return self.once(messages, bool(started), attempt)
            except Unanswered as error:
                waited = self.wait_s(attempt, error.wait_s)
                if not error.retry or attempt > self.config.n_retries or waited is None or self.stop.wait(waited):
                    return Reply(str(error), attempt, detail=error.detail)
        return Reply("stopped", attempt)

    def wait_s(self, attempt: int, asked: float | None) -> float | None:
        """Seconds until the next attempt: what the endpoint asks for, else doubling with jitter. None: longer than allowed."""
        jitter = random.uniform(0.5, 1.5)
        if asked is None:
            return min(self.config.max_wait_s, self.config.backoff_s * 2 ** (attempt - 1) * jitter)
        return asked + self.config.backoff_s * jitter / 10 if asked <= self.config.max_wait_s else None

    def once(self, messages: list[dict[str, str]], goes_on: bool, attempt: int) -> Reply:
        """One call. Raises `Unanswered`."""
        import httpx2
        import openai

        config = self.config
        fields: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_new_tokens}
        if config.top_logprobs > 0:
            fields |= {"logprobs": True, "top_logprobs": config.top_logprobs}
        extra = dict(config.extra_body)
        if goes_on:
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
        deadline = time.monotonic() + config.timeout_s
        body = bytearray()
        try:
            with self.client.chat.completions.with_streaming_response.create(
                model=config.model,
                messages=messages,  # type: ignore[arg-type]
                extra_body=extra,
                **fields,
            ) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        raise Unanswered("oversized", retry=False)
                    if time.monotonic() > deadline:
                        raise Unanswered("timeout", retry=True)
        except openai.APIStatusError as error:
            raise self.refused(error) from error
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise Unanswered("timeout", retry=True) from error
        except (openai.APIConnectionError, httpx2.TransportError) as error:
            raise Unanswered("connection", retry=True, detail=str(error.__cause__ or error)) from error
        return parse(bytes(body), attempt)

    def refused(self, error: Any) -> Unanswered:
        """What an HTTP error status means; those that every further call would get end the run."""
        status = error.status_code
        detail = " ".join(str(error.message).split())[:300]
        if self.key:
            detail = detail.replace(self.key, "***")
        if status in FATAL:
            self.stop.set()
            raise RunError(
                f"the judge's endpoint {address(self.config)} answers {status} for judge.model={self.config.model}: "
                f"{FATAL[status]}; finished stages and replies are kept, the same command goes on from them"
            ) from error
        retry = status in RETRIED or status >= 500
        return Unanswered(f"http_{status}", retry, retry_after(error.response.headers), detail)


def retry_after(headers: Any) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number or a date. None where there is no such header."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def parse(body: bytes, attempt: int) -> Reply:
    """Read a chat completion. Raises `Unanswered` for anything that is none."""
    try:
        whole = json.loads(body)
        choice = whole["choices"][0]
        message = choice["message"]
        text = message.get("content") or ""
        content = (choice.get("logprobs") or {}).get("content")
        tokens = None if not content else [position(entry) for entry in content]
        usage = whole.get("usage") or {}
        counts = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        if not isinstance(text, str):
            raise TypeError("content is no text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise Unanswered("malformed", retry=False, detail=str(error)) from error
    return Reply(
        failure="judge_refused" if message.get("refusal") else None,
        n_attempts=attempt,
        text=text,
        finish_reason=choice.get("finish_reason"),
        tokens=tokens,
        model=whole.get("model"),
        system_fingerprint=whole.get("system_fingerprint"),
        n_prompt_tokens=counts[0],
        n_completion_tokens=counts[1],
    )


def position(entry: dict[str, Any]) -> dict[str, Any]:
    """One token of a reply with its alternatives, the most likely first."""
    return {
        "token": str(entry["token"]),
        "logprob": float(entry["logprob"]),
        "top": [[str(other["token"]), float(other["logprob"])] for other in entry.get("top_logprobs") or []],
    }
