"""From a judge's replies to scores: the probability-weighted mean over whole numbers, a mark, or a named failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from iterative_ft.config.judges import ApiConfig, EngineConfig
from iterative_ft.judges.rubric.numbers import Tree, agrees, sound, walk, writes_whole_numbers, written
from iterative_ft.judges.rubric.prompts import Rubric
from iterative_ft.judges.rubric.recorded import Reply, ReplyRow
from iterative_ft.judges.scores import Score

SMALL_BRANCH = 0.005  # leading digits less likely than this are not asked about: they move a score by half a point at most


@dataclass(frozen=True)
class Grade:
    """What one request about one answer came to: a score, a mark, or a named failure."""

    score: float | None
    failure: str | None = None
    mark: str | None = None
    mass: float | None = None
    """Probability that the reply is a whole number on the scale; None where the endpoint gave no distribution."""


def usable(tokens: list[dict[str, Any]] | None, text: str, started: str = "") -> bool:
    """Whether a reply's tokens can be walked: there are some, and they spell its text."""
    return tokens is not None and len(tokens) > 0 and sound(tokens) and agrees(tokens, text, started)


def left_open(reply: Reply, top: int, whole: bool, started: str = "", weight: float = 1.0) -> dict[str, float]:
    """Leading digits that a reply leaves open, with their probability: what the judge has to be asked to go on from.

    Args:
        top: the scale's largest number.
        whole: whether the judge's tokenizer writes numbers of several digits as one token.
        started, weight: digits that were written when the judge was asked, and their probability.
    """
    if reply.failure is not None or reply.tokens is None or not usable(reply.tokens, reply.text, started):
        return {}
    found = walk(reply.tokens, top, whole, started, weight).open
    return {digits: p for digits, p in found.items() if len(digits) > len(started) and p >= SMALL_BRANCH}


def grade(row: ReplyRow, rubric: Rubric, config: ApiConfig | EngineConfig, whole: bool) -> Grade:
    """What the replies about one answer come to.

    Args:
        whole: whether the judge's tokenizer writes numbers of several digits as one token.
    """
    first, top = row["replies"][0], config.score_scale
    if first["failure"] is not None:
        return Grade(None, first["failure"])
    if first["finish_reason"] == "content_filter":
        return Grade(None, "content_filter")
    word, tokens = first["text"].strip(" \n\t.\"'*").upper(), first["tokens"]
    if not word:
        return Grade(None, "empty")
    doubtful = tokens is not None and not usable(tokens, first["text"])
    if word in rubric.marks:
        return Grade(None, "bad_logprobs") if doubtful else Grade(None, mark=word.lower())
    number = written(first["text"])
    if number is None:
        return Grade(None, "not_a_number")
    if first["finish_reason"] == "length":
        return Grade(None, "cut_off")  # half a number, perhaps
    if number > top:
        return Grade(None, "out_of_range")
    if doubtful:
        return Grade(None, "bad_logprobs")
    if tokens is None or not any(position["top"] for position in tokens):
        return Grade(100 * number / top)
    tree = walk(tokens, top, whole)
    for reply in row["replies"][1:]:
        follow(tree, reply, top, whole)
    if tree.mass < config.numeric_mass_floor or tree.mass == 0:
        unseen = sum(tree.open.values()) > 0 and tree.mass + sum(tree.open.values()) >= config.numeric_mass_floor
        return Grade(None, "digits_unresolved" if unseen else "low_numeric_mass", mass=tree.mass)
    return Grade(100 * tree.mean / top, mass=tree.mass)


def follow(tree: Tree, reply: dict[str, Any], top: int, whole: bool) -> None:
    """Put in place of open leading digits what the judge said when it was asked to go on from them."""
    started = reply["started"]
    if reply["failure"] is not None or started not in tree.open or not usable(reply["tokens"], reply["text"], started):
        return
    branch = walk(reply["tokens"], top, whole, started, tree.open.pop(started))
    for number, p in branch.numbers.items():
        tree.add(str(number), p, top)
    for digits, p in branch.open.items():
        tree.open[digits] = tree.open.get(digits, 0.0) + p


def score_rows(
    trait: list[ReplyRow],
    coherence: list[ReplyRow],
    rubrics: tuple[Rubric, Rubric],
    config: ApiConfig | EngineConfig,
    version: str,
) -> list[Score]:
    """Rows of scores.jsonl, one an answer. Where either request failed there is no score at all, only the failure's name."""
    replies = [r for row in (*trait, *coherence) for r in row["replies"]]
    told = [r for r in replies if usable(r["tokens"], r["text"], r["started"])]
    whole = any(writes_whole_numbers(r["tokens"]) for r in told)
    found: list[Score] = []
    for pair in zip(trait, coherence, strict=True):
        grades = [grade(row, rubric, config, whole) for row, rubric in zip(pair, rubrics, strict=True)]
        names = [f"{r.asks}_{g.failure}" for r, g in zip(rubrics, grades, strict=True) if g.failure is not None]
        trait_score, coherence_score = (None, None) if names else (rounded(g.score) for g in grades)
        found.append(
            {
                "trait": trait_score,
                "coherence": coherence_score,
                "flaw": None,
                "failure": names[0] if names else None,
                "mark": grades[0].mark,
                "trait_mass": rounded(grades[0].mass),
                "coherence_mass": rounded(grades[1].mass),
                "judge": version,
            }
        )
    return found


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
