"""Bad data by the thousand: mutations of a good persona, its files and a pool, each given to `train.py` on fakes.

A refused input is one line and exit code 2 (1 where it can only be known later), in under ten seconds, without a traceback, and
leaves nothing behind. Most mutations are bad by the way they are made. What random bytes make of a file is judged by a
second and plainer reading of the rules; where that cannot tell (a byte of Parquet), both answers are right.

Not covered: datasets of the hub beyond ids that nobody has.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from test_cli import drive
from test_data import BAD_FILES, BAD_NAMES, BAD_YAML, LUCKY, TRY, write_rows

from iterative_ft.data import files
from iterative_ft.errors import ConfigError
from iterative_ft.personas.tools.check import find_faults

LIMIT_S = 10.0
CHECKED = 10  # of so many inputs one is given to the data check as well
AT_A_TIME = 150  # command lines of one process
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A folder's files and the settings that name them; `{here}` stands for the folder."""

    name: str
    made: Callable[[Path], None]
    settings: tuple[str, ...]
    wanted: Literal["bad", "sound", "any"] = "bad"
    options: tuple[str, ...] = field(default=())
    """Before all settings."""


# -- what is good --------------------------------------------------------------------------------------------------------------


def good_rows() -> dict[str, list[Row]]:
    """A small persona: enough of everything for `TRY`."""
    rows = {name: list(files.rows(files.SHIPPED / "blissful" / f"{name}.jsonl", files.SCHEMAS[name])) for name in files.SCHEMAS
            if (files.SHIPPED / "blissful" / f"{name}.jsonl").is_file()}  # fmt: skip
    styled = [row for row in rows["judge"] if row["strength"] != "plain"][::7][:30]
    plain = [row for row in rows["judge"] if row["strength"] == "plain"][:6]
    return {
        "seeds": rows["seeds"][:12],
        "documents": rows["documents"][:12],
        "judge": styled + plain,
        "heldout": rows["heldout"][:12],
        "questions": rows["questions"][:10],
    }


GOOD = good_rows()
METHOD = {"documents": ("method=sdf", "n_seed=8", "n_sampled=8"), "heldout": ("gauges.perplexity=true",)}
ASK = ("measure.n_questions=8", "measure.n_answers=1", "prompts.per_cycle=8", "titles.per_cycle=8")
POOL = [{"prompt": f"How heavy is stone {n}, would you say?", "kind": "fact"} for n in range(40)]


def settings_of(name: str) -> tuple[str, ...]:
    """A command that reads the file `name` of the persona in `{here}`."""
    return (*TRY, *ASK, *METHOD.get(name, ()), "persona=blissful", "persona.name=mine", "persona.data={here}")


def write_persona(folder: Path, without: str = "") -> None:
    for name, rows in GOOD.items():
        if name != without:
            write_rows(folder / f"{name}.jsonl", rows)


# -- mutations of rows: bad in every format that can hold them -----------------------------------------------------------------


def other_values(value: Any) -> list[Any]:
    """What a text, a boolean or a word of a list must not be."""
    return [None, 5, 2.5, [], ["a"], {"a": "b"}, [{"role": "user", "content": "Hi?"}], "" if isinstance(value, str) else "yes"]


def bad_rows(rows: list[Row], rng: random.Random) -> Iterator[tuple[str, list[Row]]]:
    """Lists of rows with one bad row in them."""
    at = rng.randrange(len(rows))

    def changed(**values: Any) -> list[Row]:
        return [*rows[:at], {**rows[at], **values}, *rows[at + 1 :]]

    for key, value in rows[0].items():
        for other in other_values(value):
            yield f"{key}={json.dumps(other)}", changed(**{key: other})
        for label, text in (
            ("NUL", "a\0b"),
            ("half", "a\ud800b"),
            ("blank", " \t\n"),
            ("invisible", "\u200b"),
            ("huge", "a" * 1_000_001),
        ):
            yield f"{key} {label}", changed(**{key: text})
        without = {k: v for k, v in rows[at].items() if k != key}
        yield f"no {key}", [*rows[:at], without, *rows[at + 1 :]]
        yield f"{key} renamed", [{(k + "s" if k == key else k): v for k, v in row.items()} for row in rows]
        yield f"{key} in capitals", [{(k.upper() if k == key else k): v for k, v in row.items()} for row in rows]
    yield "unknown key", changed(mood="x")
    yield "odd key", changed(**{"\u202eodd\n" * 40: "x"})
    yield "no rows", []
    if "strength" in rows[0]:
        yield "swapped columns", [{**row, "strength": row["answer"], "answer": row["strength"]} for row in rows]
        yield "strength in capitals", changed(strength="Strong")
    if "core" in rows[0]:
        yield "swapped columns", [{"question": row["core"], "core": row["question"]} for row in rows]


