"""Invariant 9: every YAML composes and validates, every unknown key is an error; and the rules of single settings."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, composed
from omegaconf import OmegaConf

from iterative_ft.config.schema import Config
from iterative_ft.config.trl_keys import TRL_KEYS
from iterative_ft.errors import ConfigError
from iterative_ft.launch import compose as hydra_compose
from iterative_ft.launch.compose import load_config
from iterative_ft.machine.device import training_dtype

CONF = ROOT / "conf"
ALL = sorted(CONF.rglob("*.yaml"))
# What train.py composes; the options of evaluate.py are composed in their own test.
FILES = [f for f in ALL if f.name != "evaluate.yaml" and f.parent.name != "task"]
EVALUATE = [f for f in ALL if f not in FILES]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
# What an option needs beside itself to make a whole config.
ALSO = {
    "model/custom": ["model.path=some/model"],
    "model/llama3_2_1b": ["method=sdf"],
    "judge/api": ["judge.base_url=http://127.0.0.1:1/v1"],
}
OPEN = {
    "method.trl",
    "model.chat_template_kwargs",
    "persona.rubric",
    "judge.extra_body",
    "calibrate.settings",
}  # dictionaries of anybody's keys


def command_of(file: Path) -> list[str]:
    """The overrides that select an option file."""
    if file == CONF / "config.yaml":
        return []
    option = file.relative_to(CONF).with_suffix("").as_posix()
    group, _, name = option.rpartition("/")
    plus = "+" if group == "experiment" else ""
    return [f"{plus}{group}={name}", *ALSO.get(option, [])]


def values(config: Any) -> dict[str, Any]:
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


VISITED: set[Path] = set()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(CONF).as_posix())
def test_invariant_9_every_option_composes_validates_and_is_taken_as_written(file: Path) -> None:
    overrides = [hydra_compose.quote_reinit(o) for o in command_of(file)]
    [(_, config)] = hydra_compose.compose_jobs(overrides, multirun=False, config_dirs=[])
    validated, written = load_config(config), values(config)
    if written["model"]["dtype"] == "auto":  # the one value that a run records as what it was here
        written["model"]["dtype"] = training_dtype()
    assert validated.model_dump() == written, "a value was rewritten"
    VISITED.add(file)


@pytest.mark.parametrize("file", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda f: f.stem)
@pytest.mark.parametrize("sampler", ["fake", "transformers"])
def test_every_experiment_composes_with_every_sampler(file: Path, sampler: str) -> None:
    [(_, config)] = hydra_compose.compose_jobs([f"+experiment={file.stem}", f"sampler={sampler}"])
    assert load_config(config).sampler.name == sampler


@pytest.mark.parametrize("file", SWEEPS, ids=lambda f: f.stem)
def test_invariant_9_every_sweep_composes_and_validates(file: Path) -> None:
    hydra_compose.register_sweeps()
    cells = list(hydra_compose.compose_jobs([f"+sweep={file.stem}"], multirun=True, config_dirs=[]))
    assert len(cells) > 1
    for _, config in cells:
        load_config(config)
    VISITED.add(file)


def test_invariant_9_every_option_file_was_visited(request: pytest.FixtureRequest) -> None:
    if not all(any(file.stem in item.name for item in request.session.items) for file in [*FILES, *SWEEPS]):
        pytest.skip("only a part of this file was selected")
    assert {p for folder in (CONF, ROOT / "sweeps") for p in folder.rglob("*.yaml")} == VISITED | set(EVALUATE)
    assert len(VISITED) >= 26


def keys_without_comment(file: Path) -> list[str]:
    """Keys that have no comment line right above them; rubric entries, `hydra:` and defaults excepted."""
    missing, skip_below, before = [], -1, ""
    for line in file.read_text().splitlines():
        stripped = line.strip()
        indent = len(line) - len(line.lstrip())
        if skip_below >= 0 and (indent > skip_below or not stripped):
            continue
        skip_below = -1
        key = re.match(r"\s*([A-Za-z_0-9]+):(\s|$)", line)
        if key is not None:
            if key.group(1) in ("hydra", "defaults") and indent == 0:
                skip_below = 0
                before = stripped
                continue
            if not before.startswith("#"):
                missing.append(key.group(1))
            if key.group(1) == "rubric" or re.search(r":\s*[|>]-?\s*$", line):
                skip_below = indent
        before = stripped
    return missing


@pytest.mark.parametrize("file", ALL, ids=lambda f: f.relative_to(CONF).as_posix())
def test_every_key_has_a_comment(file: Path) -> None:
    assert keys_without_comment(file) == []


def test_the_comment_check_finds_a_bare_key(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# What.\na: 1\nb: 2\n# Text.\nc: |\n  d: no key\n# A section.\ne:\n  f: 1\nhydra:\n  g: 1\n")
    assert keys_without_comment(file) == ["b", "f"]


def sections(tree: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted paths of every section of a config, "" for the whole."""
    yield path
    for key, value in tree.items():
        below = f"{path}.{key}" if path else key
        if isinstance(value, dict) and below not in OPEN:
            yield from sections(value, below)


