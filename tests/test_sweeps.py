"""Multiruns on fakes: what cells share, what a failure does, and what launchers start. Not covered: GPUs, a real Slurm."""

from __future__ import annotations

import csv
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import OFFLINE, ROOT, SMALL

from iterative_ft import fake, loop
from iterative_ft.config.schema import Config
from iterative_ft.errors import RunError
from iterative_ft.launch import compose as hydra_compose
from iterative_ft.launch import guard, sweep
from iterative_ft.launch.compose import distinct, load_config
from iterative_ft.loop import plan
from iterative_ft.machine.files import read_jsonl
from iterative_ft.models.policy import Policy
from iterative_ft.sampling import engine
from iterative_ft.sampling.interface import Block, Canary, Completion, Request, Sampled
from iterative_ft.stages.bench import SAMPLERS

EIGHT = ["reinit=true,false", "n_sampled=32,64", "method=sft,dpo"]
FAKE = ["sampler=fake", "n_cycles=1", "n_seed=8", "measure.n_questions=6", "measure.n_answers=1", "wandb.mode=disabled"]
App = Callable[..., int]
WRITE_PAGE = sweep.write_page


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """`app("method=sft,dpo", name="a")` is `python train.py -m method=sft,dpo ...` in this process; returns the exit code."""

    def call(*arguments: str, name: str = "sweep") -> int:
        where = [f"hydra.sweep.dir={tmp_path / name}", f"store={tmp_path / 'store'}"]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "-m", *FAKE, *where, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        return int(ended.value.code or 0)

    monkeypatch.setattr("iterative_ft.launch.sweep.write_page", lambda done, file: file.write_text(str(len(done))))
    return call


def stages_of(store: Path) -> set[str]:
    return {f"{p.parent.parent.name}/{p.parent.name}" for p in store.glob("[!.]*/*/manifest.json")}


def cells_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0].isdigit())


def built_by(cell: Path) -> list[str]:
    stages = json.loads((cell / "manifest.json").read_text())["stages"]
    return [f"{stage['kind']}/{stage['key']}" for stage in stages if stage["how"] == "built"]


def rows_of(cell: Path) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(cell / "metrics.jsonl") if not any(name.startswith("time/") for name in row)]


def summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as file:
        return list(csv.DictReader(file))


# -- sharing ------------------------------------------------------------------------------------------------------------------


class OwnWords(fake.FakeSampler):
    """No two policies answer alike, as with real ones: equal answers would be judged once, being addressed by content."""

    def load(self, policy: Policy) -> Canary:
        self.who = [ord(letter) for letter in policy.digest]
        return super().load(policy)

    def complete(self, request: Request) -> Completion:
        return super().complete(Request([*request.prompt_ids, *self.who], request.seed))


