"""One OpenAI-compatible endpoint: ask it, and get a reply or the name of what went wrong. Never a made-up answer.

Waiting, retrying and giving up happen here; how a call is kept within its limits in transport.py; what a reply means is decided
in completion.py, rubric/grades.py and rubric/numbers.py.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import random
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from iterative_ft.config.endpoint import SAME_MEANING
from iterative_ft.config.environment import ORGANIZATION, check_endpoint
from iterative_ft.config.judges import ApiConfig
from iterative_ft.errors import RunError
from iterative_ft.judges.api.completion import parse
from iterative_ft.judges.api.mask import masker, shown
from iterative_ft.judges.api.transport import Answer, Caller, Unanswered
from iterative_ft.judges.rubric.recorded import Reply

RETRIED = (408, 409, 429)  # and every 5xx
FATAL = {
    401: "the key is not accepted: check the variable that judge.api_key_env names",
    403: "the key may not use this model: check judge.model and the key's rights",
    404: "there is no such model or path: check judge.model and judge.base_url",
}


def address(config: ApiConfig) -> str:
    """How records name the endpoint: its host and path, or the name that the config gives it."""
    parts = urlsplit(config.base_url)
    return config.endpoint_name or f"{parts.netloc}{parts.path.rstrip('/')}"


def settings_of_request(config: ApiConfig, goes_on: bool) -> dict[str, Any]:
    """The fields of a request beside model and messages, before judge.fields renames them or leaves them out."""
    found: dict[str, Any] = {"temperature": config.temperature, "max_tokens": config.max_new_tokens}
    if config.top_logprobs > 0:
        found |= {"logprobs": True, "top_logprobs": config.top_logprobs}
    if goes_on:
        found |= {"continue_final_message": True, "add_generation_prompt": False}
    return found


def altered_fields(config: ApiConfig) -> dict[str, str | None]:
    """What judge.fields changes in what is said: all of it but other names for the same thing, and fields that are not sent."""
    sent = settings_of_request(config, config.follow_digits)
    return {
        name: other
        for name, other in sorted((config.fields or {}).items())
        if name in sent and other not in SAME_MEANING.get(name, (name,))
    }


class Endpoint:
    """Asks one endpoint; safe to share between threads. `stop` ends every wait, `abort` also the calls under way."""

    def __init__(self, config: ApiConfig) -> None:
        check_endpoint(config)  # again: this may be another process than the one that judged the config
        self.config = config
        self.stop = threading.Event()
        key = os.environ.get(config.api_key_env, "")
        self.mask = masker(key)
        self.url = f"{config.base_url.rstrip('/')}/chat/completions"
        self.headers = {"Authorization": f"Bearer {key or 'none'}"}
        self.headers |= {header: os.environ[name] for name, header in ORGANIZATION.items() if os.environ.get(name)}
        # A proxy set for the outside world must not stand between us and a server on this machine.
        self.caller = Caller(config.timeout_s, from_environment=not config.is_loopback)

    def abort(self) -> None:
        self.stop.set()
        self.caller.abort()

    close = abort

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
                    return Reply(str(error), attempt, detail=shown(error.detail, self.mask))
        return Reply("stopped", attempt)

    def wait_s(self, attempt: int, asked: float | None) -> float | None:
        """Seconds until the next attempt: what the endpoint asks for, else doubling with jitter. None: longer than allowed."""
        jitter = random.uniform(0.5, 1.5)
        if asked is None:
            return min(self.config.max_wait_s, self.config.backoff_s * 2 ** (attempt - 1) * jitter)
        return asked + self.config.backoff_s * jitter / 10 if asked <= self.config.max_wait_s else None

    def once(self, messages: list[dict[str, str]], goes_on: bool, attempt: int) -> Reply:
        """One call. Raises `Unanswered`."""
        config = self.config
        request: dict[str, Any] = {"model": config.model, "messages": messages}
        names = config.fields or {}
        for name, value in settings_of_request(config, goes_on).items():
            other = names.get(name, name)
            if other is not None:
                request[other] = value
        request |= config.extra_body
        answer = self.caller.post(self.url, self.headers, json.dumps(request, allow_nan=False).encode())
        if not 200 <= answer.status < 300:
            raise self.refused(answer)
        return parse(answer.body, attempt, self.mask)

    def refused(self, answer: Answer) -> Unanswered:
        """What an HTTP error status means; those that every further call would get end the run."""
        status = answer.status
        if status in FATAL:
            self.stop.set()
            raise RunError(
                f"the judge's endpoint {address(self.config)} answers {status} for judge.model={self.config.model}: "
                f"{FATAL[status]}; finished stages and replies are kept, the same command goes on from them"
            )
        detail = said(answer.body)
        if 300 <= status < 400:
            detail = f"it redirects to {answer.headers.get('location', 'nowhere')}"
        retry = status in RETRIED or status >= 500
        return Unanswered(f"http_{status}", retry, retry_after(answer.headers), detail)


def said(body: bytes) -> str:
    """The message in the body of an error, or all of the body where it has none."""
    text = body.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
        found = error if isinstance(error, str) else error["message"]
        return found if isinstance(found, str) else text
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return text


def retry_after(headers: Any) -> float | None:
    """Seconds that a Retry-After header asks to wait: a number or a date. None where there is no such header."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            return None
    return None if math.isnan(seconds) else max(0.0, seconds)
