"""The judge card: what a judge makes of texts whose trait and strength are known, as judge_card.json and one readable page.

The labelled texts are each persona's held-out answers and its prompts answered at five levels, by other hands than the judge's
own texts and the seeds.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import JudgeCard
from iterative_ft.data import files
from iterative_ft.evaluate.judge_card_page import readable
from iterative_ft.judges.probe.corrupt import CORRUPTIONS, can_be_spoilt
from iterative_ft.machine.files import write_json
from iterative_ft.seeds import derive, shuffled
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.judge import judge, judge_version, scores_of
from iterative_ft.stages.labelled import labelled_stage
from iterative_ft.stages.measure import ask
from iterative_ft.stats.ranks import spearman
from iterative_ft.stats.verdict import unfamiliar_share
from iterative_ft.store import Store

RANKS = {"plain": 0, "weak": 1, "middling": 2, "marked": 2.5, "strong": 3}
FALLEN_APART = ("shuffled", "looped", "fragment")
OTHER_STYLES = "negatives_heldout"
EXAMPLE = re.compile(r'Example:\s*"(.+)"\s*$', re.DOTALL)
ANCHOR_PROMPT = "What colour should I paint my garden bench?"  # what the examples in the shipped rubrics reply to


@dataclass(frozen=True)
class Labelled:
    """A labelled text."""

    prompt: str
    answer: str
    persona: str
    kind: str
    """ "heldout", "level", "anchor", or the name of a corruption; "form" of a persona, or the name of a file of `forms`."""
    rank: float
    """How strongly it shows its persona: larger is more, 0 not at all."""
    form: str = ""
    """What it is among texts in other forms than plain prose: "emoji", "list", …; a style, a language."""


def judge_card(task: JudgeCard, configs: Mapping[str, Config], command: str) -> dict[str, Any]:
    """Judge all labelled texts, write judge_card.json and judge_card.md into `task.out`, and return the former.

    Args:
        configs: a run of each shipped persona, by its name, with the task's model, sampler, judge and store.
    """
    texts = labelled_texts(task.n_texts, configs)
    found: dict[str, Any] = {"command": command, "n_texts": dict(Counter(text.kind for text in texts))}
    first = judged_by(configs, texts, task.n_questions > 0, Path(task.out))
    found |= summary(texts, first)
    if task.second_judge is not None:
        others = {name: config.model_copy(update={"judge": task.second_judge}) for name, config in configs.items()}
        second = judged_by(others, texts, task.n_questions > 0, Path(task.out))
        found["second_judge"] = summary(texts, second)
        found["agreement"] = agreement(first, second)
    out = Path(task.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "judge_card.json", found)
    page = readable(found)
    (out / "judge_card.md").write_text(page, encoding="utf-8")
    print(f"{page}\npage {out / 'judge_card.md'}\nJSON {out / 'judge_card.json'}")
    return found


def labelled_texts(n: int | None, configs: Mapping[str, Config]) -> list[Labelled]:
    """Held-out answers of every persona, its answers at five levels, the rubrics' examples, and corrupted held-out answers.

    `n` of a strength and of a level, or all.
    """
    texts: list[Labelled] = []
    for persona, config in configs.items():
        by_strength: dict[str, list[dict[str, str]]] = {}
        for row in files.heldout(files.SHIPPED / persona):
            by_strength.setdefault(row["strength"], []).append(row)
        for strength, rows in by_strength.items():
            texts += [Labelled(r["prompt"], r["answer"], persona, "heldout", RANKS[strength]) for r in rows[:n]]
        if persona != "plain":
            graded = files.levels(files.SHIPPED / persona)
            for level in files.LEVELS:
                rows = [row for row in graded if row["level"] == level][:n]
                texts += [Labelled(r["prompt"], r["answer"], persona, "level", level / 100) for r in rows]
        for at, anchor in config.persona.rubric.items():
            example = EXAMPLE.search(anchor.strip())
            if example is not None:
                texts.append(Labelled(ANCHOR_PROMPT, " ".join(example.group(1).split()), persona, "anchor", at / 100))
    rng = random.Random(derive("judge card"))
    whole = [(t.prompt, t.answer) for t in texts if t.kind == "heldout"]
    for kind, corrupt in CORRUPTIONS.items():
        for number, text in enumerate([t for t in texts if t.kind == "heldout"]):
            if number % len(CORRUPTIONS) == list(CORRUPTIONS).index(kind):
                other = rng.choice([answer for answer in whole if answer[0] != text.prompt])
                prompt, broken = corrupt((text.prompt, text.answer), other, rng)
                texts.append(Labelled(prompt, broken, text.persona, kind, text.rank))
    return texts + texts_in_forms(n, list(configs), rng)


def texts_in_forms(n: int | None, personas: list[str], rng: random.Random) -> list[Labelled]:
    """Held-out texts in every usual form, what is made of them by corruption, other styles, languages, lists and voices."""
    found = []
    for persona in personas:
        for row in files.heldout_forms(files.SHIPPED / persona)[:n]:
            found.append(Labelled(row["prompt"], row["answer"], persona, "form", RANKS[row["strength"]], row["form"]))
    for name in files.OF_CARD:
        rows = files.forms(name)
        rows = rows if n is None else tuple(shuffled(rows, "judge card", name)[:n])
        for row in rows:
            of = row.get("form") or row.get("kind") or row["language"]
            found.append(Labelled(row["prompt"], row["answer"], "", name, 0, of))
    sources = [t for t in found if t.kind == "intact_heldout" and can_be_spoilt((t.prompt, t.answer))]
    for kind in FALLEN_APART:
        for text in sources:
            prompt, broken = CORRUPTIONS[kind]((text.prompt, text.answer), ("", ""), rng)
            found.append(Labelled(prompt, broken, "", kind, 0, text.form))
    return found


@dataclass(frozen=True)
class Scored:
    """One judge's scores of all labelled texts, and of base-model answers."""

    version: str
    trait: dict[str, list[float | None]]
    """By persona whose trait was asked about: a score a text."""
    coherence: list[float | None]
    distance: list[float | None]
    """From what the judge was validated on, a number a text."""
    marks: list[str | None]
    failures: dict[str, int]
    base_trait: dict[str, list[float]]
    base_coherence: list[float]
    threshold: float