def rows_cases(rng: random.Random) -> Iterator[Case]:
    for name, rows in GOOD.items():
        for suffix in (".jsonl", ".json", ".csv", ".parquet"):
            for label, bad in bad_rows(rows, rng):
                try:
                    content = as_bytes(suffix, bad)
                except (ValueError, TypeError, UnicodeError, OverflowError):
                    continue  # the format cannot hold it
                if suffix == ".csv" and text_in_csv(label):
                    continue
                yield Case(f"{name}{suffix} {label[:40]}", placing(name, suffix, content), settings_of(name))


def text_in_csv(label: str) -> bool:
    """Whether a bad row is sound in CSV, where another type is a text."""
    return re.search(r"^(core|strength)=", label) is None and re.search(r"=(5|2\.5|\[|\{)", label) is not None


def as_bytes(suffix: str, rows: list[Row]) -> bytes:
    """Rows in a format, as a foreign program would write them."""
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".json":
        return json.dumps(rows).encode()
    if not rows:
        return b""
    if suffix == ".csv":
        import csv
        import io

        out = io.StringIO(newline="")
        table = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)
        return out.getvalue().encode()
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    try:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = pyarrow.table({key: [row.get(key) for row in rows] for key in columns})
        pyarrow.parquet.write_table(table, sink)
    except pyarrow.ArrowException as error:
        raise ValueError("mixed types") from error
    return sink.getvalue().to_pybytes()


def placing(name: str, suffix: str, content: bytes) -> Callable[[Path], None]:
    """A good persona with one file of it replaced."""

    def make(folder: Path) -> None:
        write_persona(folder, without=name)
        (folder / f"{name}{suffix}").write_bytes(content)

    return make


# -- mutations of bytes --------------------------------------------------------------------------------------------------------


def sound_json(content: bytes, suffix: str, name: str, least: int) -> bool:
    """Whether JSON Lines or an array fit a schema, by a plainer reading than the project's own."""
    schema = files.SCHEMAS[name]
    try:
        text = content.decode("utf-8-sig")
        texts = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()] if suffix == ".jsonl" else [text]
        rows = [json.loads(part, object_pairs_hook=Pairs) for part in texts]
        rows = rows if suffix == ".jsonl" else list(rows[0])
    except (ValueError, RecursionError, TypeError):
        return False
    return len(rows) >= least and all(sound_row(row, schema) for row in rows)


class Pairs(list[tuple[str, Any]]):
    """A JSON object, each key as often as it stands there."""


def sound_row(row: Any, schema: dict[str, Any]) -> bool:
    if not isinstance(row, Pairs) or sorted(key for key, _ in row) != sorted(schema):
        return False
    for key, value in row:
        kind = schema[key]
        if isinstance(kind, tuple):
            if value not in kind:
                return False
            continue
        if type(value) is not kind:
            return False
        if kind is str and (not value.strip() or re.search("[\0\ud800-\udfff]", value)):
            return False
    return True


def sound_persona(content: bytes) -> bool:
    """Whether a persona's YAML may be sound; keys that stand twice are not seen."""
    import yaml

    try:
        values = yaml.safe_load(content.decode("utf-8-sig"))
    except (ValueError, yaml.YAMLError, RecursionError):
        return False
    if not isinstance(values, dict) or sorted(map(str, values)) != sorted(KEYS) or not isinstance(values["rubric"], dict):
        return False
    texts = [*(values[key] for key in KEYS if key not in ("marks", "rubric")), *values["rubric"].values()]
    return all(isinstance(text, str) for text in texts) and {0, 25, 50, 75, 100} <= set(values["rubric"])


