"""What Weights & Biases takes: names, and a login for online runs. Looked up without importing wandb, which takes a second."""

from __future__ import annotations

import configparser
import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from iterative_ft.errors import ConfigError

MOST_NAME, MOST_TAG = 128, 64  # letters
IN_NO_PROJECT = "/\\#?%:"
HOME = "https://api.wandb.ai"


def project(name: str) -> str:
    """A project's name, or a ValueError."""
    wrong = [letter for letter in IN_NO_PROJECT if letter in name]
    if wrong:
        raise ValueError(
            f"wandb.project={name} holds {' '.join(wrong)}, which W&B refuses: leave that out (a team: wandb.entity)"
        )
    return between("wandb.project", name, MOST_NAME)


def entity(name: str) -> str:
    """A team's or user's name, or a ValueError."""
    wrong = [letter for letter in IN_NO_PROJECT if letter in name]
    if wrong:
        raise ValueError(f"wandb.entity={name} holds {' '.join(wrong)}: name the team or user alone")
    return between("wandb.entity", name, MOST_NAME)


def group(name: str) -> str:
    """A group's name, or a ValueError."""
    return between("wandb.group", name, MOST_TAG)


def tag(text: str) -> str:
    """A tag, or a ValueError."""
    return between("wandb.tags", text, MOST_TAG)


def between(key: str, text: str, most: int) -> str:
    if not text.strip():
        raise ValueError(f"{key} has an empty name: write one of 1 to {most} letters, or leave it out")
    if len(text) > most:
        raise ValueError(f"{key}={text[:40]}... has {len(text)} letters, W&B takes {most}: shorten it")
    return text


def cut(text: str, most: int) -> str:
    """A name that was put together, as long as W&B takes it; its end says which of two long ones it is."""
    return text if len(text) <= most else f"{text[: most - 17]}~{text[-16:]}"


def check_login(mode: str, key: str = "wandb.mode") -> None:
    """Raise `ConfigError` where a run is to be online and nobody is logged in."""
    if mode == "online" and not logged_in():
        raise ConfigError(
            f"{key}=online needs a login and none was found for {server()}: run wandb login, or export WANDB_API_KEY=<key>, or "
            f"give {key}=offline and upload later with wandb sync"
        )


def logged_in() -> bool:
    """Whether wandb would find a key: in the environment, or in the file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = [Path(p).expanduser() for p in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc") if p]
    for file in files:
        try:
            entry = netrc.netrc(str(file)).hosts.get(urlsplit(server()).netloc)
        except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
            continue
        if entry is not None and entry[2]:
            return True
    return False


def server() -> str:
    """The W&B server's address: the environment's, else that of `wandb login --host`, else W&B's own."""
    if os.environ.get("WANDB_BASE_URL"):
        return os.environ["WANDB_BASE_URL"]
    config = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    for file in (Path(os.environ.get("WANDB_DIR", "."), "wandb", "settings"), config / "settings"):
        settings = configparser.ConfigParser()
        try:
            settings.read(file, encoding="utf-8")
            return settings["default"]["base_url"]
        except (KeyError, configparser.Error, OSError, UnicodeDecodeError):
            continue
    return HOME
