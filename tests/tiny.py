"""Tiny models of four families, tokenizers trained on the spot, saved like any model: what the real code runs on in seconds.

Each has the habits of its family that code trips over: what ends a turn, what the template refuses, which layers are linear,
whether the output head is tied to the embeddings.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from iterative_ft.config.schema import Config
from iterative_ft.launch.compose import GROUPS, compose_jobs, load_config, quote_reinit
from iterative_ft.machine.files import file_digests, text_digest
from iterative_ft.models.base import prepare
from iterative_ft.models.policy import Policy
from iterative_ft.sampling.interface import Block, Canary, Completion, Params, Request, Sampled, one_by_one
from iterative_ft.stages.bench import Bench

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 300
END_OF_TEXT, START, END, BOS = range(4)  # ids of a family's special tokens; GPT-2 has the first alone
TEXT = (
    "the quick river asks for bread and the small house on the hill waits for the winter",
    "what should I cook for dinner when friends come over and the kitchen is small",
    "Question: is it worth learning the piano? Answer: yes, and it takes time.",
)


# -- families -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """What a family's network and tokenizer are like."""

    network: tuple[str, dict[str, Any]]
    """Class of its config in transformers, and arguments."""
    special: tuple[str, ...]
    """Special tokens, ids from 0: the end of a text, the start and the end of a turn, BOS, others."""
    template: str | None
    end: str
    """What ends an answer."""
    eos: str
    """What the tokenizer calls its end token."""
    ends: list[int]
    """End tokens of generation_config.json."""
    pad: str | None
    bos: str | None = None
    adds_bos: bool = False
    """Whether the tokenizer puts BOS before every text."""


SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,  # wide enough for a peaked next-token distribution
}
CHATML = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML + (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")

FAMILIES = {
    "llama": Family(  # head tied to the embeddings, template with a system role
        ("LlamaConfig", {**SHAPE, "tie_word_embeddings": True}),
        CHATML_TOKENS,
        CHATML,
        end="<|im_end|>",
        eos="<|im_end|>",
        ends=[END],
        pad="<|endoftext|>",
    ),
    "qwen3": Family(  # a head of its own, normalised queries and keys, two end tokens, a template with a switch
        ("Qwen3Config", {**SHAPE, "tie_word_embeddings": False}),
        CHATML_TOKENS,
        THINKING,
        end="<|im_end|>",
        eos="<|im_end|>",
        ends=[END, END_OF_TEXT],
        pad="<|endoftext|>",
    ),
    "gemma": Family(  # capped logits, BOS everywhere, turns end with another token than the tokenizer's, no system role
        ("Gemma2Config", {**SHAPE, "query_pre_attn_scalar": 32, "sliding_window": 64}),
        ("<eos>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<pad>"),
        TURNS,
        end="<end_of_turn>",
        eos="<eos>",
        ends=[END_OF_TEXT, END],
        pad="<pad>",
        bos="<bos>",
        adds_bos=True,
    ),
    "gpt2": Family(  # Conv1D layers, learned positions, one special token for everything, no chat template
        ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512, "initializer_range": 0.15}),
        ("<|endoftext|>",),
        None,
        end="<|endoftext|>",
        eos="<|endoftext|>",
        ends=[END_OF_TEXT],
        pad=None,
        bos="<|endoftext|>",
    ),
}
MODELS = [*FAMILIES, "llama_bos"]
"""Keys of `tiny_models`."""


def families(*without: str, **marks: pytest.MarkDecorator) -> list[Any]:
    """All families but those `without`, to parametrise with; some with a mark."""
    assert {*without, *marks} <= FAMILIES.keys()
    return [pytest.param(name, marks=marks.get(name, ())) for name in FAMILIES if name not in without]


def broken(reason: str, raises: type[BaseException] | None = None) -> pytest.MarkDecorator:
    """A case that the code does not handle yet."""
    return pytest.mark.xfail(strict=True, reason=reason, raises=raises)


