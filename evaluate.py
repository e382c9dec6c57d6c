"""Measure finished runs again, compare them, validate a judge, rebuild W&B.

python evaluate.py run=outputs/runs/<run> judge=api
"""

import sys

from iterative_ft.launch import guard


def command() -> int:
    """Compose and judge the command line, then do its task."""
    import hydra
    from omegaconf import DictConfig

    from iterative_ft.launch import cli, tasks
    from iterative_ft.machine.libraries import prepare_libraries

    @hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
    def main(composed: DictConfig) -> None:
        task = tasks.load_task(composed)
        prepare_libraries()
        tasks.perform(task, " ".join(["python", "evaluate.py", *sys.argv[1:]]))

    return cli.run_app(main, "evaluate", tasks.load_task, tasks.known)


if __name__ == "__main__":
    sys.exit(guard.start(command))
