"""Measuring a policy: it answers the held-out questions, the judge scores the answers, gauges are taken.

The questions are the same at every cycle and in every arm, so that differences are paired.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from iterative_ft.config.schema import Config
from iterative_ft.data import files
from iterative_ft.models.policy import Policy
from iterative_ft.seeds import derive
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import ANSWER, Prompts
from iterative_ft.stages.completions import Completions, complete
from iterative_ft.stages.gauge import gauge
from iterative_ft.stages.judge import judge
from iterative_ft.store import Stage


@dataclass(frozen=True)
class Asked:
    """What a policy answered, and with SDF the documents it continued."""

    answers: Completions
    documents: Completions | None = None


@dataclass(frozen=True)
class Measured:
    """A policy's answers with their scores and gauges."""

    policy: Policy
    asked: Asked
    scores: Stage
    document_scores: Stage | None
    gauges: list[Stage]


def measure(bench: Bench, policy: Policy, asked: Asked | None = None, of_base: Asked | None = None) -> Measured:
    """Ask the held-out questions (SDF: and continue neutral openings), judge and gauge the answers.

    Args:
        asked: what the policy answered before, to be judged in place of new answers.
        of_base: what base answered, for gauges of what a policy no longer says.
    """
    asked = asked or ask(bench, policy)
    scores = judge(bench, asked.answers, f"judge {policy.name}", {"policy": policy.name, "role": "scores"})
    of_documents = None
    if asked.documents is not None:
        label, purpose = f"judge documents of {policy.name}", {"policy": policy.name, "role": "scores of documents"}
        of_documents = judge(bench, asked.documents, label, purpose, documents=True)  # type: ignore[arg-type]
    gauges = gauge(bench, policy, asked.answers, None if of_base is None else of_base.answers)
    return Measured(policy, asked, scores, of_documents, gauges)


def ask(bench: Bench, policy: Policy) -> Asked:
    """Let a policy answer the questions, `n_answers` times each."""
    config = bench.config
    sdf = config.method.name == "sdf"
    _, limit = config.answer_limit
    rows = files.questions(config.persona_folder)[: config.measure.n_questions]
    texts = [row["question"] for _ in range(config.measure.n_answers) for row in rows]
    seeds = [derive(config.seed, "answer", text, number // len(rows)) for number, text in enumerate(texts)]
    how = config.measure
    questions = Prompts("question" if sdf else "chat", texts, seeds, how.temperature, how.top_p, limit)
    answers = complete(bench, ANSWER, policy, questions, f"answers of {policy.name}", "answers")
    if not sdf or config.measure.n_openings == 0:
        return Asked(answers)
    beginnings = openings(config)
    seeds = [derive(config.seed, "opening", text) for text in beginnings]
    documents = replace(questions, frame="opening", texts=beginnings, seeds=seeds)
    return Asked(answers, complete(bench, ANSWER, policy, documents, f"documents of {policy.name}", "documents"))


def openings(config: Config) -> list[str]:
    """Neutral beginnings of documents, the same in every run: never titles that SDF trains on."""
    return files.openings()[: config.measure.n_openings]
