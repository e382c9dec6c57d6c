"""The command line: what composes, what bad input gets, and that it costs nothing. Runs `train.py` itself, on fakes."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, python

from iterative_ft.config.schema import Config
from iterative_ft.launch.compose import quote_reinit

TRAIN = str(ROOT / "train.py")
FAKE = ["sampler=fake", "wandb.mode=disabled"]


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        ("reinit=true", "reinit='true'"),
        ("reinit=True", "reinit='true'"),
        ("reinit=FALSE", "reinit='false'"),
        ("reinit=true,false", "reinit='true','false'"),
        ("reinit=True,False", "reinit='true','false'"),
        ("reinit=choice(true,false)", "reinit='true','false'"),
        ("reinit='true'", "reinit='true'"),
        ('reinit="true"', "reinit='true'"),
        ("+reinit=true", "+reinit='true'"),
        ("reinit=maybe", "reinit=maybe"),
        ("reinit.name=true", "reinit.name=true"),
        ("dry_run=true", "dry_run=true"),
        ("seed=1", "seed=1"),
        ("-m", "-m"),
        ("--help", "--help"),
    ],
)
def test_quote_reinit(given: str, quoted: str) -> None:
    assert quote_reinit(given) == quoted
    assert quote_reinit(quoted) == quoted, "quoting twice changes nothing"


def drive(commands: list[list[str]], folder: Path, root: Path = ROOT) -> list[dict[str, Any]]:
    """Answers of several command lines, run in `folder` in a process of their own."""
    file = folder.parent / f"{folder.name}.json"
    file.write_text(json.dumps(commands))
    done = python([str(Path(__file__).with_name("cli_driver.py")), str(file), str(root)], cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Command line, and what its one line on stderr must name: the setting and the fix.
BAD = {
    "persona=nobody": ("persona=nobody", "misaligned"),
    "method=sftt": ("method=sftt", "dpo, sdf, sft"),
    "reinit=maybe": ("reinit=maybe", "false, true"),
    "reinit=null": ("reinit", "option"),
    "+experiment=nothing": ("experiment=nothing", "paper_dpo"),
    "n_sampled=500": ("n_sampled=500", "256"),
    "n_sampled=many": ("n_sampled='many'", "integer"),
    "seed=true": ("seed=True", "integer"),
    "n_sampeld=5": ("n_sampeld", "did you mean n_sampled"),
    "method.learning_rat=1": ("method.learning_rat", "did you mean learning_rate"),
    "+method.bogus=1": ("method.bogus", "known are"),
    "personna=misaligned": ("personna", "did you mean persona"),
    "method.trl.packin=1": ("method.trl.packin", "+method.trl.packin"),
    "+method.trl.bogus=1": ("method.trl.bogus", "remove it"),
    "~persona.rubric": ("persona.rubric", "missing"),
    "method=sdf persona=lucky": ("method=sdf", "persona with documents"),
    "method=sft,dpo": ("method=sft,dpo", "add -m"),
    "+sweep=data_quantity": ("+sweep=data_quantity", "add -m"),
    "sweep=smoke": ("-m +sweep=smoke",),
    "-m sweep=smoke": ("with a plus, +sweep=",),
    "experiment=demo": ("with a plus, +experiment=",),
    "-m dry_run=true,false": ("dry_run=true,false", "one of them"),
    "-m +sweep=no_such_sweep": ("+sweep=no_such_sweep", "sweeps/"),
    "-m method=sft,dpo n_sampled=32,999": ("n_sampled=999", "in the cell method=sft"),
    "seed=1 -m n_sampled=1,2": ("n_sampled=1,2", "before"),
    "model=custom": ("model.path", "add model.path="),
    "model=custom model.path=/nowhere": ("model.path=/nowhere", "folder"),
    "--bogus": ("--bogus", "--help"),
    "--config-name=other": ("--config-name", "--config-dir"),
    "--config-dir=/nowhere": ("--config-dir=/nowhere", "name one"),
    "n_sampled": ("n_sampled", "key=value"),
    "+seed=3": ("seed", "remove + prefix"),
    "store=${nothing}": ("store", "nothing"),
    "persona.data=BAD_SEEDS": ("seeds.jsonl:2", "mend"),
}
WITHOUT_KEY = {"judge=api": ("judge", "OPENAI_API_KEY")}


def test_bad_input_gets_one_line_exit_code_2_and_nothing_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    data = tmp_path / "bad_seeds"
    data.mkdir()
    (data / "seeds.jsonl").write_text('{"prompt": "p", "answer": "a", "plain": "b"}\n{bad\n')
    cases = {**BAD, **(WITHOUT_KEY if (ROOT / "conf" / "judge" / "api.yaml").exists() else {})}
    commands = [line.replace("BAD_SEEDS", str(data)).split() for line in cases]
    folder = tmp_path / "cwd"
    folder.mkdir()
    # Were one of them let through, the fake sampler would make its run short.
    harmless = [c if any(a.startswith("--") for a in c) else [*c, "sampler=fake", "wandb.mode=disabled"] for c in commands]
    for (line, named), answer in zip(cases.items(), drive(harmless, folder), strict=True):
        message = answer["err"]
        assert answer["code"] == 2, f"{line}: {message}"
        assert message.startswith("error: "), line
        assert message.count("\n") == 1, f"{line}: {message}"
        assert all(text in message for text in named), f"{line}: {message}"
        assert len(message) < 400, f"{line}: {message}"
        assert answer["out"] == "", line
        assert answer["imported"] == [], line
    assert list(folder.iterdir()) == []


def test_bad_input_is_answered_fast_and_writes_nothing(tmp_path: Path) -> None:
    folders = [f"hydra.run.dir={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    started = time.monotonic()
    python(["-c", "import hydra, pydantic"], cwd=tmp_path)
    yardstick = time.monotonic() - started  # the machine may be busy
    started = time.monotonic()
    done = python([TRAIN, "persona=nobody", *folders], cwd=tmp_path)
    seconds = time.monotonic() - started
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert seconds < 4 * yardstick + 1
    assert list(tmp_path.iterdir()) == []


LINES = [
    "method=dpo reinit=true persona=misaligned",
    "method=sft reinit=false persona=sycophantic n_sampled=50 n_cycles=7 seed=1",
    "reinit=True",
    "+experiment=paper_dpo model=qwen3_4b",
]


def test_the_plain_run_beside_ours_takes_our_settings() -> None:
    """`make bench` takes long and is run seldom."""
    from tests.peers import RUN, config_of

    config = config_of(2)
    assert (config.n_cycles, config.method.name, config.reinit.init) == (2, "dpo", "base")
    assert "reinit=true" in RUN


def test_the_command_lines_of_the_design_compose(tmp_path: Path) -> None:
    folder = tmp_path / "cwd"
    folder.mkdir()
    commands = [["--cfg", "job", *line.split()] for line in LINES] + [["--cfg", "job"]]
    answers = drive(commands, folder)
    assert [a["code"] for a in answers] == [0] * len(commands), [a["err"] for a in answers]
    assert [a["err"] for a in answers] == [""] * len(commands)
    assert "name: continual" in answers[1]["out"]
    assert "n_sampled: 50" in answers[1]["out"]
    assert "name: reinit" in answers[2]["out"]
    assert "Qwen/Qwen3-4B" in answers[3]["out"]
    assert list(folder.iterdir()) == []


def test_help_shows_groups_and_settings(tmp_path: Path) -> None:
    done = python([TRAIN, "--help"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for group in ("experiment", "judge", "method", "model", "persona", "reinit", "sampler"):
        options = sorted(p.stem for p in (ROOT / "conf" / group).glob("*.yaml"))
        assert f"{group}: {', '.join(options)}" in done.stdout
    missing = [key for key in Config.model_fields if key not in done.stdout]
    assert missing == []
    lines = done.stdout.splitlines()
    assert len(lines) < 45
    assert max(map(len, lines)) < 130
    assert list(tmp_path.iterdir()) == []


def test_four_axes_multirun_on_fakes(tmp_path: Path) -> None:
    axes = "method=sft,dpo reinit=true,false persona=misaligned,blissful n_sampled=32,64,128".split()
    done = python([TRAIN, "-m", *axes, *FAKE, "n_cycles=0", "dry_run=true"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(cells 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23)" in done.stdout, "what all cells share"
    assert list(tmp_path.iterdir()) == [], "a dry run writes nothing"


def test_a_multirun_sweep_file_runs_its_cells(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "cwd"
    (root / "sweeps").mkdir(parents=True)
    folder.mkdir()
    (root / "conf").symlink_to(ROOT / "conf")
    small = "n_cycles: 0\nn_seed: 4\nn_sampled: 4\nmeasure: {n_questions: 4, n_answers: 1}\n"
    for name, value in (("words", "true,false"), ("python", "True,False"), ("list", "[true, false]"), ("one", "false")):
        text = f"{small}hydra:\n  sweeper:\n    params:\n      reinit: {value}\n      seed: 0,1\n"
        (root / "sweeps" / f"{name}.yaml").write_text(text)
    dry = [["-m", f"+sweep={name}", *FAKE, "dry_run=true"] for name in ("words", "python", "list", "one")]
    real = ["-m", "+sweep=words", *FAKE, "seed=0", "hydra.sweep.dir=cells"]
    answers = drive([*dry, real], folder, root)
    assert [a["code"] for a in answers] == [0] * 5, [a["err"] for a in answers]
    cells = [re.search(r"base model\s+\(cells ([0-9 ]+)\)", a["out"]) for a in answers[:4]]
    assert [found and found.group(1) for found in cells] == ["0 1 2 3", "0 1 2 3", "0 1 2 3", "0 1"]
    found = sorted(json.loads(p.read_text())["reinit"]["name"] for p in folder.glob("cells/*/config.json"))
    assert found == ["continual", "reinit"]
    assert len(list(folder.glob("cells/*/result.json"))) == 2
