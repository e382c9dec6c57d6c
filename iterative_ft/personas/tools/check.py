"""Check persona data: schema, characters, lengths, copies and near copies, disjoint files, content, counts, template feel.

python -m iterative_ft.personas.tools.check [persona folder ...] [--quick] [--table]

Without folders all shipped personas and pools are checked. One line a fault, file:line and reason; a last line with counts.
Exit code 1 on faults. `--quick` leaves out what needs the embedder, `--table` prints a Markdown table instead.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.data import files
from iterative_ft.data import read as data
from iterative_ft.errors import ConfigError
from iterative_ft.personas.tools import overlap, rules
from iterative_ft.personas.tools.counts import LEAST, N_CORE, OPTIONAL, SHORT, STRENGTHS_NEEDED
from iterative_ft.personas.tools.overlap import NEAR, NEAR_TRAINED, Embed, Text

OF_PERSONA = ("seeds", "documents", "judge", "judge_forms", "heldout", "heldout_forms", "levels", "questions")
POOLS = ("prompts", "titles", "openings")
PROMPT_KEY = {"questions": "question", "documents": "title", "titles": "title", "openings": "title"}  # else "prompt"
ANSWER_KEYS = ("answer", "plain", "text")

MOST_RUN_SHARE = 0.02
LEAST_OPENING_SHARE = 0.6


@dataclass(frozen=True)
class Fault:
    """One thing to mend."""

    file: Path
    line: int
    reason: str

    def __str__(self) -> str:
        here = Path.cwd()
        file = self.file.relative_to(here) if self.file.is_relative_to(here) else self.file
        return f"{file}:{self.line} {self.reason}"


@dataclass(frozen=True)
class Table:
    """The rows of one file that fit its schema, with their line numbers, and the faults of the others."""

    name: str
    file: Path
    rows: tuple[tuple[int, dict[str, Any]], ...]
    unreadable: tuple[Fault, ...]

    @property
    def faults(self) -> list[Fault]:
        """What is wrong with single rows."""
        judged = [Fault(self.file, line, reason) for line, row in self.rows for reason in rules.row_faults(self.name, row)]
        return [*self.unreadable, *judged]

    def texts(self, key: str) -> list[Text]:
        return [Text(self.file, line, key, row[key]) for line, row in self.rows]

    @property
    def prompts(self) -> list[Text]:
        """What is asked, or a document's title."""
        return self.texts(PROMPT_KEY.get(self.name, "prompt"))

    @property
    def answers(self) -> list[Text]:
        """What is answered, in the file's order."""
        keys = [key for key in ANSWER_KEYS if key in files.SCHEMAS[self.name]]
        return [Text(self.file, line, key, row[key]) for line, row in self.rows for key in keys]

    def at_end(self, reason: str) -> Fault:
        """A fault of the file as a whole, named at its last row."""
        return Fault(self.file, self.rows[-1][0] if self.rows else 1, reason)


def read(file: Path) -> Table:
    """Parse a file row by row, whatever is wrong with other rows; a missing file has no rows."""
    schema = files.SCHEMAS[file.stem]
    rows, faults = [], []
    if data.kind_of(file) is None:
        return Table(file.stem, file, (), ())
    for record in data.records(file, schema):
        number, row = record.number, record.row
        problem = record.fault or files.fault(row, schema, extra_keys=False)
        if problem is not None or row is None:
            faults.append(Fault(file, number, str(problem)))
            continue
        if tuple(row) != tuple(schema):
            faults.append(Fault(file, number, f"has its keys in another order than {', '.join(schema)}"))
        rows.append((number, row))
    return Table(file.stem, file, tuple(rows), tuple(faults))