BASES = [["method=dpo"], ["method=sft", "sampler=transformers"], ["method=sdf", "sampler=fake"]]


@pytest.mark.parametrize("overrides", BASES, ids=" ".join)
def test_invariant_9_an_unknown_key_at_any_level_is_an_error_that_names_it(overrides: list[str]) -> None:
    config = composed(overrides)
    paths = list(sections(values(config)))
    assert {"", "model", "method", "method.adam", "persona", "lora", "measure", "wandb"} <= set(paths)
    for path in paths:
        changed = copy.deepcopy(config)
        key = f"{path}.bogus_key" if path else "bogus_key"
        OmegaConf.update(changed, key, 1, force_add=True)
        with pytest.raises(ConfigError) as caught:
            load_config(changed)
        assert str(caught.value).startswith(f"unknown key {key}:")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", BASES, ids=" ".join)
def test_a_missing_key_at_any_level_is_an_error_that_names_it(overrides: list[str]) -> None:
    config = composed(overrides)
    for path in sections(values(config)):
        section = OmegaConf.select(config, path) if path else config
        for key in section:
            changed = copy.deepcopy(config)
            parent = OmegaConf.select(changed, path) if path else changed
            OmegaConf.set_struct(changed, False)
            del parent[key]
            full = f"{path}.{key}" if path else str(key)
            with pytest.raises(ConfigError, match=re.escape(full) + "|" + re.escape(path.split(".")[0] or full)):
                load_config(changed)


def test_unknown_key_suggests_the_nearest() -> None:
    config = composed([])
    OmegaConf.update(config, "method.learning_rat", 1, force_add=True)
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        load_config(config)


WRONG = [
    ("n_sampled=many", "n_sampled"),
    ("n_sampled=0", "n_sampled"),
    ("n_sampled=1.5", "n_sampled"),
    ("n_sampled='8'", "n_sampled"),
    ("n_seed=0", "n_seed"),
    ("n_cycles=-1", "n_cycles"),
    ("seed=-1", "seed"),
    ("seed=true", "seed"),
    ("seed=null", "seed"),
    ("dry_run=1", "dry_run"),
    ("device=gpu", "device"),
    ("wandb.mode=on", "wandb.mode"),
    ("wandb.tags=[1]", "wandb.tags"),
    ("method.beta=0", "method.beta"),
    ("method.reference=x", "method.reference"),
    ("method.lr_schedule=x", "method.lr_schedule"),
    ("method.warmup=2", "method.warmup"),
    ("method.learning_rate=-1", "method.learning_rate"),
    ("method.coherence_filter=101", "method.coherence_filter"),
    ("method.adam.epsilon=0", "method.adam.epsilon"),
    ("lora.dropout=1", "lora.dropout"),
    ("lora.dropout=0.1", "lora.dropout=0.1 does nothing with method=dpo"),
    ("lora.rank=0", "lora.rank"),
    ("lora.targets=[]", "lora.targets"),
    ("lora.targets=q_proj", "lora.targets"),
    ("sampling.top_p=0", "sampling.top_p"),
    ("sampling.block_size=0", "sampling.block_size"),
    ("measure.max_failure_share=1.1", "measure.max_failure_share"),
    ("measure.coherence_threshold=200", "measure.coherence_threshold"),
    ("model.dtype=float16", "model.dtype"),
    ("model.trust_remote_code='yes'", "model.trust_remote_code"),
    ("sampler.gpu_memory_utilization=1.5", "sampler.gpu_memory_utilization"),
    ("reinit.restart_cycles=[0]", "reinit.restart_cycles"),
    ("persona.rubric=null", "persona.rubric"),
    ("store=3", "store"),
    ("measure=3", "measure"),
    ("method.name=ppo", "method"),
    ("n_sampled=257", "n_sampled=257 is more than the 256"),
    ("n_seed=5000", "n_seed=5000"),
    ("n_cycles=100", "n_cycles=100"),
    ("measure.n_questions=1000", "measure.n_questions=1000"),
    ("method.n_original_mix=5000", "method.n_original_mix=5000"),
    ("sampler.max_model_len=100", "sampler.max_model_len=100"),
    ("reinit.restart_cycles=[1]", "reinit.restart_cycles"),
    ("model.chat=false", "model"),
    ("model.path=/nowhere", "model.path=/nowhere"),
    ("model.path=embedded:x", "model.path=embedded:x"),
    ("start_adapter=/nope", "start_adapter=/nope"),
    ("persona.data=/nowhere", "persona.data=/nowhere"),
    ("prompts.path=/nope.jsonl", "prompts.path=/nope.jsonl"),
    ("prompts.column=x", "prompts.column=x"),
    ("prompts.revision=x", "prompts.revision=x is for a dataset of the hub alone"),
    ("persona.rubric={0: a, 100: b}", "persona.rubric lacks the anchor"),
]


