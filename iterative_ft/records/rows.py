"""Rows of a run: what was measured of a policy, flat and named, ready for metrics.jsonl, W&B and plots."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

from iterative_ft.config.schema import Config
from iterative_ft.judges.scores import Score, coherent_share, is_coherent
from iterative_ft.stages.gauge import values_of
from iterative_ft.stages.judge import judge_version, scores_of
from iterative_ft.stages.measure import Measured
from iterative_ft.stages.train import Trained
from iterative_ft.stats.intervals import Interval, over_questions
from iterative_ft.stats.verdict import UNFAMILIAR_LIMIT, ScoredAnswer, unfamiliar_share

MetricRow = TypedDict(
    "MetricRow",
    {
        # A measured policy.
        "cycle": int,
        "policy": str,
        "trait/score": float,
        "trait/low": float,
        "trait/high": float,
        "trait/score_coherent": float,
        "coherence/score": float,
        "coherence/low": float,
        "coherence/high": float,
        "coherence/share": float,
        "judge/version": str,
        "judge/n_failed": int,
        "judge/invalid": int,
        "judge/unfamiliar_share": float | None,
        "judge/not_validated": int,
        "answers/n": int,
        "answers/mean_words": float,
        "answers/stop_share": float,
        # A step of training.
        "train/global_step": int,
        "train/cycle": int,
        "train/loss": float,
        # A row over several runs.
        "n_runs": int,
    },
    total=False,
)
"""A row of metrics.jsonl. These names are read by the code; others below trait/, coherence/, judge/, answers/, gauge/, data/,
train/ and time/ are numbers, for `value`. What is missing was not measured."""


OF_PERSONA = "trait/of_"  # begins the names of every persona's trait in a run without one
COUNTED = ("judge/failed_", "judge/marked_", "coherence/flaw_")  # beginnings of names: what came up in no answer has no number


def value(row: MetricRow, name: str) -> float | None:
    """The number of this name, None where the row has none."""
    return cast("dict[str, float]", row).get(name)


def numbers(row: MetricRow) -> dict[str, float]:
    """All numbers of a row."""
    return {name: number for name, number in cast("dict[str, float]", row).items() if isinstance(number, int | float)}


class AnswerRow(ScoredAnswer):
    """A row of answers.jsonl in the run's folder: an answer with its scores."""

    policy: str
    answer: str
    finish_reason: str
    flaw: str | None
    mark: str | None
    """What the judge says an answer is in place of scoring its trait: "refusal", "code"."""
    traits: NotRequired[dict[str, float]]
    """Of a run without a persona: every persona's trait."""


class StageRow(TypedDict):
    """A stage in a run's manifest."""

    cycle: int
    kind: str
    key: str
    label: str
    how: str
    policy: str
    role: str


def answer_rows(cycle: int, measured: Measured) -> list[AnswerRow]:
    """Every answer with its scores, in a fixed order: the same questions at every cycle."""
    version, policy = judge_version(measured.scores), measured.policy.name
    return [
        scored(cycle, policy, (answer["prompt"], answer["text"], answer["finish_reason"]), score, version)
        for answer, score in zip(measured.asked.answers.rows(), scores_of(measured.scores), strict=True)
    ]


def scored(cycle: int, policy: str, answered: tuple[str, str, str], score: Score, version: str) -> AnswerRow:
    """An answer (question, text, finish reason) with its score."""
    question, text, finish_reason = answered
    row: AnswerRow = {
        "cycle": cycle,
        "policy": policy,
        "question": question,
        "answer": text,
        "finish_reason": finish_reason,
        "trait": score["trait"],
        "coherence": score["coherence"],
        "flaw": score["flaw"],
        "failure": score["failure"],
        "mark": score.get("mark"),
        "judge": version,
        "distance": score.get("distance"),
    }
    return {**row, "traits": score["traits"]} if "traits" in score else row


