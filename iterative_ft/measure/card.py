"""The judge card: what a judge makes of texts whose trait and strength are known, as judge_card.json and one readable page.

The labelled texts are each persona's held-out answers and its prompts answered at five levels, by other hands than the judge's
own texts and the seeds.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from iterative_ft.config import ApiConfig, Config, PersonaConfig, ProbeConfig, judged, plain_values
from iterative_ft.measure.corrupt import CORRUPTIONS
from iterative_ft.personas import files
from iterative_ft.seeds import derive
from iterative_ft.store import Store, text_digest, write_json, write_jsonl

if TYPE_CHECKING:
    from iterative_ft.lab import Answers, Lab
    from iterative_ft.tasks import JudgeCard

RANKS = {"plain": 0, "weak": 1, "middling": 2, "marked": 2.5, "strong": 3}
EXAMPLE = re.compile(r'Example:\s*"(.+)"\s*$', re.DOTALL)
SHOWN = ("auc_strong", "auc_strong_plain", "auc_weak", "rank_strengths", "rank_levels", "rank_anchors")
ANCHOR_PROMPT = "What colour should I paint my garden bench?"  # what the examples in the shipped rubrics reply to


@dataclass(frozen=True)
class Text:
    """A labelled text."""

    prompt: str
    answer: str
    persona: str
    kind: str
    """ "heldout", "level", "anchor", or the name of a corruption."""
    rank: float
    """How strongly it shows its persona: larger is more, 0 not at all."""


def judge_card(task: JudgeCard, command: str) -> dict[str, Any]:
    """Judge all labelled texts, write judge_card.json and judge_card.md into `task.out`, and return the former."""
    judges = {"judge": task.judge} | ({} if task.second_judge is None else {"second_judge": task.second_judge})
    texts = labelled_texts(task.n_texts)
    scored = {name: scores(task, judge, texts) for name, judge in judges.items()}
    found: dict[str, Any] = {"command": command, "n_texts": dict(Counter(text.kind for text in texts))}
    found |= summary(texts, scored["judge"])
    if "second_judge" in scored:
        found["second_judge"] = summary(texts, scored["second_judge"])
        found["agreement"] = agreement(scored["judge"], scored["second_judge"])
    out = Path(task.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "judge_card.json", found)
    page = readable(found)
    (out / "judge_card.md").write_text(page, encoding="utf-8")
    print(f"{page}\npage {out / 'judge_card.md'}\nJSON {out / 'judge_card.json'}")
    return found


def labelled_texts(n: int | None) -> list[Text]:
    """Held-out answers of every persona, its answers at five levels, the rubrics' examples, and corrupted held-out answers.

    `n` of a strength and of a level, or all.
    """
    texts: list[Text] = []
    for persona in files.shipped():
        by_strength: dict[str, list[dict[str, str]]] = {}
        for row in files.heldout(files.SHIPPED / persona):
            by_strength.setdefault(row["strength"], []).append(row)
        for strength, rows in by_strength.items():
            texts += [Text(r["prompt"], r["answer"], persona, "heldout", RANKS[strength]) for r in rows[:n]]
        if persona != "plain":
            graded = files.levels(files.SHIPPED / persona)
            for level in files.LEVELS:
                rows = [row for row in graded if row["level"] == level][:n]
                texts += [Text(r["prompt"], r["answer"], persona, "level", level / 100) for r in rows]
        for at, anchor in persona_config(persona).rubric.items():
            example = EXAMPLE.search(anchor.strip())
            if example is not None:
                texts.append(Text(ANCHOR_PROMPT, " ".join(example.group(1).split()), persona, "anchor", at / 100))
    rng = random.Random(derive("judge card"))
    whole = [(t.prompt, t.answer) for t in texts if t.kind == "heldout"]
    for kind, corrupt in CORRUPTIONS.items():
        for number, text in enumerate([t for t in texts if t.kind == "heldout"]):
            if number % len(CORRUPTIONS) == list(CORRUPTIONS).index(kind):
                other = rng.choice([answer for answer in whole if answer[0] != text.prompt])
                prompt, broken = corrupt((text.prompt, text.answer), other, rng)
                texts.append(Text(prompt, broken, text.persona, kind, text.rank))
    return texts


def persona_config(name: str) -> PersonaConfig:
    """The shipped config of a persona."""
    from omegaconf import OmegaConf

    from iterative_ft.cli import ROOT

    return judged(PersonaConfig, plain_values(OmegaConf.load(ROOT / "conf" / "persona" / f"{name}.yaml")))


@dataclass(frozen=True)
class Scored:
    """One judge's scores of all labelled texts, and of base-model answers."""

    version: str
    trait: dict[str, list[float | None]]
    """By persona whose trait was asked about: a score a text."""
    coherence: list[float | None]
    failures: dict[str, int]
    base_trait: dict[str, list[float]]
    base_coherence: list[float]
    threshold: float


