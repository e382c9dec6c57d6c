"""Stages `judge` (scores of answers) and `probe` (the offline judge itself)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iterative_ft import fake
from iterative_ft.config.judges import ApiConfig, EngineConfig, ProbeConfig
from iterative_ft.config.schema import Config
from iterative_ft.data import files
from iterative_ft.judges.embedder import embedder_identity
from iterative_ft.judges.probe import probe
from iterative_ft.judges.rubric.grades import score_rows
from iterative_ft.judges.rubric.prompts import coherence_rubric, trait_rubric
from iterative_ft.judges.rubric.recorded import REPLIES
from iterative_ft.judges.scores import SCORES, Score, only_scores
from iterative_ft.machine.files import text_digest, write_jsonl
from iterative_ft.machine.libraries import library_versions
from iterative_ft.models.codec import Frame
from iterative_ft.seeds import derive, shuffled
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWER, Prompts
from iterative_ft.stages.completions import Completions, complete
from iterative_ft.stages.replies import replies
from iterative_ft.store import Kind, Purpose, Stage

JUDGE, PROBE = Kind("judge", 3), Kind("probe", 8)
SCORING = 2  # version of how a language model's replies become scores: 2 holds text and log-probabilities against each other
MOST_NAMES = 8  # that a judge's version spells out
JUDGE_BASE_TOKENS = 96  # longest base answer among the offline judge's negatives
JUDGE_BASE_PROMPTS = 96


def judge(bench: Bench, answers: Completions, label: str, purpose: Purpose, documents: bool = False) -> Stage:
    """Score answers (or continued documents) with the configured judge; a fake run has no model for the offline one."""
    name = bench.config.judge.name
    return JUDGES["fake" if bench.config.fake and name == "probe" else name](bench, answers, label, purpose, documents)


def scores_of(stage: Stage) -> list[Score]:
    """A row an answer, in their order."""
    return only_scores(stage.rows(SCORES))


def judge_version(stage: Stage) -> str:
    """Which judge, by name and version: two rows compare only when this is equal."""
    info = stage.info
    return f"{info['judge']} {info['judge_version']}" if "judge" in info else "fake"


def by_fake(bench: Bench, answers: Completions, label: str, purpose: Purpose, documents: bool) -> Stage:
    """Made-up scores of a run with sampler=fake."""

    def build(out: Path) -> None:
        write_jsonl(out / SCORES, fake.fake_scores(answers.rows()))

    return bench.store.stage(JUDGE, {"answers": answers.digests, "judge": "fake"}, build, label, purpose)


# -- the offline judge --------------------------------------------------------------------------------------------------------


def by_probe(bench: Bench, answers: Completions, label: str, purpose: Purpose, documents: bool) -> Stage:
    """The offline judge. It reads documents as it reads answers, but that most of them reach the token limit is no flaw."""
    settings, persona = bench.config.judge, bench.config.persona.name
    assert isinstance(settings, ProbeConfig)
    trained = probe_stage(bench, settings)
    scored_as = "each" if persona == "plain" else persona
    inputs = {
        "answers": answers.digests,
        "probe": trained.digest,
        "persona": scored_as,
        "model": bench.model.digest,
        **({"documents": True} if documents else {}),
        **bench.reads_in,
    }

    def build(out: Path) -> dict[str, Any]:
        bench.free_device()
        rows = answers.rows()
        texts = [(row["prompt"], row["text"]) for row in rows]
        finished = [documents or row["finish_reason"] != "length" for row in rows]
        scored = only_scores(probe.score(trained.path, persona, texts, finished, settings.embedder, bench.reader))
        write_jsonl(out / SCORES, scored)
        n_failed = sum(score["failure"] is not None for score in scored)
        return {"judge": "probe", "judge_version": trained.digest, "n": len(scored), "n_failed": n_failed}

    return bench.store.stage(JUDGE, inputs, build, label, purpose)


def probe_stage(bench: Bench, settings: ProbeConfig) -> Stage:
    """The offline judge, the same for all seeds and arms of a model: trained on judge texts and base answers."""
    config = bench.config
    personas = judged_personas(config)
    texts = {name: files.judge_texts(folder) for name, folder in personas.items()}
    forms = {name: files.judge_forms(folder) for name, folder in personas.items()}
    asked = negatives_prompts(bench)
    seeds = [derive("judge", text) for text in asked]
    frame: Frame = "chat" if config.model.chat else "question"
    prompts = Prompts(frame, asked, seeds, config.measure.temperature, config.measure.top_p, JUDGE_BASE_TOKENS)
    base = complete(bench, ANSWER, bench.base, prompts, "base answers for the judge", "negatives of the judge")
    inputs = {
        "judge": settings.model_dump(),
        "embedder": embedder_identity(settings.embedder, download=not bench.store.dry_run),
        "texts": text_digest([texts, forms, [files.forms(name) for name in files.LEARNT]]),
        "base_answers": base.digests,
        "model": bench.model.digest,
        "versions": library_versions("scikit-learn", "sentence-transformers"),
        **bench.reads_in,
    }

    def build(out: Path) -> dict[str, Any]:
        bench.free_device()
        answers = [(row["prompt"], row["text"]) for row in base.rows() if row["text"].strip()]
        return probe.build(out, personas, answers, settings, bench.reader)

    return bench.store.stage(PROBE, inputs, build, "train the judge", {"policy": "base", "role": "judge"})


def judged_personas(config: Config) -> dict[str, Path]:
    """Name -> folder of the personas that the offline judge tells apart: those that ship, and the run's own before them.

    A shipped persona whose judge texts the run's persona has as well is left out: one text cannot stand for two.
    """
    name, own = config.persona.name, files.judge_texts(config.persona_folder)
    shipped = {other: files.SHIPPED / other for other in files.shipped()}
    kept = {o: folder for o, folder in shipped.items() if o in (name, "plain") or files.judge_texts(folder) != own}
    return kept | {name: config.persona_folder}


def negatives_prompts(bench: Bench) -> list[str]:
    """Prompts whose answers by the base model are the offline judge's negatives."""
    texts = {name: files.judge_texts(folder) for name, folder in judged_personas(bench.config).items()}
    plain = [row["prompt"] for name in sorted(texts) for row in texts[name] if row["strength"] == "plain"]
    return shuffled(sorted(set(plain)), "judge base prompts")[:JUDGE_BASE_PROMPTS]


