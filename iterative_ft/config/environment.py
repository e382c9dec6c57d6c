"""What the environment holds for a judge's endpoint: a key that can be sent, proxies and certificates that can be used.

No message repeats a key, or a proxy's password.
"""

from __future__ import annotations

import os
import re
from functools import cache
from typing import Any
from urllib.parse import unquote

from iterative_ft.config.judges import ApiConfig
from iterative_ft.errors import ConfigError

ORGANIZATION = {"OPENAI_ORG_ID": "OpenAI-Organization", "OPENAI_PROJECT_ID": "OpenAI-Project"}  # as OpenAI's own client
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
LONGEST_KEY = 8000  # servers take no longer header
SECRET_FROM = 4  # shorter keys are the "x" or "1" that a local server wants to see: no secret, and found in any text
PLACED_FROM = 8  # a key from this length on is looked for among the settings, where "judge" might be one by chance


def header_fault(value: str) -> str | None:
    """What keeps a text from being sent in a header, without repeating any of it; None where nothing does."""
    if len(value) > LONGEST_KEY:
        return f"is {len(value)} characters long, and {LONGEST_KEY} is the most that servers take: set it again"
    for place, character in enumerate(value, 1):
        if not "!" <= character <= "~":
            if character in "\r\n":
                what = "a line break"
            elif character.isspace():
                what = "a space"
            else:
                what = "a control character" if character.isascii() else "a character outside ASCII"
            return f"holds {what} (character {place} of {len(value)}): set it again without"
    return None


def check_endpoint(judge: ApiConfig) -> None:
    """Raise `ConfigError` where the environment does not let `judge` be asked: its key, its proxies, its certificates."""
    key = os.environ.get(judge.api_key_env, "")
    if not key and not judge.is_loopback:
        raise ConfigError(
            f"judge=api needs a key and judge.api_key_env={judge.api_key_env} is not set: export {judge.api_key_env}=<key>, "
            "or name a server on this machine (judge.base_url=http://127.0.0.1:8000/v1)"
        )
    for name in (judge.api_key_env, *ORGANIZATION):
        fault = header_fault(os.environ.get(name, ""))
        if fault is not None:
            raise ConfigError(f"the value of the environment variable {name} {fault}")
    if len(key) >= PLACED_FROM:
        for name, value in judge.model_dump().items():
            if any(key in text or key in unquote(text) for text in texts_of(value)):
                raise ConfigError(
                    f"judge.{name} holds the key that {judge.api_key_env} holds, and settings are recorded: take it out"
                )
    settings = tuple((name, os.environ.get(name)) for upper in PROXIES for name in (upper, upper.lower()))
    fault = connection_fault(judge.base_url, judge.is_loopback, settings)
    if fault is not None:
        raise ConfigError(fault)


def texts_of(value: Any) -> list[str]:
    """All texts in a setting, names of open fields included."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts_of(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []


@cache
def connection_fault(url: str, loopback: bool, settings: tuple[tuple[str, str | None], ...]) -> str | None:
    """What keeps a connection from being made ready under these environment variables, by making one ready; None: nothing."""
    import httpx2

    try:
        with httpx2.Client(trust_env=not loopback) as client:
            client.build_request("POST", f"{url.rstrip('/')}/chat/completions")
    except Exception as error:  # of many kinds: a missing package, a wrong address, a certificate file that is none
        said = re.sub(r"//[^/\s@]*@", "//***@", " ".join(str(error).split()))[:200]
        given = ", ".join(name for name, value in settings if value)
        if loopback or not given:
            return f"judge.base_url cannot be asked ({said}): write http(s)://host/v1"
        return (
            f"judge.base_url cannot be asked under the environment's {given} ({said}): mend or unset what is wrong among them "
            "(a SOCKS proxy needs the package socksio)"
        )
    return None
