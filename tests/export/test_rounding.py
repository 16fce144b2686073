"""What leaves is what was trained: sums in float32, one rounding, and a line where it takes much of the update."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, stored
from ts2_lightning.export import export_checkpoint, export_model
from ts2_lightning.export.rounding import TOLERATED, ExportedWeight, Rounding
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapters import merged_weights
from ts2_lightning.modules.language_model import load_language_model


@torch.no_grad()
def nudge(model: Any, size: float) -> None:
    """A short training: small changes of all that is trained."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = write_base(tmp_path / "base")
    load(path).to(torch.bfloat16).save_pretrained(path)
    return path


def share_of(out: Path, exact: dict[str, Tensor], base: Path) -> float:
    """Norm of the rounding over norm of the update, over all weights."""
    written, before = stored(out), stored(base)
    assert written.keys() == before.keys()
    rounding = sum(float((written[name].double() - exact[name].double()).square().sum()) for name in written)
    update = sum(float((exact[name].double() - before[name].double()).square().sum()) for name in written)
    return float((rounding / update) ** 0.5)


@pytest.fixture(autouse=True)
def listening(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Lightning's logger hands nothing on to the root."""
    logger = logging.getLogger("lightning.pytorch")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.message for record in caplog.records if "rounded to" in record.message]
    caplog.clear()
    return list(dict.fromkeys(lines))  # another test may have had Lightning's logger hand on what it gets


@pytest.mark.parametrize("way", ["in memory", "checkpoint"])
def test_an_adapter_on_a_bfloat16_base(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str) -> None:
    """Float32 is asked for, and got: the weights of the base plus the adapter, which the base's dtype would lose."""
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(r=4))
    model = load_language_model(lm)
    nudge(model, 3e-5)
    exact = {weight.name: weight.value for weight in merged_weights(model)}
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")

    def export(name: str, **options: Any) -> Path:
        if way == "checkpoint":
            return export_checkpoint(checkpoint, lm, tmp_path / name, settings(base, **options))
        return export_model(model, tmp_path / name, settings(base, **options))

    whole = export("whole", dtype="float32")
    assert told(caplog) == []
    assert {tensor.dtype for tensor in stored(whole).values()} == {torch.float32}
    torch.testing.assert_close(logits(load(whole)), logits(model), rtol=1e-5, atol=1e-5)
    rounded = export("rounded")
    assert {tensor.dtype for tensor in stored(rounded).values()} == {torch.bfloat16}
    for name, tensor in stored(rounded).items():
        assert torch.equal(tensor, exact[name].to(torch.bfloat16)), f"{name} is rounded once"
    [line] = told(caplog)
    share = share_of(rounded, exact, base)
    assert share > 0.3
    assert line.startswith(f"the export is rounded to bfloat16, by {share:.0%} of what training has changed")
    assert "--dtype float32" in line


@pytest.mark.parametrize("size", [1e-5, 3e-3, 0.3])
def test_a_whole_model_on_a_bfloat16_base(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, size: float
) -> None:
    lm = LanguageModelConfig(str(base))
    model = load_language_model(lm)
    nudge(model, size)
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    for export in (partial(export_model, model), partial(export_checkpoint, checkpoint, lm)):
        share = share_of(export(tmp_path / "out", settings(base)), exact, base)
        lines = told(caplog)
        assert (share > TOLERATED) == (size < 0.1) == bool(lines)
        assert all(f"by {share:.0%} of what training has changed" in line for line in lines)


def test_where_nothing_is_rounded_nothing_is_read() -> None:
    def read() -> Tensor:
        raise AssertionError

    rounding, weight = Rounding(), ExportedWeight("w", torch.ones(3), torch.float32, read)
    rounding.add(weight, torch.ones(3))
    assert (rounding.share, rounding.complaint) == (0.0, None)
    rounding.add(ExportedWeight("w", torch.ones(3), torch.float32), torch.ones(3, dtype=torch.bfloat16))
    assert rounding.share == 0.0, "the start is not known"
