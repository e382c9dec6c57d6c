"""Weights & Biases, written from the rows of metrics.jsonl; it can be rebuilt from them at any time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config

CYCLE_PREFIXES = ("trait/", "coherence/", "gauge/", "answers/", "judge/", "data/")


class WandbLog:
    """Mirrors rows to one W&B run, or does nothing."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.run: Any = None
        self.defined: set[str] = set()
        self.mode = config.wandb.mode

    def start(self) -> None:
        """Begin the run at the first row, so that a run that fails before has none."""
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "wandb"))
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        config = self.config
        group = config.wandb.group or f"{config.method.name}-{config.reinit.name}-{config.persona.name}"
        self.run = wandb.init(
            mode=self.mode,  # type: ignore[arg-type]
            project=config.wandb.project,
            entity=config.wandb.entity,
            group=group,
            name=self.folder.name,
            tags=[config.method.name, config.reinit.name, config.persona.name, *config.wandb.tags],
            dir=str(self.folder),
            config=config.model_dump(),
            settings=wandb.Settings(x_transaction_log_flush_interval=1, console="off", x_disable_stats=True),
            reinit="finish_previous",
        )
        self.run.define_metric("cycle", hidden=True)
        self.run.define_metric("train/global_step", hidden=True)

    def row(self, row: Mapping[str, Any]) -> None:
        if self.mode == "disabled":
            return
        if self.run is None:
            self.start()
        values = {name: value for name, value in row.items() if isinstance(value, int | float)}
        self.define(values)
        self.run.log(values)

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

            self.run.log({name: wandb.Image(str(file))})

    def finish(self, failed: bool = False) -> None:
        if self.run is not None:
            self.run.finish(exit_code=1 if failed else 0)

    def where(self) -> str:
        """The run's address, or the file of an offline run."""
        if self.run is None:
            return "disabled (wandb.mode=disabled)"
        if self.mode == "online":
            return str(self.run.url)
        file = next(Path(self.run.dir).parent.glob("*.wandb"), Path(self.run.dir).parent)
        return f"{file} (offline; look with: wandb leet run {file.parent}; upload with: wandb sync {file.parent})"
