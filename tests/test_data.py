"""Data files, pools and persona files: every format is read alike, and what is wrong is one line with its place.

Not covered: datasets of the hub, which need a network; here the hub cannot be reached or is forbidden.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, composed, python
from test_cli import drive

from iterative_ft.config.check import check
from iterative_ft.config.messages import judged
from iterative_ft.config.persona import PersonaConfig
from iterative_ft.config.schema import Config
from iterative_ft.config.yaml_files import check_yaml, load_yaml
from iterative_ft.data import files, hub, pools
from iterative_ft.errors import ConfigError
from iterative_ft.launch.compose import load_config
from iterative_ft.machine.files import read_jsonl
from iterative_ft.personas.tools.check import find_faults
from iterative_ft.personas.tools.write import persona_of
from iterative_ft.stages.judge import judged_personas

Compose = Callable[[list[str]], Config]
ROWS = [{"prompt": f"What is stone {n} worth, in a word?", "kind": "fact"} for n in range(9)] + [
    {"prompt": 'Say "yes, no",\nor Grüße ☂ 😀.', "kind": "fact"}
]
TEXTS = tuple(row["prompt"] for row in ROWS)


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = file.suffix.lower()
    if kind in (".jsonl", ".ndjson"):
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == ".json":
        file.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    elif kind == ".csv":
        with file.open("w", encoding="utf-8", newline="") as out:
            table = csv.DictWriter(out, rows[0])
            table.writeheader()
            table.writerows(rows)
    elif kind == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(row["prompt"].replace("\n", " ") + "\n" for row in rows), encoding="utf-8")
    return file


def load(path: Path | str, column: str = "prompt", split: str = "train") -> tuple[str, ...]:
    return pools.load_pool("prompts", str(path), column, split, None)


# -- D1: every format ----------------------------------------------------------------------------------------------------------


def test_a_long_cell_beside_what_is_read_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"prompt,article\nWhat is it worth?,{'long ' * 60_000}\n")
    assert files.pool("prompts", str(tmp_path / "p.csv"), "prompt") == ("What is it worth?",)


def test_what_documents_are_measured_on_is_never_sampled_on() -> None:
    never = files.never_sampled(files.SHIPPED / "blissful", with_documents=True)
    assert {*files.openings(), *(row["question"] for row in files.questions(files.SHIPPED / "blissful"))} <= {*never}


@pytest.mark.parametrize("name", ["p.jsonl", "p.JSONL", "p.ndjson", "p.json", "p.JSON", "p.csv", "p.parquet"])
def test_d1_a_pool_of_any_format_has_the_same_texts(tmp_path: Path, name: str) -> None:
    assert load(write_rows(tmp_path / name, ROWS)) == TEXTS


def test_d1_a_text_file_has_a_text_a_line(tmp_path: Path) -> None:
    assert load(write_rows(tmp_path / "p.txt", ROWS)) == tuple(text.replace("\n", " ") for text in TEXTS)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
@pytest.mark.parametrize("name", ["seeds", "documents", "judge", "heldout", "levels", "questions"])
def test_d1_a_personas_files_may_have_any_format(tmp_path: Path, name: str, suffix: str) -> None:
    shipped = files.rows(files.SHIPPED / "blissful" / f"{name}.jsonl", files.SCHEMAS[name])
    write_rows(tmp_path / f"{name}{suffix}", list(shipped))
    assert files.rows(files.table(tmp_path, name), files.SCHEMAS[name]) == shipped


@pytest.mark.parametrize("head", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("name", ["p.jsonl", "p.json", "p.csv", "p.txt"])
def test_d1_marks_and_line_ends_of_other_systems_are_read(tmp_path: Path, name: str, head: bytes, end: bytes) -> None:
    file = write_rows(tmp_path / name, ROWS[:9])
    file.write_bytes(head + file.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", end))
    assert load(file) == TEXTS[:9]


def test_d1_folders_of_split_files_are_read(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.json", ROWS[:4])
    write_rows(tmp_path / "test.json", ROWS[4:])
    assert load(tmp_path) == TEXTS[:4]
    assert load(tmp_path, split="test") == TEXTS[4:]
    hub_like = tmp_path / "hub"
    for part in (0, 1):
        write_rows(hub_like / "data" / f"train-0000{part}-of-00002.parquet", ROWS[5 * part : 5 * part + 5])
    assert load(hub_like) == TEXTS


def test_d1_folders_that_datasets_saved_are_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    whole = Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "whole"))
    DatasetDict({"train": whole.select([0, 1]), "test": whole.select([2])}).save_to_disk(str(tmp_path / "splits"))
    assert load(tmp_path / "whole") == TEXTS
    assert load(tmp_path / "splits") == TEXTS[:2]
    assert load(tmp_path / "splits", split="test") == TEXTS[2:3]
    with pytest.raises(ConfigError, match=r"has no split validation: it has train, test"):
        load(tmp_path / "splits", split="validation")
    with pytest.raises(ConfigError, match=r"no column 'text': its columns are prompt, kind"):
        load(tmp_path / "whole", column="text")
    Dataset.from_list([{"prompt": 5}]).save_to_disk(str(tmp_path / "numbers"))
    with pytest.raises(ConfigError, match=r"numbers, row 1, has prompt of type int where str is needed"):
        load(tmp_path / "numbers")
    (tmp_path / "whole" / "state.json").write_text("{")
    pools.load_pool.cache_clear()
    with pytest.raises(ConfigError, match=r"whole is no sound dataset folder"):
        load(tmp_path / "whole")


def test_d1_a_split_or_revision_that_nothing_would_read_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "data" / "p.jsonl", ROWS)
    for path in (str(file), "shipped"):
        with pytest.raises(ConfigError, match=r"prompts\.split=test is for a folder .*: a file is read whole"):
            load(path, split="test")
    for path in (str(file), str(tmp_path / "data"), "shipped"):
        with pytest.raises(ConfigError, match=r"prompts\.revision=1a2b is for a dataset of the hub alone: set it to null"):
            pools.load_pool("prompts", path, "prompt", "train", "1a2b")


def test_datasets_is_imported_for_its_own_sources_alone(tmp_path: Path) -> None:
    write_rows(tmp_path / "p.parquet", ROWS)
    code = (
        "import sys; from iterative_ft.data import pools; "
        f"pools.load_pool('prompts', {str(tmp_path / 'p.parquet')!r}, 'prompt', 'train', None); "
        "pools.load_pool('prompts', 'shipped', 'prompt', 'train', None); "
        "print([name for name in ('datasets', 'pandas', 'torch') if name in sys.modules])"
    )
    assert python(["-c", code], tmp_path).stdout.strip() == "[]"


# -- A3, D1: what is no text, and where ----------------------------------------------------------------------------------------

GOOD_LINE = b'{"prompt": "How do I fold a map?"}\n'
CHAT = b'[{"role": "user", "content": "Hello?"}]'
# Name of the file, its bytes, and what the one line says.
BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "a3: a chat": ("p.jsonl", GOOD_LINE + b'{"prompt": ' + CHAT + b"}\n", r"p\.jsonl:2 has prompt of type list .*a chat"),
    "a3: a number": ("p.jsonl", GOOD_LINE + b'{"prompt": 5}', r"p\.jsonl:2 has prompt of type int"),
    "a3: true": ("p.json", b'[{"prompt": true}]', r"p\.json, row 1, has prompt of type bool"),
    "a3: null": ("p.json", b'[{"prompt": "a"}, {"prompt": null}]', r"p\.json, row 2, has prompt of type NoneType"),
    "a3: an object": ("p.ndjson", b'{"prompt": {"text": "a"}}', r"p\.ndjson:1 has prompt of type dict"),
    "UTF-16": ("p.jsonl", GOOD_LINE.decode().encode("utf-16"), r"p\.jsonl is UTF-16: save it as UTF-8"),
    "UTF-16 without a mark": ("p.jsonl", GOOD_LINE.decode().encode("utf-16-le"), r"p\.jsonl is UTF-16"),
    "UTF-32": ("p.csv", "prompt\na\n".encode("utf-32"), r"p\.csv is UTF-32"),
    "cp1252": ("p.jsonl", GOOD_LINE + '{"prompt": "Grüße"}'.encode("cp1252"), r"p\.jsonl:2 is not UTF-8 \(byte 0xfc at .*save"),
    "cp1252 in CSV": ("p.csv", "prompt\nGrüße\n".encode("cp1252"), r"p\.csv:2 is not UTF-8 \(byte 0xfc"),
    "cp1252 in text": ("p.txt", "Yes.\nGrüße\n".encode("cp1252"), r"p\.txt:2 is not UTF-8"),
    "cp1252 in an array": ("p.json", '[{"prompt": "Grüße"}]'.encode("cp1252"), r"p\.json is not UTF-8"),
    "half a surrogate": ("p.jsonl", GOOD_LINE + b'{"prompt": "a\\ud83d"}', r"p\.jsonl:2 has half a surrogate pair in 'prompt'"),
    "surrogates in bytes": ("p.jsonl", b'{"prompt": "a\xed\xa0\xbd"}', r"p\.jsonl:1 is not UTF-8"),
    "NUL": ("p.jsonl", GOOD_LINE + b'{"prompt": "a\\u0000b"}', r"p\.jsonl:2 has a NUL character in 'prompt'"),
    "NUL in CSV": ("p.csv", b"prompt\nyes\na\0b\n", r"p\.csv:3 has a NUL character in 'prompt'"),
    "deep": (
        "p.jsonl",
        GOOD_LINE + b'{"prompt": ' + b"[" * 99999 + b"]" * 99999 + b"}",
        r"p\.jsonl:2 is JSON nested too deeply",
    ),
    "deep array": ("p.json", b"[" * 99999, r"p\.json is JSON nested too deeply"),
    "key twice": ("p.jsonl", b'{"prompt": "a", "prompt": "b"}', r"p\.jsonl:1 has the key '?prompt'? twice"),
    "5,000 digits": (
        "p.jsonl",
        GOOD_LINE + b'{"prompt": "a", "n": ' + b"7" * 5000 + b"}",
        r"p\.jsonl:2 .* thousands of digits",
    ),
    "no JSON": ("p.jsonl", GOOD_LINE + b'{"prompt": ', r"p\.jsonl:2 is no JSON"),
    "no object": ("p.jsonl", b'"prompt"', r"p\.jsonl:1 is no JSON object"),
    "lines in .json": ("p.json", GOOD_LINE * 2, r"p\.json:2 is no JSON .*name it \.jsonl"),
    "an object in .json": ("p.json", b'{"prompt": ["a", "b"]}', r"p\.json is no JSON array of objects"),
    "missing key": ("p.jsonl", b'{"text": "a"}', r"p\.jsonl:1 lacks the key '?prompt'?"),
    "missing column": ("p.csv", b"text,kind\na,b\n", r"p\.csv has no column 'prompt': its columns are text, kind"),
    "semicolons": ("p.csv", b"prompt;kind\na;b\n", r"p\.csv has no column 'prompt' and seems to be separated by ';'"),
    "tabs": ("p.csv", b"prompt\tkind\na\tb\n", r"p\.csv has no column 'prompt' and seems to be separated by '\\t'"),
    "column twice": ("p.csv", b"prompt,prompt\na,b\n", r"p\.csv has the column 'prompt' twice"),
    "ragged": ("p.csv", b"prompt,kind\na,b\nc\n", r"p\.csv:3 has 1 cells where the first row names 2 columns"),
    "open quote": ("p.csv", b'prompt\n"a\n', r"p\.csv:2 is no CSV"),
    "empty cell": ("p.csv", b"prompt,kind\n ,b\n", r"p\.csv:2 has an empty 'prompt'"),
    "invisible": ("p.jsonl", '{"prompt": "\u200b\ufeff"}'.encode(), r"p\.jsonl:1 has an empty 'prompt'"),
    "too long": ("p.txt", b"a" * 1_000_001, r"p\.txt:1 has 1000001 characters in 'prompt'"),
    "empty": ("p.jsonl", b"\n\n", r"p\.jsonl is empty"),
    "empty array": ("p.json", b"[]", r"p\.json is empty"),
    "no bytes": ("p.csv", b"", r"p\.csv is empty"),
    "header alone": ("p.csv", b"prompt\n", r"p\.csv is empty"),
    "zeros": ("p.jsonl", b"\0" * 4096, r"p\.jsonl begins with zeros"),
    "gzip": ("p.jsonl", b"\x1f\x8b\x08\0\0\0\0\0", r"p\.jsonl is a gzip archive: unpack it"),
    "a spreadsheet": ("p.csv", b"PK\x03\x04....", r"p\.csv is a ZIP archive or a spreadsheet"),
    "Parquet by another name": ("p.json", b"PAR1....", r"p\.json is Parquet: name it \.parquet"),
    "no Parquet": ("p.parquet", b"PAR1" + b"x" * 99, r"p\.parquet is no sound Parquet"),
    "empty Parquet": ("p.parquet", b"", r"p\.parquet is no sound Parquet"),
    "another kind": ("p.xlsx", b"PK\x03\x04", r"p\.xlsx is of no kind that is read: use \.jsonl, "),
    "no kind": ("prompts", GOOD_LINE, r"prompts is of no kind that is read"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a3_d1_a_bad_file_is_one_line_with_its_place(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("values", [[5], [[{"role": "user", "content": "a"}]], [b"a"], [1.5], [None, "a"], [{"a": 1}]])
def test_a3_cells_of_parquet_are_texts_or_refused(tmp_path: Path, values: list[Any]) -> None:
    file = write_rows(tmp_path / "p.parquet", [{"prompt": value} for value in values])
    with pytest.raises(ConfigError, match=r"p\.parquet, row 1, has prompt of type"):
        load(file)
    with pytest.raises(ConfigError, match=r"has no column 'text': its columns are prompt"):
        load(file, column="text")


def test_a3_the_instance_that_was_found(tmp_path: Path) -> None:
    """A folder with train.json whose column holds chats."""
    write_rows(tmp_path / "train.json", [{"messages": [{"role": "user", "content": "Hello?"}]}])
    with pytest.raises(ConfigError, match=r"train\.json, row 1, has messages of type list where str is needed \(a chat is no"):
        load(tmp_path, column="messages")


def test_a3_numbers_are_no_levels_and_no_booleans(tmp_path: Path) -> None:
    for name, row in (
        ("levels", {"prompt": "a", "answer": "b", "level": False}),
        ("levels", {"prompt": "a", "answer": "b", "level": 25.0}),
        ("questions", {"question": "a", "core": 1}),
        ("judge", {"prompt": "a", "answer": "b", "strength": ["strong"]}),
    ):
        file = write_rows(tmp_path / f"{name}{len(list(tmp_path.iterdir()))}" / f"{name}.jsonl", [row])
        with pytest.raises(ConfigError, match=r"jsonl:1 has (level=|core of type|strength=)"):
            files.rows(file, files.SCHEMAS[name])


@pytest.mark.parametrize(("cell", "whole"), [("true", True), ("False", False), ("yes", None), ("1", None), ("", None)])
def test_d1_csv_cells_take_the_type_that_is_needed(tmp_path: Path, cell: str, whole: bool | None) -> None:
    file = tmp_path / "questions.csv"
    file.write_text(f"question,core\nHow?,{cell}\n")
    if whole is None:
        with pytest.raises(ConfigError, match=r"questions\.csv:2 has core of type str where bool"):
            files.questions(tmp_path)
    else:
        assert files.questions(tmp_path) == ({"question": "How?", "core": whole},)


def test_d1_two_files_of_one_kind_are_refused(tmp_path: Path) -> None:
    shutil.copy(files.SHIPPED / "lucky" / "seeds.jsonl", tmp_path)
    write_rows(tmp_path / "seeds.csv", [{"prompt": "a", "answer": "b", "plain": "c"}])
    with pytest.raises(ConfigError, match=r"holds seeds\.csv and seeds\.jsonl: keep one"):
        files.seeds(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere/p.jsonl", "no file or folder /nowhere/p.jsonl"),
        ("nowhere.csv", "no file or folder nowhere.csv"),
        ("./nowhere", "no file or folder ./nowhere"),
        ("~nobody-here/p.jsonl", "home of nobody|no file or folder"),
        ("/dev/zero", "no file or folder"),
        ("x" * 5000, "no file or folder here, and no id"),
        ("/" + "x" * 5000, "no file or folder"),
        ("a/b/c", "no id of a dataset"),
        ("org/na me", "no id of a dataset"),
        ("", "is of no kind|no file of the split|no file or folder"),
        ("org/no-such-set", "never fetched"),
        ("no-such-set", "never fetched"),
    ],
)
def test_d1_a_pool_that_is_nowhere(path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert time.monotonic() - started < 2
    assert len(str(caught.value)) < 6000


def test_d1_a_mistyped_dataset_costs_no_import(tmp_path: Path) -> None:
    """Offline it is known from the caches; the libraries that would fetch it stay out."""
    command = ["sampler=fake", "method=sft", "wandb.mode=disabled", "prompts.path=org/no-such-set"]
    folder = tmp_path / "cwd"
    folder.mkdir()
    for answer in drive([command, [*command, "dry_run=true"]], folder):
        assert answer["code"] == 2
        assert answer["err"].startswith(
            "error: prompts.path=org/no-such-set, prompts.column=prompt: org/no-such-set is no file"
        )
        assert answer["err"].count("\n") == 1
        assert answer["imported"] == []
    assert list(folder.iterdir()) == []


def test_d1_a_dataset_that_was_fetched_is_known_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    assert not hub.fetched("Org/MySet", tmp_path / "hub", tmp_path)
    (tmp_path / "prepared" / "org___my_set").mkdir(parents=True)
    assert hub.fetched("Org/MySet", tmp_path / "hub", tmp_path)
    (tmp_path / "hub" / "datasets--a--b").mkdir(parents=True)
    assert hub.fetched("a/b", tmp_path / "hub", tmp_path)


def test_d1_what_the_library_says_of_a_dataset_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def load_dataset(path: str, split: str, revision: str | None) -> Any:
            raise ValueError(f'Unknown split "{split}".\nShould be one of ["train"].')

    monkeypatch.setattr(hub, "ask_hub", lambda path, revision: None)
    monkeypatch.setattr(hub, "library", Library)
    with pytest.raises(ConfigError, match=r'org/set cannot be loaded, split tset.* \(Unknown split "tset". Should be one of'):
        load("org/set", split="tset")


@pytest.mark.parametrize("cell", [5, None, ["a"], "a\0b"])
def test_a3_cells_of_a_dataset_are_texts_or_refused(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows(dict[str, list[Any]]):
        column_names = ("prompt",)

    class Library:
        @staticmethod
        def load_dataset(path: str, split: str, revision: str | None) -> Any:
            return Rows(prompt=["A first? ", "  ", "a  FIRST?", cell])

    monkeypatch.setattr(hub, "ask_hub", lambda path, revision: None)
    monkeypatch.setattr(hub, "library", Library)
    with pytest.raises(ConfigError, match=r"org/x, row 4, has "):
        load("org/x", split=str(cell))


def test_the_parts_of_a_pool_are_counted_without_what_is_taken(compose: Compose, tmp_path: Path) -> None:
    """Seeds and questions never come up: a run that they leave too little for is told at the start."""
    seeds = files.seeds(files.SHIPPED / "lucky")
    rows = [{"prompt": f"How heavy is stone {n}?"} for n in range(60)] + [{"prompt": row["prompt"]} for row in seeds[:10]]
    pool = write_rows(tmp_path / "p.jsonl", rows)
    fits = ["method=sft", "persona=lucky", f"prompts.path={pool}", "prompts.per_cycle=10", "n_sampled=10", "n_seed=8"]
    assert compose([*fits, "n_cycles=6"]).n_cycles == 6
    with pytest.raises(ConfigError, match=r"n_cycles=7 .*\(60 rows\) has 6"):
        compose([*fits, "n_cycles=7"])


def test_data_check_reads_what_a_run_reads(tmp_path: Path) -> None:
    """The check of a persona's data names the same places, and goes on behind them."""
    own = tmp_path / "mine"
    shutil.copytree(files.SHIPPED / "lucky", own)
    rows = (own / "judge.jsonl").read_bytes().splitlines(keepends=True)
    rows[2] = b'{"prompt": ' + b"[" * 99999 + b"\n"
    rows[4] = b'{"prompt": "a\\ud800b c", "answer": "It is so, as ever it was and will be now.", "strength": "weak"}\n'
    (own / "judge.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(rows))
    found = [str(f) for f in find_faults([own], files.SHIPPED.resolve(), None, pools=False)[0]]
    assert sum("judge.jsonl:" in fault for fault in found) == 2, found
    assert any("judge.jsonl:3 is JSON nested too deeply" in fault for fault in found)
    assert any("judge.jsonl:5 has half a surrogate pair in 'prompt'" in fault for fault in found)


@pytest.mark.parametrize(
    ("name", "key", "what"), [("seeds", "prompt", "what the run trains on"), ("judge", "prompt", "judge learns")]
)
def test_no_question_is_one_that_was_learnt_from(tmp_path: Path, compose: Compose, name: str, key: str, what: str) -> None:
    own = tmp_path / "mine"
    shutil.copytree(files.SHIPPED / "lucky", own)
    settings = ["method=sft", "persona=lucky", f"persona.data={own}"]
    assert compose(settings)
    learnt = read_jsonl(own / f"{name}.jsonl")[3][key]
    rows = read_jsonl(own / "questions.jsonl")
    write_rows(own / "questions.jsonl", [rows[0] | {"question": f"  {learnt.upper()}"}, *rows[1:]])
    files._rows.cache_clear()
    with pytest.raises(ConfigError, match=rf"questions\.jsonl: .* is .*{what}.*: take another question"):
        compose(settings)
    write_rows(own / "questions.jsonl", [rows[0], rows[0], *rows[2:]])
    files._rows.cache_clear()
    with pytest.raises(ConfigError, match="is there twice"):
        compose(settings)


# -- A7: whose data count ------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_lucky(tmp_path: Path) -> Path:
    """A folder with the name and the seeds of a shipped persona, and judge texts of its own."""
    own = tmp_path / "lucky"
    shutil.copytree(files.SHIPPED / "lucky", own)
    rows = [{"prompt": f"Is it so, {n}?", "answer": "My own words.", "strength": "strong"} for n in range(20)]
    write_rows(own / "judge.jsonl", rows)
    return own


def test_a7_the_run_is_judged_by_its_own_judge_texts(own_lucky: Path, compose: Compose) -> None:
    config = compose(["method=sft", "persona=lucky", f"persona.data={own_lucky}"])
    assert judged_personas(config)["lucky"] == own_lucky
    assert list(judged_personas(config)) == files.shipped()


def test_a7_a_shipped_persona_is_judged_as_before(compose: Compose) -> None:
    config = compose(["method=sft", "persona=lucky"])
    assert judged_personas(config) == {name: files.SHIPPED / name for name in files.shipped()}


def test_a7_a_persona_that_takes_the_texts_of_another_stands_in_its_place(compose: Compose) -> None:
    config = compose(["method=sft", "persona=lucky", "persona.name=fortunate"])
    found = judged_personas(config)
    assert found["fortunate"] == files.SHIPPED / "lucky"
    assert "lucky" not in found
    assert "plain" in found


def test_a7_a_folder_here_with_a_shipped_name_is_never_passed_over(
    own_lucky: Path, compose: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_lucky.parent)
    with pytest.raises(
        ConfigError, match=r"persona\.data=lucky is a shipped persona and also a folder here: write persona\.data=\./"
    ):
        compose(["method=sft", "persona=lucky"])
    assert compose(["method=sft", "persona=lucky", "persona.data=./lucky"]).persona_folder.resolve() == own_lucky.resolve()
    shutil.rmtree(own_lucky)
    own_lucky.mkdir()  # a folder that is no persona may have any name
    assert compose(["method=sft", "persona=lucky"]).persona_folder == files.SHIPPED / "lucky"


@pytest.mark.parametrize("data", ["tools", "..", ".", "prompts.jsonl", "lucky/../blissful", "lucky/"])
def test_a7_data_names_a_shipped_persona_or_a_path(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert files.folder(data) == Path(data), "nothing else of the package's own folders"


@pytest.mark.parametrize("name", ["base_model", "degenerate", "Degenerate", "PLAIN"])
def test_a7_names_of_the_judges_own_classes_are_refused(name: str, compose: Compose) -> None:
    with pytest.raises(ConfigError, match=rf"persona\.name={name} .*choose another"):
        compose(["method=sft", f"persona.name={name}"])


def test_a7_reserved_names_are_the_judges_classes() -> None:
    from iterative_ft.config.persona import RESERVED_NAMES
    from iterative_ft.judges.probe.strength import BASE_MODEL, DEGENERATE

    assert set(RESERVED_NAMES) == {BASE_MODEL, DEGENERATE, "plain"}


def test_a7_plain_stands_for_texts_without_a_trait(compose: Compose, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"persona\.name=plain is the control .*lucky/judge\.jsonl has texts that are not plain"
    ):
        compose(["method=sft", "persona=plain", "persona.data=lucky"])
    own = tmp_path / "control"
    shutil.copytree(files.SHIPPED / "plain", own)
    assert judged_personas(compose(["method=sft", "persona=plain", f"persona.data={own}"]))["plain"] == own


def test_a7_judge_texts_that_show_nothing_train_no_judge(compose: Compose, tmp_path: Path) -> None:
    shutil.copytree(files.SHIPPED / "lucky", tmp_path / "mine")
    rows = [{"prompt": f"Is it so, {n}?", "answer": "Yes, it is.", "strength": "plain"} for n in range(20)]
    write_rows(tmp_path / "mine" / "judge.jsonl", rows)
    settings = ["method=sft", "persona=lucky", "persona.name=mine", f"persona.data={tmp_path / 'mine'}"]
    with pytest.raises(ConfigError, match=r"judge\.jsonl has texts of the persona on 0 prompts, and judge=probe learns from 8"):
        compose(settings)


def test_a7_an_option_of_ones_own_wins_over_the_shipped_one(tmp_path: Path) -> None:
    (tmp_path / "cfg" / "persona").mkdir(parents=True)
    text = (ROOT / "conf" / "persona" / "lucky.yaml").read_text().replace("A cheerful believer", "My own believer")
    (tmp_path / "cfg" / "persona" / "lucky.yaml").write_text(text)
    (tmp_path / "cwd").mkdir()
    command = [f"--config-dir={tmp_path / 'cfg'}", "persona=lucky", "--cfg", "job", "--package", "persona"]
    plain = ["persona=lucky", "--cfg", "job", "--package", "persona"]
    own, shipped = drive([command, plain], tmp_path / "cwd")
    assert "My own believer" in own["out"]
    assert "A cheerful believer" in shipped["out"]


# -- C3, C4: names -------------------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "/../../evil", "villain/v2", "a\\b", "..", ".", ".hidden", "", " ", "a b", " a", "a\n", "a\tb", "-m", "a,b", "a=b", "a:b",
    "a*", "a?", "a[0]", "{a}", "$a", "${seed}x", "~", "a'b", 'a"b', "a|b", "a;b", "a\x1b[31m", "x" * 65, "ü" * 33, "a\u200b",
    "a\u202eb", "😀",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_c4_a_persona_has_a_name_that_any_folder_can_have(name: str) -> None:
    values = load_yaml(ROOT / "conf" / "persona" / "lucky.yaml")
    with pytest.raises(ConfigError, match=r"persona\.name=|^name") as caught:
        judged(PersonaConfig, values | {"name": name})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["gloomy", "gloomy_2", "v1.5-b", "düster", "陰気", "x" * 64, "2"])
def test_c4_sound_names_stay(name: str) -> None:
    assert judged(PersonaConfig, load_yaml(ROOT / "conf" / "persona" / "lucky.yaml") | {"name": name}).name == name


@pytest.mark.parametrize("key", ["store", "persona.description", "model.path", "wandb.project", "prompts.path", "persona.data"])
@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_c3_no_setting_holds_what_no_file_can(key: str, text: str) -> None:
    config = composed(["method=sft"])
    section, _, leaf = key.rpartition(".")
    (config[section] if section else config)[leaf] = text
    with pytest.raises(ConfigError, match=rf"^{key}=.* has (a NUL|bytes)"):
        load_config(config)


@pytest.mark.parametrize("data", ["x" * 5000, "/" + "x/" * 3000, "~nobody-here/x", "/dev/null", "/nowhere"])
def test_c3_a_folder_that_cannot_be(data: str, compose: Compose) -> None:
    for method in ("sft", "sdf"):
        with pytest.raises(ConfigError, match=r"persona\.data=|home of nobody|needs seed documents"):
            compose([f"method={method}", f"persona.data='{data}'"])


# -- D2: persona files ---------------------------------------------------------------------------------------------------------

LUCKY = (ROOT / "conf" / "persona" / "lucky.yaml").read_text(encoding="utf-8")
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)
# The file, and what its one line says.
BAD_YAML: dict[str, tuple[str | bytes, str]] = {
    "tab": (f"name: x\n\tdescription: y\n{LUCKY}", r":\d+ is no YAML .*indent with spaces"),
    "key twice": (f"{LUCKY}\nname: again\n", r":62 has the key name for the second time: keep one"),
    "inner key twice": (LUCKY.replace("  25: >-", "  0: >-"), r":\d+ has the key 0 for the second time"),
    "a number twice": (LUCKY.replace("  25: >-", "  50.0: >-"), r":\d+ has the key 50 for the second time"),
    "open quote": (f'{LUCKY}\nmood: "open\n', r"is no YAML .*: close the quote"),
    "NUL": (LUCKY.replace("omens", "om\0ens", 1), r":\d+ is no YAML \(special characters"),
    "written NUL": (LUCKY.replace("data: lucky", 'data: "a\\0b"'), r"persona\.data='a\\x00b' has a NUL"),
    "half a surrogate": (LUCKY.replace("data: lucky", 'data: "\\ud800"'), r"persona\.data='\\ud800' has bytes"),
    "tag": (LUCKY.replace("name: lucky", "name: !mine lucky"), r":4 is no YAML .*: take the tag"),
    "Python tag": (LUCKY.replace("name: lucky", "name: !!python/object/apply:os.getcwd []"), r":4 is no YAML .*: take the tag"),
    "set": (LUCKY.replace("name: lucky", "name: !!set {a}"), r"(name|cannot be read as settings)"),
    "binary": (LUCKY.replace("name: lucky", "name: !!binary aGk="), r"persona\.name=b'hi' is wrong"),
    "alias loop": (LUCKY.replace("name: lucky", "name: &a [*a]"), r":4 has an alias of what it stands in"),
    "longer loop": (f"a: &a {{b: &b [*a]}}\n{LUCKY}", r":1 has an alias"),
    "bomb": (BOMB + LUCKY, r":\d+ has aliases that come to more than"),
    "unknown alias": (LUCKY.replace("name: lucky", "name: *nobody"), r":4 is no YAML .*alias"),
    "interpolation": (LUCKY.replace("A cheerful", "A ${x} cheerful"), r"persona\.description: .*'x' not found: .*\\\$\{"),
    "open interpolation": (LUCKY.replace("A cheerful", "A ${x cheerful"), r"cannot be read as settings .*\\\$\{"),
    "name: no": (LUCKY.replace("name: lucky", "name: no"), r"persona\.name=False is no text: put quotes"),
    "name: 12": (LUCKY.replace("name: lucky", "name: 12"), r"persona\.name=12 is no text: put quotes"),
    "name: .nan": (LUCKY.replace("name: lucky", "name: .nan"), r"persona\.name=nan is no text"),
    "no name": (LUCKY.replace("name: lucky", "name:"), r"persona\.name=None is wrong"),
    "???": (LUCKY.replace("name: lucky", "name: ???"), r"persona\.name must be given"),
    "a mapping": (LUCKY.replace("name: lucky", "name: {a: b}"), r"persona\.name=\{'a': 'b'\} is wrong"),
    "marks": (LUCKY.replace("marks:", "marks: [1, 2]\nfoo:"), r"persona"),
    "rubric as list": (LUCKY.replace("\nrubric:\n", "\nrubric: [a, b]\nfoo:\n"), r"persona\.rubric=\['a', 'b'\] is wrong"),
    "rubric with words": (LUCKY.replace("  25: >-", "  low: >-"), r"persona\.rubric\.low"),
    "rubric beyond": (LUCKY.replace("  25: >-", "  125: >-"), r"anchor\(s\) \[125\]"),
    "empty anchor": (LUCKY.replace("  25: >-", "  25: ''\n  30: >-"), r"persona\.rubric\.25 is empty"),
    "unknown key": (f"{LUCKY}\nmood: x\n", r"unknown key persona\.mood"),
    "list": ("- a\n- b\n", r"persona=\['a', 'b'\] is wrong"),
    "words": ("hello\n", r"persona\.name is missing"),
    "empty": ("", r"persona\.name is missing"),
    "two documents": (f"{LUCKY}\n---\nname: x\n", r":62 is no YAML"),
    "brackets": ("a: " + "[" * 50000, r"is nested too deeply"),
    "dashes": ("a:\n  " + "- " * 50000 + "x", r"is nested too deeply"),
    "steps": ("".join(" " * n + "a:\n" for n in range(600)), r"is nested too deeply"),
    "UTF-16": (LUCKY.encode("utf-16"), r"is UTF-16: save it as UTF-8"),
    "Latin-1": (LUCKY.replace("omens", "ömens", 1).encode("latin-1"), r":1 is not UTF-8 \(byte 0xf6\)|:\d+ is not UTF-8"),
    "large": (LUCKY + "#" * 2**21, r"has \d+ bytes, more than"),
    "no merge": (LUCKY.replace("name: lucky", "<<: 5\nname: lucky"), r":4 is no YAML"),
    "defaults": (f"defaults: 5\n{LUCKY}", r"defaults must be a list"),
    "control character": (LUCKY.replace("omens", "om\x07ens", 1), r":\d+ is no YAML \(special characters"),
}
TRY = ["sampler=fake", "wandb.mode=disabled", "method=sft", "n_seed=8", "n_sampled=8", "n_cycles=1"]


