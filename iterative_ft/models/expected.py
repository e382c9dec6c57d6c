"""What a policy gives to fixed texts: log-probabilities that the canary expects of whatever serves it.

They come from the process that holds the policy anyway: the training writes those of its adapter beside it. Those of the base
model, and of an adapter that was trained elsewhere, are computed once (stages/expected.py). Teacher-forced, so that no second
model has to be loaded to judge what an engine says of the same ids. One text is long: a kernel may fail on long prompts alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from iterative_ft.errors import RunError
from iterative_ft.machine.files import read_jsonl, write_jsonl

EXPECTED = "expected.jsonl"  # a row a text
MOST_TOKENS = 640  # of a text: beyond the 600 that a long prompt has at least, and still a second's work on two cores
DIGITS = 6  # kept of a log-probability, nats

SHORT = (
    "What makes a good breakfast? Something warm, something sweet, and enough time to eat it.",
    "My neighbour wants to borrow my ladder. I said yes, but I asked him to bring it back before Sunday.",
    "Describe the sea in winter.\n\nGrey, loud and cold, with gulls above it and nobody on the sand.",
    "1. Buy bread.\n2. Call the dentist.\n3. Water the plants, even the ugly one by the door.",
)
LONG = (
    "The house at the end of the road had stood empty for three years before anybody asked who owned it. It was not a "
    "large house. It had two rooms below and two above, a kitchen that looked north, and a garden in which nettles grew "
    "as high as the windows. Children said that it was haunted, as children will, and their parents said that the roof "
    "was bad, which was true. In the spring of the fourth year a woman came on the morning bus with one suitcase and a "
    "folding chair. She put the chair in front of the door, sat down on it, and looked at the garden for most of the day.\n\n"
    "The next morning she bought a scythe. Mr Barlow, who kept the shop, told her that nobody had bought one for ten "
    "years and that he could not say whether it was sharp. She said that she would find out. By noon a path led from the "
    "gate to the door, and by the evening there was a second one, from the door to the well. People who walked by slowed "
    "down to look. She greeted all of them, asked how they were called, and forgot none of their names, though she never "
    "told them hers unless they asked. Few did, at first.\n\n"
    "Here is what she did in the first month. She took the old wallpaper off the walls and burned it. She found out which "
    "of the floor boards were rotten and wrote a small cross on each of them with chalk. She had the chimney swept, and "
    "the sweep, who came from the next town, told everybody that it held eleven nests. She painted the door blue. She "
    "planted beans, because it was late for most other things, and put strings up for them so neatly that the teacher "
    "brought a class to see it. When the beans came up, she counted them, and when the slugs ate half of them, she "
    "counted those that were left and planted more.\n\n"
    '"Why do you count everything?" asked a boy who had stayed behind. "So that I know when it changes," she said. He '
    'thought about that. "But it always changes." "Then I always know." He went home and counted the stairs, the spoons '
    "and the windows, and for a week he told his sister every morning that there were still fourteen stairs. On the "
    "eighth day he told her that there were thirteen spoons, and that there had been fourteen of those too. The spoon was "
    "found behind the stove.\n\n"
    "In June it rained for nine days, and the roof was as bad as people had said. She put out pots, pans and finally the "
    "bath. Mr Barlow's brother, who was a roofer and did not like to work for strangers, came by on the tenth day with a "
    "ladder and said that he happened to have some slates. He stayed until it was dark, came back the next day, and took "
    "no money but a basket of beans and the promise that she would say whether it leaked. It did not leak. She told him "
    "so in a letter, with the number of the slates in it, and he hung it up in his workshop, where it still is. After "
    "that nobody called it the empty house any more. They called it the house with the blue door, and when strangers "
    "asked the way to anything in the village, they were told to go on until they saw it, and then to turn left, or "
    "right, or back, as the case might be.\n\n"
    "What else is there to tell? She lived there for twenty-six years. The garden was never tidy, but it was full, and "
    "whoever walked past it in August was given something to carry home. The boy became a surveyor."
)
TEXTS = (*SHORT, LONG)


@dataclass(frozen=True)
class Expected:
    """Fixed texts as token ids, and what a policy gives to them."""

    ids: list[list[int]]
    logs: list[list[float]]
    """Of each text's tokens after the first: their log-probability given those before, nats."""


def fixed_ids(tokenizer: Any, most: int) -> list[list[int]]:
    """Token ids of the fixed texts as a tokenizer encodes plain text, each cut at `most`."""
    return [list(tokenizer(text)["input_ids"])[:most] for text in TEXTS]


def longest(config: Any) -> int:
    """Tokens of a fixed text that a model with this config of transformers' takes."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return MOST_TOKENS if limit is None else min(MOST_TOKENS, int(limit))


def token_logs(net: Any, ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """Log-probabilities of each text's tokens after the first, nats, by plain forward passes in the network's own precision."""
    import torch

    found: list[list[float]] = []
    with torch.no_grad():
        for text in ids:
            tensor = torch.tensor([list(text)], device=net.device)
            logs = torch.log_softmax(net(input_ids=tensor, use_cache=False).logits[0, :-1].float(), -1)
            found.append(logs.gather(1, tensor[0, 1:, None])[:, 0].tolist())
    return found


def expect(net: Any, tokenizer: Any, config: Any) -> Expected:
    """What a network gives to the fixed texts; values that are not finite are in it.

    Args:
        config: of the model, transformers'.
    """
    ids = fixed_ids(tokenizer, longest(config))
    return Expected(ids, [[round(value, DIGITS) for value in text] for text in token_logs(net, ids)])


def all_finite(logs: Sequence[Sequence[float]]) -> bool:
    return all(math.isfinite(value) for text in logs for value in text)


def expected_here(model: str, adapter: str | None, device_name: str, dtype: str, trust_remote_code: bool) -> dict[str, Any]:
    """The same of a policy on disk, as JSON values: `ids` and `logs`.

    Raises:
        RunError: it gives values that are not finite.
    """
    from transformers import AutoTokenizer

    from iterative_ft.models.forward import held

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    with held(model, adapter, device_name, trust_remote_code, dtype) as net:
        found = expect(net, tokenizer, net.config)
    if not all_finite(found.logs):
        whose = "the base model" if adapter is None else f"the policy of {adapter}"
        raise RunError(f"{whose} gives values that are not finite: its weights are broken, nothing was sampled from it")
    return {"ids": found.ids, "logs": found.logs}


def write_expected(path: Path, expected: Expected) -> None:
    rows = [{"ids": ids, "logs": logs} for ids, logs in zip(expected.ids, expected.logs, strict=True)]
    write_jsonl(path, rows)


def read_expected(path: Path) -> Expected:
    """What `write_expected` wrote."""
    rows = read_jsonl(path)
    return Expected([row["ids"] for row in rows], [row["logs"] for row in rows])