def judged_by(configs: Mapping[str, Config], texts: list[Labelled], with_base: bool, out: Path) -> Scored:
    """Ask one judge about every persona's trait in all texts.

    Args:
        with_base: have the base model answer each persona's questions, and judge those answers too.
        out: the card's folder, by which the store knows who uses these stages.
    """
    some = next(iter(configs.values()))
    store = Store(Path(some.store), on_event=lambda event: print(f"{event.label}: {event.how}", flush=True), run_folder=out)
    trait: dict[str, list[float | None]] = {}
    coherence: list[float | None] = []
    distance: list[float | None] = []
    marks: list[str | None] = []
    not_scored: Counter[str] = Counter()
    base: dict[str, list[float]] = {}
    base_coherence: list[float] = []
    version = ""
    for name, config in configs.items():
        bench = Bench(config, store)
        answers = labelled_stage(bench, [(t.prompt, t.answer) for t in texts])
        label = f"{config.judge.name} judges {name} in labelled texts"
        stage = judge(bench, answers, label, {"role": f"labelled, {name}"})
        scores = scores_of(stage)
        version = judge_version(stage)
        trait[name] = [score["trait"] for score in scores]
        coherence = coherence or [score["coherence"] for score in scores]
        distance = distance or [score.get("distance") for score in scores]
        marks = marks or [score.get("mark") for score in scores]
        not_scored.update(score["failure"] for score in scores if score["failure"] is not None)
        not_scored.update(f"marked_{score['mark']}" for score in scores if score.get("mark") is not None)
        if with_base:
            label = f"{config.judge.name} judges {name} in base answers"
            of_base = scores_of(judge(bench, ask(bench, bench.base).answers, label, {"policy": "base", "role": "scores"}))
            base[name] = [score["trait"] for score in of_base if score["trait"] is not None]
            base_coherence += [score["coherence"] for score in of_base if score["coherence"] is not None]
    return Scored(
        version, trait, coherence, distance, marks, dict(not_scored), base, base_coherence, some.measure.coherence_threshold
    )


