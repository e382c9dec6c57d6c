"""Bad command lines and damaged run folders, made at random from fixed seeds: each is one line, and leaves nothing behind.

A case is one in-process call of train.py or evaluate.py as the shell would make it. Not covered: personas, pools, models and
stores (campaigns of their own), and settings of judge=api.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import runpy
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, FakeRun
from omegaconf import OmegaConf
from tiny import whole

LIMIT_S = 10
FAKE = ["sampler=fake", "wandb.mode=disabled", "n_cycles=0", "n_seed=4", "measure.n_questions=4", "measure.n_answers=1"]
SCALARS: dict[type, list[str]] = {
    bool: ["2", "maybe", "[]", "{}", "0.5", "''", "truee", "1"],
    int: ["x", "1.5", "true", "[]", "{}", "1e400", "nan", "9" * 30, "'3'", "-9", "[1]", "{a:1}", "0x10", "3 4", "1e3", "..."],
    float: ["x", "true", "[]", "{}", "'3'", "[0.5]", "{a:0.5}", "-9", "1/2", "a b"],
    str: [
        "[a]",
        "{a:b}",
        "1",
        "true",
        "a,b",
        "f(x)",
        "'x",
        'y"',
        "ü",
        "(",
        "]",
        "}",
        "a=b",
        "~",
        "1.5",
        "Be brief, and kind.",
        "#",
    ],
}
ANY = [
    "(",
    ")",
    "[",
    "{",
    "'",
    '"',
    "a,b",
    "${nope}",
    "${oc.env:NOPE_NOT_SET}",
    "f(x)",
    "a=b",
    "[[[",
    "{a:",
    "ü",
    "\\",
    "1,2,",
    "range(",
    "glob(*)",
]
OPTIONS = ["bogus", "3", "true", "[]", "{a:b}", "../model/custom", "a/b", "null", "'", "x,y", "", "~", "." * 400]
GRAMMAR = """
seed seed= =3 == +seed=3 ++=4 ~ ~~seed ~nothing ~seed=5 +=x --bogus -x --cfg --cfg=x --multirunn --package=seed -c
job,x a b seed=1=2 seed==3 hydra=3 hydra.bogus=1 hydra.mode=MULTIRUN hydra.mode=x hydra.job.chdir=true
hydra.job.chdir=x hydra.run.dir=null hydra.run.dir=[] hydra.run.dir='' hydra.run.dir=/dev/null
hydra.run.dir=/proc/nope/x hydra/launcher=x hydra/sweeper=basic hydra.sweeper.max_batch_size=0
hydra.run.dir=/dev/null/y hydra.run.dir=${nope} method@x=sft +method@x=sft n_sampled=1,2 method=sft,dpo
seed=range(3) seed=choice(1,2) seed=sort(3,1) seed=shuffle(1,2) +sweep=smoke +sweep=x sweep=smoke --config-name=x
--config-path=x --config-dir=/nope --experimental-rerun=x.pickle --info=x --shell-completion=x store=/dev/null/x
store=/proc/nope persona.name=/../../evil persona.name=a/b persona.name= persona.name='.' model.name=../x
wandb.project=a/b wandb.project=a:b wandb.tags=[''] wandb.tags=[1] wandb.mode=on wandb.mode=online +wandb.x=1
measure=null measure=[] wandb=offline reinit=yes reinit=[] ++reinit.name=x lora=3 method.trl=3 method.trl.x=1
+method.trl.x=1 n_seed=calibrated calibrate.target_trait=5 start_adapter=/nope start_adapter=~/nope_at_all
persona.data=/nope prompts.path=/nope.jsonl measure.n_answers=100000000000 n_cycles=1001 n_sampled=1000001
n_cycles=100000000000
""".split()
SWEEPS = [
    "seed=" + ",".join("1" * 6000),
    *"""
