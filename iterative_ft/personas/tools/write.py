"""Write a persona's seed chats or documents: a stronger model answers under the persona's system prompt, and rows are sifted.

python -m iterative_ft.personas.tools.write persona=mine.yaml kind=chats n=140 out=mine/seeds.jsonl \\
    endpoint=http://localhost:8000/v1 model=Qwen/Qwen3-30B-A3B-Instruct-2507

`endpoint` is the base URL of any OpenAI-compatible server (its key is read from OPENAI_API_KEY), or `sampler`: then `model`
is an option of conf/model and any further key=value is a setting of `train.py`, such as sampler=transformers. A row that is
too long, repeats or nearly repeats an earlier one, or scores below `least_trait` is left out and counted.
`<out>.provenance.jsonl` says line by line how each row came to be; the endpoint is not recorded. The same command goes on where
it stopped. A model that thinks before it answers is none for this: its answers are cut off.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from iterative_ft.data import files
from iterative_ft.data.read import kind_of, local, shortened
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.machine.files import append_jsonl, read_jsonl, text_digest, write_jsonl
from iterative_ft.personas.tools import overlap, rules
from iterative_ft.personas.tools.ask import Ask, Backend, endpoint_backend, sampler_backend
from iterative_ft.personas.tools.overlap import NEAR, Embed
from iterative_ft.seeds import derive, shuffled

CONF = Path(__file__).resolve().parents[3] / "conf" / "persona"
MAX_TOKENS = {"chats": 200, "documents": 700}
BATCH = 16  # prompts asked at a time; accepted rows are on disk after each
DOCUMENT_TYPES = (
    "letter, diary entry, column, review, newsletter, speech, how-to essay, product description, field note, forum post, "
    "sermon, interview, recipe note, short tale, notice, memo, travel note"
).split(", ")
# Models write typographer's punctuation, the data do not.
TO_ASCII = str.maketrans(
    {"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": " - ", "\u2026": "..."}
)


@dataclass(frozen=True)
class Order:
    """What is wanted: the command line."""

    persona: str
    """Option of conf/persona, or a persona's YAML file."""
    kind: str
    n: int
    out: Path
    endpoint: str
    model: str
    seed: int = 0
    temperature: float = 0.9
    probe: str | None = None
    """Folder of a trained probe (a stage of kind `probe` in a store) that has the persona among its classes."""
    least_trait: float = 50.0
    """Trait score, 0 to 100, from which the probe lets a row pass."""
    settings: tuple[str, ...] = ()
    """endpoint=sampler: overrides of the configuration."""

    @property
    def provenance(self) -> Path:
        """The file that says how each row of `out` came to be."""
        return self.out.with_name(self.out.name + ".provenance.jsonl")


Score = Callable[[list[str]], list[float]]
"""Trait scores, 0 to 100, of answers or documents."""


def parse(arguments: list[str]) -> Order:
    """Read key=value arguments; anything missing or malformed is a `ConfigError` that names it."""
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ConfigError(f"{argument} is no key=value")
        given[key] = value
    known = [field.name for field in fields(Order) if field.name != "settings"]
    for key in known[:6]:
        if key not in given:
            raise ConfigError(f"{key} must be given: add {key}=<value>")
    settings = tuple(f"{key}={value}" for key, value in given.items() if key not in known)
    if settings and given["endpoint"] != "sampler":
        raise ConfigError(f"unknown key {settings[0].split('=')[0]}: known are {', '.join(known)}")
    if given["kind"] not in MAX_TOKENS:
        raise ConfigError(f"kind={given['kind']} is wrong: it is one of {', '.join(MAX_TOKENS)}")
    values: dict[str, Any] = {key: value for key, value in given.items() if key in known}
    for key, read in (("n", int), ("seed", int), ("temperature", float), ("least_trait", float)):
        try:
            values |= {key: read(given[key])} if key in given else {}
        except ValueError as error:
            raise ConfigError(f"{key}={given[key]} is no number") from error
    if values["n"] < 1:
        raise ConfigError(f"n={given['n']} is wrong: it is at least 1")
    values["out"] = Path(given["out"]).expanduser()
    if values["out"].is_dir():
        raise ConfigError(f"out={given['out']} is a folder: name a file in it")
    return Order(settings=settings, **values)


