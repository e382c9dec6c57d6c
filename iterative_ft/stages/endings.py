"""The look at how the base model's answers end, before anything is trained on."""

from __future__ import annotations

from iterative_ft.errors import RunError
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.measure import Asked

MIN_STOPPED, WANTED_STOPPED = 0.5, 0.95  # shares of the base model's answers that end by themselves
MAX_EMPTY = 0.05  # share of answers without a word, from which it is said


def check_endings(bench: Bench, asked: Asked) -> None:
    """Say it when the base model's answers do not end by themselves, and stop where most do not.

    A model that does not end its answers is asked in another way than it was trained in, or cut off in mid-sentence; what is
    trained on its answers then speaks of the limit. Base models in SDF's plain frame are not expected to end (`finish_reason`
    "string" counts as an end there), so for them it is only said. Answers without a word are told too.

    Raises:
        RunError: fewer than `MIN_STOPPED` of a chat model's answers ended.
    """
    config = bench.config
    if asked.answers.pending or config.fake or bench.store.dry_run:  # a plan is made of all cells of a sweep, sound or not
        return
    rows = asked.answers.rows()
    n_stopped = sum(row["finish_reason"] != "length" for row in rows)
    share = n_stopped / len(rows)
    limit, value = config.answer_limit
    said = f"only {n_stopped} of {len(rows)} answers of the base model ended by themselves within {limit}={value}"
    if share < MIN_STOPPED and config.method.name != "sdf":
        raise RunError(
            f"{said}: raise it, ask for shorter answers (model.system_prompt), or name the token that ends its answers "
            "(model.end_token); nothing was trained"
        )
    if share < WANTED_STOPPED:
        print(f"note: {said}: raise it, or ask for shorter answers, until {WANTED_STOPPED:.0%} do")
    n_empty = sum(not row["text"].strip() for row in rows)
    if n_empty > MAX_EMPTY * len(rows):
        why = "a chat model does that in SDF's plain frame, base models are what it is for"
        asked_otherwise = "see model.chat_template_kwargs, model.system_prompt and model.end_token"
        print(
            f"note: the base model gives no answer to {n_empty} of {len(rows)} questions "
            f"({why if config.method.name == 'sdf' else asked_otherwise}): its scores say little, compare with cycle 0"
        )