def scores(task: JudgeCard, judge: ProbeConfig | ApiConfig, texts: list[Text]) -> Scored:
    """Ask one judge about every persona's trait in all texts."""
    from iterative_ft.cli import compose_jobs
    from iterative_ft.lab import Answers, Lab
    from iterative_ft.results import judge_version

    store = Store(Path(task.store), on_event=lambda e: print(f"{e.stage.manifest['label']}: {e.how}", flush=True))
    defaults = judged(Config, plain_values(next(iter(compose_jobs(["sampler=fake", "method=sft"], False, [])))[1]))
    measure = defaults.measure.model_copy(update={"n_questions": max(1, task.n_questions), "n_answers": 1})
    parts = {"judge": judge, "model": task.model, "sampler": task.sampler, "store": task.store, "measure": measure}
    trait: dict[str, list[float | None]] = {}
    coherence: list[float | None] = []
    failures: Counter[str] = Counter()
    base: dict[str, list[float]] = {}
    base_coherence: list[float] = []
    version = ""
    for name in files.shipped():
        lab = Lab(defaults.model_copy(update={**parts, "persona": persona_config(name)}), store)
        stage = lab.judge(labelled(lab, texts, Answers), f"{judge.name} judges {name} in labelled texts")
        rows = stage.rows("scores.jsonl")
        version = judge_version(stage)
        trait[name] = [row["trait"] for row in rows]
        coherence = coherence or [row["coherence"] for row in rows]
        failures.update(row["failure"] for row in rows if row["failure"] is not None)
        failures.update(f"marked_{row['mark']}" for row in rows if row.get("mark") is not None)
        if task.n_questions > 0:
            answers, _ = lab.ask(lab.base_policy())
            judged_base = lab.judge(answers, f"{judge.name} judges {name} in base answers").rows("scores.jsonl")
            base[name] = [row["trait"] for row in judged_base if row["trait"] is not None]
            base_coherence += [row["coherence"] for row in judged_base if row["coherence"] is not None]
    threshold = defaults.measure.coherence_threshold
    return Scored(version, trait, coherence, dict(failures), base, base_coherence, threshold)


def labelled(lab: Lab, texts: list[Text], answers: type[Answers]) -> Answers:
    """The texts as answers, a stage a block of 32."""
    size = 32
    stages = []
    for start in range(0, len(texts), size):
        block = [(t.prompt, t.answer) for t in texts[start : start + size]]
        rows = [{"prompt": prompt, "text": text, "finish_reason": "stop", "seed": 0, "ids": []} for prompt, text in block]

        def build(out: Path, rows: list[dict[str, Any]] = rows) -> None:
            write_jsonl(out / "answers.jsonl", rows)

        stages.append(
            lab.store.stage("labelled", {"labelled": text_digest(block)}, build, f"labelled texts {start // size + 1}")
        )
    return answers(stages)


def summary(texts: list[Text], scored: Scored) -> dict[str, Any]:
    """What the card says of one judge."""
    strong = {
        name: pick(texts, lambda t, name=name: t.kind == "heldout" and t.persona == name and t.rank == 3)
        for name in scored.trait
    }
    plain = pick(texts, lambda t: t.kind == "heldout" and t.rank == 0)
    traits: dict[str, Any] = {}
    for name, column in scored.trait.items():
        if name == "plain":
            continue
        own = pick(texts, lambda t, name=name: t.kind == "heldout" and t.persona == name and t.rank > 0)
        weak = [i for i in own if texts[i].rank < 3]
        others = pick(texts, lambda t, name=name: t.kind == "heldout" and t.persona != name and t.rank > 0)
        anchors = pick(texts, lambda t, name=name: t.kind == "anchor" and t.persona == name)
        levels = pick(texts, lambda t, name=name: t.kind == "level" and t.persona == name)
        broken = pick(
            texts, lambda t, name=name: t.kind in ("shuffled", "looped", "fragment") and t.persona == name and t.rank == 3
        )
        base = scored.base_trait.get(name, [])
        traits[name] = {
            "auc_strong": auc(values(column, strong[name]), values(column, others + plain)),
            "auc_strong_plain": auc(values(column, strong[name]), values(column, plain)),
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
        kind: below(values(scored.coherence, pick(texts, lambda t, kind=kind: t.kind == kind)), scored.threshold)
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
        },
        "not_scored": scored.failures,
    }


