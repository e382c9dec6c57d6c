"""Stage `model`: the base model's checkpoint."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError
from iterative_ft.machine.files import write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models import base
from iterative_ft.models.policy import Policy
from iterative_ft.store import Kind, Purpose, Stage, Store

MODEL = Kind("model", 1)


def model_stage(config: Config, store: Store, label: str = "", purpose: Purpose | None = None) -> Stage:
    """The checkpoint, or where it lies; that of the run's base model unless label and purpose say otherwise."""
    model = config.model
    label, purpose = label or f"base model {model.name}", purpose or {"policy": "base", "role": "checkpoint"}
    if config.fake:
        inputs: dict[str, Any] = {"fake": model.path}

        def build_fake(out: Path) -> None:
            write_jsonl(out / "model.jsonl", [{"fake": True}])

        return store.stage(MODEL, inputs, build_fake, "base model", purpose)
    inputs = base.identity(model) | {"versions": library_versions("transformers", "gguf")}

    def build(out: Path) -> dict[str, Any]:
        return base.prepare(model, out)

    return store.stage(MODEL, inputs, build, label, purpose)


def base_of(config: Config, stage: Stage, dry_run: bool) -> Policy:
    """The untouched model, its files where this machine has them. A dry run does not hold them against their record, nor
    download them.
    """
    if stage.pending or config.fake:
        return Policy("base", stage.path, stage.digest)
    model = config.model
    if dry_run:
        here = Path(stage.info.get("folder", stage.path))
        if not here.is_dir():  # prepared on another machine: this one may have the files too
            path, code = model.path, model.trust_remote_code
            with suppress(ConfigError):
                here = base.local_folder(path) or base.snapshot(path, stage.info["revision"], base.SMALL, code, local_only=True)
    else:
        here = base.location(model.path, stage.path, stage.info, model.trust_remote_code, model.setting)
    return Policy("base", here, stage.digest)