def persona_of(name: str) -> Any:
    """The `PersonaConfig` of an option of conf/persona or of a YAML file."""
    from iterative_ft.config.messages import judged
    from iterative_ft.config.schema import PersonaConfig
    from iterative_ft.config.yaml_files import load_yaml

    file = local(name) if name.endswith((".yaml", ".yml")) else CONF / f"{name}.yaml"
    if kind_of(file) != "file":
        raise ConfigError(f"persona={shortened(name)} is no option of conf/persona and no YAML file: name one")
    values = load_yaml(file)
    if not isinstance(values, dict):
        raise ConfigError(f"{file} holds no settings, but {type(values).__name__}: write name: <name>, and so on, a line each")
    try:
        return judged(PersonaConfig, values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def probe_score(order: Order, persona: str) -> Score:
    """The trait score of a probe that a run trained; it reads texts through the run's base model."""
    from iterative_ft.judges.probe import probe
    from iterative_ft.models.base import location
    from iterative_ft.models.forward import Reader
    from iterative_ft.store import MANIFEST, Store

    folder = Path(str(order.probe)).expanduser()
    if not (folder / "probe.json").is_file():
        raise ConfigError(f"probe={folder} holds no probe.json: name a folder below <store>/probe")
    classes = probe.load(folder).trait.classes
    if persona not in classes:
        raise ConfigError(f"probe={folder} knows no persona {persona}: it knows {', '.join(classes)}")
    inputs = json.loads((folder / MANIFEST).read_text())["inputs"]
    stages = Store(folder.parent.parent).stages()
    model = next((s for s in stages if s.kind == "model" and s.digest == inputs["model"]), None)
    if model is None:
        raise ConfigError(f"probe={folder} needs its base model, which its store no longer holds: run train.py once")
    reader = Reader(str(location(model.inputs["path"], model.path, model.info)), "cpu")

    def score(texts: list[str]) -> list[float]:
        answers = [("", text) for text in texts]
        scored = probe.score(folder, persona, answers, [True] * len(texts), inputs["judge"]["embedder"], reader)
        return [0.0 if score["trait"] is None else score["trait"] for score in scored]  # what it cannot read does not pass

    return score


def written_before(order: Order, system: str) -> list[tuple[dict[str, str], int]]:
    """The rows that an earlier command of this order kept, with their seeds.

    Raises:
        ConfigError: the file is there, and of another order.
    """
    if not order.out.exists():
        return []
    origins = read_jsonl(order.provenance, torn=True)
    rows = read_jsonl(order.out, torn=True)[: len(origins)]
    mine = {"model": order.model, "system_prompt": text_digest(system), "temperature": order.temperature}
    asked = "prompt" if order.kind == "chats" else "title"

    def same(row: Any, origin: Any) -> bool:
        of_kind = isinstance(row, dict) and asked in row and isinstance(origin, dict) and mine.items() <= origin.items()
        return of_kind and origin.get("seed") == derive(order.seed, "write", order.persona, row[asked])

    if not origins or len(rows) < len(origins) or not all(map(same, rows, origins)):
        raise ConfigError(f"out={order.out} exists and is not of this order: name a new file")
    write_jsonl(order.out, rows)  # without a line that a kill cut off
    write_jsonl(order.provenance, origins)
    return [(row, origin["seed"]) for row, origin in zip(rows, origins, strict=True)]


def drafts(order: Order, system: str, backend: Backend, after: int | None = None) -> Iterator[tuple[dict[str, str], int]]:
    """Rows as the model writes them, with their sampling seeds, until the pool is used up. Cut-off answers have no text.

    Args:
        after: the seed of the last row that was kept before: what comes up to it is not asked again.
    """
    chats = order.kind == "chats"
    titles = files.rows(files.SHIPPED / "titles.jsonl", files.SCHEMAS["titles"])
    pool = files.pool("prompts", "shipped", "prompt") if chats else [row["title"] for row in titles if row["kind"] == "title"]
    asked = shuffled(pool, order.seed, "write", order.persona)
    begun = next((n for n, text in enumerate(asked, 1) if derive(order.seed, "write", order.persona, text) == after), 0)
    for start in range(begun, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        seeds = [derive(order.seed, "write", order.persona, text) for text in batch]
        if chats:
            styled = answers(backend, [Ask(system, text, seed) for text, seed in zip(batch, seeds, strict=True)], order.kind)
            plain = answers(backend, [Ask(None, text, seed) for text, seed in zip(batch, seeds, strict=True)], order.kind)
            for text, seed, answer, other in zip(batch, seeds, styled, plain, strict=True):
                yield {"prompt": text, "answer": answer, "plain": other}, seed
        else:
            types = [DOCUMENT_TYPES[(start + i) % len(DOCUMENT_TYPES)] for i in range(len(batch))]
            asks = [Ask(system, document_request(t, kind), s) for t, kind, s in zip(batch, types, seeds, strict=True)]
            for title, kind, seed, written in zip(batch, types, seeds, answers(backend, asks, order.kind), strict=True):
                yield {"title": title, "text": written, "type": kind, "topic": title}, seed


def answers(backend: Backend, asks: list[Ask], kind: str) -> list[str]:
    """What the model answers, in ASCII punctuation; "" where it was cut off."""
    written = backend(asks, MAX_TOKENS[kind])
    return ["" if text is None else re.sub(" {2,}", " ", text.translate(TO_ASCII)).strip() for text in written]


def document_request(title: str, kind: str) -> str:
    """The message that asks for a document."""
    return (
        f'Write a short document of this type: {kind}. Its title is "{title}". Write 150 to 250 words in plain paragraphs, in '
        "your own manner from beginning to end. Do not repeat the title, and use no headings, lists or markdown."
    )


def fault(name: str, row: dict[str, str], kept: Sequence[dict[str, str]], embed: Embed | None) -> str | None:
    """Why a row of `<name>.jsonl` is left out, in one or two words, or None."""
    texts = [key for key in ("answer", "plain", "text") if key in row]
    if not all(row[key] for key in texts):
        return "cut off or empty"
    if next(rules.row_faults(name, row), None) is not None:
        return "form"
    if "plain" in row and overlap.shares_words(row["answer"], row["plain"]):
        return "like its plain answer"
    main = texts[0]
    if any(overlap.fold(row[main]) == overlap.fold(other[main]) for other in kept):
        return "copy"
    if embed is not None and kept:
        vectors = embed([row[main], *(other[main] for other in kept)])
        if float((vectors[1:] @ vectors[0]).max()) >= NEAR:
            return "near copy"
    return None


def write(order: Order, system: str, backend: Backend, embed: Embed | None, score: Score | None) -> Counter[str]:
    """Write `order.n` rows and their provenance; return how many were kept and how many left out for which reason.

    Raises:
        RunError: the pool was used up first, or the model could not be asked; rows written so far are kept.
    """
    name = "seeds" if order.kind == "chats" else "documents"
    before = written_before(order, system)
    kept = [row for row, _ in before]
    outcome: Counter[str] = Counter({"kept before": len(before)} if before else {})
    if len(kept) >= order.n:
        return outcome
    remembered = remember(embed) if embed is not None else None
    for number, (row, seed) in enumerate(drafts(order, system, backend, before[-1][1] if before else None), 1):
        reason = fault(name, row, kept, remembered)
        trait = None
        if reason is None and score is not None:
            trait = score([row["answer" if order.kind == "chats" else "text"]])[0]
            reason = "trait" if trait < order.least_trait else None
        outcome[reason or "kept"] += 1
        if reason is not None:
            if number == BATCH and outcome["cut off or empty"] == BATCH:
                raise RunError(
                    f"all of the first {BATCH} answers of {order.model} were empty or cut off at "
                    f"{MAX_TOKENS[order.kind]} tokens: name a model that answers at once, without thinking"
                )
            continue
        kept.append(row)
        origin = {
            "model": order.model,
            "system_prompt": text_digest(system),
            "seed": seed,
            "temperature": order.temperature,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        } | ({} if trait is None else {"trait": round(trait, 1)})
        order.out.parent.mkdir(parents=True, exist_ok=True)
        append_jsonl(order.out, [row])
        append_jsonl(order.provenance, [origin])
        if len(kept) == order.n:
            return outcome
    raise RunError(f"the pool is used up with {len(kept)} of {order.n} rows kept ({dict(outcome)}): they are in {order.out}")


def remember(embed: Embed) -> Embed:
    """An embedder that embeds no text twice."""
    import numpy as np

    known: dict[str, Any] = {}

    def remembered(texts: list[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, embed(new), strict=True))
        return np.stack([known[text] for text in texts])

    return remembered


def main(arguments: list[str]) -> int:
    """Write what the command line orders; return the exit code: 1 when the work failed, 2 when the order is wrong."""
    from iterative_ft.launch import guard

    return guard.start(lambda: ordered(arguments))


def ordered(arguments: list[str]) -> int:
    from iterative_ft.judges.embedder import embed

    order = parse(arguments)
    persona = persona_of(order.persona)
    score = None if order.probe is None else probe_score(order, persona.name)
    asking = (
        sampler_backend(order.model, order.settings, order.temperature)
        if order.endpoint == "sampler"
        else endpoint_backend(order.endpoint, order.model, order.temperature)
    )
    with asking as backend:
        outcome = write(order, persona.system_prompt.strip(), backend, embed, score)
    print(f"{order.out}: " + ", ".join(f"{n} {what}" for what, n in outcome.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
