"""Rules for the address of a judge's endpoint and for the fields of its requests.

No message repeats an address with credentials, or a key: either may have been put in the wrong place.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

# Fields of a request that settings of their own fill; judge.fields leaves them out or gives them another name.
SENT = ("temperature", "max_tokens", "logprobs", "top_logprobs", "continue_final_message", "add_generation_prompt")
RESERVED = ("model", "messages", "stream")  # what a reply is about, and that it comes in one piece
SAME_MEANING = {"max_tokens": ("max_tokens", "max_completion_tokens")}  # names that an endpoint takes for the same thing


def address_fault(url: str) -> str | None:
    """What is wrong with judge.base_url, or None."""
    if not url.isprintable() or not url.isascii() or " " in url or "\\" in url:
        return (
            "judge.base_url holds a space, a control character or one outside ASCII: write http(s)://host/v1 (a host's name in "
            "other letters in its xn-- form)"
        )
    if "@" in url or "?" in url or "#" in url:
        return "judge.base_url must hold no credentials and no query: put the key into the variable named by judge.api_key_env"
    shown = f"judge.base_url={url[:200]}"
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError as error:
        return f"{shown} is no address ({error}): write http(s)://host/v1"
    try:
        port = parts.port
    except ValueError:
        return f"{shown} has a wrong port: write a number from 1 to 65535"
    if parts.scheme not in ("http", "https") or not host:
        return f"{shown} is no address: write http(s)://host/v1"
    if port == 0 or parts.netloc.endswith(":"):
        return f"{shown} has a wrong port: write a number from 1 to 65535"
    if len(url) > 1000 or len(host) > 253 or any(not 0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
        return f"{shown} is no address, its host or path is too long or a part of it is empty: write http(s)://host/v1"
    return None


def is_loopback(url: str) -> bool:
    """Whether a sound address is one of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def variable_fault(name: str) -> str | None:
    """What is wrong with judge.api_key_env, or None. Many keys are all word characters, as names of variables are."""
    mixed = name.upper() != name and name.lower() != name
    like_a_key = len(name) >= 20 and (mixed or ("_" not in name and any(c.isdigit() for c in name)))
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None or like_a_key:
        return "judge.api_key_env must be the name of an environment variable, not a key: use OPENAI_API_KEY"
    return None


def name_fault(**names: str | None) -> str | None:
    """What is wrong with a name that goes into requests and records, or None."""
    bad = [setting for setting, name in names.items() if name is not None and not name.isprintable()]
    return f"judge.{bad[0]} holds a control character: write it without" if bad else None


def fields_fault(fields: Mapping[str, str | None], extra: Mapping[str, Any], top_logprobs: int, follow: bool) -> str | None:
    """What is wrong with judge.fields or judge.extra_body, or None."""
    for name in extra:
        if name in RESERVED:
            return f"judge.extra_body.{name} cannot be set: the judge fills it (the model is judge.model)"
    try:
        size = len(json.dumps(dict(extra), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:100]
        return f"judge.extra_body cannot be written as JSON ({said}): use texts, numbers, lists and maps"
    if size > 100_000:
        return f"judge.extra_body is {size} bytes of JSON: 100000 is the most"
    for name, other in fields.items():
        if name not in SENT:
            return (
                f"judge.fields.{name[:100]} is no field that can be renamed: these are {', '.join(SENT)}; add others "
                "with judge.extra_body"
            )
        if other is not None and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,99}", other) is None:
            return f"judge.fields.{name} must be the field's other name, or null to leave it out"
        if other in RESERVED:
            return f"judge.fields.{name}={other} is taken: give the field a name of its own, or null to leave it out"
    names = [other for other in (fields.get(name, name) for name in SENT) if other is not None]
    for other in fields.values():
        if other is not None and (names.count(other) > 1 or other in extra):
            return f"judge.fields gives the name {other} to two fields of the request: leave one out (null)"
    if top_logprobs > 0 and fields.get("logprobs", "") is None and fields.get("top_logprobs", "") is None:
        return "judge.fields leaves out logprobs and top_logprobs: set judge.top_logprobs=0 instead"
    if follow and fields.get("continue_final_message", "") is None:
        return "judge.follow_digits=true needs the field continue_final_message: judge.fields may rename it, not leave it out"
    return None
