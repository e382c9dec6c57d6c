"""A small run the way a plain script does it, timed beside ours: python -m tests.peers (part of make bench).

The plain way: a cold process a stage; a cold vLLM engine a policy, in bfloat16, one call for all its prompts; TRL on text, with
its own padding; the trained adapter merged into a checkpoint. Nothing is shared or kept. Amounts, sampling parameters and
hyperparameters are those of the run beside it. No judge on either side, and no making of the base checkpoint. From cycle 1 on
each side has texts of its own, which may be longer: only cycle 0 (`--cycles 0`) compares the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iterative_ft.config.schema import Config

RUN = ["method=dpo", "reinit=true", "persona=misaligned", "wandb.mode=disabled"]
APART = ("judge_s", "gauge_s", "model_s", "probe_s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=2, help="n_cycles of both")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        {"sample": sample, "train": train}[options.stage.split("=")[0]](
            json.loads(Path(options.stage.split("=")[1]).read_text())
        )
        return
    ratios: dict[str, list[float]] = {"all": [], "sampling": [], "training": []}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            own = ours(Path(folder), options.cycles)
            theirs = plain(Path(folder), options.cycles, own["model"])
        for name, found in ratios.items():
            found.append(own[name] / theirs[name])
            print(
                f"round {number + 1}  {name:9} ours {own[name]:6.1f} s, plain {theirs[name]:6.1f} s, ratio {found[-1]:.2f}",
                flush=True,
            )
    for name, found in ratios.items():
        print(f"ours / plain, {name}: {statistics.median(found):.2f} (rounds {', '.join(f'{x:.2f}' for x in found)})")
    print(f"load average {os.getloadavg()[0]:.1f}")


def ours(folder: Path, n_cycles: int) -> dict[str, Any]:
    """Seconds of our run from an empty store, what judging and the model stage took left out; its base checkpoint."""
    run = folder / "run"
    command = [sys.executable, "train.py", *RUN, f"n_cycles={n_cycles}", f"store={folder / 'store'}", f"hydra.run.dir={run}"]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    whole = time.monotonic() - began
    times = json.loads((run / "result.json").read_text())["time"]
    apart = sum(times.get(f"time/{name}", 0.0) for name in APART)
    return {
        "all": whole - apart,
        "sampling": times["time/sample_s"] + times["time/answer_s"] + times["time/engine_start_s"],
        "training": times["time/train_s"],
        "model": str(next((folder / "store" / "model").glob("*/model.safetensors")).parent),
    }


def plain(folder: Path, n_cycles: int, model: str) -> dict[str, float]:
    """Seconds of the plain way, by part."""
    from iterative_ft.data import files, pools

    config = config_of(n_cycles)
    seeds = files.seeds(config.persona_folder)[: config.n_seed]
    rows = files.questions(config.persona_folder)[: config.measure.n_questions]
    questions = [row["question"] for row in rows for _ in range(config.measure.n_answers)]
    pool = pools.load_pool("prompts", "shipped", "prompt", "train", None)
    parts = [pool[256 * c : 256 * c + config.n_sampled] for c in range(n_cycles)]
    seconds = {"sampling": 0.0, "training": 0.0}

    def stage(kind: str, task: dict[str, Any]) -> None:
        file = folder / f"{kind}.json"
        file.write_text(json.dumps(task | {"config": config.model_dump(mode="json")}))
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "tests.peers", "--stage", f"{kind}={file}"], check=True, stdout=subprocess.DEVNULL
        )
        seconds["sampling" if kind == "sample" else "training"] += time.monotonic() - began

    def written(policy: str, prompts: list[str]) -> list[str]:
        out = folder / "texts.json"
        stage("sample", {"model": policy, "prompts": prompts, "out": str(out)})
        texts: list[str] = json.loads(out.read_text())
        return texts

    asked = [row["prompt"] for row in seeds]
    of_base = written(model, [*questions, *asked, *(text for part in parts for text in part)])[len(questions) :]
    pairs = [
        {"prompt": row["prompt"], "chosen": row["answer"], "rejected": other}
        for row, other in zip(seeds, of_base[: len(asked)], strict=True)
    ]
    of_base = of_base[len(asked) :]
    for cycle in range(n_cycles + 1):
        policy = str(folder / f"policy{cycle}")
        stage("train", {"model": model, "pairs": pairs, "out": policy, "cycle": cycle})
        part = parts[cycle] if cycle < n_cycles else []
        texts = written(policy, [*questions, *part])[len(questions) :]
        rejected, of_base = of_base[: len(part)], of_base[len(part) :]
        pairs = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in zip(part, texts, rejected, strict=True)]
    return {"all": seconds["sampling"] + seconds["training"], **seconds}


def config_of(n_cycles: int) -> Config:
    """That of our run."""
    from iterative_ft.launch.compose import compose_jobs, load_config, quote_reinit

    return load_config(next(iter(compose_jobs([*map(quote_reinit, RUN), f"n_cycles={n_cycles}"])))[1])


def sample(task: dict[str, Any]) -> None:
    from iterative_ft.machine.libraries import prepare_libraries

    prepare_libraries()
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    sampling, method = task["config"]["sampling"], task["config"]["method"]
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    llm = LLM(model=task["model"], dtype="bfloat16", max_model_len=2048, enforce_eager=True, kv_cache_memory_bytes=2**30)
    params = SamplingParams(
        temperature=sampling["temperature"],
        max_tokens=method["max_new_tokens"],
        stop_token_ids=[tokenizer.convert_tokens_to_ids("<|im_end|>")],
    )
    chats = [chat(task, text) for text in task["prompts"]]
    outputs = llm.chat(chats, params, use_tqdm=False)
    Path(task["out"]).write_text(json.dumps([output.outputs[0].text for output in outputs]))


def chat(task: dict[str, Any], text: str) -> list[dict[str, str]]:
    system = task["config"]["model"]["system_prompt"]
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def train(task: dict[str, Any]) -> None:
    """One cycle's training, and the merged checkpoint."""
    trainer = trainer_of(task)
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(task["out"])
    trainer.processing_class.save_pretrained(task["out"])


def trainer_of(task: dict[str, Any]) -> Any:
    """TRL's trainer as a script would set it up: rows of text, hyperparameters of the run, all else TRL's default."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    method, lora = task["config"]["method"], task["config"]["lora"]
    is_dpo = method["name"] == "dpo"
    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.bfloat16)
    options: dict[str, Any] = {
        "output_dir": task["out"] + "-trainer",
        "learning_rate": method["seed_learning_rate"] if is_dpo and task["cycle"] == 0 else method["learning_rate"],
        "per_device_train_batch_size": method["batch_size"],
        "num_train_epochs": method["epochs"],
        "max_length": method["max_length"],
        "gradient_checkpointing": False,  # TRL's default saves memory that nobody lacks here, and takes time
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_steps": 1000,
    }
    adapter = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"], task_type="CAUSAL_LM")
    rows = [
        {"prompt": chat(task, pair["prompt"])}
        | {key: [{"role": "assistant", "content": pair[key]}] for key in ("chosen", "rejected", "completion") if key in pair}
        for pair in task["pairs"]
    ]
    make, arguments = (DPOTrainer, DPOConfig(**options, beta=method["beta"])) if is_dpo else (SFTTrainer, SFTConfig(**options))
    return make(
        model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=adapter
    )


if __name__ == "__main__":
    main()
