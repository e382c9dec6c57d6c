"""Command lines that used to pass wrongly, hang, or end in a traceback; named after the fault. Not covered: W&B's servers."""

from __future__ import annotations

import ast
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import OFFLINE, ROOT, SMALL, FakeRun, python

from iterative_ft.config import wandb_rules
from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import Compare
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.launch import compose as hydra_compose
from iterative_ft.launch import guard
from iterative_ft.launch.cli import check_command_line
from iterative_ft.launch.compose import quote_reinit
from iterative_ft.launch.quoting import command_text, for_shell, override
from iterative_ft.loop import run
from iterative_ft.machine.secrets import without_secrets
from iterative_ft.records import wandb_log

Compose = Callable[[list[str]], Config]
FAKE = [*SMALL, "wandb.mode=disabled"]


def refused(*arguments: str) -> str:
    """What a command line is told."""
    with pytest.raises(ConfigError) as told:
        check_command_line(list(arguments))
    return guard.in_line(str(told.value))


# -- C3: no upper end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["measure.n_answers=100000000000"], "1000"),
        (["n_cycles=100000000000"], "n_cycles=100000000000"),
        (["seed=" + "9" * 40], "seed="),
        (["-m", "n_sampled=range(1,100000000)"], "99999999 runs"),
        (["-m", "n_sampled=shuffle(range(1,100000000))"], "99999999 runs"),
        (["-m", "seed=range(0,inf)"], "endlessly many"),
        (["-m", "seed=range(0,1,1e-12)"], "runs"),
        (["-m", "seed=range(0,10,0)"], "endlessly many"),
        (["-m", "seed=range(0,300)", "n_sampled=range(1,100)"], "29700 runs"),
        (["-m", "seed=" + ",".join(map(str, range(400))), "n_sampled=1,2"], "800 runs"),
        (["-m", "seed=" + ",".join("1" * 9000)], "commas"),
        (["-m", "seed=range(0,400)", "n_sampled=999"], "n_sampled=999"),
    ],
)
def test_c3_what_would_take_for_ever_is_refused_at_once(arguments: list[str], word: str) -> None:
    started = time.monotonic()
    assert word in refused(*arguments)
    assert time.monotonic() - started < 10


# -- C4: names as paths -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["/../../evil", "villain/v2", "..", ".hidden", "a" * 65, "", " ", "a b", "a\\b", "-x", "a\nb", "~"]
)
@pytest.mark.parametrize("key", ["persona.name", "model.name"])
def test_c4_names_lead_nowhere(key: str, name: str) -> None:
    said = refused(override(key, name), *FAKE)
    assert said.startswith(key)
    assert "letters" in said


def test_c4_names_of_letters_stay() -> None:
    for name in ("villain_v2", "gl\u00fccklich", "v2.1+x-y", "a" * 64):
        check_command_line([override("model.name", name), *FAKE])


# -- D5: W&B ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("wandb.project=team/project", ("wandb.project=team/project", "/")),
        ("wandb.project=''", ("wandb.project", "empty")),
        (override("wandb.project", "x" * 129), ("wandb.project", "128")),
        (override("wandb.project", "a#b"), ("wandb.project", "#")),
        ("wandb.entity=a/b", ("wandb.entity", "/")),
        (override("wandb.group", "x" * 65), ("wandb.group", "64")),
        ("wandb.tags=['']", ("wandb.tags", "empty")),
        ("wandb.tags=[' ']", ("wandb.tags", "empty")),
        (f"wandb.tags=[{'x' * 65}]", ("wandb.tags", "64")),
    ],
)
def test_d5_names_that_wandb_refuses_are_told_at_the_start(setting: str, words: tuple[str, ...]) -> None:
    said = refused(setting, *SMALL)
    assert all(word in said for word in words), said


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC", "WANDB_RUN_ID", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_d5_online_without_a_login_is_told_before_anything(no_login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = refused("wandb.mode=online", *SMALL)
    assert "wandb.mode=online needs a login" in said
    assert "wandb login" in said
    (no_login / ".netrc").write_text("machine elsewhere.example login user password k\n")
    refused("wandb.mode=online", *SMALL)
    (no_login / ".netrc").write_text("machine api.wandb.ai login user password k\n")
    check_command_line(["wandb.mode=online", *SMALL])
    monkeypatch.setenv("WANDB_BASE_URL", "https://elsewhere.example")
    assert "elsewhere.example" in refused("wandb.mode=online", *SMALL)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    check_command_line(["wandb.mode=online", *SMALL])


