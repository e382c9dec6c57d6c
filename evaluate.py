"""Measure finished runs again, compare them, judge texts from elsewhere, validate a judge, rebuild W&B.

python evaluate.py run=outputs/runs/<run> judge=api
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before the guard stands ends the process, without a traceback

from iterative_ft.launch import guard


def command() -> int:
    """Compose and judge the command line, then do its task."""
    import hydra
    from omegaconf import DictConfig

    from iterative_ft.launch import cli, tasks
    from iterative_ft.launch.quoting import command_text
    from iterative_ft.machine.libraries import prepare_libraries

    @hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
    def main(composed: DictConfig) -> None:
        task = tasks.load_task(composed)
        prepare_libraries()
        tasks.perform(task, command_text("evaluate.py", sys.argv[1:]))

    return cli.run_app(main, "evaluate", tasks.load_task, tasks.known)


if __name__ == "__main__":
    sys.exit(guard.start(command))