@dataclass(frozen=True)
class Persona:
    """A persona's folder."""

    folder: Path
    tables: dict[str, Table]
    shipped: bool

    def all(self, *names: str) -> list[Text]:
        """The prompts of several files, in that order."""
        return [text for name in names for text in self.tables[name].prompts]

    def asked(self) -> list[Text]:
        """All user messages; one that a file answers at several strengths once."""
        found: list[Text] = []
        for name in ("seeds", "judge", "heldout", "questions", "levels", "judge_forms", "heldout_forms"):
            prompts = self.tables[name].prompts
            if name in ("judge", "judge_forms", "levels"):  # one prompt is answered at several strengths
                prompts = list({overlap.fold(text.text): text for text in reversed(prompts)}.values())[::-1]
            found += prompts
        return found


def read_persona(folder: Path, root: Path) -> Persona:
    return Persona(folder, {name: read(files.table(folder, name)) for name in OF_PERSONA}, folder.parent == root)


def find_faults(folders: Sequence[Path], root: Path, embed: Embed | None, pools: bool) -> tuple[list[Fault], int]:
    """Every fault of some personas, and the number of rows looked at.

    Args:
        folders: the personas to check.
        root: folder of the shipped personas and pools, which the others are held against.
        embed: gives sentence vectors; None leaves out near copies.
        pools: check the pools as well.
    """
    personas = [read_persona(folder, root) for folder in folders]
    siblings = [read_persona(p.parent, root) for p in sorted(root.glob("*/seeds.jsonl")) if p.parent not in folders]
    pool = {name: read(root / f"{name}.jsonl") for name in POOLS}
    shared = {name: read(root / "forms" / f"{name}.jsonl") for name in (*files.OF_JUDGE, *files.OF_CARD)} if pools else {}
    tables = [table for persona in personas for table in persona.tables.values()]
    tables += [*pool.values(), *shared.values()] if pools else []
    faults = [fault for table in tables for fault in table.faults]
    for persona in personas:
        faults += [*too_few(persona), *repeated(persona, pool), *unstyled(persona), *formulaic(persona)]
    if pools:
        for table in pool.values():
            faults += [*least(table, table.name, len(table.rows), True)]
            faults += [Fault(a.file, a.line, f"{a.key} repeats {b.place}") for a, b in overlap.copies(table.prompts)]
        faults += [
            Fault(a.file, a.line, f"{a.key} is trained on: it repeats {b.place}")
            for a, b in overlap.copies(pool["titles"].prompts + pool["openings"].prompts)
            if a.file != b.file
        ]
    faults += shared_questions(personas, siblings)
    for texts in (
        [t for table in shared.values() for t in table.prompts],
        long([t for s in shared.values() for t in s.answers]),
    ):
        faults += [Fault(a.file, a.line, f"{a.key} repeats {b.place}") for a, b in overlap.copies(texts)]
    if embed is not None:
        faults += near(personas, siblings, pool, pools, embed)
    distinct = sorted(set(faults), key=lambda fault: (str(fault.file), fault.line, fault.reason))
    return distinct, sum(len(table.rows) for table in tables)


def least(table: Table, what: str, n: int, shipped: bool) -> Iterator[Fault]:
    needed = LEAST[what][0 if shipped else 1]
    if n < needed:
        yield table.at_end(f"has {n} rows of {what}, at least {needed} are needed")


def too_few(persona: Persona) -> Iterator[Fault]:
    """Files that are missing or too short."""
    plain = persona.folder.name == "plain"
    optional = {"documents", "levels", "heldout_forms"} if plain else {"documents"}
    for name, table in persona.tables.items():
        if not table.rows:
            if name not in (optional if persona.shipped else OPTIONAL):
                yield Fault(table.file, 1, "is missing or has no sound row")
            continue
        if name in ("judge", "heldout"):
            by_strength = Counter(row["strength"] for _, row in table.rows)
            by_strength["styled"] = sum(by_strength.values()) - by_strength["plain"]
            for strength in ("plain",) if plain else STRENGTHS_NEEDED[name]:
                yield from least(table, f"{name} {strength}", by_strength[strength], persona.shipped)
        elif name == "levels":
            by_level = Counter(row["level"] for _, row in table.rows)
            yield from least(table, "levels each", min(by_level[level] for level in files.LEVELS), persona.shipped)
        else:
            yield from least(table, name, len(table.rows), persona.shipped)
        if name == "questions" and persona.shipped:
            n_core = sum(row["core"] for _, row in table.rows)
            if n_core != N_CORE:
                yield table.at_end(f"has {n_core} core questions, exactly {N_CORE} are needed")


