"""A micro-batch as one row: no padding, a pair's common beginning once, and attention inside each example alone.

TRL hands the model a padded batch. For one training step we stand between TRL and the model's body (all but the LM head): the
batch's tokens are laid out in one row, the body runs on that row, and its hidden states are put back where TRL looks for them.
Losses, metrics, the reference and the head stay TRL's. Results are equal up to rounding; the body sees fewer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from peft.tuners.lora import LoraLayer
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from iterative_ft.models.attention import bare, causal_alone, runs_own_code

ATTENTION = "one_row"
"""Name of our attention among those of transformers."""


# -- the row --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """Tokens start..end of the row, which attend to each other alone."""

    start: int
    end: int
    mask: torch.Tensor | None
    """(1, 1, n, n) bool for n = end - start, True where row's token may look at column's; None is plain causal."""


@dataclass(frozen=True)
class Row:
    """N examples without padding in T tokens. An example's last token is left out: nothing sees it or is read from it."""

    ids: torch.Tensor
    """(1, T)"""
    positions: torch.Tensor
    """(1, T): each token's place in its own example."""
    segments: tuple[Segment, ...]
    places: torch.Tensor
    """(N * L,): for each place of the padded (N, L) batch, where in the row its token is; 0 for padding and last tokens."""


def lay_out(input_ids: torch.Tensor, attention_mask: torch.Tensor, pairs: bool) -> Row:
    """The row of a batch that is padded on the right.

    Args:
        input_ids: (N, L)
        attention_mask: (N, L), 1 for tokens and 0 for padding.
        pairs: example i and example i + N/2 are a pair. What both begin with (the prompt at least) is laid out once, followed
            by the rest of the first and the rest of the second, which does not see the first's.
    """
    n, length = input_ids.shape
    sizes = (attention_mask.sum(1) - 1).clamp(min=0).tolist()
    groups = [(i, i + n // 2) for i in range(n // 2)] if pairs else [(i,) for i in range(n)]
    device = input_ids.device
    places = torch.zeros(n, length, dtype=torch.long, device=device)
    ids, positions, segments, end = [], [], [], 0
    for first, *second in groups:
        start, size = end, sizes[first]
        places[first, :size] = torch.arange(start, start + size, device=device)
        ids.append(input_ids[first, :size])
        positions.append(torch.arange(size, device=device))
        end += size
        mask = None
        for other in second:
            shared = common_beginning(input_ids[first, :size], input_ids[other, : sizes[other]])
            own = torch.arange(shared, sizes[other], device=device)
            places[other, :shared] = torch.arange(start, start + shared, device=device)
            places[other, shared : sizes[other]] = end + own - shared
            ids.append(input_ids[other, shared : sizes[other]])
            positions.append(own)
            end += len(own)
            mask = forked(shared, size, size + len(own), device)
        segments.append(Segment(start, end, mask))
    kept = tuple(segment for segment in segments if segment.end > segment.start)
    return Row(torch.cat(ids)[None], torch.cat(positions)[None], kept, places.flatten())


def common_beginning(a: torch.Tensor, b: torch.Tensor) -> int:
    """How many leading tokens two examples, (n,) and (m,), share."""
    n = min(len(a), len(b))
    return int((a[:n] == b[:n]).cumprod(0).sum())


def forked(shared: int, first_end: int, end: int, device: torch.device) -> torch.Tensor | None:
    """Mask (1, 1, end, end) of shared | rest of the first | rest of the second; None where plain causal says the same."""
    if first_end == shared or end == first_end:
        return None
    mask = torch.ones(end, end, dtype=torch.bool, device=device).tril()
    mask[first_end:, shared:first_end] = False
    return mask[None, None]


def attend_in_segments(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    one_row_segments: tuple[Segment, ...],
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' own SDPA attention, segment by segment: (1, heads, T, d) to (1, T, heads, d)."""
    parts = []
    for segment in one_row_segments:
        q, k, v = (x[:, :, segment.start : segment.end] for x in (query, key, value))
        parts.append(sdpa_attention_forward(module, q, k, v, segment.mask, **options)[0])
    return torch.cat(parts, 1), None


AttentionInterface.register(ATTENTION, attend_in_segments)


# -- when ------------------------------------------------------------------------------------------------------------------


def takes_segments(config: Any) -> bool:
    """Whether a model with this config can have its tokens in one row: its attention is causal alone, by transformers' SDPA."""
    return causal_alone(config) and config._attn_implementation == "sdpa"


def casts_say_nothing(model: torch.nn.Module, autocast: torch.dtype | None) -> bool:
    """Whether PEFT's cast of an adapter's input to the adapter's dtype leaves every number as it is.

    Autocast casts the same input to its own dtype right afterwards. By way of float32, or of that very dtype, the result is the
    same bits, unless dropout works in between, or a variant of LoRA that reads the input in other ways.

    Args:
        autocast: the dtype that autocast computes in; None without it, where a cast is either needed or does nothing.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return autocast is not None and all(
        not layer.lora_variant
        and all(getattr(dropout, "p", 0.0) == 0.0 for dropout in layer.lora_dropout.values())
        and all(lora_a.weight.dtype in (torch.float32, autocast) for lora_a in layer.lora_A.values())
        for layer in layers
    )


# -- the training step -----------------------------------------------------------------------------------------------------


class OneRow:
    """Mixin before a trainer of TRL's: where model and settings allow it, training steps run in one row.

    Measured on CPUs in one process, and used there alone. Evaluation, and anything else outside of a training step, is TRL's.
    """

    pairs = False
    """DPO's batches: the chosen of all pairs, then the rejected."""
    one_row = True
    """False keeps to TRL's padded batches."""

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        step = super().training_step  # type: ignore[misc]
        if self.args.device.type != "cpu" or self.args.world_size > 1:
            return step(*args, **kwargs)
        model = self.bare_model()
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.accelerator.mixed_precision)
        with (
            body_in_one_row(model, self.pairs) if self.fits_one_row() else nullcontext(),
            disable_input_dtype_casting(model, casts_say_nothing(model, autocast)),
        ):
            return step(*args, **kwargs)  # the backward pass too, in which checkpointed layers run again

    def fits_one_row(self: Any) -> bool:
        return bool(
            self.one_row
            and self.args.neftune_noise_alpha is None  # noise that is scaled by the padded length
            and getattr(self.args, "disable_dropout", True)  # DPO: a shared prompt would meet one dropout for both answers
            and not getattr(self, "padding_free", False)  # a row of TRL's own
            and not self.args.torch_compile
            and not runs_own_code(self.bare_model())
            and takes_segments(self.bare_model().config)
        )

    def bare_model(self: Any) -> Any:
        """The model without accelerate's wrappers and PEFT's outer shell; adapters stay in its layers."""
        return bare(self.accelerator.unwrap_model(self.model))


@contextmanager
def body_in_one_row(model: Any, pairs: bool) -> Iterator[None]:
    """Inside, the model's body takes padded batches (N, L) and gives hidden states (N, L, d) as ever, by way of a row.

    Hidden states of padding and of last tokens, from which nothing is read, are those of another token.
    """
    body, config = model.base_model, model.config
    plain, attention = body.forward, config._attn_implementation

    def forward(input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        if input_ids is None or attention_mask is None:  # no batch of TRL's
            config._attn_implementation = attention
            try:
                return plain(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            finally:
                config._attn_implementation = ATTENTION
        row = lay_out(input_ids, attention_mask, pairs)
        outputs = plain(input_ids=row.ids, position_ids=row.positions, one_row_segments=row.segments, **kwargs)
        hidden = outputs.last_hidden_state[0].index_select(0, row.places)
        outputs.last_hidden_state = hidden.view(*input_ids.shape, -1)
        return outputs

    body.forward, config._attn_implementation = forward, ATTENTION
    try:
        yield
    finally:
        del body.forward
        config._attn_implementation = attention
