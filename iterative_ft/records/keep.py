"""Keep finished runs for good: their records without weights, pictures and stages, a folder a run.

python -m iterative_ft.records.keep FROM TO, where FROM holds run folders at any depth. What is kept is all that
`evaluate.py task=compare` reads. A run that is kept already is left as it is; one that differs from what is kept is an error.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from iterative_ft.config.tasks import run_folders
from iterative_ft.errors import RunError
from iterative_ft.records.folder import ERROR, PICTURE, RECORDS, RESULT
from iterative_ft.records.read import Run, read_run
from iterative_ft.stats.replicates import arm_digest

KEPT = tuple(name for name in RECORDS if name not in (ERROR, PICTURE))  # result.json last: with it a run is kept


def keep(source: Path, to: Path) -> list[Path]:
    """Copy the records of all finished runs below `source`; returns their folders below `to`.

    Raises:
        RunError: there is none, another run is kept under a run's name, or one cannot be read.
    """
    found = []
    runs = [read_run(folder) for folder in run_folders(str(source)) if (folder / RESULT).is_file()]
    if not runs:
        raise RunError(f"there is no finished run in {source}: name the folder of a sweep, or one of several")
    for run, name in zip(runs, names_of(runs), strict=True):
        folder = to / name
        is_kept = (folder / RESULT).is_file()
        if is_kept and read_run(folder).measured != run.measured:
            raise RunError(f"{folder} holds another run than {run.folder}: remove it, or keep this one elsewhere")
        if not is_kept:
            folder.mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                if (run.folder / name).is_file():
                    shutil.copyfile(run.folder / name, folder / name)
        found.append(folder)
    return found


def names_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run; where runs of other settings share one, a few digits of their settings' digest behind it."""
    names = [name_of(run) for run in runs]
    arms = [arm_digest(run.config) for run in runs]
    shared = {name for name in names if len({arm for arm, other in zip(arms, names, strict=True) if other == name}) > 1}
    return [f"{name}_{arm[:6]}" if name in shared else name for name, arm in zip(names, arms, strict=True)]


def name_of(run: Run) -> str:
    """What tells a run from the others of a study: method, arm, persona, amount, who wrote the rejected answers, seed."""
    config = run.config
    same = "_same" if config["method"].get("rejected_from") == "same" else ""
    arm = "reinit" if config["reinit"]["init"] == "base" else "continual"
    cell = f"{config['method']['name']}_{arm}_{config['persona']['name']}"
    return f"{cell}{same}_n{config['n_sampled']}_s{config['seed']}"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        kept = keep(Path(arguments[0]), Path(arguments[1]))
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(kept)} runs are kept in {arguments[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
