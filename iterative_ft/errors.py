"""The one error a user can fix: raised by config checks and by stages, shown as a single line."""


class ConfigError(Exception):
    """A setting is wrong; the message names the setting, its value and the fix."""


class RunError(Exception):
    """Work failed after the config was valid; the message says what was kept and how to go on."""