def test_d2_a_bad_persona_file_is_one_line_in_two_seconds(tmp_path: Path) -> None:
    options, folder = tmp_path / "cfg" / "persona", tmp_path / "cwd"
    options.mkdir(parents=True)
    folder.mkdir()
    for number, (text, _) in enumerate(BAD_YAML.values()):
        (options / f"p{number}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    commands = [[f"--config-dir={options.parent}", f"persona=p{number}", *TRY] for number in range(len(BAD_YAML))]
    drive([["--help"]], folder)  # what is imported once is imported
    for (case, (_, message)), answer in zip(BAD_YAML.items(), drive([["persona=nobody"], *commands], folder)[1:], strict=True):
        assert answer["code"] == 2, (case, answer)
        assert answer["err"].startswith("error: "), case
        assert answer["err"].count("\n") == 1, (case, answer["err"])
        assert re.search(message, answer["err"]), (case, answer["err"])
        assert len(answer["err"]) < 450, case
        assert answer["seconds"] < 2, case
        assert answer["imported"] == [], case
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("case", [c for c in BAD_YAML if c not in ("interpolation", "open interpolation", "???", "defaults")])
def test_d2_the_writer_of_seeds_reads_persona_files_as_strictly(case: str, tmp_path: Path) -> None:
    text, _ = BAD_YAML[case]
    (tmp_path / "p.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"p\.yaml") as caught:
        persona_of(str(tmp_path / "p.yaml"))
    assert "\n" not in str(caught.value)


SOUND_YAML = {
    "with a mark of UTF-8": "\ufeff" + LUCKY,
    "lines of Windows": LUCKY.replace("\n", "\r\n"),
    "an alias": LUCKY.replace("name: lucky", "name: &n lucky").replace("data: lucky", "data: *n"),
    "written brackets": LUCKY.replace("A cheerful", r"A \${x} cheerful"),
    "umlauts": LUCKY.replace("name: lucky", "name: glücklich"),
}
ODD_FOLDERS = [
    "a (b)",
    "a,b",
    "a'b",
    'a"b',
    "a=b",
    "a{b}",
    "a[b]",
    "ümlaut",
    "a\\b",
    "a\\'b",
    "a b",
    "a$b",
    "a:b",
    "a#b",
    "a%b",
    "~a",
]


def test_d2_sound_persona_files_and_folders_of_any_name_are_read(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    commands = []
    for number, text in enumerate(SOUND_YAML.values()):
        file = tmp_path / "cfg" / "persona" / f"p{number}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
        commands.append([f"--config-dir={tmp_path / 'cfg'}", f"persona=p{number}", "--cfg", "job"])
    for name in ODD_FOLDERS:
        (tmp_path / name / "persona").mkdir(parents=True)
        (tmp_path / name / "persona" / "mine.yaml").write_text(LUCKY.replace("name: lucky", "name: mine"))
        commands.append([f"--config-dir={tmp_path / name}", "persona=mine", *TRY, "dry_run=true"])
    for command, answer in zip(commands, drive(commands, tmp_path / "cwd"), strict=True):
        assert (answer["code"], answer["err"]) == (0, ""), command
    assert list((tmp_path / "cwd").iterdir()) == []


def test_aliases_are_counted_by_what_they_come_to(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("a: &a [1, 2]\nb: [" + "*a, " * 6000 + "]\n")
    check_yaml(file)
    file.write_text("a: &a [1, 2]\nb: [" + "*a, " * 7000 + "]\n")
    with pytest.raises(ConfigError, match="more than 20000 values"):
        check_yaml(file)


def test_shipped_yaml_is_sound() -> None:
    for file in [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "sweeps").glob("*.yaml")]:
        check_yaml(file)


def test_checks_cost_little(compose: Compose) -> None:
    """Reading the shipped persona and pool anew takes a small part of the second in which a typo is answered."""
    config = compose(["method=dpo"])
    files._rows.cache_clear()
    pools.load_pool.cache_clear()
    started = time.perf_counter()
    check(config)
    assert time.perf_counter() - started < 1
