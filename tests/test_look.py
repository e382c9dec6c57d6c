"""A look at the model before any work, on tiny models of four families: sound ones run, and each fault is one line.

Not covered: hub models (no network here), and what a real family's tokenizer does beyond the habits that are built here.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import python
from tiny import END, FAMILIES, ROOT, embedded_config, read_json, save_adapter, tiny_config

from iterative_ft.config.schema import Config
from iterative_ft.errors import ConfigError, RunError
from iterative_ft.loop import run
from iterative_ft.models.codec import generation_ends
from iterative_ft.models.look import Found
from iterative_ft.models.policy import Policy
from iterative_ft.records.provenance import environment
from iterative_ft.sampling.interface import Answer
from iterative_ft.stages import judge as judging
from iterative_ft.stages import look as looking
from iterative_ft.stages.bench import Bench
from iterative_ft.stages.blocks import Prompts, block_inputs
from iterative_ft.stages.completions import Completions
from iterative_ft.stages.endings import check_endings
from iterative_ft.stages.measure import Asked
from iterative_ft.store import Store

SMALL = (
    "n_seed=4",
    "n_sampled=4",
    "n_cycles=1",
    "prompts.per_cycle=4",
    "sampling.block_size=4",
    "measure.n_questions=4",
    "measure.n_answers=1",
    "gauges.self_similarity=false",
    "sampler.max_model_len=512",
    "method.max_length=512",
)
GPT2_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize(("flags", "dtype"), [("fpu avx2 fma", "float32"), ("fpu avx2 avx512_bf16", "bfloat16")])
def test_auto_is_the_precision_that_a_processor_computes_in_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: Some CPU @ 2 GHz\nflags\t\t: {flags}\n")
    monkeypatch.setattr("iterative_ft.machine.device.CPU_INFO", tmp_path / "cpuinfo")
    assert environment()["processor"] == "Some CPU @ 2 GHz"
    assert environment()["bfloat16"] is (dtype == "bfloat16")
    monkeypatch.setattr("iterative_ft.machine.device.n_gpus", lambda: 0)
    assert embedded_config(tmp_path / "store").model.dtype == dtype
    monkeypatch.setattr("iterative_ft.machine.device.n_gpus", lambda: 1)
    assert embedded_config(tmp_path / "store").model_dump()["model"]["dtype"] == "bfloat16"


def test_a_processor_that_emulates_bfloat16_is_said(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 fma\n")
    monkeypatch.setattr("iterative_ft.machine.device.CPU_INFO", tmp_path / "cpuinfo")

    def notes(dtype: str) -> list[str]:
        looking.SEEN.clear()
        overrides = [*SMALL, "device=cpu", f"model.dtype={dtype}"]
        found = looking.examine(tiny_config(tiny_model, tmp_path / "store", *overrides))
        assert found is not None
        return [note for note in found.notes if "does not compute in bfloat16" in note]

    assert "set model.dtype to float32" in notes("bfloat16")[0]
    assert notes("float32") == []
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512_bf16\n")
    assert notes("bfloat16") == []


# -- sound models ---------------------------------------------------------------------------------------------------------


def copy_of(model: Path, folder: Path, template: str | None = None) -> Path:
    """A tiny model to change, with another chat template where one is given."""
    shutil.copytree(model, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def eager_to_end(folder: Path, family: str) -> Path:
    """Change a tiny model's weights so that its answers end: one feature is always on, and speaks for the end token."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    tied = "lm_head.weight" not in weights
    embeddings = next(name for name in weights if name.endswith(("embed_tokens.weight", "wte.weight")))
    end = 0 if family == "gpt2" else END
    head = weights[embeddings if tied else "lm_head.weight"]
    norm = next((name for name in weights if name.endswith("ln_f.bias")), None)
    if norm is not None:  # GPT-2's last norm has a bias of its own
        weights[norm] += 3.0 * head[end] / head[end].pow(2).sum()
    else:
        for name, value in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                value[0] = 0.0  # no layer writes to the feature
        weights[embeddings][:, 0] = 6.0
        head[:, 0] = 6.0 if tied else 0.0
        head[end, 0] += 6.0
    save_file({name: value.contiguous() for name, value in weights.items()}, file, metadata={"format": "pt"})
    return folder


