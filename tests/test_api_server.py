"""evaluate.py through a real OpenAI server: vLLM with the embedded model on loopback.

A 135M model is no judge: that every answer gets scores or a named failure, and that records say who judged, is all that is
asserted. Not covered: how good the scores are (docs/judges.md), servers elsewhere.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from iterative_ft.machine.files import file_digests, read_jsonl
from iterative_ft.models.base import prepare

ROOT = Path(__file__).resolve().parent.parent
START_S = 240


@contextmanager
def openai_server(model: Path, log: Path, dtype: str = "bfloat16") -> Iterator[str]:
    """vLLM's OpenAI server on a free port; the process that was started, and its children, end with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "2048", "--dtype", dtype]
    command += ["--max-logprobs", "20", "--generation-config", "vllm"]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | variables, start_new_session=True, preexec_fn=end_with_me
        )
        try:
            deadline = time.monotonic() + START_S
            while not healthy(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None, f"the server ended: {log.read_text()[-3000:]}"
                assert time.monotonic() < deadline, f"the server did not start: {log.read_text()[-3000:]}"
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()  # by its id; it ends its engine process itself
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, 9)  # its own session, started above
                server.wait()


def end_with_me() -> None:
    """Have the kernel end the server when this test process is killed and cannot."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG; Linux alone


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("scale", [9, 100])
def test_a_run_is_judged_again_through_vllms_openai_server(scale: int, server_url: str, fake_run: Callable[..., Any]) -> None:
    run = fake_run("n_cycles=1", "measure.n_questions=4")
    before = file_digests(run.folder)
    arguments = [f"run={run.folder}", "judge=api", f"judge.base_url={server_url}", "judge.model=tiny"]
    arguments += [f"judge.score_scale={scale}", "judge.follow_digits=true", "judge.numeric_mass_floor=0.3"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "evaluate.py"), *arguments], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [folder] = (run.folder / "evaluations").iterdir()
    assert {name: digest for name, digest in file_digests(run.folder).items() if "evaluations" not in name} == before
    answers = read_jsonl(folder / "answers.jsonl")
    assert len(answers) == 3 * 4
    for answer in answers:
        assert (answer["failure"] is None) == (answer["coherence"] is not None)
        assert answer["failure"] is None or answer["failure"].split("_")[0] in ("trait", "coherence")
        assert not any(word in str(answer["failure"]) for word in ("http", "connection", "timeout", "malformed", "logprobs"))
        assert answer["judge"].startswith("api tiny#"), "an endpoint's fingerprint tells no judges apart"
        assert answer["trait"] is None or 0 <= answer["trait"] <= 100
    result = json.loads((folder / "result.json").read_text())
    stages = [s for s in result["stages"] if s["kind"] == "replies"]
    manifests = [json.loads((run.store / "replies" / s["key"] / "manifest.json").read_text())["info"] for s in stages]
    assert len(manifests) == 3 * 2
    assert all(info["failures"] == {} and info["prompt_tokens"] > 0 and info["model"] == "tiny" for info in manifests)
    replies = [
        r for s in stages for row in read_jsonl(run.store / "replies" / s["key"] / "replies.jsonl") for r in row["replies"]
    ]
    assert all(reply["tokens"] and len(reply["tokens"][0]["top"]) >= 20 for reply in replies)
    n_scored = sum(answer["failure"] is None for answer in answers)
    n_followed = sum(reply["started"] != "" for reply in replies)
    print(f"scale {scale}: {n_scored} of {len(answers)} answers scored, {len(replies)} calls, {n_followed} with digits started")


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from conftest import composed

    from iterative_ft.launch.compose import load_config

    model = tmp_path_factory.mktemp("model")
    prepare(load_config(composed([])).model, model)
    with openai_server(model, tmp_path_factory.mktemp("log") / "server.log") as url:
        yield url
