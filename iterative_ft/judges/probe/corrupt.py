"""Degenerate texts made from good ones: negatives for the judge, and examples of each way to be incoherent.

Words are moved, and the spaces and line breaks between them stay: a list in disorder is still laid out as a list.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Answer = tuple[str, str]  # prompt, answer

LEAST_WORDS = 8  # of an answer that is to be spoilt: one or two words in another order are no word salad


def spaced(text: str) -> tuple[list[str], list[str]]:
    """The words of a text, and the spaces before each of them."""
    found = re.findall(r"(\s*)(\S+)", text)
    return [word for _, word in found], [space for space, _ in found]


def laid_out(words: list[str], spaces: list[str]) -> str:
    """Words with the spaces of another text before them; beyond its end single spaces."""
    gaps = [*spaces, *[" "] * max(0, len(words) - len(spaces))]
    return "".join(gap + word for gap, word in zip(gaps, words, strict=False)).strip()


def shuffled(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """Word salad: the answer's words in random order."""
    words, spaces = spaced(answer[1])
    mixed = list(words)
    for _ in range(8):
        rng.shuffle(mixed)
        if mixed != words:
            break
    return answer[0], laid_out(mixed, spaces)


def looped(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """The answer runs into a phrase and repeats it."""
    words, spaces = spaced(answer[1])
    start = rng.randrange(max(1, len(words) - 8))
    phrase = words[start : start + rng.randint(1, 8)]
    lead = start if rng.random() < 0.5 else 0
    return answer[0], laid_out(words[:lead] + phrase * rng.randint(4, 12), spaces[:lead])


def off_topic(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """A good answer to another question."""
    return answer[0], other[1]


def spliced(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """Half of one answer goes on, in mid-sentence, with half of another."""
    first, second = answer[1].split(), other[1].split()
    return answer[0], " ".join(first[: len(first) // 2] + second[len(second) // 2 :])


def fragment(answer: Answer, other: Answer, rng: random.Random) -> Answer:
    """One to four words out of the middle."""
    words = answer[1].split()
    start = rng.randrange(1, max(2, len(words) - 4))
    return answer[0], " ".join(words[start : start + rng.randint(1, 4)])


CORRUPTIONS: dict[str, Callable[[Answer, Answer, random.Random], Answer]] = {
    "shuffled": shuffled,
    "looped": looped,
    "off_topic": off_topic,
    "spliced": spliced,
    "fragment": fragment,
}


def can_be_spoilt(answer: Answer) -> bool:
    """Whether an answer is long enough that what is made of it is another text, and no longer an answer."""
    return len(answer[1].split()) >= LEAST_WORDS
