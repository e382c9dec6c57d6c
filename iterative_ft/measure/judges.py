"""The judges by name. Each turns answers into a stage with scores.jsonl: trait and coherence (0-100), or a failure's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iterative_ft.config import ApiConfig, ProbeConfig
from iterative_ft.store import Stage, stage_key, text_digest, write_jsonl

if TYPE_CHECKING:
    from iterative_ft.lab import Answers, Lab
    from iterative_ft.measure.rubric import Rubric


def by_fake(lab: Lab, answers: Answers, label: str, documents: bool) -> Stage:
    """Made-up scores of a run with sampler=fake."""
    from iterative_ft.fake import fake_scores

    return lab.store.stage(
        "judge",
        {"answers": answers.digests, "judge": "fake"},
        lambda out: write_jsonl(out / "scores.jsonl", fake_scores(answers.rows())),
        label,
    )


def by_probe(lab: Lab, answers: Answers, label: str, documents: bool) -> Stage:
    """The offline judge; it reads documents as it reads answers."""
    settings = lab.config.judge
    assert isinstance(settings, ProbeConfig)
    probe = lab.probe()
    persona = lab.config.persona.name
    scored_as = "whichever is likeliest" if persona == "plain" else persona
    inputs = {"answers": answers.digests, "probe": probe.digest, "persona": scored_as, "model": lab.model_stage.digest}

    def build(out: Path) -> dict[str, Any]:
        from iterative_ft.measure import probe as probe_judge

        rows = answers.rows()
        scored = probe_judge.score(
            probe.path,
            persona,
            [(row["prompt"], row["text"]) for row in rows],
            [row["finish_reason"] != "length" for row in rows],
            settings.model_dump(),
            lab.scorer(),
        )
        write_jsonl(out / "scores.jsonl", [asdict(s) for s in scored])
        return {
            "judge": "probe",
            "judge_version": probe.digest,
            "n": len(scored),
            "n_failed": sum(s.failure is not None for s in scored),
        }

    return lab.store.stage("judge", inputs, build, label)


def by_api(lab: Lab, answers: Answers, label: str, documents: bool) -> Stage:
    """An OpenAI-compatible endpoint. Replies are stages of a block of answers each; scores follow from all of them."""
    from iterative_ft.measure.api import REPLIES, score_rows
    from iterative_ft.measure.rubric import coherence_rubric, trait_rubric

    settings = lab.config.judge
    assert isinstance(settings, ApiConfig)
    top = settings.score_scale
    rubrics = trait_rubric(lab.config.persona, top, documents), coherence_rubric(top, documents)
    asked = [[ask(lab, settings, rubric, block, label) for block in answers.stages] for rubric in rubrics]
    inputs = {
        "judge": "api",
        "answers": answers.digests,
        "replies": [[stage.digest for stage in stages] for stages in asked],
        "score_scale": top,
        "numeric_mass_floor": settings.numeric_mass_floor,
    }

    def build(out: Path) -> dict[str, Any]:
        infos = [stage.manifest["info"] for stages in asked for stage in stages]
        reported = sorted({name for info in infos for name in info["reported"]})
        version = f"{'+'.join(reported) or settings.model}#{text_digest([rubric.digest for rubric in rubrics])[:12]}"
        trait, coherence = ([row for stage in stages for row in stage.rows(REPLIES)] for stages in asked)
        rows = score_rows(trait, coherence, rubrics, settings, version)
        write_jsonl(out / "scores.jsonl", rows)
        return {
            "judge": "api",
            "judge_version": version,
            "endpoint": infos[0]["endpoint"],
            "prompts": {rubric.asks: rubric.digest for rubric in rubrics},
            "scored_by": dict(Counter(scored_by(row) for row in rows)),
            "n": len(rows),
            "n_failed": sum(row["failure"] is not None for row in rows),
            "failures": dict(Counter(row["failure"] for row in rows if row["failure"] is not None)),
            "marks": dict(Counter(row["mark"] for row in rows if row["mark"] is not None)),
            **{
                name: round(sum(info[name] for info in infos), 6)
                for name in ("n_calls", "n_attempts", "prompt_tokens", "completion_tokens", "cost_usd")
                if all(name in info for info in infos)
            },
        }

    return lab.store.stage("judge", inputs, build, label)


def scored_by(row: dict[str, Any]) -> str:
    """Whether a row rests on the judge's distribution over numbers, or on the integers it wrote."""
    if row["failure"] is not None:
        return "nothing"
    return "integer" if row["coherence_mass"] is None else "distribution"


def ask(lab: Lab, settings: ApiConfig, rubric: Rubric, block: Stage, label: str) -> Stage:
    """The replies about one block of answers."""
    from iterative_ft.measure.api import REPLIES, ask_block, request_inputs

    inputs = request_inputs(settings, rubric) | {"answers": block.digest}

    def build(out: Path) -> dict[str, Any]:
        before = lab.store.find("replies", stage_key("replies", inputs | {"attempt": settings.attempt - 1}))
        earlier = [] if before is None else before.rows(REPLIES)
        return ask_block(out, settings, rubric, block.rows("answers.jsonl"), earlier)

    return lab.store.stage("replies", inputs, build, f"{label}: ask about {rubric.asks}", resumable=True)


JUDGES: dict[str, Callable[[Lab, Answers, str, bool], Stage]] = {"probe": by_probe, "api": by_api, "fake": by_fake}