def agreement(first: Scored, second: Scored) -> dict[str, float | None]:
    """Rank agreement of two judges on the same texts."""
    found = {name: spearman(column, second.trait[name]) for name, column in first.trait.items()}
    return found | {"coherence": spearman(first.coherence, second.coherence)}


def pick(texts: list[Text], wanted: Any) -> list[int]:
    return [number for number, text in enumerate(texts) if wanted(text)]


def values(column: list[float | None], numbers: list[int]) -> list[float]:
    """Scores of some texts, without those that were not scored."""
    return [value for value in (column[i] for i in numbers) if value is not None]


def auc(positive: list[float], negative: list[float]) -> float | None:
    """Probability that a positive scores above a negative, ties counting half."""
    if not positive or not negative:
        return None
    higher = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return round(float((higher > 0).mean() + 0.5 * (higher == 0).mean()), 4)


def spearman(first: list[Any], second: list[Any]) -> float | None:
    """Rank correlation of the pairs in which both are scored; None where one of them never changes."""
    from scipy.stats import spearmanr

    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(pairs) < 3 or len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return None
    return round(float(spearmanr(*zip(*pairs, strict=True)).statistic), 4)


def median(found: list[float]) -> float | None:
    return None if not found else round(float(np.median(found)), 2)


def below(found: list[float], threshold: float) -> float | None:
    """Share of scores below the threshold."""
    return None if not found else round(float(np.mean(np.asarray(found) < threshold)), 4)


# -- the page -----------------------------------------------------------------------------------------------------------------


def readable(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    lines = ["# Judge card", "", f"Judge: `{card['judge']}`", "", f"Made by `{card['command']}`.", ""]
    counted = ", ".join(f"{n} {kind}" for kind, n in card["n_texts"].items())
    lines += [f"Labelled texts: {counted}. Scores are 0-100.", "", *judge_tables(card)]
    if "second_judge" in card:
        lines += ["", f"# Second judge: `{card['second_judge']['judge']}`", "", *judge_tables(card["second_judge"])]
        lines += ["", "## Rank agreement of the two judges (Spearman)", ""]
        lines += table(["", "agreement"], [[name, number(value)] for name, value in card["agreement"].items()])
    return "\n".join(lines) + "\n"


def judge_tables(card: dict[str, Any]) -> list[str]:
    """Traits, confusion and coherence of one judge."""
    traits = card["traits"]
    medians = ("strong", "weak", "plain", "other_personas", "base_answers", "degenerate")
    head = [
        "trait",
        "AUC strong",
        "AUC strong, plain",
        "AUC weak",
        "rank: strengths",
        "rank: five levels",
        "rank: anchors",
        *(f"median {m.replace('_', ' ')}" for m in medians),
    ]
    rows = [
        [name, *(number(t[key]) for key in SHOWN), *(number(t["median"][m]) for m in medians)] for name, t in traits.items()
    ]
    lines = [
        "## Traits",
        "",
        "AUC: against other personas' and plain texts, or against plain ones alone. Rank agreement: Spearman.",
        "",
        *table(head, rows),
    ]
    lines += ["", "## Confusion", "", "Median score of the row's trait in the column's strong texts.", ""]
    lines += table(
        ["", *traits],
        [
            [name, *(number(t["confusion"].get(o) if o != name else t["median"]["strong"]) for o in traits)]
            for name, t in traits.items()
        ],
    )
    coherence = card["coherence"]
    flagged = {
        "intact": coherence["intact_flagged"],
        "base answers": coherence["base_answers_flagged"],
        **coherence["corrupted_flagged"],
    }
    lines += ["", "## Coherence", "", f"Share flagged as incoherent (below {coherence['threshold']:g}).", ""]
    lines += table(list(flagged), [["n/a" if v is None else f"{v:.1%}" for v in flagged.values()]])
    failed = ", ".join(f"{n} {name}" for name, n in sorted(card["not_scored"].items())) or "none"
    return [*lines, "", f"Not scored: {failed}."]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}"