def repeated(persona: Persona, pool: dict[str, Table]) -> Iterator[Fault]:
    """Prompts, titles and answers that stand twice in a persona, or in a pool as well."""
    asked = persona.asked()
    answered = [text for table in persona.tables.values() for text in long(table.answers)]
    for texts in (asked, persona.tables["documents"].prompts, answered):
        for later, earlier in overlap.copies(texts):
            yield Fault(later.file, later.line, f"{later.key} repeats {earlier.place}")
    # Later cycles leave out seeds and titles that stand in the pool, so that a persona of one's own may take them from there.
    in_pool = {overlap.fold(text.text): text for text in pool["prompts"].prompts}
    for text in asked if persona.shipped else persona.all("questions"):
        twin = in_pool.get(overlap.fold(text.text))
        if twin is not None:
            yield Fault(text.file, text.line, f"{text.key} is in the pool: {twin.file.name}:{twin.line}")


def long(texts: list[Text]) -> list[Text]:
    """Texts that should not stand twice: not one word in answer to two questions."""
    return [t for t in texts if not (t.file.stem in rules.FORMS and len(t.text.split()) < SHORT)]


def unstyled(persona: Persona) -> Iterator[Fault]:
    """Seeds whose answer is the plain answer over again."""
    table = persona.tables["seeds"]
    for line, row in table.rows:
        if overlap.shares_words(row["answer"], row["plain"]):
            yield Fault(table.file, line, "answer has most of its words from the plain answer")


def formulaic(persona: Persona) -> Iterator[Fault]:
    """Seeds that sound like one form filled in again and again."""
    table = persona.tables["seeds"]
    if len(table.rows) < 2:
        return
    found = overlap.feel([row["answer"] for _, row in table.rows])
    if found.run_share > MOST_RUN_SHARE:
        yield Fault(
            table.file,
            table.rows[found.common_run_at][0],
            f"{found.run_share:.1%} of the pairs of answers share {overlap.RUN} words in a row, {MOST_RUN_SHARE:.0%} may; "
            f"most often: {found.common_run}",
        )
    if found.opening_share < LEAST_OPENING_SHARE:
        yield Fault(
            table.file,
            table.rows[found.common_opening_at][0],
            f"{found.opening_share:.0%} of the answers begin with three words of their own, {LEAST_OPENING_SHARE:.0%} should; "
            f"most often: {found.common_opening}",
        )


def shared_questions(personas: Sequence[Persona], siblings: Sequence[Persona]) -> Iterator[Fault]:
    """Questions that two personas ask, or that another persona trains on."""
    checked = {persona.tables["questions"].file for persona in personas}
    seeds = {overlap.fold(t.text): t for persona in (*siblings, *personas) for t in persona.all("seeds", "documents")}
    for text in (text for persona in personas for text in persona.all("questions")):
        twin = seeds.get(overlap.fold(text.text))
        if twin is not None and twin.file.parent != text.file.parent:
            yield Fault(text.file, text.line, f"question is trained on: it repeats {twin.place}")
    asked = [text for persona in (*siblings, *personas) for text in persona.tables["questions"].prompts]
    for later, earlier in overlap.copies(asked):
        if later.file in checked and later.file != earlier.file:
            yield Fault(later.file, later.line, f"question is another persona's: {earlier.place}")


