"""Frozen linear layers in float32 through oneDNN, on processors where PyTorch's own way is slow.

PyTorch multiplies float32 matrices on a CPU by MKL, which leaves AVX-512 aside on processors that are not Intel's. oneDNN,
which comes with PyTorch too and does its bfloat16, uses it: twice as fast there, and equal up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from iterative_ft.machine.device import mkl_is_slow


def through_onednn(net: Any) -> Any:
    """The network, its linear layers changed where that makes them faster; weights, names and shapes stay."""
    if mkl_is_slow() and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for layer in net.modules():
            if type(layer) is torch.nn.Linear and layer.weight.dtype is torch.float32:
                layer.__class__ = OneDNNLinear
    return net


class OneDNNLinear(torch.nn.Linear):
    """A linear layer whose products are oneDNN's where it does not learn itself, and all is in float32 on a CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        plain = x.dtype is self.weight.dtype is torch.float32 and x.device.type == "cpu" and x.numel() > 0
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        if not plain or learns or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        found: torch.Tensor = Product.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return found


class Product(torch.autograd.Function):
    """x @ weight.T + bias for x (..., inputs) and a weight (outputs, inputs) that gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return product(gradient, weight.t(), None), None, None


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found
