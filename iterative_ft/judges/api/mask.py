"""Keep the endpoint's key out of everything that is shown or stored, however an endpoint writes it back."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

from iterative_ft.config.environment import SECRET_FROM

MASKED = "(key)"  # no number, no word of a rubric, and nothing that is stripped
SURROGATES = re.compile("[\ud800-\udfff]")
SHOWN = 300  # characters of what an endpoint said about a failure
LOOKED_AT = 20_000  # characters of it that are searched: a key written at its longest fits many times
NAMED = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;"}


def masker(key: str) -> Callable[[str], str]:
    """A function that writes `MASKED` in place of `key`: plain, percent-encoded, escaped as in JSON or HTML, or in base64."""
    if len(key) < SECRET_FROM:
        return lambda text: text
    plain = re.compile("".join(map(character, key)), re.IGNORECASE)
    coded = in_base64(key.encode())
    shortest = min(len(key), *map(len, coded)) if coded else len(key)

    def mask(text: str) -> str:
        if len(text) < shortest:
            return text
        text = plain.sub(MASKED, text)
        for form in coded:
            text = text.replace(form, MASKED)
        return text

    return mask


def character(one: str) -> str:
    """A pattern for one character of a key, in the ways in which texts hold it."""
    code = f"{ord(one):02x}"
    forms = [
        rf"\\{{0,3}}{re.escape(one)}",
        rf"%(?:25){{0,3}}{code}",
        rf"\\{{1,3}}u00{code}",
        rf"\\{{1,3}}x{code}",
        rf"&(?:amp;)?#(?:0{{0,4}}{ord(one)}|x0{{0,4}}{code});",
    ]
    if one in NAMED:
        forms.append(f"(?:&amp;)?{NAMED[one]}")
    return f"(?:{'|'.join(forms)})"


def in_base64(key: bytes) -> list[str]:
    """The parts of base64 text that `key` alone decides, wherever in a longer text it begins."""
    found = []
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * before + key).decode().rstrip("=")
            core = text[-(-before * 8 // 6) : len(text) - (1 if (before + len(key)) % 3 else 0)]
            if len(core) >= 8 and core not in found:
                found.append(core)
    return found


def readable(text: str) -> str:
    """`text` with a mark in place of each half of a surrogate pair, which no file can hold."""
    return SURROGATES.sub("\ufffd", text)


def shown(text: str, mask: Callable[[str], str]) -> str:
    """The beginning of what an endpoint said, for one line: without control characters, key and credentials in addresses."""
    spaced = " ".join(readable(text[:LOOKED_AT]).split())
    printable = "".join(c for c in spaced if c.isprintable())
    return re.sub(r"//[^/\s@]*@", "//***@", mask(printable))[:SHOWN]
