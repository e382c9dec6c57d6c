"""Columns of datasets that the library `datasets` reads: folders that it saved, and ids on the Hugging Face hub.

It is imported here alone, and only once such a source is named. What can be known without it is said without it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iterative_ft.data import read
from iterative_ft.data.read import shortened
from iterative_ft.errors import ConfigError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
CONNECT_S = 5.0  # for the hub to say whether it has a dataset


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return any(read.kind_of(folder / name) == "file" for name in ("dataset_dict.json", "state.json"))


def saved_column(folder: Path, column: str, split: str) -> Iterator[tuple[str, Any]]:
    """Place and cell of each row of a folder that `save_to_disk` wrote; of several splits, the one that is named."""
    return cells(str(folder), saved(folder, split), column)


def saved_rows(folder: Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and whole row of such a folder."""
    for number, row in enumerate(saved(folder, split), 1):
        yield f"{folder}, row {number},", row


def saved(folder: Path, split: str) -> Any:
    """The dataset of a split."""
    datasets = library()
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library's own, and those of what it reads with
        raise ConfigError(f"{folder} is no sound dataset folder ({first_line(error)}): save it anew") from error
    if isinstance(found, dict):
        if split not in found:
            raise ConfigError(f"{folder} has no split {shortened(split)}: it has {', '.join(found)}")
        found = found[split]
    return found


def hub_column(path: str, column: str, split: str, revision: str | None) -> Iterator[tuple[str, Any]]:
    """Place and cell of each row of a dataset on the hub."""
    if HUB_ID.fullmatch(path) is None:
        raise ConfigError(f"{shortened(path)} is no file or folder here, and no id of a dataset, such as org/name: mend it")
    ask_hub(path, revision)
    datasets = library()
    try:
        found = datasets.load_dataset(path, split=split, revision=revision)
    except Exception as error:
        raise ConfigError(
            f"the dataset {path} cannot be loaded, split {shortened(split)}, revision {shortened(revision)} "
            f"({first_line(error)}): mend its name, or name a local file"
        ) from error
    return cells(path, found, column)


def cells(name: str, dataset: Any, column: str) -> Iterator[tuple[str, Any]]:
    """The rows of one column."""
    if column not in dataset.column_names:
        raise ConfigError(f"{name} has no column {shortened(column)!r}: its columns are {', '.join(dataset.column_names)}")
    for number, cell in enumerate(dataset[column], 1):
        yield f"{name}, row {number},", cell


def library() -> Any:
    """`datasets`, quiet."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    return datasets


def ask_hub(path: str, revision: str | None) -> None:
    """Stop at an id that the hub does not know, and offline at one that was never fetched; nothing is downloaded."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    why = "this machine is told to stay offline (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE and os.environ.get("HF_DATASETS_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        try:
            HfApi().dataset_info(path, revision=revision, timeout=CONNECT_S)
            return
        except RevisionNotFoundError as error:
            raise ConfigError(f"the dataset {path} has no revision {shortened(revision)}: name a commit of it") from error
        except RepositoryNotFoundError as error:
            raise ConfigError(
                f"the hub shows no dataset {path} to you: mend the id, or log in with `hf auth login` if it is a private one"
            ) from error
        except Exception as error:  # no network, or one that fails: what was fetched before will do
            why = f"the hub cannot be asked ({first_line(error, 60)})"
    if not fetched(path, Path(constants.HF_HUB_CACHE), Path(constants.HF_HOME)):
        raise ConfigError(
            f"{path} is no file or folder here, was never fetched as a dataset, and {why}: mend it, or name a local file"
        )


def fetched(path: str, hub_cache: Path, home: Path) -> bool:
    """Whether the caches hold anything of a dataset."""

    def folded(name: str) -> str:  # `datasets` writes names in snake case
        return re.sub("[^a-z0-9]", "", name.lower())

    prepared = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    try:
        names = [entry.name for entry in prepared.iterdir()]
    except OSError:
        names = []
    return (hub_cache / f"datasets--{path.replace('/', '--')}").is_dir() or folded(path) in map(folded, names)