def metric_row(config: Config, answers: list[AnswerRow], measured: Measured, trained: Trained | None) -> MetricRow:
    """The row of one measured policy. What is missing is left out, never zero; the unfamiliar share is None if unknown."""
    n = len(answers)
    row: dict[str, float | str | None] = {"cycle": answers[0]["cycle"], "policy": measured.policy.name}
    row |= scored_values(config, answers)
    row["answers/n"] = n
    row["answers/mean_tokens"] = sum(len(answer["ids"]) for answer in measured.asked.answers.rows()) / n
    row["answers/mean_words"] = sum(len(a["answer"].split()) for a in answers) / n
    row["answers/stop_share"] = sum(a["finish_reason"] != "length" for a in answers) / n
    if measured.document_scores is not None and measured.asked.documents is not None:
        scores = scores_of(measured.document_scores)
        openings = [answer["prompt"] for answer in measured.asked.documents.rows()]
        row |= interval_values("trait/documents_", over_questions([s["trait"] for s in scores], openings))
        row |= interval_values("coherence/documents_", over_questions([s["coherence"] for s in scores], openings))
    for stage in measured.gauges:
        row |= values_of(stage)
    row |= {f"gauge/canary_{name}": number for name, number in measured.asked.answers.stages[0].info["canary"].items()}
    if trained is not None:
        if trained.stage is not None:
            row["gauge/adapter_norm"] = trained.stage.info["adapter_norm"]
        if trained.data is not None:
            row |= {f"data/{name}": number for name, number in trained.data.info.items()}
    return cast("MetricRow", row)


def scored_values(config: Config, answers: list[AnswerRow]) -> dict[str, float | str | None]:
    """What a row says of a policy's scores."""
    n, questions, threshold = len(answers), [a["question"] for a in answers], config.measure.coherence_threshold
    row: dict[str, float | str | None] = {}
    row |= interval_values("trait/", over_questions([a["trait"] for a in answers], questions))
    row |= interval_values("coherence/", over_questions([a["coherence"] for a in answers], questions))
    kept = [a["trait"] if is_coherent(a["coherence"], threshold) else None for a in answers]
    on_coherent = over_questions(kept, questions)
    if on_coherent is not None:
        row["trait/score_coherent"] = on_coherent.mean
    for name in sorted({name for a in answers for name in a.get("traits", {})}):
        of_persona = over_questions([a.get("traits", {}).get(name) for a in answers], questions)
        row |= {} if of_persona is None else {OF_PERSONA + name: of_persona.mean}
    n_failed = sum(a["failure"] is not None for a in answers)
    share = coherent_share([a["coherence"] for a in answers], threshold)
    if share is not None:
        row["coherence/share"] = share
    row["judge/version"] = answers[0]["judge"]
    row["judge/n_failed"] = n_failed
    row["judge/invalid"] = int(n_failed > config.measure.max_failure_share * n)
    unfamiliar = unfamiliar_share(a.get("distance") for a in answers)
    row["judge/unfamiliar_share"] = unfamiliar
    row["judge/not_validated"] = int(unfamiliar is not None and unfamiliar > UNFAMILIAR_LIMIT)
    failed, marked, flaw = COUNTED
    row |= counted(failed, [a["failure"] for a in answers])
    row |= counted(marked, [a["mark"] for a in answers])
    row |= {name: count / n for name, count in counted(flaw, [a["flaw"] for a in answers]).items()}
    return row


def interval_values(prefix: str, interval: Interval | None) -> dict[str, float]:
    """Mean, low and high under `prefix`; nothing when nothing was scored."""
    if interval is None:
        return {}
    return {f"{prefix}score": interval.mean, f"{prefix}low": interval.low, f"{prefix}high": interval.high}


def counted(prefix: str, names: list[str | None]) -> dict[str, int]:
    """How often each name comes up."""
    return {f"{prefix}{name}": names.count(name) for name in sorted({name for name in names if name is not None})}
