"""Runs of the loop on fakes in forked processes, undisturbed or on a faulty disk, and what is compared of them."""

from __future__ import annotations

import json
import os
import traceback
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from conftest import PIXEL, SMALL, composed
from faulty_disk import Disk

from iterative_ft import loop
from iterative_ft.config.schema import Config
from iterative_ft.errors import RunError
from iterative_ft.launch.compose import load_config
from iterative_ft.machine.files import read_jsonl
from iterative_ft.records import run_log
from iterative_ft.report import page, pictures
from iterative_ft.stats.intervals import over_questions

TOLD, BROKEN = 3, 4  # exit codes: ended with its one line, ended with anything else


@cache
def prepared(*overrides: str) -> Config:
    """The config of a small run. Asked for before the fork, it and what a run imports late need not be had in each process."""
    over_questions([0.0, 1.0], ["a", "b"])  # imports scipy
    return load_config(composed([*SMALL, "wandb.mode=disabled", *overrides]))


def run_small(base: Path, overrides: list[str], disk: Disk | None = None, folder: str = "run") -> None:
    """Run in <base>/<folder> with the store <base>/store. Patches modules: for a forked process."""
    pictures.draw = lambda runs, file: file.write_bytes(PIXEL)  # type: ignore[assignment]
    loop.write_page = page.write_page  # a test that forks may have patched it out
    run_log.code_state = lambda folder: {}
    config = prepared(*overrides).model_copy(update={"store": str(base / "store")})
    planned = loop.plan(config)
    loop.plan = lambda config: planned  # type: ignore[assignment]
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        if disk is not None:
            disk.install()
        try:
            loop.run(config, base / folder, "python train.py")
        except RunError as error:
            os._exit(TOLD if "\n" not in str(error) and "kept" in str(error) else BROKEN)
        except BaseException:
            traceback.print_exc()
            os._exit(BROKEN)


def counted(base: Path, overrides: list[str]) -> None:
    """Run, and leave the names of all calls in <base>/calls."""
    disk = Disk(base)
    run_small(base, overrides, disk)
    calls = list(disk.calls)
    (base / "calls").write_text("\n".join(calls))


def disturbed(base: Path, overrides: list[str], at: int, how: str) -> None:
    run_small(base, overrides, Disk(base, at, how))


def outcome(base: Path, folder: str = "run") -> dict[str, Any]:
    """What must not depend on how often a run was disturbed: digests of stages, rows without times, answers, verdict."""
    rows = read_jsonl(base / folder / "metrics.jsonl")
    return {
        "stages": {name: manifest["digest"] for name, manifest in manifests(base).items()},
        "rows": [row for row in rows if not any(name.startswith("time/") for name in row)],
        "answers": (base / folder / "answers.jsonl").read_text(),
        "verdict": json.loads((base / folder / "result.json").read_text())["verdict"],
        "left": sorted(
            str(p.relative_to(base)) for p in base.rglob("*") if p.name.startswith(".writing-") or p.parent.name == ".work"
        ),
    }


def manifests(base: Path) -> dict[str, dict[str, Any]]:
    return {f"{p.parts[-3]}/{p.parts[-2]}": json.loads(p.read_text()) for p in (base / "store").glob("[!.]*/*/manifest.json")}


def finished(base: Path) -> dict[str, tuple[bytes, int]]:
    """Every file of every finished stage, with its time of change."""
    return {
        str(file): (file.read_bytes(), file.stat().st_mtime_ns)
        for manifest in (base / "store").glob("[!.]*/*/manifest.json")
        for file in manifest.parent.rglob("*")
        if file.is_file()
    }