n_sampled=range(1,100000000)
n_sampled=shuffle(range(1,100000000))
seed=range(0,inf)
seed=range(0,10,0)
seed=range(0,1,1e-9)
seed=range(1,2,3,4)
seed=range(nan,1)
seed=range(0,300) n_sampled=range(1,30)
seed=range(0,499) n_sampled=999
seed=interval(0,1)
persona=glob(*)
persona=glob(z*)
seed=1,x
seed=1,,2
method=sft,bogus
reinit=true,maybe
+sweep=x
+sweep=smoke,seeds
+sweep=
+sweep=[]
seed=tag(a,choice(1,2.5))
n_sampled=4,999
hydra.sweep.dir=null seed=1,2
hydra.sweep.dir=/dev/null seed=1,2
hydra/launcher=joblib seed=1,2
hydra/launcher=submitit_local hydra.launcher.n_at_once=0 seed=1,2
hydra.launcher.x=1 seed=1,2
seed=1,2 model.name=../x
hydra/launcher=submitit_local hydra.launcher.gpus_per_cell=-1 seed=1,2
model.system_prompt=Be_brief,|kind|and|honest.
seed=0,1 persona.name=a/b,c
seed=[1],[2]
~seed seed=1,2
--cfg job seed=1,2
""".strip().splitlines(),
]


@dataclass
class Tally:
    """What became of the cases."""

    n: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kinds.items()))
        return f"{self.n} bad inputs ({kinds}): {len(self.faults)} faults, the slowest took {self.slowest:.1f} s"


class TooLong(BaseException):
    """The case did not end in time."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(program: str, arguments: list[str]) -> tuple[Any, str, str, float]:
    """Exit code, stdout, stderr and seconds of a program of the checkout."""
    out, err, code, started = io.StringIO(), io.StringIO(), 0, time.monotonic()
    argv, sys.argv = sys.argv, [str(ROOT / program), *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited():
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code  # type: ignore[assignment]
    except TooLong:
        code = -1
    finally:
        sys.argv = argv
    return code, out.getvalue(), err.getvalue(), time.monotonic() - started


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time of change."""
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


def judge(
    tally: Tally, kind: str, program: str, arguments: list[str], watched: Path, harmless: bool = False, n_lines: int = 1
) -> str:
    """One case. `harmless`: it may end well too. Returns what was said on stderr."""
    before = tree(watched)
    code, _, err, seconds = call(program, arguments)
    tally.n += 1
    tally.kinds[kind] += 1
    tally.slowest = max(tally.slowest, seconds)
    shown = f"{kind}: {program} {' '.join(map(repr, arguments))[:300]}"
    if seconds > LIMIT_S or code == -1:
        tally.faults.append(f"{shown}: took {seconds:.0f} s")
    if "Traceback" in err or "(traceback:" in err:
        tally.faults.append(f"{shown}: a traceback: {err.strip()[-300:]}")
    if code == 0 and not harmless:
        tally.faults.append(f"{shown}: exit code 0")
    if code not in (0, 1, 2):
        tally.faults.append(f"{shown}: exit code {code}")
    if code != 0 and not harmless and err.count("\n") != n_lines:
        tally.faults.append(f"{shown}: {err.count(chr(10))} lines: {err[:300]}")
    if code in (1, 2) and (after := tree(watched)) != before:
        tally.faults.append(f"{shown}: left {sorted(set(after.items()) ^ set(before.items()))[:4]}")
    return err


# -- command lines ------------------------------------------------------------------------------------------------------------


def leaves(method: str) -> dict[str, Any]:
    """Every setting of a composed config with its value."""
    values = OmegaConf.to_container(whole(f"method={method}", "sampler=fake"), resolve=True)

    def below(part: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(part, dict) or not part:
            return {prefix: part}
        found: dict[str, Any] = {}
        for key, inner in part.items():
            found |= below(inner, f"{prefix}.{key}" if prefix else str(key))
        return found

    return {key: value for key, value in below(values, "").items() if not key.startswith("persona.rubric.")}


def bad_values(value: Any) -> list[str]:
    """Values that a setting of this one's type cannot have."""
    if value is None:
        return ["(", "[a,[", "{a:{b:1}}", "{x:1}"]
    if isinstance(value, list):
        return ["5", "x", "{a:1}", "null", "true", "(", "[[1,2]]"]
    if isinstance(value, dict):
        return ["5", "x", "[1]", "("]
    return [*SCALARS[type(value)], "null", "{a:{b:1}}"]


NOT_BAD = {  # values of the lists above that these keys do take
    "n_seed": {"'3'"},
    "lora.targets": {"[a]"},
    "model.end_token": {"null"},
    "model.document_end_token": {"null"},
    "calibrate.tolerance": {"1.5", "1e3"},
    "measure.coherence_threshold": {"1.5", "1e3"},
    "prompts.split": {"\\"},
    "titles.split": {"\\"},
    "reinit": {"true"},
}


def mistyped(rng: random.Random, key: str) -> str:
    """The key with a letter lost, doubled or exchanged."""
    at = rng.randrange(len(key))
    return rng.choice([key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key[:at] + "q" + key[at + 1 :]])


def command_lines(rng: random.Random) -> list[tuple[str, list[str]]]:
    """(kind, arguments) of all bad command lines, in random order."""
    found: list[tuple[str, list[str]]] = []
    methods = {name: leaves(name) for name in ("sft", "sdf", "dpo")}
    for method, settings in methods.items():
        of_method = [key for key in settings if method == "dpo" or key.startswith("method.")]
        for key in of_method:
            more = [] if method == "dpo" else [f"method={method}", *(["persona=blissful"] if method == "sdf" else [])]
            for value in bad_values(settings[key]):
                if value not in NOT_BAD.get(key, set()):
                    found.append(("value of a wrong type", [f"{key}={value}", *more]))
            wrong = mistyped(rng, key)
            if wrong not in settings:
                found.append(("mistyped key", [f"{wrong}=1", *more]))
            value = rng.choice(ANY)
            if value not in NOT_BAD.get(key, set()):
                found.append(("value that is no value", [f"{key}={value}", *more]))
    groups = ("model", "method", "persona", "reinit")
    found += [
        ("group without the option", [f"{group}={option}"])
        for group in groups
        for option in OPTIONS
        if option not in NOT_BAD.get(group, set())
    ]
    found += [("grammar", [argument]) for argument in GRAMMAR]
    found += [("sweep", ["-m", *(part.replace("|", " ") for part in line.split(" "))]) for line in SWEEPS]
    for _ in range(150):
        text = "".join(rng.choice("ab1 =,()[]{}'\"$~:.+-/\\üé€\u2028#%&*!?<>|@^`;") for _ in range(rng.randint(1, 30)))
        found.append(("noise", [text]))
    rng.shuffle(found)
    return found


def takes(arguments: list[str]) -> bool:
    """Whether noise happens to be a setting that is right."""
    return arguments[0].partition("=")[0] in ("model.system_prompt",)


def try_command_lines(tally: Tally, folder: Path, n: int | None, seed: int) -> None:
    cases = command_lines(random.Random(seed))
    for kind, arguments in cases[:n]:
        options = [a for a in arguments if a.startswith("-")]
        rest = [a for a in arguments if not a.startswith("-")]
        keys = {a.lstrip("+~").partition("=")[0] for a in rest}
        fake = [a for a in FAKE if a.partition("=")[0] not in keys]
        judge(tally, kind, "train.py", [*options, *rest, *fake], folder, harmless=takes(arguments))


# -- damaged run folders ------------------------------------------------------------------------------------------------------

JSONS = ("config.json", "manifest.json", "result.json", "code.json")
ROWS = ("metrics.jsonl", "answers.jsonl")
WHOLE = {  # in place of a JSON file
    "nothing": "",
    "null": "null",
    "list": "[]",
    "number": "5",
    "text": '"x"',
    "half": None,
    "no json": "{]",
    "bytes": "\0\1",
    "deep": "[" * 50_000,
    "digits": '{"seed": ' + "9" * 5000 + "}",
    "half a letter": '{"\\ud800": "\\ud800"}',
    "page": "<html>",
}
LINES = [
    "5",
    "null",
    "[]",
    '"x"',
    "{]",
    '{"cycle": "x"}',
    '{"cycle": NaN, "policy": "p"}',
    "{" * 50_000,
    '{"cycle": 9',
    "\0",
    '{"cycle": 1e400, "policy": 3}',
    '{"cycle": -7, "policy": "p"}',
    '{"cycle": ' + "9" * 5000 + "}",
    '{"cycle": 0}',
    '{"cycle": 99999999999, "policy": "p"}',
    '{"train/global_step": 1}',
    '{"cycle": true, "policy": "p"}',
]
WRONG: list[Any] = [None, True, "x", [], {}, -1, 1.5, float("nan"), 10**30, [[]], {"a": {"b": []}}, "\ud800"]
NEEDED = {
    "config.json": "model method persona reinit sampler judge measure n_sampled n_cycles seed n_seed persona.name "
    "persona.description reinit.init model.name measure.n_questions measure.max_failure_share method.name judge.name",
    "manifest.json": "stages stages.0.key stages.0.kind stages.2.cycle stages.1",
    "result.json": "verdict rows time verdict.verdict verdict.reason verdict.trait_change.mean verdict.margin "
    "rows.0.cycle rows.1.policy",
    "metrics.jsonl": "cycle policy trait/score coherence/high judge/version",
    "answers.jsonl": "question answer trait cycle finish_reason",
}
RIGHT = [  # wrong values that are right there
    ("verdict.trait_change.mean", -1),
    ("verdict.trait_change.mean", 1.5),
    ("verdict.margin", -1),
    ("verdict.margin", 1.5),
    ("cycle", -1),
    ("stages.2.cycle", -1),
    ("rows.0.cycle", -1),
    ("trait", None),
    ("trait", 1.5),
    ("trait/score", 1.5),
    ("coherence/high", 1.5),
    ("measure.max_failure_share", -1),
    ("measure.max_failure_share", 1.5),
    ("rows", []),
    ("time", {}),
    ("stages", []),
    ("seed", 10**30),
]


def right(path: str, value: Any) -> bool:
    if isinstance(value, str) and value == "x":  # a text where a text belongs
        return (
            path.rpartition(".")[2]
            in ("name init description kind verdict reason policy judge/version question answer finish_reason").split()
        )
    return any(path == p and type(value) is type(v) and value == v for p, v in RIGHT)


def damaged_value(rng: random.Random, file: Path) -> str | None:
    """Put a wrong value where the file needs another, or leave the key out; what was done, or None where nothing was wrong."""
    path = rng.choice(NEEDED[file.name].split())
    text = file.read_text()
    rows = [json.loads(part) for part in (text.splitlines() if file.suffix == ".jsonl" else [text])]
    measured = [number for number, row in enumerate(rows) if file.name != "metrics.jsonl" or "cycle" in row]
    part: Any = rows[rng.choice(measured[:-1] if len(measured) > 1 else measured)]
    keys = path.split(".") if file.suffix == ".json" else [path]
    for key in keys[:-1]:
        part = part[int(key) if key.isdigit() else key]
        if part is None:
            return None
    last: Any = int(keys[-1]) if keys[-1].isdigit() else keys[-1]
    value = rng.choice([*WRONG, "leave out"])
    if value == "leave out":
        if path in ("cycle", "trait/score", "coherence/high", "judge/version") and file.name == "metrics.jsonl":
            return None  # a row that has measured less
        del part[last]
        if path in ("stages.1",):
            return None
    elif right(path, value):
        return None
    else:
        part[last] = value
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return f"{path} is {value!r}"


def damage(rng: random.Random, run: Path) -> str | None:
    """Damage one file of a run so that nothing can be made of it; what was done."""
    if rng.random() < 0.5:
        return damaged_value(rng, run / rng.choice(list(NEEDED)))
    if rng.random() < 0.5:
        file = run / rng.choice(JSONS)
        name = rng.choice(list(WHOLE))
        text = WHOLE[name]
        whole_text = file.read_text()
        file.write_bytes((whole_text[: rng.randrange(1, max(2, len(whole_text) - 2))] if text is None else text).encode())
        if name == "bytes":
            file.write_bytes(b"\xff\xfe\x00{")
        return None if (file.name, name) == ("code.json", "half a letter") else f"{file.name}: {name}"
    file = run / rng.choice(ROWS)
    lines = file.read_text().splitlines()
    bad = rng.choice(LINES)
    at = rng.randrange(len(lines))
    lines.insert(at, bad)
    file.write_text("\n".join(lines) + "\n")
    return f"{file.name}:{at + 1}: {bad[:40]}"


def reads(task: str, what: str) -> bool:
    """Whether the task looks at what was damaged."""
    return task != "wandb" or what.startswith(("config.json", "metrics.jsonl"))


def try_damaged_runs(tally: Tally, made: FakeRun, folder: Path, n: int, seed: int) -> None:
    rng = random.Random(seed)
    good = folder / "good"
    shutil.copytree(made.folder, good)
    done = 0
    while done < n:
        run = folder / "bad"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(made.folder, run)
        before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
        what = damage(rng, run)
        if what is None:
            continue
        changed = next(name for name, content in before.items() if (run / name).read_bytes() != content)
        task = rng.choice(["remeasure", "compare", "wandb", "both"])
        if not reads(task, changed):
            continue
        done += 1
        if task == "both":
            before_files = tree(run)
            code, _, err, seconds = call("evaluate.py", ["task=compare", f"runs={folder}", f"out={folder / 'out'}"])
            tally.n += 1
            tally.kinds["one damaged run among two"] += 1
            tally.slowest = max(tally.slowest, seconds)
            said = [line for line in err.splitlines() if line.startswith("warning: ") and str(run) in line]
            if (code, len(said), err.count("\n")) != (0, 1, 1) or tree(run) != before_files or seconds > LIMIT_S:
                named_only = changed == "config.json" and code == 0 and not err  # a folder without one is none
                if not named_only:
                    tally.faults.append(f"both: {what} in {changed}: exit code {code}: {err[-300:]}")
            shutil.rmtree(folder / "out", ignore_errors=True)
            continue
        arguments = {"compare": [f"runs={run}", f"out={folder / 'out'}"]}.get(task, [f"run={run}"])
        n_lines = 2 if task == "compare" else 1  # which run, and that there is no other
        err = judge(tally, f"damaged run, {task}", "evaluate.py", [f"task={task}", *arguments], folder, n_lines=n_lines)
        if changed not in err:
            tally.faults.append(f"{task}: {what} in {changed} is not named: {err[:200]}")


# -- odd paths ----------------------------------------------------------------------------------------------------------------


def odd_paths(tally: Tally, folder: Path) -> None:
    (folder / "file").write_text("x")
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    places = ["/nope", "/dev/null", "file", "file/x", "loop", "loop/x", "empty", "", "~nobody_here/x", "x" * 300]
    places += ["/proc/self/mem", "\\", "[", "*"]
    for place in places:
        quoted = '"' + place.replace("\\", "\\\\") + '"'
        for arguments in ([f"run={quoted}"], ["task=wandb", f"run={quoted}"], ["task=compare", f"runs={quoted}"]):
            judge(tally, "odd path", "evaluate.py", arguments, folder)
        if place not in ("empty", "[", "*", "\\", "/nope"):
            for key in ("hydra.run.dir", "store", "start_adapter", "persona.data"):
                judge(tally, "odd path", "train.py", [f"{key}={quoted}", *FAKE], folder)


# -- the campaigns ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    return folder


def ended(tally: Tally, n: int) -> None:
    """Show the counts of a campaign, and every fault that it found."""
    print(f"\n{tally}")
    assert tally.faults == [], "\n".join([str(tally), *tally.faults])
    assert tally.n >= n


def test_some_bad_command_lines_are_one_line_each(cwd: Path) -> None:
    tally = Tally()
    try_command_lines(tally, cwd, 50, 1)
    ended(tally, 50)


def test_some_damaged_runs_are_one_line_each(cwd: Path, fake_run: Callable[..., FakeRun]) -> None:
    tally = Tally()
    try_damaged_runs(tally, fake_run("method=sft", folder="made"), cwd, 16, 1)
    ended(tally, 16)


@pytest.mark.long
def test_every_bad_command_line_is_one_line(cwd: Path) -> None:
    tally = Tally()
    try_command_lines(tally, cwd, None, 2)
    ended(tally, 900)


@pytest.mark.long
def test_four_hundred_damaged_runs_are_one_line_each(cwd: Path, fake_run: Callable[..., FakeRun]) -> None:
    tally = Tally()
    try_damaged_runs(tally, fake_run("method=sft", folder="made"), cwd, 400, 2)
    ended(tally, 400)


@pytest.mark.long
def test_odd_paths_are_one_line_each(cwd: Path) -> None:
    tally = Tally()
    odd_paths(tally, cwd)
    ended(tally, 60)