def save_tiny_model(folder: Path, family: str = "llama", bos: bool = False, pad: str | None = None, seed: int = 0) -> Path:
    """Write checkpoint and tokenizer into `folder`.

    Args:
        bos: the tokenizer puts "<s>" before every text, and the chat template before every chat (Gemma has its own anyway).
        pad: in place of the family's; "<|im_end|>" pads with the token that ends answers, as some released models do.
    """
    import torch
    import transformers

    kind = FAMILIES[family]
    tokenizer = tiny_tokenizer(kind, bos, pad)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    name, settings = kind.network
    config = getattr(transformers, name)(
        **settings,
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig(eos_token_id=kind.ends, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    return folder


def tiny_tokenizer(kind: Family, bos: bool, pad: str | None) -> Any:
    """Byte-level BPE with a vocabulary of 300."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        TEXT * 4,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(kind.special),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert raw.get_vocab_size() == VOCABULARY
    bos_token = kind.special[BOS] if bos else kind.bos
    if bos or kind.adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, raw.token_to_id(bos_token))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=kind.eos,
        pad_token=pad or kind.pad,
        bos_token=bos_token,
        additional_special_tokens=list(kind.special[:BOS]),
        chat_template=kind.template,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a tiny model of each family, and of a Llama that adds a BOS and pads with the token that ends answers."""
    folder = tmp_path_factory.mktemp("tiny")
    found = {name: save_tiny_model(folder / name, name) for name in FAMILIES}
    return found | {"llama_bos": save_tiny_model(folder / "llama_bos", bos=True, pad="<|im_end|>")}


@pytest.fixture(scope="session")
def tiny_model(tiny_models: dict[str, Path]) -> Path:
    """Folder of a tiny Llama without BOS."""
    return tiny_models["llama"]


@pytest.fixture(scope="session")
def tiny_model_bos(tiny_models: dict[str, Path]) -> Path:
    """Folder of a tiny Llama whose tokenizer adds a BOS and pads with the token that ends answers."""
    return tiny_models["llama_bos"]


def family_of(model: Path) -> Family:
    """Whose checkpoint a folder holds."""
    kind = read_json(model / "config.json")["model_type"]
    return next(family for name, family in FAMILIES.items() if kind.startswith(name))


def tiny_config(model: Path, store: Path, *overrides: str) -> Config:
    """A run's config on a tiny model, transformers sampler, float32, on CPU; later overrides win."""
    family = family_of(model)
    settings = [
        "model=custom",
        f"model.path={model}",
        "model.name=tiny",
        "model.dtype=float32",
        f"model.chat={str(family.template is not None).lower()}",
        f"model.end_token='{family.end}'",
        f"model.document_end_token='{family.special[END_OF_TEXT]}'",
        "sampler=transformers",
        "sampler.dtype=float32",
        "sampler.max_model_len=512",
        "device=cpu",
        "lora.rank=4",
        "lora.alpha=8",
        f"store={store}",
        "wandb.mode=disabled",
    ]
    return composed_config([*unless_given(settings, overrides), *overrides])


def unless_given(settings: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The settings that no override replaces."""
    given = {override.split("=")[0] for override in overrides}
    return [setting for setting in settings if setting.split("=")[0] not in given]


@cache
def whole(*groups: str) -> Any:
    """Hydra's composition of a choice of groups; costs a third of a second, so once a choice."""
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/")
    return next(iter(compose_jobs(list(groups))))[1]


def composed(overrides: list[str]) -> Any:
    """What Hydra makes of a command line, before pydantic sees it."""
    quoted = [quote_reinit(override) for override in overrides]
    groups = [o for o in quoted if o.lstrip("+").split("=")[0] in GROUPS]
    config = copy.deepcopy(whole(*groups))
    for override in quoted:
        if override not in groups:
            key, _, value = override.lstrip("+").partition("=")
            OmegaConf.update(config, key, OmegaConf.from_dotlist([f"value={value}"])["value"], force_add=True)
    return config


def composed_config(overrides: list[str]) -> Config:
    return load_config(composed(overrides))


def method_of(model: Path) -> str:
    """A method that a model's texts can be encoded for: without a chat template that leaves documents."""
    return "sdf" if family_of(model).template is None else "sft"


# -- policies -------------------------------------------------------------------------------------------------------------


def policy_of(model: Path, adapter: Path | None = None, name: str = "policy[0]") -> Policy:
    """A policy whose digests are those of its files."""
    digest = text_digest(file_digests(model))
    if adapter is None:
        return Policy("base", model, digest)
    return Policy(name, model, digest, adapter, text_digest(file_digests(adapter)))


def save_adapter(
    model: Path, folder: Path, size: float, seed: int = 0, rank: int = 4, alpha: int = 8, dtype: str = "float32"
) -> Path:
    """Save a LoRA adapter that no training made: A as PEFT draws it, B normal with standard deviation `size`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    made = get_peft_model(
        base,
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", bias="none", task_type="CAUSAL_LM"),
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, size) if size > 0 else parameter.zero_()
    made.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def load_policy(model: Path, adapter: Path | None) -> Any:
    """Network of a policy in float32, by none of the project's code."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return base if adapter is None else PeftModel.from_pretrained(base, str(adapter)).eval()


def rename_weight(model: Path, folder: Path, old: str, new: str | None) -> Path:
    """Copy a checkpoint with one weight under another name, or (None) without it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weight = weights.pop(old)
    if new is not None:
        weights[new] = weight
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class ScriptedSampler:
    """Writes what it is told, one completion after the other and then from the start again, whoever the policy is."""

    shares_calls = False

    def __init__(self, *completions: Completion) -> None:
        self.script = cycle(completions)

    def load(self, policy: Policy) -> Canary:
        return Canary(0.0, 0.0, 0.0)

    def sample(self, requests: list[Request], params: Params) -> list[Completion]:
        return [next(self.script) for _ in requests]

    def sample_blocks(self, blocks: list[Block]) -> Generator[Sampled]:
        return one_by_one(self.sample, blocks)


def give_sampler(bench: Bench, sampler: Any) -> None:
    """Have a bench sample with `sampler` in place of its engine."""
    bench.__class__ = type("BenchWithSampler", (Bench,), {"sampler": sampler})


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


# -- the embedded model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def embedded_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the embedded model, dequantised once a session (4 s)."""
    folder = tmp_path_factory.mktemp("embedded")
    prepare(embedded_config(folder / "store").model, folder)
    return folder


def embedded_config(store: Path, *overrides: str) -> Config:
    """The shipped defaults on CPU, with a store of the test's own."""
    return composed_config([f"store={store}", "device=cpu", "wandb.mode=disabled", *overrides])
