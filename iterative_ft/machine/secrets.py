"""Keys and tokens of the environment, kept out of everything that is written or shown."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
WRITTEN = re.compile(r"(?i)\bBearer\s+[^\s'\"]+|\bsk-[A-Za-z0-9_-]{8,}")
SHORTEST = 8  # letters: shorter values of such variables are words like "1" and "true"


def without_secrets(text: str) -> str:
    """`text` with the values of variables that hold keys, and whatever looks like a key, replaced by a name for them."""
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):
        if NAMES.search(name) and len(value.strip()) >= SHORTEST:
            for shown in {value, value.strip(), repr(value)[1:-1]}:
                text = text.replace(shown, f"<{name}>")
    return WRITTEN.sub("<key>", text)
