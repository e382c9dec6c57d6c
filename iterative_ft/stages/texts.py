"""All texts that a run will put to its model and that are known before it starts, for the look at the model."""

from __future__ import annotations

from iterative_ft.config.calibration import most_seeds
from iterative_ft.config.judges import EngineConfig
from iterative_ft.data import files
from iterative_ft.judges.rubric.prompts import coherence_rubric, trait_rubric
from iterative_ft.models.codec import Frame
from iterative_ft.models.look import Text
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.completions import cycle_prompts
from iterative_ft.stages.data import seed_rows
from iterative_ft.stages.judge import JUDGE_BASE_TOKENS, negatives_prompts
from iterative_ft.stages.measure import openings


def known_texts(bench: Bench) -> list[Text]:
    """Questions, openings, seeds, the prompts of every cycle, and those of the judge, each with what is to follow it."""
    config = bench.config
    found = of_seeds(bench) + of_questions(bench) + of_cycles(bench)
    if config.judge.name == "probe":
        frame: Frame = "chat" if config.model.chat else "question"
        prompts = negatives_prompts(bench)
        found += [Text("a prompt of the judge", frame, p, max_new_tokens=JUDGE_BASE_TOKENS) for p in prompts]
    if bench.judging is bench:
        found += texts_of_judge(bench)
    return found


def texts_of_judge(bench: Bench) -> list[Text]:
    """What judge=engine asks about an answer to each question, with room for the longest answer; nothing of another judge."""
    config, n_answer, settings = bench.config, bench.config.answer_limit[1], bench.config.judge
    if not isinstance(settings, EngineConfig):
        return []
    rubrics = trait_rubric(config.persona, settings.score_scale, False), coherence_rubric(settings.score_scale, False)
    rows = files.questions(config.persona_folder)[: config.measure.n_questions]
    return [
        Text(
            f"what judge=engine asks about an answer to question {number}",
            "chat",
            "\n\n".join(message["content"] for message in rubric.messages(row["question"], "")),
            max_new_tokens=n_answer + settings.max_new_tokens,
        )
        for number, row in enumerate(rows, 1)
        for rubric in rubrics
    ]


def of_questions(bench: Bench) -> list[Text]:
    config, method = bench.config, bench.config.method
    rows = files.questions(config.persona_folder)[: config.measure.n_questions]
    frame: Frame = "question" if method.name == "sdf" else "chat"
    limit, n = config.answer_limit
    found = [
        Text(f"question {number}", frame, row["question"], max_new_tokens=n, limit=limit) for number, row in enumerate(rows, 1)
    ]
    if method.name == "sdf":
        found += [Text("an opening", "opening", text, max_new_tokens=n, limit=limit) for text in openings(config)]
    return found


def of_seeds(bench: Bench) -> list[Text]:
    config, method = bench.config, bench.config.method
    n_seed = config.n_seed if isinstance(config.n_seed, int) else most_seeds(config)
    everything = len(files.examples(method.name, config.persona_folder))
    rows = [] if config.start_adapter is not None else seed_rows(bench, 0, n_seed)
    if method.n_original_mix > 0:  # drawn anew each cycle, from all there are
        rows = seed_rows(bench, 0, everything)
    found = []
    for number, row in enumerate(rows, 1):
        title, answer = (row["title"], row["text"]) if method.name == "sdf" else (row["prompt"], row["answer"])
        found.append(Text(f"seed example {number}", config.frame, title, answer, trained=True))
        if method.name == "dpo":
            found.append(to_go_on_from(bench, f"the prompt of seed example {number}", title))
    return found


def of_cycles(bench: Bench) -> list[Text]:
    """The prompts that cycles 1.. sample on: whole blocks of them, the whole part where a filter may want more."""
    config, size = bench.config, bench.config.sampling.block_size
    found = []
    for cycle in range(1, config.n_cycles + 1):
        part = cycle_prompts(bench, cycle)
        n = len(part) if config.method.coherence_filter is not None else -(-config.n_sampled // size) * size
        found += [to_go_on_from(bench, f"prompt {number} of cycle {cycle}", text) for number, text in enumerate(part[:n], 1)]
    return found


def to_go_on_from(bench: Bench, where: str, text: str) -> Text:
    """A prompt whose answer is trained on."""
    config = bench.config
    return Text(where, config.frame, text, None, config.method.max_new_tokens, "method.max_new_tokens", trained=True)