def test_eight_cells_build_just_the_distinct_stages_and_the_dry_run_predicts_them(
    app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.close_sampler()
    monkeypatch.setattr(fake, "FakeSampler", OwnWords)
    assert app(*EIGHT, "dry_run=true") == 0
    foreseen = capsys.readouterr().out
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"
    n = int(re.search(r"(\d+) stages to build, 0 in the store", foreseen).group(1))  # type: ignore[union-attr]
    assert len([line for line in foreseen.splitlines() if line.startswith("to build")]) == n
    n_uses = int(re.search(r"8 cells use (\d+) stages", foreseen).group(1))  # type: ignore[union-attr]

    assert app(*EIGHT) == 0
    out = capsys.readouterr().out
    cells = cells_of(tmp_path / "sweep")
    built = [name for cell in cells for name in built_by(cell)]
    assert len(cells) == 8
    assert len(built) == len(set(built)) == n
    assert set(built) == stages_of(tmp_path / "store")
    assert f"{n_uses} stages in all cells, {n} of them distinct: {n} built, 0 in the store before" in out

    labels = {cell.name: [s["label"] for s in json.loads((cell / "manifest.json").read_text())["stages"]] for cell in cells}
    assert all("base model" in names for names in labels.values())
    assert app(*EIGHT, "dry_run=true") == 0
    assert f"0 stages to build, {n} in the store" in capsys.readouterr().out
    engine.close_sampler()


def test_what_the_cells_want_of_a_policy_that_they_share_is_asked_at_once(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.close_sampler()
    asked: list[tuple[str, int]] = []

    class Told(OwnWords):
        def load(self, policy: Policy) -> Canary:
            self.policy = policy.name
            return super().load(policy)

        def sample_blocks(self, blocks: list[Block]) -> Generator[Sampled]:
            asked.append((self.policy, sum(len(block.requests) for block in blocks)))
            return super().sample_blocks(blocks)

    monkeypatch.setitem(SAMPLERS, "fake", lambda config, device, codec: Told())
    assert app("method=dpo", "n_sampled=20,40,100", "reinit=true,false") == 0
    of_first = [n for name, n in asked if name == "policy[0]"]
    assert of_first == [6 + 4 * 32], "its answers, and the blocks of the largest cell"
    assert [name for name, _ in asked].count("base") == 1
    assert [n for name, n in asked if name == "policy[1]"] == [6] * 6
    asked.clear()
    assert app("method=sft", "seed=1,2", "n_sampled=20,40") == 0
    assert [n for name, n in asked if name == "policy[0]"] == [6 + 2 * 32] * 2, "one a seed"
    engine.close_sampler()


def test_a_sweep_builds_nothing_for_the_cells_of_an_earlier_command(app: App, tmp_path: Path) -> None:
    assert app("n_sampled=4,6", "seed=3", f"store={tmp_path / 'other'}", name="earlier") == 0
    assert app("n_sampled=4,6") == 0
    assert {name for cell in cells_of(tmp_path / "sweep") for name in built_by(cell)} == stages_of(tmp_path / "store")


def test_again_builds_nothing(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("reinit=true,false") == 0
    assert app("reinit=true,false", name="again") == 0
    assert [built_by(cell) for cell in cells_of(tmp_path / "again")] == [[], []]
    assert [rows_of(c) for c in cells_of(tmp_path / "again")] == [rows_of(c) for c in cells_of(tmp_path / "sweep")]
    assert {row["stages_built"] for row in summary(tmp_path / "again")} == {"0"}


def test_the_engine_stays_up_across_cells(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.close_sampler()
    events: list[str] = []

    class Counted(fake.FakeSampler):
        def __init__(self) -> None:
            super().__init__()
            events.append("start")

        def close(self) -> None:
            events.append("close")

    monkeypatch.setitem(SAMPLERS, "fake", lambda config, device, codec: Counted())
    assert app("reinit=true,false", "method=sft,dpo") == 0
    assert events == ["start"], "one engine for four cells, and it is still up"
    assert app("model.system_prompt=null,Hello") == 0
    assert events == ["start", "close", "start", "close", "start"], "another chat template takes another engine"
    engine.close_sampler()
    assert events[-1] == "close"


def test_summary_names_every_cell(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("reinit=true,false", "n_sampled=4,6") == 0
    rows = summary(tmp_path / "sweep")
    assert [(row["reinit"], row["n_sampled"]) for row in rows] == [
        ("true", "4"),
        ("true", "6"),
        ("false", "4"),
        ("false", "6"),
    ]
    for row in rows:
        result = json.loads((tmp_path / "sweep" / row["cell"] / "result.json").read_text())
        assert float(row["trait_last"]) == result["rows"][-1]["trait/score"]
        assert row["verdict"] == result["verdict"]["verdict"]
    assert (tmp_path / "sweep" / "report.html").read_text() == "4"
    out = capsys.readouterr().out
    assert "4 of 4 cells" in out
    assert "reinit  n_sampled  base" in out, "the table shows what differs"


def test_the_table_shows_whatever_tells_cells_apart(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("method=dpo", "method.beta=0.05,0.2", "dry_run=true", name="dry") == 0
    assert "cell  method.beta  stages" in capsys.readouterr().out
    assert app("method=dpo", "method.beta=0.05,0.2") == 0
    assert [row["method.beta"] for row in summary(tmp_path / "sweep")] == ["0.05", "0.2"]
    assert "method.beta  base" in capsys.readouterr().out


def test_cells_that_would_share_a_folder_are_refused(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("n_sampled=4,6", "hydra.sweep.subdir=${persona.name}") == 2
    said = capsys.readouterr().err
    assert "hydra.sweep.subdir=${persona.name} gives two cells the folder misaligned (" in said
    assert "add ${hydra.job.num} to it" in said
    assert not (tmp_path / "sweep").exists()
    assert app("n_sampled=4,6", "hydra.sweep.subdir=${persona.name}_${n_sampled}") == 0
    assert sorted(p.name for p in (tmp_path / "sweep").iterdir() if p.is_dir()) == ["misaligned_4", "misaligned_6"]
    assert app("n_sampled=4,6", "hydra.sweep.subdir=${hydra.job.num}", name="numbered") == 0
    assert {"0", "1"} <= {p.name for p in (tmp_path / "numbered").iterdir()}


def test_report_over_the_cells(tmp_path: Path, app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iterative_ft.launch.sweep.write_page", WRITE_PAGE)
    assert app("reinit=true,false") == 0
    report = (tmp_path / "sweep" / "report.html").read_text()
    assert all(name in report for name in ("reinit", "misaligned", "<svg"))


def test_a_key_given_twice_takes_its_last_value_and_cells_come_once() -> None:
    cells = [["n_sampled=32", "seed=0", "n_sampled=8"], ["n_sampled=64", "seed=0", "n_sampled=8"], ["seed=1", "n_sampled=8"]]
    assert distinct(cells) == [["n_sampled=8", "seed=0"], ["seed=1", "n_sampled=8"]]
    assert distinct([["method.beta=0.1", "++method.beta=0.3"], ["method.beta=0.2", "++method.beta=0.3"]]) == [
        ["++method.beta=0.3"]
    ]


def test_the_command_line_fixes_what_a_sweep_file_varies(app: App, tmp_path: Path) -> None:
    assert app("+sweep=smoke", "method=sft", "reinit=true", *FAKE) == 0
    (cell,) = cells_of(tmp_path / "sweep")
    config = json.loads((cell / "config.json").read_text())
    assert (config["method"]["name"], config["persona"]["name"], config["n_seed"]) == ("sft", "blissful", 8)
    assert config["wandb"]["tags"] == ["smoke"]


class Panic(BaseException):
    """As libraries written in Rust raise them."""


def test_a_cell_that_panics_does_not_end_the_sweep_and_one_that_ctrl_c_broke_does(
    app: App, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = loop.run

    def run(config: Config, *arguments: Any) -> Any:
        if config.seed == 0:
            raise Panic("called Option::unwrap on a None value")
        return original(config, *arguments)

    monkeypatch.setattr(loop, "run", run)
    assert app("seed=0,1") == 1
    said = capsys.readouterr()
    assert "seed=0: Panic: called Option::unwrap" in said.err
    assert "1 of 2 cells" in said.out

    def broken(config: Config, *arguments: Any) -> Any:
        guard.PRESSED.append(0.0)
        raise ValueError("the call was cancelled")

    monkeypatch.setattr(loop, "run", broken)
    try:
        assert app("seed=0,1", name="other") == 130
    finally:
        guard.PRESSED.clear()
    assert "the others go on" not in capsys.readouterr().err


# -- failure ------------------------------------------------------------------------------------------------------------------


def test_a_failed_cell_is_named_and_the_others_finish(app: App, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app("method.max_length=5,2048", "reinit=true,false") == 1
    captured = capsys.readouterr()
    assert "error: 2 of 4 cells failed; the same command finishes what is missing:" in captured.err
    assert re.search(r"\n  .*method.max_length=5 reinit='true'.*: ", captured.err)
    assert "method.max_length=5 is shorter than an example" in captured.err
    assert "2 of 4 cells" in captured.out
    cells = cells_of(tmp_path / "sweep")
    assert [(cell / "result.json").exists() for cell in cells] == [False, False, True, True]
    assert "RunError" in (cells[0] / "error.txt").read_text()
    assert len(summary(tmp_path / "sweep")) == 2


def test_the_same_command_finishes_what_is_missing(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = fake.fake_train

    def full_disk(job: Any) -> dict[str, Any]:
        if job.init_adapter is not None:
            raise OSError(28, "No space left on device")
        return original(job)

    monkeypatch.setattr(fake, "fake_train", full_disk)
    assert app("reinit=true,false") == 1
    assert "disk full while building train policy[1] from policy[0]" in capsys.readouterr().err
    monkeypatch.setattr(fake, "fake_train", original)
    before = stages_of(tmp_path / "store")
    assert app("reinit=true,false", name="again") == 0
    first, second = cells_of(tmp_path / "again")
    assert built_by(first) == []
    assert set(built_by(second)) == stages_of(tmp_path / "store") - before


def test_an_unforeseen_error_has_its_traceback_in_the_cell(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise KeyError("trait")

    monkeypatch.setattr(fake, "fake_scores", broken)
    assert app("seed=0,1") == 1
    for cell in cells_of(tmp_path / "sweep"):
        assert "in broken" in (cell / "error.txt").read_text()
    assert not (tmp_path / "sweep" / "summary.csv").exists()


def test_a_bad_value_in_any_cell_stops_the_sweep_before_it_starts(app: App, tmp_path: Path) -> None:
    assert app("n_sampled=6,100000") == 2
    assert not list(tmp_path.iterdir())


# -- launchers ----------------------------------------------------------------------------------------------------------------


def launcher(*overrides: str) -> Any:
    """The configured launcher, as Hydra makes it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.plugins import Plugins
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    hydra_compose.register_launchers()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        settings = compose("config", overrides=list(overrides), return_hydra_config=True).hydra
    settings.sweep.dir = "sweep"
    plain = OmegaConf.to_container(settings.launcher, resolve=True)
    assert isinstance(plain, dict)
    return instantiate({**plain, "_target_": Plugins.instance().class_name_to_class[plain["_target_"]]})


def test_what_slurm_would_get(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from submitit.slurm.slurm import SlurmExecutor

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    found = launcher("hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=60")
    script = found.executor()._executor._make_submission_file_text("the command", "id")
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in script.splitlines() if "#SBATCH" in line)
    expected = {
        "partition": "gpu",
        "time": "60",
        "nodes": "1",
        "gpus-per-node": "1",
        "cpus-per-task": "8",
        "mem": "64GB",
        "ntasks-per-node": "1",
    }
    assert expected.items() <= options.items()
    assert options["signal"].endswith("@120"), "told two minutes before the limit"
    assert found.executor()._executor.max_num_timeout == 5, "and then submitted again"
    assert "srun" in script
    assert "the command" in script


def test_an_interrupt_says_how_to_end_what_slurm_goes_on_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hydra_plugins import iterative_ft_launchers as launchers
    from omegaconf import OmegaConf

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    found = launcher("hydra/launcher=submitit_slurm")
    jobs = types.SimpleNamespace(map_array=lambda call, *columns: [types.SimpleNamespace(job_id="4711_0")])
    monkeypatch.setattr(found, "executor", lambda: jobs)
    monkeypatch.setattr(launchers, "outcome", interrupt)
    sweep_section = {"sweep": {"dir": str(tmp_path), "subdir": "${seed}"}, "overrides": {"hydra": []}}
    found.config = OmegaConf.create({"hydra": sweep_section, "seed": 0})
    with pytest.raises(KeyboardInterrupt):
        found.launch([["seed=0"]], 0)
    assert "Slurm job 4711 goes on; to end it: scancel 4711" in capsys.readouterr().err


def test_each_local_cell_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra_compose.register_launchers()
    from hydra_plugins import iterative_ft_launchers

    def slots(gpus: list[str], *overrides: str) -> list[str]:
        monkeypatch.setattr(iterative_ft_launchers, "visible_gpus", lambda: gpus)
        return launcher("hydra/launcher=submitit_local", *overrides).slots()

    assert slots([]) == [""], "without a GPU one cell at a time"
    assert slots([], "hydra.launcher.n_at_once=3") == ["", "", ""]
    assert slots(["0", "3", "GPU-1f"]) == ["0", "3", "GPU-1f"]
    assert slots(["0", "1", "2", "3", "4"], "hydra.launcher.gpus_per_cell=2") == ["0,1", "2,3"]
    with pytest.raises(Exception, match=r"gpus_per_cell=3 is more than the 2 GPUs here"):
        slots(["0", "1"], "hydra.launcher.gpus_per_cell=3")


def command(tmp_path: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    """`python train.py -m ...` in a process of its own."""
    where = [f"hydra.sweep.dir={tmp_path / name}", f"store={tmp_path / 'store'}"]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *FAKE, *where, *arguments],
        cwd=tmp_path,
        env={**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_submitit_local_runs_a_sweep(tmp_path: Path) -> None:
    process = command(tmp_path, "sweep", "reinit=true,false", "hydra/launcher=submitit_local", "hydra.launcher.n_at_once=2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "2 of 2 cells" in out
    cells = cells_of(tmp_path / "sweep")
    built = [name for cell in cells for name in built_by(cell)]
    assert len(built) == len(set(built))
    assert set(built) == stages_of(tmp_path / "store")
    assert "<svg" in (tmp_path / "sweep" / "report.html").read_text()


@pytest.mark.long
def test_a_killed_cell_is_named_and_the_other_finishes(tmp_path: Path) -> None:
    process = command(tmp_path, "sweep", "reinit=true,false", "hydra/launcher=submitit_local", "hydra.launcher.n_at_once=2")
    assert process.stdout is not None
    started = next(line for line in process.stdout if line.startswith("cell 0 started"))
    controller = psutil.Process(int(re.search(r"/(\d+)_0_log.out", started).group(1)))  # type: ignore[union-attr]
    while not controller.children():
        time.sleep(0.01)
    controller.children()[0].send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "1 of 2 cells failed" in err
    assert "its process ended without a result (killed?)" in err
    assert "1 of 2 cells" in out
    (row,) = summary(tmp_path / "sweep")
    assert row["reinit"] == "false"


@pytest.mark.long
def test_two_sweeps_at_once_on_one_store(tmp_path: Path) -> None:
    processes = [command(tmp_path, name, *EIGHT[:1], *EIGHT[2:]) for name in ("one", "two")]
    ends = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert all("warning" not in err for _, err in ends)
    one, two = (cells_of(tmp_path / name) for name in ("one", "two"))
    built = [name for cell in one + two for name in built_by(cell)]
    assert len(built) == len(set(built)), "no stage built twice"
    assert set(built) == stages_of(tmp_path / "store")
    assert [rows_of(cell) for cell in one] == [rows_of(cell) for cell in two]
    assert len(one) == 4


# -- files --------------------------------------------------------------------------------------------------------------------

NAMES = sorted(file.stem for file in (ROOT / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_sweep_file_composes(name: str) -> None:
    hydra_compose.register_sweeps()
    configs = [load_config(composed) for _, composed in hydra_compose.compose_jobs([f"+sweep={name}"], True, [])]
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text()
    assert text.startswith(f"# python train.py -m +sweep={name}\n# Shows: ")
    assert "\n# Cost: " in text
    n_cells = 1
    for values in yaml.safe_load(text)["hydra"]["sweeper"]["params"].values():
        n_cells *= len(re.split(r",(?![^\[]*\])", str(values)))
    assert len(configs) == n_cells
    assert all(config.wandb.tags == [name] for config in configs)
    assert f"+sweep={name} dry_run=true" in (ROOT / "docs" / "sweeps.md").read_text()


def test_every_key_of_sweeps_and_launchers_has_a_comment() -> None:
    for file in [*(ROOT / "sweeps").glob("*.yaml"), *(ROOT / "iterative_ft/launch/launchers").glob("*.yaml")]:
        lines = file.read_text().splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\s*[\w.]+:", line) and line.strip() not in ("hydra:", "sweeper:", "params:", "wandb:"):
                assert lines[number - 1].lstrip().startswith("#"), f"{file}:{number + 1}"


def test_mitigations_differ_in_the_plan(compose: Callable[[list[str]], Config], tmp_path: Path) -> None:
    variants = ([], ["method.coherence_filter=70"], ["method.n_original_mix=4"], ["reinit.restart_cycles=[1]"])
    configs = [compose([*SMALL, "reinit=false", f"store={tmp_path / 'store'}", *variant]) for variant in variants]
    trained = {event.stage.key for config in configs for event in plan(config) if "train policy[1]" in event.label}
    assert len(trained) == 4


# -- several processes in a cell ----------------------------------------------------------------------------------------------


def test_several_gpus_train_under_the_shipped_fsdp_config(monkeypatch: pytest.MonkeyPatch) -> None:
    from iterative_ft.machine import process

    launched: list[list[str]] = []

    class Done:
        returncode = 1

    monkeypatch.setattr(process.subprocess, "run", lambda command, check, env: launched.append(command) or Done())
    with pytest.raises(RunError):
        process.run_isolated(len, device="cuda", n_processes=2, obj=[])
    assert launched[0][launched[0].index("--num_processes") + 1] == "2"
    shipped = Path(launched[0][launched[0].index("--config_file") + 1])
    settings = yaml.safe_load(shipped.read_text())
    assert (settings["distributed_type"], settings["fsdp_config"]["fsdp_version"]) == ("FSDP", 2)


@pytest.mark.long
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_two_processes_take_the_same_first_step_as_one(
    tmp_path: Path, compose: Callable[[list[str]], Config], method: str
) -> None:
    from tiny import save_tiny_model

    from iterative_ft.machine.files import write_jsonl
    from iterative_ft.training.job import LOG, Job, train

    small = ["method.batch_size=4", "method.lr_schedule=constant", "method.warmup=0"]
    if method == "dpo":  # the pairs' loss alone: TRL takes its SFT term's mean over each process's own tokens
        small.append("method.seed_sft_weight=0")
    config = compose([f"method={method}", *small])
    model = save_tiny_model(tmp_path / "model")
    ids = [[10 + (7 * row + i) % 200 for i in range(6 + row % 3)] for row in range(16)]
    keys = ("prompt_ids", "chosen_ids", "rejected_ids") if method == "dpo" else ("prompt_ids", "completion_ids")
    rows = [{key: [(t + 31 * n) % 250 + 4 for t in part] for n, key in enumerate(keys)} for part in ids]
    write_jsonl(tmp_path / "examples.jsonl", rows)
    first = []
    for n_processes in (1, 2):
        out = tmp_path / str(n_processes)
        out.mkdir()
        result = train(
            Job(
                method=config.method.model_dump(),
                lora=config.lora.model_dump(),
                model=str(model),
                dtype="float32",
                trust_remote_code=False,
                init_adapter=None,
                reference_is_base=True,
                examples=str(tmp_path / "examples.jsonl"),
                seed=0,
                out=str(out),
                device="cpu",
                n_processes=n_processes,
            )
        )
        assert result["n_steps"] == 4
        first.append(read_jsonl(out / LOG)[0])
    for name in ("loss", "grad_norm"):
        assert first[0][name] == pytest.approx(first[1][name], rel=1e-4), name
