"""Which way a device takes, and what the user is told of it."""

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from ts2_lightning.engines import kernels
from ts2_lightning.engines.kernels import row_kernels

KERNELS = SimpleNamespace(summarize=lambda *_: None)


def rows_on(device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """What is asked of rows of logits here; there is no GPU to have some on."""
    return cast(Tensor, SimpleNamespace(device=torch.device(device), dtype=dtype))


@pytest.fixture(autouse=True)
def h200(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU that can, with Triton that works."""
    kernels._obstacle.cache_clear()
    kernels._told.cache_clear()
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels, "_kernels", lambda: KERNELS)
    monkeypatch.setattr(kernels, "_trial", lambda device: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX")
    yield
    kernels._obstacle.cache_clear()
    kernels._told.cache_clear()


def test_a_gpu_that_can_takes_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert row_kernels(None, rows_on("cuda")) is KERNELS
        assert row_kernels(True, rows_on("cuda:1")) is KERNELS
        assert row_kernels(False, rows_on("cuda")) is None
        assert row_kernels(None, rows_on("cuda", torch.float64)) is None
        assert row_kernels(None, rows_on("mps")) is None


@pytest.mark.parametrize(
    ("module", "name", "value", "message"),
    [
        (kernels, "find_spec", lambda name: None, "Triton is not installed"),
        (torch.version, "hip", "6.4", "for NVIDIA GPUs, and this device is an AMD GPU"),
        (torch.cuda, "get_device_capability", lambda device: (7, 5), "GTX is older than compute capability 8.0"),
        (kernels, "_trial", lambda device: "no C compiler", "no C compiler"),
    ],
)
def test_a_gpu_that_cannot_is_told_once(
    module: Any, name: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.warns(UserWarning, match=f"more passes over memory than kernels would: .*{message}"):
        assert row_kernels(None, rows_on("cuda")) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert row_kernels(None, rows_on("cuda")) is None
    with refused(f"ChunkedEngine: kernels is true, but they cannot be used: .*{message}.*; leave it out"):
        row_kernels(True, rows_on("cuda"))


def test_kernels_read_float32() -> None:
    with refused("they read logits in float32, got float64"):
        row_kernels(True, rows_on("cuda", torch.float64))


def test_a_trial_tells_what_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(kernels, "_kernels", lambda: SimpleNamespace(summarize=fail))
    assert kernels._trial(torch.device("cpu")) == "Triton's kernel does not run here (Failed to find C compiler.)"