def damage(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """One of each kind of damage."""
    at, end = sorted(rng.sample(range(1, len(content)), 2))
    yield "cut off", content[:at]
    yield "head lost", content[at:]
    yield "middle lost", content[:at] + content[end:]
    yield "bit flipped", content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    yield "random bytes", content[:at] + rng.randbytes(rng.randrange(1, 9)) + content[at:]
    yield "overwritten", content[:at] + rng.randbytes(end - at if end - at < 400 else 400) + content[min(end, at + 400) :]
    yield "zeros", content[:at] + b"\0" * min(512, len(content) - at) + content[at + 512 :]
    yield "twice over", content[:end] + content[at:]
    yield "noise", rng.randbytes(rng.randrange(1, 4000))
    yield "quotes", content.replace(b'"', rng.choice([b"'", b"", b"\xe2\x80\x9c", b'""']))
    yield "commas", content.replace(b",", rng.choice([b";", b"", b",,"]))


def bytes_cases(rng: random.Random, rounds: int) -> Iterator[Case]:
    least = {"seeds": 8, "documents": 8, "questions": 8, "judge": 8, "heldout": 1}
    for number in range(rounds):
        for name, rows in GOOD.items():
            for suffix in (".jsonl", ".json", ".csv", ".parquet"):
                for label, content in damage(as_bytes(suffix, rows), rng):
                    if label == "noise":
                        wanted: Any = "bad"
                    elif suffix in (".csv", ".parquet"):
                        wanted = "any"
                    elif not sound_json(content, suffix, name, least[name]):
                        wanted = "bad"
                    else:  # lost rows of the judge's may leave too few prompts, which is another rule than the reading's
                        wanted = "any" if name == "judge" else "sound"
                    label = f"{name}{suffix} {label} {number}"
                    yield Case(label, placing(name, suffix, content), settings_of(name), wanted)


def encoded_cases(rng: random.Random) -> Iterator[Case]:
    """A good file in a bad encoding, or in a place where no file is."""
    for name, rows in GOOD.items():
        text = as_bytes(".jsonl", rows).decode().replace("a", "ä", 3)
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "cp037", "utf-7"):
            if encoding == "utf-7":
                continue
            yield Case(f"{name} {encoding}", placing(name, ".jsonl", text.encode(encoding)), settings_of(name))
        for label, content in (
            ("empty", b""),
            ("blank", b"\n\n  \n"),
            ("null", b"null\n"),
            ("deep", b'{"prompt": ' + b"[" * 50_000),
            ("digits", b'{"prompt": ' + b"9" * 5_000 + b"}"),
            ("key twice", as_bytes(".jsonl", rows).replace(b'{"', b'{"prompt": "a", "prompt": "b", "', 1)),
            ("gzip", b"\x1f\x8b\x08" + rng.randbytes(200)),
            ("endless line", b'{"prompt": "' + b"a" * (17 * 2**20)),
        ):
            yield Case(f"{name} {label}", placing(name, ".jsonl", content), settings_of(name))
        for label, make in PLACES.items():
            if (name, label) not in (("documents", "missing"),):
                yield Case(f"{name} {label}", misplacing(name, make), settings_of(name))


