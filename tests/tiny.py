"""A tiny Llama with a tokenizer trained on the spot, saved like any model: what the real code paths run on in seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from iterative_ft.config import Config
from iterative_ft.policy import Policy
from iterative_ft.store import file_digests, text_digest

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 300
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]
TEXT = (
    "the quick river asks for bread and the small house on the hill waits for the winter",
    "what should I cook for dinner when friends come over and the kitchen is small",
    "Question: is it worth learning the piano? Answer: yes, and it takes time.",
)
TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_model(folder: Path, bos: bool = False, pad: str = "<|endoftext|>", seed: int = 0) -> Path:
    """Write checkpoint and tokenizer into `folder`.

    Args:
        bos: the tokenizer puts "<s>" before every text, and the chat template before every chat.
        pad: the pad token; "<|im_end|>" pads with the token that ends answers, as some released models do.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(bos, pad)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.15,  # wide enough for a peaked next-token distribution
        bos_token_id=tokenizer.convert_tokens_to_ids("<s>") if bos else None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


def tiny_tokenizer(bos: bool, pad: str) -> Any:
    """Byte-level BPE with a vocabulary of 300, eos "<|im_end|>"."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        TEXT * 4,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    assert raw.get_vocab_size() == VOCABULARY
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token=pad,
        bos_token="<s>" if bos else None,
        additional_special_tokens=["<|im_start|>", "<|endoftext|>"],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model without BOS."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model whose tokenizer adds a BOS and pads with the token that ends answers."""
    return save_tiny_model(tmp_path_factory.mktemp("tiny-bos"), bos=True, pad="<|im_end|>")


def tiny_config(model: Path, store: Path, *overrides: str) -> Config:
    """A run's config on a tiny model, transformers sampler, float32, on CPU; later overrides win."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from iterative_ft.config import load_config

    settings = [
        "model=custom",
        f"model.path={model}",
        "model.name=tiny",
        "model.dtype=float32",
        "model.end_token='<|im_end|>'",
        "model.document_end_token='<|endoftext|>'",
        "model.n_parameters_m=0.1",
        "sampler=transformers",
        "sampler.dtype=float32",
        "sampler.max_model_len=512",
        "device=cpu",
        "lora.rank=4",
        "lora.alpha=8",
        f"store={store}",
        "wandb.mode=disabled",
    ]
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        names = {o.split("=")[0] for o in overrides}
        composed = compose("config", overrides=[s for s in settings if s.split("=")[0] not in names] + list(overrides))
    return load_config(composed)


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


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="session")
def embedded_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the embedded model, dequantised once a session (4 s)."""
    from iterative_ft.policy import prepare_model

    folder = tmp_path_factory.mktemp("embedded")
    prepare_model(embedded_config(folder / "store").model, folder)
    return folder


def embedded_config(store: Path, *overrides: str) -> Config:
    """The shipped defaults on CPU, with a store of the test's own."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from iterative_ft.config import load_config

    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return load_config(compose("config", overrides=[f"store={store}", "device=cpu", "wandb.mode=disabled", *overrides]))
