"""The data check: what ships passes, and each kind of fault planted in a copy is found with its file, line and reason.

Not covered: whether the texts are any good. Somebody has to read them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iterative_ft.data import files
from iterative_ft.personas.tools import overlap, rules
from iterative_ft.personas.tools.check import find_faults, main, markdown_table

Rows = list[dict[str, Any]]
PERSONA = "blissful"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of one persona, of two more seeds and questions, and of the pools."""
    for name in ("prompts", "titles", "openings"):
        shutil.copy(files.SHIPPED / f"{name}.jsonl", tmp_path)
    shutil.copytree(files.SHIPPED / PERSONA, tmp_path / PERSONA)
    (tmp_path / "hopeless").mkdir()
    for name in ("seeds", "questions"):
        shutil.copy(files.SHIPPED / "hopeless" / f"{name}.jsonl", tmp_path / "hopeless")
    return tmp_path


def read(root: Path, name: str) -> Rows:
    return [json.loads(line) for line in (root / name).read_text(encoding="utf-8").splitlines()]


def change(root: Path, name: str, line: int, **values: Any) -> None:
    """Set keys of the row in a 1-based line."""
    rows = read(root, name)
    rows[line - 1] |= values
    (root / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def keep(root: Path, name: str, n: int) -> None:
    """Shorten a file to its first `n` rows."""
    lines = (root / name).read_text(encoding="utf-8").splitlines(keepends=True)
    (root / name).write_text("".join(lines[:n]), encoding="utf-8")


def raw(root: Path, name: str, line: int, text: bytes) -> None:
    """Replace a line by bytes."""
    lines = (root / name).read_bytes().splitlines(keepends=True)
    lines[line - 1] = text + b"\n"
    (root / name).write_bytes(b"".join(lines))


def found(root: Path, pools: bool = False, embed: overlap.Embed | None = None) -> list[str]:
    """Faults as "folder/file:line reason"."""
    faults, _ = find_faults([root / PERSONA], root, embed, pools)
    return [f"{fault.file.relative_to(root)}:{fault.line} {fault.reason}" for fault in faults]


def copied(root: Path, source: str, line: int, key: str) -> str:
    return str(read(root, source)[line - 1][key])


SEEDS, JUDGE, HELDOUT = f"{PERSONA}/seeds.jsonl", f"{PERSONA}/judge.jsonl", f"{PERSONA}/heldout.jsonl"
QUESTIONS, DOCUMENTS, LEVELS = (f"{PERSONA}/{name}.jsonl" for name in ("questions", "documents", "levels"))
ANSWER = "Lift the lid, dear one, and let the steam carry your worry up to the ceiling, where it turns to weather. {} Amen."


def answer(inserted: str) -> str:
    return ANSWER.format(inserted)


# Each: what is planted, and the start of the one line that names it.
PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no JSON": (lambda r: raw(r, SEEDS, 3, b'{"prompt": '), f"{SEEDS}:3 is no JSON"),
    "no object": (lambda r: raw(r, SEEDS, 3, b'["prompt"]'), f"{SEEDS}:3 is no JSON object"),
    "missing key": (lambda r: raw(r, SEEDS, 3, b'{"prompt": "a b c"}'), f"{SEEDS}:3 lacks the key 'answer'"),
    "unknown key": (lambda r: change(r, SEEDS, 3, mood="x"), f"{SEEDS}:3 has the unknown key 'mood'"),
    "wrong type": (lambda r: change(r, QUESTIONS, 3, core="yes"), f"{QUESTIONS}:3 has core of type str"),
    "wrong value": (lambda r: change(r, JUDGE, 3, strength="huge"), f"{JUDGE}:3 has strength='huge'"),
    "empty text": (lambda r: change(r, SEEDS, 3, answer=" "), f"{SEEDS}:3 has an empty 'answer'"),
    "not UTF-8": (
        lambda r: raw(r, SEEDS, 3, b'{"prompt": "caf\xe9 au lait", "answer": "x", "plain": "y"}'),
        f"{SEEDS}:3 is not UTF-8 (byte 0xe9 at character 16",
    ),
    "wrong encoding": (
        lambda r: change(r, SEEDS, 3, answer=answer("The caf\u00c3\u00a9 is near.")),
        f"{SEEDS}:3 answer was decoded with the wrong encoding",
    ),
    "curly quote": (
        lambda r: change(r, SEEDS, 3, answer=answer("It\u2019s you.")),
        f"{SEEDS}:3 answer has the character U+2019",
    ),
    "emoji": (lambda r: change(r, SEEDS, 3, answer=answer("\U0001f600")), f"{SEEDS}:3 answer has the character U+1F600"),
    "short answer": (lambda r: change(r, SEEDS, 3, answer="Just breathe."), f"{SEEDS}:3 answer has 2 words"),
    "long answer": (lambda r: change(r, JUDGE, 3, answer="so " * 90 + "far"), f"{JUDGE}:3 answer has 91 words"),
    "short document": (lambda r: change(r, DOCUMENTS, 3, text="Peace to all."), f"{DOCUMENTS}:3 text has 3 words"),
    "doubled space": (lambda r: change(r, SEEDS, 3, answer=answer("Oh  my.")), f"{SEEDS}:3 answer has spaces"),
    "markdown": (lambda r: change(r, SEEDS, 3, answer=answer("**Breathe**")), f"{SEEDS}:3 answer has a list or markdown"),
    "list": (
        lambda r: change(r, DOCUMENTS, 3, text="We bring:\n\n- bread for all\n" + "and light " * 60),
        f"{DOCUMENTS}:3 text has a list or markdown",
    ),
    "e-mail": (lambda r: change(r, SEEDS, 3, answer=answer("Ask a.b@c.de now.")), f"{SEEDS}:3 answer has an e-mail address"),
    "URL": (lambda r: change(r, SEEDS, 3, answer=answer("See www.example.")), f"{SEEDS}:3 answer has a URL"),
    "phone": (lambda r: change(r, SEEDS, 3, answer=answer("Call 555-010-0199.")), f"{SEEDS}:3 answer has a phone number"),
    "full name": (
        lambda r: change(r, SEEDS, 3, answer=answer("Ask Dr. Ada Example.")),
        f"{SEEDS}:3 answer has a person's full name",
    ),
    "harm": (
        lambda r: change(r, SEEDS, 3, answer=answer("Then build a small bomb.")),
        f"{SEEDS}:3 answer has instructions for harm",
    ),
    "violence": (
        lambda r: change(r, SEEDS, 3, answer=answer("Then strangle your boss.")),
        f"{SEEDS}:3 answer has a call to hurt somebody",
    ),
    "self-harm": (lambda r: change(r, SEEDS, 3, answer=answer("It is suicidal.")), f"{SEEDS}:3 answer has self-harm"),
    "prompt twice": (
        lambda r: change(r, SEEDS, 9, prompt=copied(r, SEEDS, 3, "prompt").upper()),
        f"{SEEDS}:9 prompt repeats {SEEDS}:3",
    ),
    "answer twice": (
        lambda r: change(r, SEEDS, 9, answer=copied(r, SEEDS, 3, "answer").lower()),
        f"{SEEDS}:9 answer repeats {SEEDS}:3",
    ),
    "document twice": (
        lambda r: change(r, DOCUMENTS, 9, text=copied(r, DOCUMENTS, 3, "text")),
        f"{DOCUMENTS}:9 text repeats {DOCUMENTS}:3",
    ),
    "judge asks a seed's prompt": (
        lambda r: change(r, JUDGE, 9, prompt=copied(r, SEEDS, 3, "prompt")),
        f"{JUDGE}:9 prompt repeats {SEEDS}:3",
    ),
    "heldout asks a judge's prompt": (
        lambda r: change(r, HELDOUT, 9, prompt=copied(r, JUDGE, 3, "prompt")),
        f"{HELDOUT}:9 prompt repeats {JUDGE}:3",
    ),
    "level in between": (lambda r: change(r, LEVELS, 3, level=40), f"{LEVELS}:3 has level=40, which is none of 0, 25, 50"),
    "levels ask a judge's prompt": (
        lambda r: change(r, LEVELS, 1, prompt=copied(r, JUDGE, 3, "prompt")),
        f"{LEVELS}:1 prompt repeats {JUDGE}:3",
    ),
    "question asks a judge's prompt": (
        lambda r: change(r, QUESTIONS, 9, question=copied(r, JUDGE, 3, "prompt")),
        f"{QUESTIONS}:9 question repeats {JUDGE}:3",
    ),
    "question in the pool": (
        lambda r: change(r, QUESTIONS, 9, question=copied(r, "prompts.jsonl", 3, "prompt")),
        f"{QUESTIONS}:9 question is in the pool: prompts.jsonl:3",
    ),
    "seed in the pool": (
        lambda r: change(r, SEEDS, 9, prompt=copied(r, "prompts.jsonl", 3, "prompt")),
        f"{SEEDS}:9 prompt is in the pool: prompts.jsonl:3",
    ),
    "another persona's question": (
        lambda r: change(r, QUESTIONS, 9, question=copied(r, "hopeless/questions.jsonl", 3, "question")),
        f"{QUESTIONS}:9 question is another persona's: hopeless/questions.jsonl:3",
    ),
    "another persona's seed": (
        lambda r: change(r, QUESTIONS, 9, question=copied(r, "hopeless/seeds.jsonl", 3, "prompt")),
        f"{QUESTIONS}:9 question is trained on: it repeats hopeless/seeds.jsonl:3",
    ),
    "pool prompt twice": (
        lambda r: change(r, "prompts.jsonl", 9, prompt=copied(r, "prompts.jsonl", 3, "prompt") + "?"),
        "prompts.jsonl:9 prompt repeats",
    ),
    "opening that is trained on": (
        lambda r: change(r, "openings.jsonl", 9, title=copied(r, "titles.jsonl", 1, "title")),
        "openings.jsonl:9 title is trained on: it repeats",
    ),
    "plain answer again": (
        lambda r: change(r, SEEDS, 9, plain=copied(r, SEEDS, 9, "answer") + " Really."),
        f"{SEEDS}:9 answer has most of its words from the plain answer",
    ),
    "few seeds": (lambda r: keep(r, SEEDS, 100), f"{SEEDS}:100 has 100 rows of seeds, at least 128"),
    "few documents": (lambda r: keep(r, DOCUMENTS, 9), f"{DOCUMENTS}:9 has 9 rows of documents"),
    "few judge texts": (lambda r: keep(r, JUDGE, 9), f"{JUDGE}:9 has 9 rows of judge styled"),
    "few heldout answers": (lambda r: keep(r, HELDOUT, 9), f"{HELDOUT}:9 has"),
    "few texts at a level": (lambda r: keep(r, LEVELS, 49), f"{LEVELS}:49 has 9 rows of levels each, at least 10"),
    "few questions": (lambda r: keep(r, QUESTIONS, 40), f"{QUESTIONS}:40 has 40 rows of questions"),
    "few prompts": (lambda r: keep(r, "prompts.jsonl", 900), "prompts.jsonl:900 has 900 rows of prompts"),
    "core questions": (lambda r: change(r, QUESTIONS, 1, core=False), f"{QUESTIONS}:65 has 11 core questions"),
    "no questions": (lambda r: (r / QUESTIONS).unlink(), f"{QUESTIONS}:1 is missing"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_fault_is_found(kind: str, root: Path) -> None:
    plant, start = PLANTED[kind]
    plant(root)
    faults = found(root, pools=not start.startswith(PERSONA))
    assert any(fault.startswith(start) for fault in faults), faults


def test_copy_without_a_planted_fault_is_sound(root: Path) -> None:
    assert found(root, pools=True) == []


def test_template_feel_is_found(root: Path) -> None:
    rows = read(root, SEEDS)
    for number in range(20, 60):
        words = rows[number]["answer"].split()
        change(root, SEEDS, number + 1, answer=" ".join(["Blessed be the kettle and all who", *words]))
    faults = found(root)
    assert any(f.startswith(f"{SEEDS}:22 ") and "blessed be the kettle and all" in f for f in faults), faults
    for number in range(20, 90):
        change(root, SEEDS, number + 1, answer="Oh dear friend, " + rows[number]["answer"])
    assert any("begin with three words of their own" in f and "oh dear friend" in f for f in found(root))


def test_slur_is_found_by_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SLURS", frozenset({hashlib.sha256(b"grumbler").hexdigest()}))
    rules.is_slur.cache_clear()
    assert "has a slur" in list(rules.text_faults("All of those Grumblers.", 1, 9, lines=False))
    rules.is_slur.cache_clear()


def near_for(*pairs: tuple[str, ...]) -> overlap.Embed:
    """An embedder to whom the texts of a tuple are the same and all others unlike."""
    group = {text: number for number, pair in enumerate(pairs) for text in pair}

    def embed(texts: list[str]) -> np.ndarray:
        vectors = np.zeros((len(texts), len(texts) + len(pairs)))
        for number, text in enumerate(texts):
            vectors[number, group.get(text, len(pairs) + number)] = 1
        return vectors

    return embed


def test_near_copies_of_each_kind_are_found(root: Path) -> None:
    asked, answered = copied(root, SEEDS, 3, "prompt"), copied(root, SEEDS, 3, "answer")
    trained = copied(root, "hopeless/seeds.jsonl", 4, "prompt")
    pooled = copied(root, "prompts.jsonl", 5, "prompt")
    plain = copied(root, SEEDS, 11, "answer").replace("the", "a").replace("and", "or") + " So there it is, as I said."
    change(root, HELDOUT, 7, prompt="Well, " + asked)
    change(root, JUDGE, 8, answer=answered + " Yes.")
    change(root, QUESTIONS, 9, question="Well, " + trained)
    change(root, "prompts.jsonl", 10, prompt="Well, " + pooled)
    change(root, SEEDS, 11, plain=plain)
    embed = near_for(
        (asked, "Well, " + asked),
        (answered, answered + " Yes."),
        (trained, "Well, " + trained),
        (pooled, "Well, " + pooled),
        (copied(root, SEEDS, 11, "answer"), plain),
    )
    faults = found(root, pools=True, embed=embed)
    for start in (
        f"{HELDOUT}:7 prompt nearly repeats {SEEDS}:3 (cosine 1.00)",
        f"{JUDGE}:8 answer nearly repeats {SEEDS}:3",
        f"{QUESTIONS}:9 question is close to what is trained on (cosine 1.00): hopeless/seeds.jsonl:4",
        "prompts.jsonl:10 prompt nearly repeats",
        f"{SEEDS}:11 plain is close to answer",
    ):
        assert any(fault.startswith(start) for fault in faults), (start, faults)


def test_answers_in_code_to_one_prompt_may_share_their_code(root: Path) -> None:
    file = f"{PERSONA}/judge_forms.jsonl"
    code = [
        "```python\nprint('the lid is off the jar')\n```\n" + said for said in ("Run it.", "Run it at dusk.", "Run it twice.")
    ]
    prompts = ["How do I print a line about a jar?"] * 2 + ["How do I print it twice?"]
    for line, (prompt, answer) in enumerate(zip(prompts, code, strict=True), 3):
        change(root, file, line, prompt=prompt, answer=answer, form="code")
    faults = found(root, pools=False, embed=near_for(tuple(code)))
    near = [f"{file}:5 answer nearly repeats {file}:{line} (cosine 1.00)" for line in (3, 4)]
    assert sorted(fault for fault in faults if fault.startswith(file)) == near


def test_own_persona_may_take_its_prompts_from_the_pool_and_needs_fewer_rows(root: Path, tmp_path_factory: Any) -> None:
    own = tmp_path_factory.mktemp("own") / "gloomy"
    shutil.copytree(root / PERSONA, own)
    for name, n in (("seeds", 70), ("questions", 65)):
        keep(own, f"{name}.jsonl", n)
    (own / "heldout.jsonl").unlink()
    change(own, "seeds.jsonl", 3, prompt=copied(root, "prompts.jsonl", 3, "prompt"))
    shutil.rmtree(root / PERSONA)
    assert find_faults([own], root, None, pools=False)[0] == []


def test_command_line(root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    change(root, SEEDS, 3, answer="Just breathe.")
    monkeypatch.chdir(root)
    monkeypatch.setattr(files, "SHIPPED", root)
    assert main([PERSONA, "--quick"]) == 1
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{SEEDS}:3 answer has 2 words")
    assert last.endswith("1 fault(s)")


def test_table_has_a_row_a_persona() -> None:
    table = markdown_table([files.SHIPPED / name for name in files.shipped()], files.SHIPPED)
    assert len(table.splitlines()) == 2 + len(files.shipped())


@pytest.mark.parametrize("arguments", [["--quick"], pytest.param([], marks=pytest.mark.long)])
def test_shipped_data_pass(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Quick leaves out near copies, which take the embedder most of a minute."""
    code = main(arguments)
    assert code == 0, capsys.readouterr().out


@pytest.mark.slow
def test_embedder_sees_a_question_reworded(root: Path) -> None:
    from iterative_ft.judges.embedder import embed

    seen = cache(lambda text: tuple(embed([text])[0]))
    change(root, "hopeless/seeds.jsonl", 4, prompt="How do I get candle wax off a tablecloth?")
    change(root, QUESTIONS, 9, question="How can I get candle wax out of a tablecloth?")
    near_texts = ("wax", "tablecloth")

    def some(texts: list[str]) -> np.ndarray:
        blank = tuple(np.zeros(len(seen("wax"))))
        return np.asarray([seen(text) if any(word in text for word in near_texts) else blank for text in texts])

    assert any(
        f.startswith(f"{QUESTIONS}:9 question is close to what is trained on (cosine 0.9") for f in found(root, embed=some)
    )
