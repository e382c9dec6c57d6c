"""The two errors that a user can mend, each shown as a single line: a wrong setting, and work that failed."""


class ConfigError(Exception):
    """A setting is wrong; the message names the setting, its value and the fix."""


class RunError(Exception):
    """Work failed after the config was valid; the message says what was kept and how to go on."""