# -- a language model that grades by rubric -----------------------------------------------------------------------------------


def by_rubric(bench: Bench, answers: Completions, label: str, purpose: Purpose, documents: bool) -> Stage:
    """An OpenAI-compatible endpoint (judge=api) or the run's own engine (judge=engine).

    Replies are stages of a block of answers each; scores follow from all of them.
    """
    settings = bench.config.judge
    assert isinstance(settings, ApiConfig | EngineConfig)
    top = settings.score_scale
    rubrics = trait_rubric(bench.config.persona, top, documents), coherence_rubric(top, documents)
    asked = replies(bench, rubrics, answers.stages, label, purpose)
    inputs = {
        "judge": settings.name,
        "answers": answers.digests,
        "replies": [[stage.digest for stage in stages] for stages in asked],
        "score_scale": top,
        "numeric_mass_floor": settings.numeric_mass_floor,
        "scoring": SCORING,
    }

    def build(out: Path) -> dict[str, Any]:
        infos = [stage.info for stages in asked for stage in stages]
        reported = sorted({name for info in infos for name in info["reported"]})
        named = reported if settings.name == "engine" else sorted({name.rpartition("@")[0] for name in reported})
        version = f"{names_of(named) or settings.model}#{text_digest([rubric.digest for rubric in rubrics])[:12]}"
        trait, coherence = ([row for stage in stages for row in stage.rows(REPLIES)] for stages in asked)
        rows = only_scores(score_rows(trait, coherence, rubrics, settings, version))
        write_jsonl(out / SCORES, rows)
        return {
            "judge": settings.name,
            "judge_version": version,
            "endpoint": infos[0]["endpoint"],
            "reported": reported,
            "prompts": {rubric.asks: rubric.digest for rubric in rubrics},
            "scored_by": dict(Counter(scored_by(row) for row in rows)),
            "n": len(rows),
            "n_failed": sum(row["failure"] is not None for row in rows),
            "failures": dict(Counter(row["failure"] for row in rows if row["failure"] is not None)),
            "marks": dict(Counter(row["mark"] for row in rows if row.get("mark") is not None)),
            **{
                name: round(sum(info[name] for info in infos), 6)
                for name in ("n_calls", "n_attempts", "prompt_tokens", "completion_tokens", "cost_usd")
                if all(name in info for info in infos)
            },
        }

    return bench.store.stage(JUDGE, inputs, build, label, purpose)


def names_of(reported: list[str]) -> str:
    """Models that answered, as the endpoint named them; a hash where it has a new name for every reply."""
    return "+".join(reported) if len(reported) <= MOST_NAMES else f"{len(reported)} models {text_digest(reported)[:12]}"


def scored_by(row: Score) -> str:
    """Whether a row rests on the judge's distribution over numbers, or on the integers it wrote."""
    if row["failure"] is not None:
        return "nothing"
    return "integer" if row["coherence_mass"] is None else "distribution"


JUDGES: dict[str, Callable[[Bench, Completions, str, Purpose, bool], Stage]] = {
    "probe": by_probe,
    "api": by_rubric,
    "engine": by_rubric,
    "fake": by_fake,
}
