"""Linear layers through oneDNN give what PyTorch's own give, both ways, and stay out of where they do not belong."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from iterative_ft.machine import device
from iterative_ft.models import linear
from iterative_ft.models.linear import OneDNNLinear, through_onednn

AMD = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f\n"


@pytest.fixture
def slow_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: True)


@pytest.mark.parametrize(
    ("said", "slow"),
    [
        (AMD, True),
        (AMD.replace("AuthenticAMD", "GenuineIntel"), False),
        (AMD.replace("avx512f", "sse"), False),
        ("", False),
    ],
)
def test_where_mkl_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, slow: bool) -> None:
    (tmp_path / "cpuinfo").write_text(said)
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "cpuinfo")
    assert device.mkl_is_slow() == slow


@pytest.mark.usefixtures("slow_mkl")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 5, 40)])
def test_values_and_gradients_are_those_of_a_plain_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(40, 24, bias=bias).requires_grad_(False)
    fast = through_onednn(torch.nn.Sequential(copy.deepcopy(plain)))[0]
    assert type(fast) is OneDNNLinear
    inputs = [torch.randn(*shape) for _ in range(2)]
    inputs.append(torch.randn(*shape[:-1], 80)[..., ::2])  # not contiguous
    for x in inputs:
        gradients = []
        for layer in (plain, fast):
            mine = x.clone().requires_grad_()
            (layer(mine) ** 2).sum().backward()
            gradients.append(mine.grad)
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("slow_mkl")
def test_a_weight_that_learns_gets_its_gradient() -> None:
    layer = through_onednn(torch.nn.Sequential(torch.nn.Linear(8, 4)))[0]
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    with torch.no_grad():  # what is only read takes the fast way
        assert layer(torch.randn(3, 8)).grad_fn is None


@pytest.mark.usefixtures("slow_mkl")
def test_what_keeps_to_pytorchs_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Linear):
        pass

    net = torch.nn.ModuleList([torch.nn.Linear(4, 4, dtype=torch.bfloat16), Own(4, 4), torch.nn.Linear(4, 4)])
    assert [type(layer) for layer in through_onednn(net)] == [torch.nn.Linear, Own, OneDNNLinear]
    monkeypatch.setattr(linear, "product", lambda *_: pytest.fail("used"))
    fast = net[2].requires_grad_(False)
    assert fast(torch.zeros(0, 4)).shape == (0, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(torch.zeros(2, 4)).dtype == torch.bfloat16
    fast.double()
    assert fast(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float64


def test_elsewhere_a_network_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "mkl_is_slow", lambda: False)
    assert type(through_onednn(torch.nn.Sequential(torch.nn.Linear(4, 4)))[0]) is torch.nn.Linear
