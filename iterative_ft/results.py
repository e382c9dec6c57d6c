"""Rows of a run: what was measured of a policy, flat and named, ready for metrics.jsonl, W&B and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from iterative_ft.analysis.verdict import Curve, curve_of
from iterative_ft.config import Config
from iterative_ft.lab import Measured, Trained
from iterative_ft.measure import gauges
from iterative_ft.measure.intervals import Interval, over_questions
from iterative_ft.store import Stage


@dataclass(frozen=True)
class Scores:
    """A policy's answers with their scores, in a fixed order: the same questions at every cycle."""

    questions: list[str]
    texts: list[str]
    finish_reasons: list[str]
    trait: list[float | None]
    coherence: list[float | None]
    flaws: list[str | None]
    failures: list[str | None]
    marks: list[str | None]
    """What the judge says an answer is in place of scoring its trait: "refusal", "code"."""


def scores_of(measured: Measured) -> Scores:
    """Join answers and scores."""
    rows, scored = measured.answers.rows(), measured.scores.rows("scores.jsonl")
    assert len(rows) == len(scored), "an answer without a score row"
    return Scores(
        questions=[row["prompt"] for row in rows],
        texts=[row["text"] for row in rows],
        finish_reasons=[row["finish_reason"] for row in rows],
        trait=[s["trait"] for s in scored],
        coherence=[s["coherence"] for s in scored],
        flaws=[s["flaw"] for s in scored],
        failures=[s["failure"] for s in scored],
        marks=[s.get("mark") for s in scored],
    )


def metric_row(config: Config, cycle: int, measured: Measured, trained: Trained | None) -> dict[str, Any]:
    """The row of one measured policy; -1 is base. Missing values are left out, never zero."""
    scores = scores_of(measured)
    row: dict[str, Any] = {"cycle": cycle, "policy": measured.policy.name}
    add_interval(row, "trait", over_questions(scores.trait, scores.questions))
    add_interval(row, "coherence", over_questions(scores.coherence, scores.questions))
    threshold = config.measure.coherence_threshold
    coherent = [c is not None and c >= threshold for c in scores.coherence]
    on_coherent = over_questions([t if ok else None for t, ok in zip(scores.trait, coherent, strict=True)], scores.questions)
    if on_coherent is not None:
        row["trait/score_coherent"] = on_coherent.mean
    n = len(scores.texts)
    n_failed = sum(f is not None for f in scores.failures)
    row["coherence/share"] = sum(coherent) / max(1, n - n_failed)
    row["judge/version"] = judge_version(measured.scores)
    row["judge/n_failed"] = n_failed
    row["judge/invalid"] = int(n_failed > config.measure.max_failure_share * n)
    for failure in sorted({f for f in scores.failures if f is not None}):
        row[f"judge/failed_{failure}"] = scores.failures.count(failure)
    for mark in sorted({m for m in scores.marks if m is not None}):
        row[f"judge/marked_{mark}"] = scores.marks.count(mark)
    answer_rows = measured.answers.rows()
    row["answers/n"] = n
    row["answers/mean_tokens"] = sum(len(r["ids"]) for r in answer_rows) / n
    row["answers/mean_words"] = sum(len(t.split()) for t in scores.texts) / n
    row["answers/stop_share"] = sum(f != "length" for f in scores.finish_reasons) / n
    for flaw in sorted({f for f in scores.flaws if f is not None}):
        row[f"coherence/flaw_{flaw}"] = scores.flaws.count(flaw) / n
    if measured.opening_scores is not None and measured.openings is not None:
        scored = measured.opening_scores.rows("scores.jsonl")
        prompts = [r["prompt"] for r in measured.openings.rows()]
        add_interval(row, "trait/documents", over_questions([s["trait"] for s in scored], prompts), key="")
        add_interval(row, "coherence/documents", over_questions([s["coherence"] for s in scored], prompts), key="")
    for stage in measured.gauges:
        row |= json.loads((stage.path / gauges.VALUES).read_text())
    canary = measured.answers.stages[0].manifest["info"]["canary"]
    row |= {f"gauge/canary_{name}": value for name, value in canary.items()}
    if trained is not None:
        if trained.stage is not None:
            row["gauge/adapter_norm"] = trained.stage.manifest["info"]["adapter_norm"]
        if trained.data is not None:
            row |= {f"data/{name}": value for name, value in trained.data.manifest["info"].items()}
    return row


def judge_version(scores: Stage) -> str:
    """Which judge, by name and version: two rows compare only when this is equal."""
    info = scores.manifest.get("info", {})
    return f"{info['judge']} {info['judge_version']}" if "judge" in info else "fake"


def add_interval(row: dict[str, Any], prefix: str, interval: Interval | None, key: str = "score") -> None:
    """Put mean, low and high under `prefix`; nothing when nothing was scored."""
    if interval is not None:
        names = (
            (f"{prefix}/{key}", f"{prefix}/low", f"{prefix}/high")
            if key
            else (f"{prefix}_score", f"{prefix}_low", f"{prefix}_high")
        )
        row |= dict(zip(names, (interval.mean, interval.low, interval.high), strict=True))


def curve(config: Config, name: str, cycles: Sequence[int], scores: Sequence[Scores]) -> Curve:
    """The run's scores by cycle and question, for its verdict."""
    rows = [
        {"cycle": cycle, "question": question, "trait": trait, "coherence": coherence, "failure": failure}
        for cycle, s in zip(cycles, scores, strict=True)
        for question, trait, coherence, failure in zip(s.questions, s.trait, s.coherence, s.failures, strict=True)
    ]
    return curve_of(rows, config.model_dump(), name)
