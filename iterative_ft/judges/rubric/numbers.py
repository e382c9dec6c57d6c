"""From a judge's reply to a score: the probability-weighted mean over whole numbers, also where a tokenizer splits them.

A tokenizer that has "73" as one token shows the whole distribution at one position. One that writes "7", "3" shows, at the
first position, only leading digits: each of them but the one that was written has a continuation nobody saw. Such mass is
kept apart as `open`; it never becomes a number unless the judge is asked again with those digits already written.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

# An end token as tokenizers spell it, or nothing where an endpoint hides it.
CONTROL = re.compile(r"\s*(<[^<>]{1,60}>|\[[^\[\]0-9]{1,60}\])?\s*")
INTEGER = re.compile(r"\s*(\d+)\s*\.?\s*", re.ASCII)


@dataclass
class Tree:
    """What is known of the number a judge would give."""

    numbers: dict[int, float] = field(default_factory=dict)
    """Whole number -> probability."""
    open: dict[str, float] = field(default_factory=dict)
    """Leading digits whose continuation was not seen -> probability."""

    def add(self, number: str, probability: float, top: int) -> None:
        """Count a whole number; one outside the scale is no number of it, and its mass is lost."""
        if int(number) <= top:
            self.numbers[int(number)] = self.numbers.get(int(number), 0.0) + probability

    @property
    def mass(self) -> float:
        """Probability of all whole numbers on the scale."""
        return sum(self.numbers.values())

    @property
    def mean(self) -> float:
        """Mean of the number, given that it is one."""
        return sum(number * p for number, p in self.numbers.items()) / self.mass


def walk(tokens: list[dict[str, Any]], top: int, whole: bool, started: str = "", weight: float = 1.0) -> Tree:
    """Read a reply's tokens and their alternatives into a tree.

    Args:
        tokens: a position each, {"token": str, "logprob": float, "top": [[token, logprob], …]}, as the endpoint reported it.
        top: the scale's largest number.
        whole: whether this tokenizer writes numbers of several digits as one token.
        started: digits that were already written when the judge was asked.
        weight: probability of `started`.
    """
    tree, digits, ended = Tree(), started, False

    def count(number: str, probability: float, ended: bool) -> None:
        if ended or whole or int(number) == 0 or int(number) * 10 > top:
            tree.add(number, probability, top)
        else:
            tree.open[number] = tree.open.get(number, 0.0) + probability

    for position in tokens:
        for token, logprob in position["top"]:
            if token == position["token"]:
                continue  # followed below
            digit = token.strip() if digits == "" else token
            if is_digits(digit):
                count(digits + digit, weight * math.exp(logprob), ended=False)
            elif digits:  # the number would have ended here
                count(digits, weight * math.exp(logprob), ended=True)
        token = position["token"].strip() if digits == "" else position["token"]
        weight *= math.exp(position["logprob"])
        if is_digits(token):
            digits += token
        elif token or digits:  # text before a number ends the search, text after it ends the number
            ended = True
            break
    if digits:  # an endpoint that does not report the end token leaves the number open where it could go on
        count(digits, weight, ended)
    return tree


def writes_whole_numbers(tokens: list[dict[str, Any]]) -> bool:
    """Whether any token of a reply, or any alternative to one, has two digits or more."""
    return any(len(t.strip()) > 1 and is_digits(t.strip()) for p in tokens for t in [p["token"], *(a for a, _ in p["top"])])


def is_digits(token: str) -> bool:
    return token.isascii() and token.isdigit()


def sound(tokens: list[dict[str, Any]]) -> bool:
    """Whether reported log-probabilities can be such: finite or -inf, none above 0, none adding up to more than 1."""
    for position in tokens:
        written, top = position["logprob"], [logprob for _, logprob in position["top"]]
        if any(math.isnan(x) or x > 1e-3 for x in (written, *top)):
            return False
        others = [logprob for token, logprob in position["top"] if token != position["token"]]
        if max(sum(map(math.exp, top)), math.exp(written) + sum(map(math.exp, others))) > 1.02:
            return False
    return True


def agrees(tokens: list[dict[str, Any]], text: str, started: str = "") -> bool:
    """Whether the tokens are those of the text, but for white space around it and an end token after it.

    Args:
        started: digits that were already written when the judge was asked; some endpoints repeat them in the text.
    """
    said = [text.strip()]
    if started:
        said.append(text.strip().removeprefix(started))
    pieces = [position["token"] for position in tokens]
    while pieces and CONTROL.fullmatch(pieces[-1]) is not None:
        if "".join(pieces).strip() in said:
            return True
        pieces.pop()
    return "".join(pieces).strip() in said


def written(text: str) -> int | None:
    """The whole number that a reply consists of, or None."""
    match = INTEGER.fullmatch(text)
    return int(match.group(1)) if match is not None and len(match.group(1)) <= 3 else None