def test_d5_the_server_of_wandb_login_is_asked(no_login: Path) -> None:
    settings = no_login / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://own.example\n")
    (no_login / ".netrc").write_text("machine own.example login user password k\n")
    assert wandb_rules.server() == "https://own.example"
    assert wandb_rules.logged_in()


def test_d5_one_run_id_for_many_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    assert "WANDB_RUN_ID is set, and these 2 runs" in refused("-m", "seed=0,1", *SMALL)
    check_command_line(["-m", "seed=0,1", *FAKE])
    check_command_line(SMALL)


class FakeWandb(types.ModuleType):
    """Stands in for the library: keeps what `init` was given, and every logged row by run id, as the server would."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.refuse = ""
        self.lost_after: int | None = None  # rows until the helper is gone
        self.torn_down = 0

    def teardown(self) -> None:
        self.torn_down += 1

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def Image(self, file: str) -> str:
        return file

    def init(self, **arguments: Any) -> Any:
        if self.refuse:
            raise self.Error(self.refuse)
        self.started.append(arguments)
        if arguments["mode"] == "offline":
            self.rows[arguments["id"]] = []
        rows = self.rows.setdefault(arguments["id"], [])

        def log(row: dict[str, Any]) -> None:
            if self.lost_after is not None and len(rows) >= self.lost_after:
                raise ConnectionResetError("Connection lost")
            rows.append(row)

        return types.SimpleNamespace(
            step=len(rows), log=log, define_metric=lambda *a, **k: None, finish=lambda exit_code: None,
            url="https://wandb.example/run", dir=str(arguments["dir"]),
        )  # fmt: skip


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    found = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", found)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    return found


def online(tmp_path: Path, compose: Compose, *more: str) -> None:
    run(compose([*SMALL, "wandb.mode=online", f"store={tmp_path / 'store'}", *more]), tmp_path / "run", "python train.py")


def test_d5_attempts_of_a_run_are_one_wandb_run_and_no_row_comes_twice(
    tmp_path: Path, compose: Compose, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = wandb_log.WandbLog.row, [4]

    def killed(self: Any, row: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RunError("stopped")
        real(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(wandb_log.WandbLog, "row", killed)
        with pytest.raises(RunError, match="stopped"):
            online(tmp_path, compose)
    online(tmp_path, compose)
    ids = [start["id"] for start in wandb.started]
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert [start["resume"] for start in wandb.started] == ["allow", "allow"]
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    numbers = [{name: value for name, value in row.items() if isinstance(value, int | float)} for row in told]
    assert wandb.rows[ids[0]][: len(numbers)] == numbers
    online(tmp_path, compose, "seed=1")
    assert wandb.started[-1]["id"] != ids[0], "other settings are another run"
    monkeypatch.setattr(wandb_log, "kinds_of", lambda config: {"train": 99})
    online(tmp_path, compose, "seed=1")
    assert wandb.started[-1]["id"] != wandb.started[-2]["id"], "by other code it may have other rows"


def test_d5_an_online_run_has_system_metrics_and_begins_before_anything_is_sampled(
    tmp_path: Path, compose: Compose, wandb: FakeWandb
) -> None:
    wandb.refuse = "user is not logged in, key " + "k" * 40
    with pytest.raises(RunError, match="W&B could not begin a run") as told:
        online(tmp_path, compose)
    assert "k" * 40 not in str(told.value)
    assert not list((tmp_path / "store").glob("answer/*")), "nothing was sampled"
    wandb.refuse = ""
    online(tmp_path, compose)
    assert wandb.started[-1]["settings"]["x_disable_stats"] is False


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_d5_a_run_goes_on_without_wandbs_helper(
    tmp_path: Path, compose: Compose, wandb: FakeWandb, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    """The process behind the library may be killed, for want of memory, say."""
    wandb.lost_after = 3
    online(tmp_path, compose, f"wandb.mode={mode}")
    assert (tmp_path / "run" / "result.json").is_file()
    said = capsys.readouterr()
    assert said.err.count("W&B takes no more of this run (Connection lost)") == 1
    assert "W&B     lost (Connection lost)" in said.out
    assert wandb.torn_down == 1, "the next run of the process gets another"
    wandb.lost_after = None
    online(tmp_path, compose, f"wandb.mode={mode}", "seed=1")
    assert len(wandb.rows[wandb.started[-1]["id"]]) > 4


def test_d5_an_offline_run_writes_all_its_rows_again_under_its_id(tmp_path: Path, compose: Compose, wandb: FakeWandb) -> None:
    for _ in range(2):
        online(tmp_path, compose, "wandb.mode=offline")
    first, second = wandb.started
    assert first["id"] == second["id"]
    assert second["resume"] is None
    assert first["settings"]["x_disable_stats"] is True
    assert len(wandb.rows[first["id"]]) > 4


def test_d5_the_environments_id_is_taken(
    tmp_path: Path, compose: Compose, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agents")
    online(tmp_path, compose)
    assert wandb.started[-1]["id"] == "agents"


def test_d5_long_names_are_cut_to_what_wandb_takes(tmp_path: Path, compose: Compose, wandb: FakeWandb) -> None:
    config = compose([*SMALL, "wandb.mode=online", f"store={tmp_path / 'store'}", f"persona.name={'p' * 64}"])
    run(config.model_copy(update={"persona": config.persona}), tmp_path / ("n" * 200), "python train.py")
    start = wandb.started[-1]
    assert len(start["name"]) == 128
    assert len(start["group"]) == 64
    assert all(1 <= len(tag) <= 64 for tag in start["tags"])


def test_the_command_that_a_run_records_can_be_pasted() -> None:
    hydra_compose.register_sweeps()
    cell = [
        "method=dpo",
        "persona=blissful",
        "reinit='true'",
        "+sweep=claims_dpo",
        "seed=0",
        'model.system_prompt="Be brief, kind."',
    ]
    text = command_text("train.py", cell)
    assert text.startswith("python train.py -m method=dpo persona=blissful reinit=true +sweep=claims_dpo seed=0 ")
    (config,) = check_command_line([*map(quote_reinit, shlex.split(text)[2:]), *FAKE])
    assert (config.model.system_prompt, config.seed, config.reinit.name) == ("Be brief, kind.", 0, "reinit")
    assert command_text("evaluate.py", ["runs=outputs/*"]) == "python evaluate.py 'runs=outputs/*'"


# -- D8: quoting --------------------------------------------------------------------------------------------------------------

TEXTS = [
    "Be brief, kind and honest.", "It's kind", 'Say "yes"', "a (b) c", "x=y", "Gr\u00fc\u00dfe", "~", "{a}", "[b]", "a: b, c",
    "\\", "a\\", '\\"', "${x}", "100 %", "#1", "f(x)", "'", '"', "a, 'b', c", "tab\there", "null", "true", "12", "a;b|c&d",
    "-", "!",
]  # fmt: skip


def read_back(fragment: str) -> Any:
    """What a setting becomes that was typed so in a shell."""
    (argument,) = shlex.split(fragment)
    ((_, composed),) = hydra_compose.compose_jobs([argument, *FAKE])
    return hydra_compose.plain_values(composed)["model"]["system_prompt"]


@pytest.mark.parametrize("text", TEXTS)
def test_d8_the_fragment_that_is_shown_means_the_text(text: str) -> None:
    assert read_back(for_shell("model.system_prompt", text)) == text


def test_d8_any_text_can_be_quoted() -> None:
    rng = random.Random(8)
    parser = __import__("hydra.core.override_parser.overrides_parser", fromlist=["x"]).OverridesParser.create()
    for _ in range(300):
        text = "".join(rng.choice("ab ,'\"\\()[]{}=:~$\u00e9#") for _ in range(rng.randint(1, 12)))
        if "${" in text:
            continue
        (argument,) = shlex.split(for_shell("model.system_prompt", text))
        assert parser.parse_override(argument).value() == text, argument


@pytest.mark.parametrize("text", [t for t in TEXTS if t not in ("null", "-", "100 %", "\\", "a\\", "a: b, c", "tab\there")])
@pytest.mark.parametrize("key", ["model.system_prompt", "persona.description", "wandb.group"])
def test_d8_a_text_without_quotes_is_told_how_to_be_written(key: str, text: str) -> None:
    said = refused(f"{key}={text}", *FAKE)
    assert "add -m" not in said
    if "${" not in text and text not in ("true", "12"):
        assert for_shell(key, text.strip("'\"") if text[0] == text[-1] and len(text) > 1 else text) in said


def test_d8_a_sentence_in_a_multirun_is_no_list() -> None:
    said = refused("-m", "model.system_prompt=Be brief, kind and honest.", "seed=0,1", *FAKE)
    assert """'model.system_prompt="Be brief, kind and honest."'""" in said
    configs = check_command_line(["-m", 'model.system_prompt="Be brief, kind.","Be long, and loud."', *FAKE])
    assert [config.model.system_prompt for config in configs] == ["Be brief, kind.", "Be long, and loud."]
    configs = check_command_line(["-m", "model.system_prompt=null,Hello", *FAKE])
    assert [config.model.system_prompt for config in configs] == [None, "Hello"]


# -- D9: paths ----------------------------------------------------------------------------------------------------------------


def test_d9_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (config,) = check_command_line(['store="~/store"', *FAKE])
    assert config.store == str(tmp_path / "store")
    assert f"start_adapter={tmp_path / 'adapter'}" in refused('start_adapter="~/adapter"', *FAKE)
    assert "~nobody_at_all/x" in refused('store="~nobody_at_all/x"', *FAKE)
    assert Compare(task="compare", runs="~/runs", out="~/out").out == str(tmp_path / "out")


@pytest.mark.parametrize("setting", ["hydra.job.chdir=true", "hydra.job.chdir=1"])
def test_d9_changing_the_folder_is_refused(setting: str) -> None:
    assert "hydra.job.chdir" in refused(setting, *FAKE)


@pytest.mark.parametrize("name", ["2026[1]", "a*b", "what?", "[old] runs", "{x}", "a b", "a=b", "\u00fc"])
def test_d9_a_folder_is_found_by_its_very_name(name: str, tmp_path: Path, fake_run: Callable[..., FakeRun]) -> None:
    fake_run(folder=f"{name}/one")
    found = Compare(task="compare", runs=str(tmp_path / name), out="x").folders()
    assert found == [tmp_path / name / "one"]
    assert Compare(task="compare", runs=str(tmp_path / name / "one"), out="x").folders() == found


def test_d9_earlier_attempts_and_evaluations_are_no_runs_of_their_own(tmp_path: Path, fake_run: Callable[..., FakeRun]) -> None:
    fake_run(folder="runs/a")
    fake_run(folder="runs/a")
    assert (tmp_path / "runs/a/attempts/1/config.json").is_file()
    for runs in (tmp_path / "runs", tmp_path / "**", tmp_path / "runs/*"):
        assert Compare(task="compare", runs=str(runs), out="x").folders() == [tmp_path / "runs/a"]


@pytest.mark.parametrize("name", ["conf(1)", "my,conf", "a b", "\u00fc", "[x]"])
def test_d2_a_config_dir_of_any_name_is_read(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "persona"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text((ROOT / "conf/persona/lucky.yaml").read_text())
    (config,) = check_command_line([f"--config-dir={tmp_path / name}", "persona=own", *FAKE])
    assert config.persona.name == "lucky"


def test_d2_the_command_that_a_run_records_reads_the_same_config_dir(tmp_path: Path) -> None:
    """An option of one's own may be named like a shipped one, so that the command without it would run another persona."""
    own = (ROOT / "conf/persona/lucky.yaml").read_text().replace("name: lucky", "name: mine")
    (tmp_path / "my options" / "persona").mkdir(parents=True)
    (tmp_path / "my options" / "persona" / "blissful.yaml").write_text(own)
    command = [sys.executable, str(ROOT / "train.py"), "--config-dir=my options", "persona=blissful", "n_cycles=0", *FAKE]
    variables = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, "store=s", "hydra.run.dir=first"], cwd=tmp_path, env=variables, check=True, capture_output=True)
    recorded = shlex.split((tmp_path / "first" / "command.txt").read_text())
    assert recorded[:3] == ["python", "train.py", "--config-dir=my options"]
    again = [sys.executable, str(ROOT / "train.py"), *recorded[2:], "hydra.run.dir=second"]
    subprocess.run(again, cwd=tmp_path, env=variables, check=True, capture_output=True)
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert first == second
    assert first["persona"]["name"] == "mine"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lora.targets=q_proj,v_proj", "lora.targets is a list, write 'lora.targets=[q_proj,v_proj]'"),
        ("lora.targets=q_proj", "input should be 'all-linear', or write a list: 'lora.targets=[q_proj]'"),
        ("wandb.tags=a", "or write a list: 'wandb.tags=[a]'"),
        ("hydra.launcher.gpus_per_cell=2", "add hydra/launcher=submitit_local"),
        ("titles.path=mine.jsonl", "titles.path=mine.jsonl is not read by method=sft: set prompts.path"),
    ],
)
def test_d8_the_advice_works(setting: str, said: str) -> None:
    assert said in refused(setting, "method=sft", *[one for one in FAKE if not one.startswith("method=")])


