"""The default precision: bfloat16 compute where a GPU has it, and only there."""

import pytest
import torch

from ts2_lightning.cli.trainer_settings import computes_in_bfloat16


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda", "cpu", "mps"])
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_bfloat16_where_the_hardware_has_it(
    accelerator: str, gpu: bool, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bfloat16)
    assert computes_in_bfloat16(accelerator) == (accelerator in ("auto", "gpu", "cuda") and gpu and bfloat16)