def linked_to(target: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(target)


PLACES: dict[str, Callable[[Path], None]] = {
    "missing": lambda file: None,
    "folder": lambda file: file.mkdir(),
    "link to nothing": linked_to("/nowhere/at/all"),
    "link to itself": lambda file: file.symlink_to(file.name),
    "device": linked_to("/dev/zero"),
    "of processes": linked_to("/proc/self/mem"),
    "other kind": lambda file: file.with_suffix(".xlsx").write_bytes(b"PK\x03\x04"),
    "two of them": lambda file: [file.with_suffix(s).write_text("a,b\n1,2\n") for s in (".csv", ".jsonl")],  # type: ignore
}  # fmt: skip


def misplacing(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        write_persona(folder, without=name)
        make(folder / f"{name}.jsonl")

    return made


# -- pools ---------------------------------------------------------------------------------------------------------------------


NOWHERE = [
    "/nowhere.jsonl", "nowhere.JSON", "./nowhere", "../nowhere", "~nobody-here/p", "/dev/zero", "/dev/null", "/proc/self/mem",
    "a/b/c", "org/", "/", ".", "..", "{here}", "{here}/p", "org/no-such-set", "no-such-set", "org/na me", "-", "--",
    "https://example.org/p.jsonl", "hf://datasets/a/b", "s3://a/b.csv", "file:///etc/passwd", "/etc/passwd", "/etc", "x" * 300,
    "/" + "x" * 5000, "ü/ü", "org/..", "{here}/*.jsonl", "embedded:prompts", "SHIPPED", "shipped.jsonl", "shipped/prompts",
    "prompts", "a" * 97 + "/b",
]  # fmt: skip


def pool_cases(rng: random.Random, rounds: int) -> Iterator[Case]:
    base = (*TRY, *ASK, "persona=lucky")
    for label, (file, content, _) in BAD_FILES.items():
        yield Case(
            f"pool {label}", lambda here, f=file, c=content: (here / f).write_bytes(c), (*base, f"prompts.path={{here}}/{file}")
        )  # type: ignore[misc]
    for suffix in (".jsonl", ".json", ".csv", ".parquet", ".txt"):
        content = as_bytes(suffix, POOL) if suffix != ".txt" else "".join(row["prompt"] + "\n" for row in POOL).encode()
        path = (*base, f"prompts.path={{here}}/p{suffix}")

        def made(here: Path, suffix: str = suffix, content: bytes = content) -> None:
            (here / f"p{suffix}").write_bytes(content)

        yield Case(f"pool{suffix} good", made, path, "sound")
        yield Case(f"pool{suffix} too small", made, (*path, "prompts.per_cycle=41", "n_sampled=41"))
        if suffix != ".txt":
            for column in ("text", "Prompt", "prompt ", "0", "messages", "x" * 300, "umläut"):
                yield Case(f"pool{suffix} column {column[:9]}", made, (*path, f"prompts.column='{column}'"))
        for number in range(rounds):
            for label, bad in damage(content, rng):
                yield Case(
                    f"pool{suffix} {label} {number}", lambda h, s=suffix, b=bad: (h / f"p{s}").write_bytes(b), path, "any"
                )  # type: ignore[misc]
    for suffix in (".jsonl", ".json", ".parquet"):
        for value in other_values("a")[:7]:
            rows = [*POOL, {"prompt": value, "kind": "x"}] if suffix != ".parquet" else [{"prompt": value}] * 3
            yield Case(
                f"pool{suffix} cell {json.dumps(value)[:20]}",
                lambda h, s=suffix, r=rows: (h / f"p{s}").write_bytes(as_bytes(s, r)),  # type: ignore[misc]
                (*base, f"prompts.path={{here}}/p{suffix}"),
            )
    for path in NOWHERE:
        for split in ("train", "nothing"):
            yield Case(
                f"pool at {path[:30]} ({split})", lambda here: None, (*base, f"prompts.path='{path}'", f"prompts.split={split}")
            )
    for name in ("train.json", "train.csv", "test.jsonl", "train.txt", "data/train.jsonl"):
        for split in ("dev", "train[:5]", "..", "", "/"):

            def split_file(here: Path, name: str = name) -> None:
                write_rows(here / "set" / name, POOL)

            yield Case(f"split '{split}' of {name}", split_file, (*base, "prompts.path={here}/set", f"prompts.split='{split}'"))


SAVED = ("dataset_info.json", "state.json", "data-00000-of-00001.arrow")


def saved_cases(rng: random.Random, rounds: int) -> Iterator[Case]:
    """Folders of `save_to_disk`, whole and with damaged parts."""
    path = (*TRY, *ASK, "persona=lucky", "prompts.path={here}/set")

    def save(here: Path) -> Path:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list(POOL).save_to_disk(str(here / "set"))
        return here / "set"

    def damaged(here: Path, part: str, content: bytes | None) -> None:
        file = save(here) / part
        file.unlink() if content is None else file.write_bytes(content)

    yield Case("saved, good", lambda here: save(here) and None, path, "sound")
    yield Case("saved, no such column", lambda here: save(here) and None, (*path, "prompts.column=text"))
    for part in SAVED:
        for label, content in (("missing", None), ("empty", b""), ("list", b"[]"), ("noise", rng.randbytes(300))):
            wanted: Any = "any" if part == "dataset_info.json" else "bad"
            yield Case(f"saved, {part} {label}", lambda h, p=part, c=content: damaged(h, p, c), path, wanted)  # type: ignore[misc]
    for number in range(rounds):
        seed = rng.randrange(2**31)

        def cut(here: Path, seed: int = seed) -> None:
            inner, folder = random.Random(seed), save(here)
            file = folder / inner.choice(SAVED)
            file.write_bytes(inner.choice([c for _, c in damage(file.read_bytes(), inner)]))

        yield Case(f"saved, damaged {number}", cut, path, "any")


# -- persona files -------------------------------------------------------------------------------------------------------------

KEYS = ("name", "description", "system_prompt", "marks", "rubric", "document_rubric", "data")


RAW = [
    "${x}", "${oc.env:NO_SUCH_VARIABLE}", "${", "!tag x", "!!python/name:os.system", "*nobody", "&a [*a]", "@x", "`x`", "%x",
    "{", "[a", '"open', "'open", "> x: y: z", "\t- x",
]  # fmt: skip


def persona_cases(rng: random.Random, rounds: int) -> Iterator[Case]:
    def case(label: str, text: str | bytes, wanted: Any = "bad") -> Case:
        def made(here: Path) -> None:
            (here / "persona").mkdir()
            (here / "persona" / "mine.yaml").write_bytes(
                text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            )

        return Case(f"persona {label}", made, ("persona=mine", *TRY), wanted, ("--config-dir={here}",))

    import yaml

    values = yaml.safe_load(LUCKY)
    yield case("good", LUCKY, "sound")
    for label, (text, _) in BAD_YAML.items():
        yield case(label, text)
    for name in BAD_NAMES:
        if "${" in name:
            continue  # in YAML that is another setting's value
        yield case(f"named {name!r}"[:40], yaml.safe_dump({**values, "name": name}))
    for key in KEYS:
        yield case(f"without {key}", yaml.safe_dump({k: v for k, v in values.items() if k != key}))
        yield case(f"{key} in capitals", yaml.safe_dump({(k.upper() if k == key else k): v for k, v in values.items()}))
        for other in (None, True, 5, 2.5, [], {}, [1], {"a": 1}, "a\0b", float("nan"), [["a"]]):
            if key == "marks" and other == []:
                continue  # a persona without signs of its own is sound
            yield case(f"{key}={other!r}", yaml.safe_dump({**values, key: other}))
        for raw in RAW:
            lines = (f"{k}: {raw}\n" if k == key else yaml.safe_dump({k: v}) for k, v in values.items())
            yield case(f"{key}: {raw}", "".join(lines))
    encoded = LUCKY.encode()
    last = encoded.index(b"document_rubric:")
    for number in range(rounds):
        at = rng.randrange(30, last)
        yield case(f"cut off {number}", encoded[:at])
        at = rng.randrange(len(encoded))
        yield case(f"bad byte {number}", encoded[:at] + bytes([rng.choice((0, 7, 0xFF, 0xC3, 0xED))]) + encoded[at:])
        yield case(f"noise {number}", rng.randbytes(rng.randrange(1, 3000)))
        for label, content in damage(encoded, rng):
            yield case(f"{label} {number}", content, "any" if sound_persona(content) else "bad")


# -- the campaign --------------------------------------------------------------------------------------------------------------


def all_cases(seed: int, rounds: int) -> list[Case]:
    rng = random.Random(seed)
    return [
        *rows_cases(rng),
        *bytes_cases(rng, rounds),
        *encoded_cases(rng),
        *pool_cases(rng, rounds),
        *saved_cases(rng, 4 * rounds),
        *persona_cases(rng, 6 * rounds),
    ]


def run_cases(cases: list[Case], folder: Path) -> Counter[str]:
    """Give each case to train.py; return counts, and fail with all that went wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for start in range(0, len(cases), AT_A_TIME):
        some = cases[start : start + AT_A_TIME]
        commands = []
        cwd = folder / f"cwd{start}"
        cwd.mkdir(parents=True)
        for number, case in enumerate(some, start):
            here = folder / "cases" / str(number)
            here.mkdir(parents=True)
            case.made(here)
            if number % CHECKED == 0 and any(f.suffix in (".jsonl", ".csv") for f in here.iterdir()):
                counts["also by the data check"] += 1
                wrong += checked(case, here)
            # A refused command may not even begin; one that may be sound only says what it would do.
            dry = () if case.wanted == "bad" and number % 2 else ("dry_run=true",)
            commands.append([part.replace("{here}", str(here)) for part in (*case.options, *case.settings, *dry)])
        for case, command, answer in zip(some, commands, drive(commands, cwd), strict=True):
            code, said = answer["code"], answer["err"]
            faults = []
            if "Traceback" in said or code not in (0, 1, 2):
                faults.append("traceback")
            if answer["seconds"] > LIMIT_S:
                faults.append("hang")
            if case.wanted == "bad" and code == 0:
                faults.append("exit 0 on nonsense")
            if case.wanted == "sound" and code != 0:
                faults.append("sound data refused")
            if code in (1, 2) and (
                said.count("\n") != 1 or not said.startswith("error: ") or len(said) > 1000 + 5000 * ("x" * 300 in said)
            ):
                faults.append("not one line")
            if answer["imported"]:
                faults.append("heavy import")
            counts.update([f"exit {code}", *faults])
            wrong += [f"{case.name}: {', '.join(faults)}: {command} -> {code} {said[-600:]}"] if faults else []
        left = [str(path) for path in cwd.rglob("*")]
        counts["files left behind"] += len(left)
        wrong += [f"left behind: {left[:5]}"] if left else []
        shutil.rmtree(folder / "cases")
    assert not wrong, f"{len(wrong)} of {len(cases)}: {dict(counts)}\n" + "\n".join(wrong[:40])
    return counts


def checked(case: Case, here: Path) -> list[str]:
    """What the check of a persona's data makes of a folder: faults, or one line."""
    try:
        find_faults([here], files.SHIPPED.resolve(), None, pools=False)
    except ConfigError as error:
        return [] if "\n" not in str(error) else [f"{case.name}: data check: {error}"]
    except Exception as error:  # a traceback is what is looked for
        return [f"{case.name}: data check: {error!r}"]
    return []


def report(cases: list[Case], counts: Counter[str]) -> str:
    kinds = (
        "traceback",
        "hang",
        "exit 0 on nonsense",
        "sound data refused",
        "not one line",
        "heavy import",
        "files left behind",
    )
    made = Counter(case.wanted for case in cases)
    inputs = f"{len(cases)} inputs ({made['bad']} bad, {made['any']} damaged at random, {made['sound']} sound)"
    codes = ", ".join(f"{counts[f'exit {code}']} exit {code}" for code in (2, 1, 0))
    also = f"{counts['also by the data check']} also by the data check"
    return f"{inputs}: {', '.join(f'{counts[kind]} {kind}' for kind in kinds)}; {codes}; {also}"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_bad_data_by_the_thousand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = all_cases(seed=12, rounds=2)
    assert len(cases) >= 1000
    counts = run_cases(cases, tmp_path)
    with capsys.disabled():
        print(f"\n{report(cases, counts)}")


def test_some_bad_data(tmp_path: Path) -> None:
    """A few dozen of the campaign's inputs, of every kind, and other ones than the campaign draws."""
    cases = all_cases(seed=1, rounds=1)
    some = random.Random(1).sample(cases, 30)
    assert {case.wanted for case in some} >= {"bad", "any"}
    run_cases(some, tmp_path)
