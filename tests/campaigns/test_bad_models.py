"""Model folders and adapters, broken at random: each is looked at and passes, or is one line. Never a traceback, never a hang.

What passes is loaded too, as a run would: a look that lets nonsense through shows there.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_look import chat_config, eager_to_end, sound
from tiny import save_adapter

from iterative_ft.errors import ConfigError, RunError
from iterative_ft.models import look as models_look
from iterative_ft.sampling.interface import Params, Request
from iterative_ft.stages import look as looking
from iterative_ft.stages.bench import Bench
from iterative_ft.store import Store

LIMIT_S = 10.0
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**12, 1e308, "", "x", "\x00", "🙂" * 50, [], {}, [None], {"a": {}}, "{{", "{% for", [[]] * 3,
    "<|im_end|>", "null", "../..", 3.5, -0.0, "NaN",
)  # fmt: skip
TEMPLATES = (
    "", "{{", "{% for m in messages %}", "{{ messages }}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}", "plain text",
    "{{ messages[9]['role'] }}", "{{ undefined_function() }}", "{{ messages[0]['content'] }}", "{% include 'x' %}", "\x00",
    "{{ range(10) | random }}", "{{ strftime_now('%c') }}", "{{ lipsum() }}", "{{ ''.__class__.__mro__ }}",
    "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}", "{% for i in range(100000000) %}{% endfor %}",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value, at most 20 of a list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    return [p for key, inner in items for p in [(*path, key), *places(inner, (*path, key))]]


def json_change(rng: random.Random, file: Path) -> str:
    """Put something odd into a JSON file, or take something out."""
    whole = json.loads(file.read_text())
    spots = places(whole)
    if not spots:
        file.write_text("[]")
        return "emptied"
    spot = rng.choice(spots)
    inner = whole
    for key in spot[:-1]:
        inner = inner[key]
    if rng.random() < 0.3:
        del inner[spot[-1]]
        how = "without"
    else:
        inner[spot[-1]] = rng.choice(ODD)
        how = f"{inner[spot[-1]]!r:.20}"
    file.write_text(json.dumps(whole))
    return f"{spot[-1]} {how}"


def byte_change(rng: random.Random, file: Path) -> str:
    """Cut, overwrite, double or empty a file."""
    data = bytearray(file.read_bytes())
    kind = rng.choice(["cut", "flip", "empty", "double", "noise", "header", "directory", "gone"])
    if kind == "cut":
        data = data[: rng.randrange(len(data) + 1)]
    elif kind == "flip":
        for _ in range(rng.randint(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == "empty":
        data = bytearray()
    elif kind == "double":
        data = data * 2
    elif kind == "noise":
        data = bytearray(rng.randbytes(200))
    elif kind == "header":
        data[: min(8, len(data))] = rng.randbytes(min(8, len(data)))
    file.unlink()
    if kind == "directory":
        file.mkdir()
    elif kind != "gone":
        file.write_bytes(data)
    return kind


def break_model(rng: random.Random, folder: Path) -> str:
    files = sorted(p.name for p in folder.iterdir())
    name = rng.choice(files)
    file = folder / name
    if name == "chat_template.jinja" and rng.random() < 0.8:
        file.write_text(rng.choice(TEMPLATES))
        return f"{name}: {file.read_text()[:20]!r}"
    change: Callable[[random.Random, Path], str] = (
        json_change if name.endswith(".json") and rng.random() < 0.75 else byte_change
    )
    return f"{name}: {change(rng, file)}"


def examined(config: Any) -> str:
    """ "passed", or "refused" in one line; anything else is raised."""
    looking.SEEN.clear()
    models_look.codec_once.cache_clear()
    try:
        looking.examine(config)
    except ConfigError as error:
        return "refused" if one_line(error) else "NOT ONE LINE"
    return "passed"


def one_line(error: Exception) -> bool:
    return "\n" not in str(error) and len(str(error)) < 600


def used(config: Any, folder: Path) -> str:
    """What passed, as a run uses it: loaded, checked by the canary, asked for four tokens."""
    try:
        bench = Bench(config, Store(folder))
        bench.sampler.sample([Request(bench.codec.chat_prompt("hi"), 1)], Params(1.0, 1.0, 4, bench.codec.answer_end_ids, []))
    except (RunError, ConfigError) as error:
        return "refused by the canary or store" if one_line(error) else "NOT ONE LINE"
    return "passed and served"


def campaign(tiny_models: dict[str, Path], tmp_path: Path, n: int, serve_each: int) -> None:
    counts: Counter[str] = Counter()
    worst, failures = 0.0, []
    bases = {}
    for family in ("llama", "gemma", "gpt2"):
        (tmp_path / family).mkdir()
        bases[family] = eager_to_end(sound(tiny_models, tmp_path / family, family), family)
    for case in range(n):
        rng = random.Random(case)
        family = rng.choice(list(bases))
        model = Path(shutil.copytree(bases[family], tmp_path / "case" / "model"))
        overrides = ["method.max_new_tokens=48"]
        what = ""
        if rng.random() < 0.35:
            adapter = save_adapter(model, tmp_path / "case" / "adapter", size=0.1)
            overrides.append(f"start_adapter={adapter}")
            config = chat_config(model, tmp_path / "case", *overrides)
            file = adapter / rng.choice(["adapter_config.json", "adapter_model.safetensors"])
            what = f"{file.name}: {(json_change if file.suffix == '.json' and rng.random() < 0.8 else byte_change)(rng, file)}"
        else:
            config = chat_config(model, tmp_path / "case", *overrides)
            what = break_model(rng, model)
        began = time.monotonic()
        try:
            outcome = examined(config)
            if outcome == "passed" and case % serve_each == 0:
                outcome = used(config, tmp_path / "case" / "store")
        except Exception as error:
            outcome = "TRACEBACK"
            failures.append(f"case {case} ({family}; {what}): {type(error).__name__}: {str(error)[:200]}")
        if outcome == "NOT ONE LINE":
            failures.append(f"case {case} ({family}; {what}): not one line")
        seconds = time.monotonic() - began
        worst = max(worst, seconds)
        if seconds > LIMIT_S:
            failures.append(f"case {case} ({family}; {what}): {seconds:.1f} s")
        counts[outcome] += 1
        shutil.rmtree(tmp_path / "case")
    print(f"bad models and adapters: {n} cases, {dict(counts)}, longest {worst:.1f} s, {len(failures)} failures")
    assert not failures, "\n".join(failures[:40])


def test_a_few_broken_models(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    campaign(tiny_models, tmp_path, 24, serve_each=4)


@pytest.mark.long
def test_many_broken_models(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    campaign(tiny_models, tmp_path, 600, serve_each=3)