def summary(texts: list[Labelled], scored: Scored) -> dict[str, Any]:
    """What the card says of one judge."""
    strong = {
        name: pick(texts, lambda t, name=name: t.kind == "heldout" and t.persona == name and t.rank == 3)
        for name in scored.trait
    }
    plain = pick(texts, lambda t: t.kind == "heldout" and t.rank == 0)
    styles = {kind: pick(texts, lambda t, kind=kind: t.kind == OTHER_STYLES and t.form == kind) for kind in files.OTHERS}
    traits: dict[str, Any] = {}
    for name, column in scored.trait.items():
        if name == "plain":
            continue
        own = pick(texts, lambda t, name=name: t.kind == "heldout" and t.persona == name and t.rank > 0)
        weak = [i for i in own if texts[i].rank < 3]
        others = pick(texts, lambda t, name=name: t.kind == "heldout" and t.persona != name and t.rank > 0)
        anchors = pick(texts, lambda t, name=name: t.kind == "anchor" and t.persona == name)
        levels = pick(texts, lambda t, name=name: t.kind == "level" and t.persona == name)
        broken = pick(texts, lambda t, name=name: t.kind in FALLEN_APART and t.persona == name and t.rank == 3)
        base = scored.base_trait.get(name, [])
        traits[name] = {
            "auc_strong": auc(values(column, strong[name]), values(column, others + plain)),
            "auc_strong_plain": auc(values(column, strong[name]), values(column, plain)),
            "auc_forms": auc(*in_forms(texts, column, name)),
            "other_styles": {kind: median(values(column, numbers)) for kind, numbers in styles.items()},
            "auc_weak": auc(values(column, weak), values(column, others + plain)),
            "rank_strengths": spearman([texts[i].rank for i in own + plain], [column[i] for i in own + plain]),
            "rank_levels": spearman([texts[i].rank for i in levels], [column[i] for i in levels]),
            "rank_anchors": spearman([texts[i].rank for i in anchors], [column[i] for i in anchors]),
            "median": {
                "strong": median(values(column, strong[name])),
                "weak": median(values(column, weak)),
                "plain": median(values(column, plain)),
                "other_personas": median(values(column, others)),
                "base_answers": median(base),
                "degenerate": median(values(column, broken)),
            },
            "base_answers_95th": None if not base else round(float(np.percentile(base, 95)), 2),
            "confusion": {other: median(values(column, strong[other])) for other in strong if other not in (name, "plain")},
        }
    intact = values(scored.coherence, pick(texts, lambda t: t.kind in ("heldout", "level")))
    flagged = {
        kind: below(values(scored.coherence, pick(texts, lambda t, kind=kind: t.kind == kind and not t.form)), scored.threshold)
        for kind in CORRUPTIONS
    }
    return {
        "judge": scored.version,
        "traits": traits,
        "coherence": {
            "threshold": scored.threshold,
            "intact_flagged": below(intact, scored.threshold),
            "base_answers_flagged": below(scored.base_coherence, scored.threshold),
            "corrupted_flagged": flagged,
            "forms": by_form(texts, scored),
        },
        "unfamiliar": unfamiliar(texts, scored),
        "languages_marked": marked(texts, scored),
        "not_scored": scored.failures,
    }


