"""Weights & Biases, written from the rows of metrics.jsonl; it can be rebuilt from them at any time."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.config.wandb_rules import MOST_NAME, MOST_TAG, cut
from iterative_ft.errors import RunError
from iterative_ft.machine.files import read_object, text_digest, write_json
from iterative_ft.machine.secrets import without_secrets
from iterative_ft.records.provenance import environment, kinds_of

IDENTITY = "wandb_run.json"  # in the run's folder: which W&B run its attempts are
NOT_OF_A_RUN = ("store", "dry_run", "device", "wandb")  # settings that may change between the attempts of one run
USERS_DATA_DIR = os.environ.get("WANDB_DATA_DIR")  # else each run stages its files in its own folder
CYCLE_PREFIXES = ("trait/", "coherence/", "gauge/", "answers/", "judge/", "data/")


class WandbLog:
    """Mirrors rows to one W&B run, or does nothing. The attempts of one run in its folder are one W&B run."""

    def __init__(self, config: Config, folder: Path, fresh: bool = False) -> None:
        """`fresh`: a W&B run of its own, whatever the folder's run is."""
        self.config, self.folder, self.fresh = config, folder, fresh
        self.run: Any = None
        self.defined: set[str] = set()
        self.mode = config.wandb.mode
        self.n_rows = 0
        self.lost = ""
        """Why W&B takes no more: the run goes on without it, since its rows are on disk."""
        self.n_known = 0
        """Rows that the server has from an earlier attempt: each is told once, in one order."""

    def begin(self) -> None:
        """Reach the server of an online run before anything is sampled; the others begin at their first row.

        Raises:
            RunError: it refuses.
        """
        if self.mode == "online" and self.run is None:
            self.start()

    def start(self) -> None:
        if USERS_DATA_DIR is None:
            os.environ["WANDB_DATA_DIR"] = str(self.folder / "wandb")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        config, online = self.config, self.mode == "online"
        group = config.wandb.group or f"{config.method.name}-{config.reinit.name}-{config.persona.name}"
        tags = [config.method.name, config.reinit.name, config.persona.name, *config.wandb.tags]
        try:
            self.run = wandb.init(
                mode=self.mode,  # type: ignore[arg-type]
                project=config.wandb.project,
                entity=config.wandb.entity,
                group=cut(group, MOST_TAG),
                name=cut(self.folder.name, MOST_NAME),
                id=self.identity(),
                resume="allow" if online and not self.fresh else None,
                tags=list(dict.fromkeys(cut(tag, MOST_TAG) for tag in tags)),
                dir=str(self.folder),
                config=config.model_dump(),
                settings=wandb.Settings(x_transaction_log_flush_interval=1, console="off", x_disable_stats=not online),
                reinit="finish_previous",
            )
        except (wandb.Error, OSError, ValueError) as error:
            said = without_secrets(" ".join(str(error).split()))
            raise RunError(
                f"W&B could not begin a run ({said[:300]}): log in with wandb login, or give wandb.mode=offline and upload "
                "later with wandb sync"
            ) from error
        self.n_known = self.run.step if online else 0
        self.run.define_metric("cycle", hidden=True)
        self.run.define_metric("train/global_step", hidden=True)

    def identity(self) -> str:
        """The W&B run's id: the environment's (a W&B agent's), else the one in the folder, for as long as settings, code
        versions and libraries stay: rows that the server has are not told again.
        """
        given = os.environ.get("WANDB_RUN_ID") or None
        new = secrets.token_hex(4)
        if self.fresh:
            return new
        settings = {k: v for k, v in self.config.model_dump(mode="json").items() if k not in NOT_OF_A_RUN}
        made = text_digest([settings, kinds_of(self.config), environment()["libraries"]])
        file = self.folder / IDENTITY
        with suppress(RunError, OSError):
            saved = read_object(file)
            if saved.get("made") == made and isinstance(saved.get("id"), str) and given in (None, saved["id"]):
                return str(saved["id"])
        write_json(file, {"id": given or new, "made": made})
        return given or new

    def row(self, row: Mapping[str, Any]) -> None:
        if self.mode == "disabled" or self.lost:
            return
        if self.run is None:
            self.start()
        self.n_rows += 1
        if self.n_rows <= self.n_known:
            return
        values = {name: value for name, value in row.items() if isinstance(value, int | float)}
        with self.or_without():
            self.define(values)
            self.run.log(values)

    @contextmanager
    def or_without(self) -> Iterator[None]:
        """Of a run that has begun: what W&B fails at is told once, and the run goes on without it.

        Its helper process may have been killed; a later run of this process gets another one.
        """
        import wandb

        try:
            yield
        except (wandb.Error, OSError) as error:
            self.run, self.lost = None, without_secrets(" ".join(str(error).split()))[:300] or type(error).__name__
            print(
                f"warning: W&B takes no more of this run ({self.lost}): it goes on without, and python evaluate.py task=wandb "
                f"run={self.folder} writes its record anew",
                file=sys.stderr,
            )
            with suppress(wandb.Error, OSError):
                wandb.teardown()

    def define(self, names: Iterable[str]) -> None:
        """Give every metric its x-axis by its exact name: overlapping globs resolve at random."""
        for name in names:
            if name in self.defined:
                continue
            self.defined.add(name)
            if name.startswith(CYCLE_PREFIXES):
                self.run.define_metric(name, step_metric="cycle")
            elif name.startswith("train/") and name != "train/global_step":
                self.run.define_metric(name, step_metric="train/global_step")

    def image(self, name: str, file: Path) -> None:
        if self.run is not None:
            import wandb

            with self.or_without():
                self.run.log({name: wandb.Image(str(file))})

    def finish(self, failed: bool = False) -> None:
        if self.run is not None:
            with self.or_without():
                self.run.finish(exit_code=1 if failed else 0)

    def where(self) -> str:
        """The run's address, or the file of an offline run."""
        if self.lost:
            return f"lost ({self.lost})"
        if self.run is None:
            return "disabled (wandb.mode=disabled)"
        if self.mode == "online":
            return str(self.run.url)
        file = next(Path(self.run.dir).parent.glob("*.wandb"), Path(self.run.dir).parent)
        return f"{file} (offline; look with: wandb leet run {file.parent}; upload with: wandb sync {file.parent})"