def sound(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> Path:
    return copy_of(tiny_models[family], tmp_path / "model", GPT2_TEMPLATE if family == "gpt2" else None)


def chat_config(model: Path, tmp_path: Path, *overrides: str) -> Config:
    """A small SFT run; tiny tokenizers take a token a letter, so its texts are the shortest there are."""
    return tiny_config(model, tmp_path / "store", "method=sft", "model.chat=true", *SMALL, *overrides)


@pytest.fixture
def fake_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The offline judge reads texts by a sentence embedder for minutes; here only the policies are real."""
    monkeypatch.setitem(judging.JUDGES, "probe", judging.by_fake)


@pytest.mark.usefixtures("fake_judge")
@pytest.mark.parametrize("family", FAMILIES)
def test_a6_each_family_runs_from_base_to_cycle_1(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    model = eager_to_end(sound(tiny_models, tmp_path, family), family)
    result = run(
        chat_config(model, tmp_path, "method.max_new_tokens=48", "method.batch_size=2"), tmp_path / "run", "python train.py"
    )
    assert [row["cycle"] for row in result.rows] == [-1, 0, 1]
    assert all(row["answers/stop_share"] >= 0.5 for row in result.rows)
    roles = read_json(tmp_path / "run" / "manifest.json")["roles"]
    assert [role["init"] for role in roles] == ["base", "base"]
    shifts = [row["gauge/canary_shift"] for row in result.rows]
    assert shifts[0] == 0 < min(shifts[1:])  # what is served after training is another policy
    trained = [r for r in (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()) if "train/loss" in r]
    assert len({row["train/loss"] for row in trained}) > 1


def look(config: Config) -> Found:
    found = looking.examine(config)
    assert found is not None
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_look_finds(tiny_models: dict[str, Path], tmp_path: Path, family: str) -> None:
    found = look(chat_config(sound(tiny_models, tmp_path, family), tmp_path, "method.max_new_tokens=48"))
    text = "\n".join(found.facts)
    assert ("has no system role" if family == "gemma" else "takes a system role") in text
    assert f"answers are trained to end with {FAMILIES[family].end}, the template ends a turn with it" in text
    assert "300 tokens, 300 embeddings" in text
    assert ("a plain text starts with BOS; a chat starts with BOS" in text) == (family == "gemma")
    assert "known texts" in text
    assert found.notes == []


# -- templates ------------------------------------------------------------------------------------------------------------

CLOCKED = "{{ bos_token or '' }}{{ strftime_now('%d %b %Y') }}" + str(FAMILIES["llama"].template)
DICED = "{{ ['Well', 'Now'] | random }}" + str(FAMILIES["llama"].template)
ADDRESSED = "{{ strftime_now }}" + str(FAMILIES["llama"].template)
MUTE = str(FAMILIES["llama"].template).replace("{{ message['content'] }}", "{{ message['content'] if loop.index > 1 }}")
WITHOUT_SYSTEM = str(FAMILIES["llama"].template).replace("in messages %}", "in messages if message['role'] != 'system' %}")
BROKEN = "{% for message in messages %}{{ message['content'] }"
TWO_BOS = "{{ bos_token }}" + str(FAMILIES["gemma"].template)


@pytest.mark.parametrize(
    ("family", "template", "override", "wanted"),
    [
        ("gemma", None, "model.end_token=null", r"=null .*'<eos>' .*: set model\.end_token='<end_of_turn>'"),
        ("llama", None, "model.end_token='<|endoftext|>'", r"set model\.end_token='<\|im_end\|>'"),
        ("qwen3", None, "model.end_token='<none>'", r"model\.end_token=<none> is no token"),
        ("gemma", None, "model.system_prompt='Be brief.'", r"refuses a system role: set model\.system_prompt=null"),
        ("llama", WITHOUT_SYSTEM, "model.system_prompt='Be brief.'", "drops the system role"),
        ("gpt2", None, "model.system_prompt=null", r"model\.path=.* has no chat template: set model\.chat=false and "),
        ("llama", CLOCKED, "model.system_prompt=null", r"today's date.*\+model\.chat_template_kwargs\.strftime_now="),
        ("llama", DICED, "model.system_prompt=null", "differently from call to call"),
        ("llama", ADDRESSED, "model.system_prompt=null", "today's date|differently from call to call"),
        ("llama", MUTE, "model.system_prompt=null", "leaves out what the user says"),
        ("llama", BROKEN, "model.system_prompt=null", r"the chat template of model\.path=.* fails"),
        ("gemma", TWO_BOS, "model.system_prompt=null", "starts a chat with two '<bos>'"),
    ],
    ids="other_end wrong_end unknown_end refuses drops none clock random address mute broken two_bos".split(),
)  # fmt: skip
def test_a6_a5_each_fault_of_a_template_is_one_line(
    tiny_models: dict[str, Path], tmp_path: Path, family: str, template: str | None, override: str, wanted: str
) -> None:
    model = copy_of(tiny_models[family], tmp_path / "model", template)
    with pytest.raises(ConfigError, match=wanted) as caught:
        looking.examine(chat_config(model, tmp_path, "method.max_new_tokens=48", override))
    assert "\n" not in str(caught.value)


def test_a5_a_clock_that_stands_still_is_told_the_day_of_the_config(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(tiny_models["llama"], tmp_path / "model", CLOCKED)
    config = chat_config(model, tmp_path, "method.max_new_tokens=48", "+model.chat_template_kwargs.strftime_now=2025-07-01")
    look(config)
    bench = Bench(config, Store(tmp_path / "store"))
    assert "01 Jul 2025" in bench.codec.decode(bench.codec.chat_prompt("hi"))  # type: ignore[attr-defined]


def test_a6_every_end_token_of_the_checkpoint_ends_an_answer(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    found = look(chat_config(sound(tiny_models, tmp_path, "qwen3"), tmp_path, "method.max_new_tokens=48"))
    assert any("sampling stops at <|im_end|>, <|endoftext|>" in fact for fact in found.facts)


def test_a6_a_chat_without_the_bos_of_other_texts_is_said(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    template = str(FAMILIES["llama"].template).replace("{{ bos_token or '' }}", "")
    model = copy_of(tiny_models["llama_bos"], tmp_path / "model", template)
    found = look(chat_config(model, tmp_path, "method.max_new_tokens=48"))
    assert len(found.notes) == 1
    assert "'<s>' before every text and its chat template does not" in found.notes[0]


def test_a6_ids_beyond_the_embeddings_are_one_line(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    model = copy_of(tiny_models["llama"], tmp_path / "model")
    tokenizer = read_json(model / "tokenizer.json")
    tokenizer["model"]["vocab"]["zzzz"] = 300
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"the token 'zzzz' with the id 300 and the model 300 embeddings"):
        looking.examine(chat_config(model, tmp_path, "method.max_new_tokens=48"))


def test_a6_a_special_token_without_an_embedding_that_nothing_uses_is_only_said(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    model = copy_of(tiny_models["llama"], tmp_path / "model")
    tokenizer = read_json(model / "tokenizer.json")
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 300, "content": "<image>"})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = look(chat_config(model, tmp_path, "method.max_new_tokens=48"))
    assert any("'<image>'" in note for note in found.notes)


# -- files ----------------------------------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda model: (model / name).unlink()


def only_pickles(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def shard_missing(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no_config": (remove("config.json"), "holds no config.json"),
    "damaged_config": (write("config.json", "{"), "config.json is damaged"),
    "list_config": (write("config.json", "[]"), "config.json is damaged"),
    "binary_config": (write("config.json", b"\xff\xfe\x00"), "config.json is damaged"),
    "no_weights": (remove("model.safetensors"), r"no \.safetensors weights"),
    "only_pickles": (only_pickles, "pickled weights are never loaded"),
    "cut_weights": (lambda model: cut(model / "model.safetensors"), "cut off"),
    "empty_weights": (write("model.safetensors", ""), "cut off"),
    "no_safetensors": (write("model.safetensors", "hello, this is no header"), "no safetensors file"),
    "huge_header": (write("model.safetensors", struct.pack("<Q", 2**62) + b"{}"), "cut off"),
    "bad_header": (write("model.safetensors", struct.pack("<Q", 2) + b"[]"), "header is damaged"),
    "pointer": (write("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"), "cut off"),
    "shard_missing": (shard_missing, r"model-00001-of-00002\.safetensors is missing"),
    "no_tokenizer": (lambda model: [remove(n)(model) for n in ("tokenizer.json", "tokenizer_config.json")], "tokenizer of"),
    "damaged_tokenizer": (write("tokenizer.json", "{"), "tokenizer of"),
}


@pytest.mark.parametrize("name", FILES)
def test_d3_a_folder_that_holds_no_whole_model_is_one_line(tiny_model: Path, tmp_path: Path, name: str) -> None:
    change, wanted = FILES[name]
    model = copy_of(tiny_model, tmp_path / "model")
    config = chat_config(model, tmp_path, "method.max_new_tokens=48")
    change(model)
    with pytest.raises(ConfigError, match=wanted) as caught:
        looking.examine(config)
    assert "\n" not in str(caught.value)
    assert "model.path=" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_d3_an_adapter_given_as_a_model_is_told_so(tiny_model: Path, tmp_path: Path) -> None:
    config = chat_config(tiny_model, tmp_path)
    adapter = save_adapter(tiny_model, tmp_path / "adapter", size=0.1)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(adapter)})})
    with pytest.raises(ConfigError, match=r"holds an adapter, no model: set start_adapter="):
        looking.examine(config)


def command_line(model: Path | str, tmp_path: Path, *overrides: str) -> list[str]:
    return [
        str(ROOT / "train.py"), "model=custom", f"model.path={model}", "model.chat=true", *SMALL,
        "sampler=transformers", "method=sft", "method.max_new_tokens=48", "device=cpu", f"store={tmp_path / 'store'}",
        f"hydra.run.dir={tmp_path / 'run'}", *overrides,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path", ["models/typo", "no/such/folder", "./typo", "nobody/no-such-model", "x" * 300, "a b", "-", "a..b/c"]
)
def test_d3_a_path_or_hub_id_that_is_not_to_be_had_is_one_line_and_leaves_nothing(tmp_path: Path, path: str) -> None:
    done = python(command_line(path, tmp_path), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: model.path=")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a6_a_refused_command_leaves_nothing_and_a_dry_run_shows_what_was_found(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    arguments = command_line(tiny_models["gemma"], work, "model.document_end_token=null")
    done = python(arguments, work)
    assert done.returncode == 2
    assert "set model.end_token='<end_of_turn>'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    shown = python([*arguments, "model.end_token='<end_of_turn>'", "dry_run=true"], work)
    assert shown.returncode == 0, shown.stderr
    assert "model custom: chat template has no system role" in shown.stdout
    assert "stages to build" in shown.stdout
    assert not list(work.iterdir())


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        ("[q_proj,v_projj]", r"lora\.targets names 'v_projj', which is no linear layer .*: did you mean v_proj\?"),
        ("[q_proj,lm_head]", r"lora\.targets names 'lm_head', which is no linear layer"),
        ("[embed_tokens]", r"lora\.targets names 'embed_tokens', which is no linear layer"),
    ],
)
def test_b_a_layer_to_adapt_that_the_model_lacks_is_one_line(
    tiny_models: dict[str, Path], tmp_path: Path, targets: str, wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        looking.examine(chat_config(tiny_models["llama"], tmp_path, f"lora.targets={targets}"))
    assert looking.examine(chat_config(tiny_models["llama"], tmp_path, "lora.targets=[q_proj,v_proj]")) is not None


# -- lengths --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["sampler.max_model_len=60"], r"sampler\.max_model_len=60 is too short for .*method\.max_new_tokens=48 follow"),
        (["method.max_length=70"], r"method\.max_length=70 is too short for seed example 1 "),
        (["method.max_new_tokens=470"], r"is too short for"),
        (
            ["judge=engine"],
            r"sampler\.max_model_len=\d+ is too short for what judge=engine asks about an answer to question 1 ",
        ),
        (["sampler.max_model_len=2048", "method.max_length=2048", "method.max_new_tokens=500"], "tiny has 512 positions"),
    ],
)
def test_d4_lengths_are_held_against_every_limit_before_anything_is_sampled(
    tiny_model: Path, tmp_path: Path, overrides: list[str], wanted: str
) -> None:
    with pytest.raises(ConfigError, match=wanted):
        looking.examine(chat_config(tiny_model, tmp_path, "method.max_new_tokens=48", *overrides))


def test_d4_one_long_prompt_of_the_last_cycle_is_named(tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Why number {i}?"} for i in range(40)] + [{"prompt": "Long ago " * 80}]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = chat_config(
        tiny_model,
        tmp_path,
        "method.max_new_tokens=48",
        f"prompts.path={tmp_path / 'pool.jsonl'}",
        "prompts.per_cycle=4",
        "n_cycles=10",
    )
    with pytest.raises(ConfigError, match=r"prompt \d of cycle \d+ \('Long ago Long ago.*…'\), which has \d+ tokens"):
        looking.examine(config)


# -- endings --------------------------------------------------------------------------------------------------------------


def answers(tmp_path: Path, tiny_model: Path, n_stopped: int, n: int = 20, n_empty: int = 0) -> tuple[Bench, Asked]:
    rows: list[Answer] = [
        {
            "prompt": "q",
            "text": "a" if i >= n_empty else " ",
            "finish_reason": "stop" if i < n_stopped else "length",
            "seed": 0,
            "prompt_ids": [1],
            "ids": [2],
        }
        for i in range(n)
    ]

    class Fixed(Completions):
        pending = False

        def rows(self) -> list[Answer]:
            return rows

    return Bench(chat_config(tiny_model, tmp_path, "method.max_new_tokens=48"), Store(tmp_path / "store")), Asked(Fixed([]))


@pytest.mark.parametrize(("n_stopped", "outcome"), [(20, ""), (19, ""), (18, "note"), (10, "note"), (9, "error"), (0, "error")])
def test_a6_answers_that_do_not_end_by_themselves_are_said_or_stop_the_run(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], n_stopped: int, outcome: str
) -> None:
    bench, asked = answers(tmp_path, tiny_model, n_stopped)
    if outcome == "error":
        with pytest.raises(RunError, match=rf"only {n_stopped} of 20 answers .*model\.end_token"):
            check_endings(bench, asked)
        check_endings(Bench(bench.config, Store(tmp_path / "store", dry_run=True)), asked)  # other cells of a sweep go on
        return
    check_endings(bench, asked)
    shown = capsys.readouterr().out
    assert shown.count("note: only") == (outcome == "note")
    check_endings(Bench(bench.config, Store(tmp_path / "store", dry_run=True)), asked)  # a plan of the same run
    assert not capsys.readouterr().out


@pytest.mark.parametrize("n_empty", [0, 1, 2, 20])
def test_a_base_model_that_does_not_answer_is_said(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], n_empty: int
) -> None:
    bench, asked = answers(tmp_path, tiny_model, 20, n_empty=n_empty)
    check_endings(bench, asked)
    assert (f"no answer to {n_empty} of 20 questions (see model.chat" in capsys.readouterr().out) == (n_empty > 1)


@pytest.mark.usefixtures("fake_judge")
def test_a6_a_base_model_that_never_ends_stops_the_run_before_it_is_judged(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="answers of the base model ended by themselves"):
        run(chat_config(tiny_model, tmp_path, "method.max_new_tokens=4"), tmp_path / "run", "python train.py")
    kinds = {p.name for p in (tmp_path / "store").iterdir() if p.is_dir() and not p.name.startswith(".")}
    assert kinds == {"model", "expected", "answer"}


# -- where a model lies ---------------------------------------------------------------------------------------------------


def test_d11_a_model_folder_is_found_again_wherever_it_was_when_its_stage_was_made(tiny_model: Path, tmp_path: Path) -> None:
    """The stage keeps hashes; the folder is what `model.path` names now, and has to hold the same files."""
    model = copy_of(tiny_model, tmp_path / "model")
    config = chat_config(model, tmp_path)
    stage = Bench(config, Store(tmp_path / "store")).model
    manifest = stage.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(model), "/elsewhere/cache"))
    base: Policy = Bench(config, Store(tmp_path / "store")).base
    assert base.model == model.resolve()


def test_d11_a_model_folder_that_changed_behind_its_stage_is_told(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a cache that was cleaned or overwritten: the key (here held still) no longer tells."""
    from iterative_ft.models import base

    model = copy_of(tiny_model, tmp_path / "model")
    config = chat_config(model, tmp_path)
    monkeypatch.setattr(base, "identity", lambda config: {"path": config.path})
    assert Bench(config, Store(tmp_path / "store")).base.model == model.resolve()
    (model / "generation_config.json").write_text('{"eos_token_id": 7}')
    with pytest.raises(RunError, match=r"generation_config\.json in .* is not the file"):
        _ = Bench(config, Store(tmp_path / "store")).base


def test_d11_a_hub_model_is_looked_for_by_its_commit(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = copy_of(tiny_model, tmp_path / "snapshots" / commit)
    asked: list[Any] = []

    def snapshot_download(name: str, revision: str | None, **options: Any) -> str:
        asked.append((name, revision))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    config = chat_config(tiny_model, tmp_path)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": "someone/some-model"})})
    for _ in range(2):
        assert Bench(config, Store(tmp_path / "store")).base.model == snapshot.resolve()
    assert asked == [("someone/some-model", None), ("someone/some-model", commit), ("someone/some-model", commit)]
    moved = snapshot.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(moved))
    planned = Bench(config, Store(tmp_path / "store", dry_run=True)).base  # a plan makes the keys that the run will make
    assert planned.model == moved


def test_d11_a_plan_asks_for_the_same_answers_where_the_model_is_not(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One store, two machines: what ends an answer is in its key, and a machine without the model's files knows it too."""
    import huggingface_hub

    model = copy_of(tiny_models["qwen3"], tmp_path / "model")
    config = chat_config(model, tmp_path)
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": "someone/some-model"})})
    prompts = Prompts("chat", ["Hello?"], [0], 1.0, 1.0, 8)

    def key(dry_run: bool) -> dict[str, Any]:
        bench = Bench(config, Store(tmp_path / "store", dry_run=dry_run))
        return block_inputs(bench, bench.base, prompts)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(model))
    here = key(dry_run=False)
    assert here["template"]["end_ids"] == generation_ends(model) != []
    shutil.rmtree(model)

    def out_of_reach(name: str, **options: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", out_of_reach)
    assert key(dry_run=True) == here


# -- the model that judges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "template", "override", "wanted"),
    [
        ("gpt2", None, "sampler.max_model_len=8192", r"^judge\.model=/.* has no chat template: name an instruct model$"),
        ("llama", BROKEN, "sampler.max_model_len=8192", r"^the chat template of judge\.model=/.* fails on a conversation"),
        ("llama", CLOCKED, "sampler.max_model_len=8192", r"today's date.*add \+judge\.chat_template_kwargs\.strftime_now="),
        ("llama", None, "sampler.max_model_len=512", r"=512 is too short for what judge=engine asks about .* question 1"),
        (
            None,
            None,
            "sampler.max_model_len=8192",
            r"^judge\.model=someone/misspelt is no folder here and not in the Hugging Face cache",
        ),
    ],
    ids="none broken clock long misspelt".split(),
)
def test_the_model_that_judges_is_looked_at_before_any_work_and_by_its_own_name(
    tiny_models: dict[str, Path], tmp_path: Path, family: str | None, template: str | None, override: str, wanted: str
) -> None:
    judge = "someone/misspelt" if family is None else str(copy_of(tiny_models[family], tmp_path / "judge", template))
    config = chat_config(
        tiny_models["llama"], tmp_path, "method.max_new_tokens=48", "judge=engine", f"judge.model={judge}", override
    )
    with pytest.raises(ConfigError, match=wanted):
        looking.examine(config)
    assert not (tmp_path / "store").exists()


# -- the embedder ---------------------------------------------------------------------------------------------------------


def test_a9_an_embedder_is_known_by_its_files_and_not_by_its_name(tiny_model: Path, tmp_path: Path) -> None:
    from iterative_ft.judges import embedder

    def identity(folder: Path) -> str:
        embedder.identity.cache_clear()
        embedder.embedder_folder.cache_clear()
        return embedder.embedder_identity(str(folder))

    one, moved = copy_of(tiny_model, tmp_path / "one"), copy_of(tiny_model, tmp_path / "moved")
    first = identity(one)
    assert identity(moved) == first
    (one / "config.json").write_text((one / "config.json").read_text() + " ")
    assert identity(one) != first
    (moved / "model.safetensors").rename(moved / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"judge\.embedder=.*pickled weights are never loaded"):
        identity(moved)
    with pytest.raises(ConfigError, match=r"judge\.embedder=no/such is no folder here"):
        embedder.embedder_identity("no/such")