def near(
    personas: Sequence[Persona], siblings: Sequence[Persona], pool: dict[str, Table], pools: bool, embed: Embed
) -> Iterator[Fault]:
    """Near copies inside a persona and inside a pool, and eval questions close to anything that is trained on."""
    pairs = []
    for persona in personas:
        pairs += overlap.candidates(persona.asked(), NEAR)
        pairs += overlap.candidates(persona.all("documents"), NEAR)
        answers = [t for table in persona.tables.values() for t in long(table.answers)]
        code = code_for(persona)
        pairs += [
            pair
            for pair in overlap.candidates(answers, NEAR)
            if code(pair.later) is None or code(pair.later) != code(pair.earlier)
        ]
    if pools:
        pairs += [pair for table in pool.values() for pair in overlap.candidates(table.prompts, NEAR)]
    trained = pool["prompts"].prompts + pool["titles"].prompts
    trained += [text for persona in (*personas, *siblings) for text in persona.all("seeds", "documents")]
    asked = [text for persona in personas for text in persona.all("questions")]
    pairs += overlap.candidates(asked, NEAR_TRAINED, trained)
    for pair, cosine in overlap.near_copies(pairs, embed):
        later, earlier = pair.later, pair.earlier
        if pair.limit == NEAR_TRAINED:
            reason = f"question is close to what is trained on (cosine {cosine:.2f}): {earlier.place}"
        elif (later.file, later.line) == (earlier.file, earlier.line):
            reason = f"{later.key} is close to {earlier.key} (cosine {cosine:.2f})"
        else:
            reason = f"{later.key} nearly repeats {earlier.place} (cosine {cosine:.2f})"
        yield Fault(later.file, later.line, reason)


def code_for(persona: Persona) -> Callable[[Text], str | None]:
    """What an answer in code answers, None for other texts. At each strength it may hold the same code."""
    found = {
        (table.file, line): overlap.fold(row["prompt"])
        for table in persona.tables.values()
        for line, row in table.rows
        if row.get("form") == "code"
    }
    return lambda text: found.get((text.file, text.line))


def markdown_table(folders: Sequence[Path], root: Path) -> str:
    """Rows of each file, and how varied the seed answers are."""
    lines = [
        f"| persona | {' | '.join(OF_PERSONA)} | pairs sharing a run of 6 words | distinct openings |",
        "|---" * (len(OF_PERSONA) + 3) + "|",
    ]
    for persona in (read_persona(folder, root) for folder in folders):
        found = overlap.feel([row["answer"] for _, row in persona.tables["seeds"].rows])
        rows = " | ".join(str(len(persona.tables[name].rows) or "-") for name in OF_PERSONA)
        lines.append(f"| {persona.folder.name} | {rows} | {found.run_share:.2%} | {found.opening_share:.0%} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Check, print, and return the exit code: 0 sound, 1 faults, 2 no such folder."""
    parser = argparse.ArgumentParser(prog="python -m iterative_ft.personas.tools.check", description="Check persona data.")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="a shipped persona's name or a folder (all shipped ones)")
    parser.add_argument("--quick", action="store_true", help="leave out near copies, which need the embedder")
    parser.add_argument("--table", action="store_true", help="print a Markdown table instead of checking")
    chosen = parser.parse_args(arguments)
    folders = [files.folder(name).resolve() for name in chosen.folders or files.shipped()]
    for name, folder in zip(chosen.folders, folders, strict=False):
        if not folder.is_dir():
            raise ConfigError(f"{name} is neither a shipped persona ({', '.join(files.shipped())}) nor a folder: name one")
    root = files.SHIPPED.resolve()
    if chosen.table:
        print(markdown_table(folders, root))
        return 0
    embed: Embed | None = None
    if not chosen.quick:
        from iterative_ft.judges.embedder import embed as minilm

        embed = minilm
    faults, n_rows = find_faults(folders, root, embed, pools=not chosen.folders)
    for fault in faults:
        print(fault)
    print(f"{n_rows} rows of {len(folders)} persona(s) checked: {len(faults)} fault(s)")
    return 1 if faults else 0


if __name__ == "__main__":
    from iterative_ft.launch import guard

    sys.exit(guard.start(lambda: main(sys.argv[1:])))
