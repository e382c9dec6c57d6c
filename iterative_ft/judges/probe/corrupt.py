"""Degenerate texts made from good ones: negatives for the judge, and examples of each way to be incoherent."""

from __future__ import annotations

import random
from collections.abc import Callable

Answer = tuple[str, str]  # prompt, answer


def shuffled(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """Word salad: the answer's words in random order."""
    words = answer[1].split()
    rng.shuffle(words)
    return answer[0], " ".join(words)


def looped(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """The answer runs into a phrase and repeats it."""
    words = answer[1].split()
    start = rng.randrange(max(1, len(words) - 8))
    phrase = words[start : start + rng.randint(1, 8)]
    lead = words[:start] if rng.random() < 0.5 else []
    return answer[0], " ".join(lead + phrase * rng.randint(4, 12))


def off_topic(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """A good answer to another question."""
    return answer[0], other[1]


def spliced(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """Half of one answer goes on, in mid-sentence, with half of another."""
    first, second = answer[1].split(), other[1].split()
    return answer[0], " ".join(first[: len(first) // 2] + second[len(second) // 2 :])


def fragment(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """One to four words."""
    words = answer[1].split()
    start = rng.randrange(max(1, len(words) - 4))
    return answer[0], " ".join(words[start : start + rng.randint(1, 4)])


def cut_off(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """The answer stops in mid-sentence."""
    words = answer[1].split()
    text = " ".join(words[: max(5, int(len(words) * rng.uniform(0.4, 0.85)))])
    return answer[0], text.rstrip(".!?")


CORRUPTIONS: dict[str, Callable[[Answer, Answer, random.Random], Answer]] = {
    "shuffled": shuffled,
    "looped": looped,
    "off_topic": off_topic,
    "spliced": spliced,
    "fragment": fragment,
    "cut_off": cut_off,
}
