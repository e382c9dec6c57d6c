"""How likely a text is under the base model: plain forward passes, since engines are slow at scoring."""

from __future__ import annotations

from iterative_ft.child import run_isolated

MAX_TOKENS = 64  # of each text; word salad shows in the first sentence


def mean_nll(texts: list[str], model: str, device: str, trust_remote_code: bool = False) -> list[float]:
    """Mean negative log-likelihood, nats a token, of each text's first tokens under the model in folder `model`."""
    found = run_isolated(
        nll_here, device=device, texts=texts, model=model, device_name=device, trust_remote_code=trust_remote_code
    )
    return [float(x) for x in found]


def nll_here(texts: list[str], model: str, device_name: str, trust_remote_code: bool) -> list[float]:
    import torch
    from transformers import AutoTokenizer

    from iterative_ft.sampling.canary import cached_base

    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    # A newline stands before each text, so that its first word is scored as well.
    encoded = [tokenizer("\n" + text, add_special_tokens=False).input_ids[: MAX_TOKENS + 1] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
    net = cached_base(model, device_name, trust_remote_code)
    found = [0.0] * len(texts)
    with torch.no_grad(), torch.autocast(device_name, dtype=torch.bfloat16):
        for start in range(0, len(order), 16):
            batch = order[start : start + 16]
            longest = max(len(encoded[i]) for i in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros(len(batch), longest, dtype=torch.long)
            for row, i in enumerate(batch):
                ids[row, : len(encoded[i])] = torch.tensor(encoded[i])
                mask[row, : len(encoded[i])] = 1
            ids, mask = ids.to(device_name), mask.to(device_name)
            logits = net(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none") * mask[:, 1:]
            means = losses.sum(1) / mask[:, 1:].sum(1).clamp(min=1)
            for row, i in enumerate(batch):
                found[i] = float(means[row])
    return found