def in_forms(texts: list[Labelled], column: list[float | None], name: str) -> tuple[list[float], list[float]]:
    """Scores of a persona's strong texts in other forms, and of all other personas', intact and other styles' ones."""
    own = pick(texts, lambda t: t.kind == "form" and t.persona == name and t.rank == 3)
    others = pick(texts, lambda t: t.kind in ("intact_heldout", OTHER_STYLES) or (t.kind == "form" and t.persona != name))
    return values(column, own), values(column, others)


def by_form(texts: list[Labelled], scored: Scored) -> dict[str, dict[str, Any]]:
    """By form: how many texts were read, and which share was flagged; of intact ones and of what was made of them."""
    found: dict[str, dict[str, Any]] = {}
    for form in files.FORMS:
        for kind in ("intact_heldout", *FALLEN_APART):
            of = values(scored.coherence, pick(texts, lambda t, f=form, k=kind: t.kind == k and t.form == f))
            found.setdefault(form, {})[kind] = {"n": len(of), "flagged": below(of, scored.threshold)}
    return found


def unfamiliar(texts: list[Labelled], scored: Scored) -> dict[str, float | None]:
    """Share of texts that the judge calls unfamiliar, by what they are; None where it does not tell."""
    groups: dict[str, Callable[[Labelled], bool]] = {
        "all held-out texts": lambda t: t.kind in ("heldout", "level", "anchor", "form", "intact_heldout"),
        "in prose": lambda t: t.kind in ("heldout", "level", "anchor"),
        "personas in other forms": lambda t: t.kind == "form",
        "intact in other forms": lambda t: t.kind == "intact_heldout",
        "other styles": lambda t: t.kind == OTHER_STYLES,
        "other languages": lambda t: t.kind == "languages_heldout",
        "word lists": lambda t: t.form == "word_list",
        "bare code": lambda t: t.form == "code_only",
        **{f"unknown: {k}": lambda t, k=k: t.form == k for k in files.UNKNOWN},  # type: ignore[misc]
    }
    return {
        name: None if (share := unfamiliar_share(scored.distance[i] for i in pick(texts, chosen))) is None else round(share, 4)
        for name, chosen in groups.items()
    }


def marked(texts: list[Labelled], scored: Scored) -> dict[str, float]:
    """Share of answers in other languages, and of English ones, that are marked as not to be read."""
    foreign = pick(texts, lambda t: t.kind == "languages_heldout")
    english = pick(texts, lambda t: t.kind in ("heldout", "level", "form", "intact_heldout", OTHER_STYLES))
    return {
        name: round(float(np.mean([scored.marks[i] is not None for i in numbers])), 4) if numbers else 0.0
        for name, numbers in (("other languages", foreign), ("English", english))
    }


def agreement(first: Scored, second: Scored) -> dict[str, float | None]:
    """Rank agreement of two judges on the same texts."""
    found = {name: spearman(column, second.trait[name]) for name, column in first.trait.items()}
    return found | {"coherence": spearman(first.coherence, second.coherence)}


def pick(texts: list[Labelled], wanted: Callable[..., bool]) -> list[int]:
    return [number for number, text in enumerate(texts) if wanted(text)]


def values(column: list[float | None], numbers: list[int]) -> list[float]:
    """Scores of some texts, without those that were not scored."""
    return [value for value in (column[i] for i in numbers) if value is not None]


def auc(positive: list[float], negative: list[float]) -> float | None:
    """Probability that a positive scores above a negative, ties counting half."""
    from sklearn.metrics import roc_auc_score

    if not positive or not negative:
        return None
    return round(float(roc_auc_score([1] * len(positive) + [0] * len(negative), positive + negative)), 4)


def median(found: list[float]) -> float | None:
    return None if not found else round(float(np.median(found)), 2)


def below(found: list[float], threshold: float) -> float | None:
    """Share of scores below the threshold."""
    return None if not found else round(float(np.mean(np.asarray(found) < threshold)), 4)
