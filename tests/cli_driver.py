"""Runs several command lines of train.py in one process, as `python train.py` would; used by test_cli.py.

python cli_driver.py COMMANDS.json ROOT    prints a JSON list of {code, out, err, seconds, imported}
"""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
import time
from pathlib import Path

from iterative_ft.launch import compose

HEAVY = ("torch", "transformers", "trl", "vllm", "wandb", "peft")


def main() -> None:
    commands = json.loads(Path(sys.argv[1]).read_text())
    train_py = str(compose.ROOT / "train.py")
    compose.ROOT = Path(sys.argv[2])
    answers = []
    for command in commands:
        sys.argv = ["train.py", *command]
        out, err, code, started = io.StringIO(), io.StringIO(), None, time.monotonic()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(train_py, run_name="__main__")
            except SystemExit as exit_:
                code = exit_.code
        seconds = time.monotonic() - started
        imported = sorted(name for name in HEAVY if name in sys.modules)
        answers.append({"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": seconds, "imported": imported})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
