"""The two errors that a user can mend, each shown as a single line: a wrong setting, and work that failed. Texts for a line."""


class ConfigError(Exception):
    """A setting is wrong; the message names the setting, its value and the fix."""


class RunError(Exception):
    """Work failed after the config was valid; the message says what was kept and how to go on."""


def first_line(error: BaseException, n: int = 160) -> str:
    """A library's complaint, cut to what fits a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= n else f"{text[: n - 3]}..."


def printable(text: str) -> str:
    """A text of unknown origin as a terminal may show it: on one line, without letters that move the cursor."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