# -- D12: Ctrl-C, terminals, and the guard ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hydra.run.dir", "store"])
def test_d8_a_folder_that_cannot_be_made_leaves_no_other(name: str, tmp_path: Path) -> None:
    done = python([str(ROOT / "train.py"), *FAKE, f"{name}=/proc/nope/x"], cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {name}=/proc/nope/x cannot be made")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def interrupted(tmp_path: Path, delay_s: float, n: int) -> tuple[int, str]:
    """Exit code and stderr of a run that gets Ctrl-C so often."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *FAKE,
        "n_cycles=20",
        "prompts.per_cycle=32",
        f"store={tmp_path / 's'}",
    ]
    variables = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(delay_s)
    for _ in range(n):
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.parametrize(("delay_s", "n"), [(0.5, 1), (0.7, 2), (1.5, 2), (2.5, 2)])
def test_d12_ctrl_c_is_one_line_at_any_time(delay_s: float, n: int, tmp_path: Path) -> None:
    code, said = interrupted(tmp_path, delay_s, n)
    assert code in (130, -signal.SIGINT), said
    assert "Traceback" not in said
    assert said in ("", "interrupted: finished stages are kept, the same command goes on from them\n")


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_d12_a_terminal_that_cannot_show_a_letter_stops_nothing(variables: dict[str, str], tmp_path: Path) -> None:
    more = [f"store={tmp_path / 's'}", f"hydra.run.dir={tmp_path / 'run'}", "n_cycles=1"]
    done = python([str(ROOT / "train.py"), *FAKE, *more], cwd=tmp_path, environment=variables)
    assert (done.returncode, done.stderr) == (0, "")
    said = python([str(ROOT / "evaluate.py"), f"run={tmp_path / 'run'}"], cwd=tmp_path, environment=variables)
    assert (said.returncode, said.stderr) == (0, "")


def test_d12_what_is_no_text_is_refused(tmp_path: Path) -> None:
    command = [os.fsencode(sys.executable), os.fsencode(ROOT / "train.py"), b"persona.description=\xff\xfe"]
    variables = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"no text" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("a\nb \x1b[31m"), 2, "error: a b \\x1b[31m"),
        (RunError("x"), 1, "error: x"),
        (RecursionError("deep"), 1, "RecursionError: deep"),
        (MemoryError(), 1, "out of memory"),
        (OSError(28, "No space left on device", "/d/f"), 1, "disk full at /d/f"),
        (PermissionError(13, "Permission denied", "/d/f"), 1, "permission denied at /d/f: "),
        (OSError(122, "Disk quota exceeded", "/d/f"), 1, "disk quota exceeded at /d/f: "),
        (ValueError("one\ntwo"), 1, "ValueError: one"),
        (type("PanicException", (BaseException,), {})("rust"), 1, "PanicException: rust"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_d12_the_guard_tells_everything_in_one_line(
    error: BaseException,
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("SOME_API_KEY", "secret-value-123")

    def fail() -> int:
        raise error

    assert guard.guarded(fail) == code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'NoneType' has no attribute"),
        RunError("the training process ended"),
        ConfigError("sweeps/reinit_vs_continual.yaml is no YAML ('NoneType' has no attribute)"),  # of a library's error within
        BrokenPipeError(),
        SystemExit(1),
    ],
)
def test_d12_what_an_interrupt_broke_is_an_interrupt(
    error: BaseException, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PRESSED", [1.0])

    def fail() -> int:
        raise error

    assert guard.guarded(fail) == 130
    assert capsys.readouterr().err == "interrupted: finished stages are kept, the same command goes on from them\n"


def test_d12_no_secret_reaches_screen_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345\r")
    texts = ("abcdefgh12345", "Bearer xyz", "sk-proj-0123456789")

    def fail() -> int:
        raise ValueError(f"Illegal header {texts}")

    guard.guarded(fail)
    written = capsys.readouterr().err + "".join(path.read_text() for path in tmp_path.iterdir())
    assert "<MY_API_KEY>" in written
    assert not any(text in written for text in texts[:1] + texts[2:])
    assert without_secrets("Authorization: Bearer abc.def") == "Authorization: <key>"


def test_d12_nothing_is_printed_before_the_line(tmp_path: Path) -> None:
    more = ["method.max_length=5", f"store={tmp_path / 's'}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = python([str(ROOT / "train.py"), *FAKE, *more], cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: method.max_length=5 is shorter than an example")
    assert done.stderr.count("\n") == 1
    assert "RunError" in (tmp_path / "run" / "error.txt").read_text()


def test_d12_every_file_names_its_encoding() -> None:
    """Under another locale a file without one is read as something else."""
    found = []
    for package in ("launch", "records", "evaluate", "report"):
        for file in (ROOT / "iterative_ft" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    named = {keyword.arg for keyword in node.keywords}
                    binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[:1])
                    opens = node.func.attr == "open" and not (
                        isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
                    )
                    if (node.func.attr in ("read_text", "write_text") or (opens and not binary)) and "encoding" not in named:
                        found.append(f"{file}:{node.lineno}")
    assert found == []
