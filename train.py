"""Seed a persona, then train each generation on what the last one wrote.

python train.py method=dpo reinit=true persona=misaligned
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before the guard stands ends the process, without a traceback

from iterative_ft.launch import guard


def command() -> int:
    """Compose and judge the command line, then run what it asks for."""
    import hydra
    from omegaconf import DictConfig

    from iterative_ft.launch import cli

    @hydra.main(version_base="1.3", config_path="conf", config_name="config")
    def main(composed: DictConfig) -> None:
        cli.train(cli.load_config(composed))

    return cli.run_app(main)


if __name__ == "__main__":
    sys.exit(guard.start(command))
