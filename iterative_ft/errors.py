"""The two errors that a user can mend, each shown as a single line: a wrong setting, and work that failed."""


class ConfigError(Exception):
    """A setting is wrong; the message names the setting, its value and the fix."""


class RunError(Exception):
    """Work failed after the config was valid; the message says what was kept and how to go on."""


def first_line(error: BaseException, n: int = 160) -> str:
    """A library's complaint, cut to what fits a line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= n else f"{text[: n - 3]}..."
