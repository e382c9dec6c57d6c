"""Texts made elsewhere, judged: a table, one page, and every text with its scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iterative_ft.config.schema import Config
from iterative_ft.config.tasks import JudgeAnswers
from iterative_ft.errors import RunError
from iterative_ft.judges.scores import Score, coherent_share, is_coherent
from iterative_ft.machine.files import write_json, write_jsonl
from iterative_ft.records.folder import PAGE
from iterative_ft.records.terminal import text_table
from iterative_ft.report.judged import write_judged
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.judge import judge, judge_version, scores_of
from iterative_ft.stages.labelled import labelled_stage
from iterative_ft.stats.intervals import Interval, over_questions
from iterative_ft.stats.verdict import unfamiliar_share
from iterative_ft.store import Store


def judge_answers(task: JudgeAnswers, config: Config, texts: Sequence[tuple[str, str]], command: str) -> dict[str, Any]:
    """Judge the texts, write answers.jsonl, scores.json and report.html into `task.out`, and return what scores.json holds.

    Args:
        config: a run's, with the task's persona, judge, model, sampler and store.
        texts: prompts and answers.
    """
    bench = Bench(config, Store(Path(config.store), run_folder=Path(task.out)))
    answers = labelled_stage(bench, texts)
    stage = judge(bench, answers, f"{config.judge.name} judges {Path(task.answers).name}", {"role": "scores"}, task.documents)
    scores = scores_of(stage)
    found = summary(config, texts, scores) | {"answers": task.answers, "judge": judge_version(stage), "command": command}
    rows = [
        {"prompt": prompt, "answer": answer, "mark": None, **score, "judge": found["judge"]}
        for (prompt, answer), score in zip(texts, scores, strict=True)
    ]
    out = Path(task.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_jsonl(out / "answers.jsonl", rows)
        write_json(out / "scores.json", found)
        table = lines_of(found)
        write_judged(found, table, rows, out / PAGE)
    except OSError as error:
        raise RunError(
            f"out={out} cannot be written ({error.strerror}): the scores are in the store, give another folder"
        ) from error
    print(text_table([["", found["persona"]], *table]))
    print(f"{command}\nscores  {out / 'answers.jsonl'}, {out / 'scores.json'}\nreport  {out / PAGE}")
    return found


def summary(config: Config, texts: Sequence[tuple[str, str]], scores: Sequence[Score]) -> dict[str, Any]:
    """Means with intervals over prompts, shares and counts. Missing values are None, never zero."""
    prompts, n = [prompt for prompt, _ in texts], len(texts)
    failures = Counter(score["failure"] for score in scores if score["failure"] is not None)
    n_failed = failures.total()
    threshold = config.measure.coherence_threshold
    kept = [score["trait"] if is_coherent(score["coherence"], threshold) else None for score in scores]
    of_trait, of_coherence, of_kept = (
        over_questions(values, prompts)
        for values in ([score["trait"] for score in scores], [score["coherence"] for score in scores], kept)
    )
    return {
        "persona": config.persona.name,
        "n": n,
        "n_prompts": len(set(prompts)),
        "n_failed": n_failed,
        "invalid": n_failed > config.measure.max_failure_share * n,
        "trait": as_dict(of_trait),
        "coherence": as_dict(of_coherence),
        "trait_coherent": as_dict(of_kept),
        "coherent_share": coherent_share([score["coherence"] for score in scores], threshold),
        "unfamiliar_share": unfamiliar_share(score.get("distance") for score in scores),
        "failures": dict(failures),
        "marks": dict(Counter(score["mark"] for score in scores if score.get("mark") is not None)),
        "flaws": dict(Counter(score["flaw"] for score in scores if score["flaw"] is not None)),
    }


def as_dict(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"mean": interval.mean, "low": interval.low, "high": interval.high, "n": interval.n}


def lines_of(found: dict[str, Any]) -> list[list[str]]:
    """The table: what, and its value."""

    def score(value: dict[str, float] | None) -> str:
        return "n/a" if value is None else f"{value['mean']:.1f} [{value['low']:.1f}, {value['high']:.1f}]"

    def share(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.1%}"

    invalid = " INVALID: too many for the scores to mean anything" if found["invalid"] else ""
    lines = [
        ["answers", f"{found['n']} to {found['n_prompts']} prompts"],
        ["trait [95 %]", score(found["trait"])],
        ["trait, coherent answers only", score(found["trait_coherent"])],
        ["coherence [95 %]", score(found["coherence"])],
        ["coherent", share(found["coherent_share"])],
        ["unfamiliar to the judge", share(found["unfamiliar_share"])],
        ["failed", f"{found['n_failed']}{invalid}"],
    ]
    for name in ("failures", "marks", "flaws"):
        counted = ", ".join(f"{n} {what.replace('_', ' ')}" for what, n in sorted(found[name].items()))
        lines += [[name, counted]] if counted else []
    return [*lines, ["judge", found["judge"]]]