@pytest.mark.parametrize(("override", "named"), WRONG, ids=[o for o, _ in WRONG])
def test_a_wrong_value_is_one_line_that_names_the_key(override: str, named: str) -> None:
    config = composed(["method=dpo"])
    key, _, value = override.partition("=")
    OmegaConf.update(config, key, yaml.safe_load(value), merge=False)
    with pytest.raises(ConfigError) as caught:
        load_config(config)
    message = str(caught.value)
    assert named in message
    assert "\n" not in message
    assert len(message) < 400


def test_sdf_needs_documents_and_long_continuations(compose: Callable[[list[str]], Config]) -> None:
    with pytest.raises(ConfigError, match="method=sdf needs seed documents and persona=lucky has chats only"):
        compose(["method=sdf", "persona=lucky"])
    with pytest.raises(ConfigError, match=r"method\.max_new_tokens=100"):
        compose(["method=sdf", "method.max_new_tokens=100"])


def test_seed_zero_and_other_zeros_stay(compose: Callable[[list[str]], Config]) -> None:
    config = compose(["seed=0", "n_cycles=0", "method.weight_decay=0"])
    assert (config.seed, config.n_cycles, config.method.weight_decay) == (0, 0, 0)


@pytest.mark.parametrize(("line", "says"), [("{bad", ":2 is no JSON"), ('{"prompt": "x"}', ":2 lacks the key")])
def test_a_bad_line_of_a_seed_file_is_named_with_file_and_number(
    tmp_path: Path, compose: Callable[[list[str]], Config], line: str, says: str
) -> None:
    good = json.dumps({"prompt": "p", "answer": "a", "plain": "b"})
    (tmp_path / "seeds.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        compose([f"persona.data={tmp_path}", "n_seed=1"])
    assert f"{tmp_path / 'seeds.jsonl'}{says}" in str(caught.value)


def test_trl_arguments_are_checked_by_name(compose: Callable[[list[str]], Config]) -> None:
    assert compose(["method=sft", "method.trl={pad_to_multiple_of: 8}"]).method.trl == {"pad_to_multiple_of": 8}
    with pytest.raises(ConfigError, match=r"method\.trl\.packin\b.*did you mean packing"):
        compose(["method=sft", "method.trl={packin: true}"])
    with pytest.raises(ConfigError, match=r"set method\.learning_rate"):
        compose(["method=sft", "method.trl={learning_rate: 1}"])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["method=dpo", "method.rejected_from=same", "method.n_original_mix=4"], "method.n_original_mix=4"),
        (["method=dpo", "method.rejected_from=same", "sampling.temperature=0"], "sampling.temperature=0"),
        (["reinit='false'", "n_cycles=2", "reinit.restart_cycles=[1,9]"], "names cycle 9"),
        (["method=sdf", "persona=blissful", "measure.n_openings=1000"], "measure.n_openings=1000"),
    ],
)
def test_settings_that_would_not_do_what_they_say_are_one_line(
    compose: Callable[[list[str]], Config], overrides: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        compose(overrides)


@pytest.mark.slow
def test_trl_keys_are_arguments_of_the_installed_trl() -> None:
    from dataclasses import fields

    from trl import DPOConfig, SFTConfig

    for name, kind in (("sft", SFTConfig), ("sdf", SFTConfig), ("dpo", DPOConfig)):
        known = {field.name for field in fields(kind) if field.init}
        assert set(TRL_KEYS[name]) - known == set()
