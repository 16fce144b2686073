"""The mean of several checkpoints, against a mean in float64."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, shake, stored
from tests.export.test_hub_names import CONFIGS, random_model
from tests.support.errors import refused
from ts2_lightning.export import export_checkpoint
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model

SEEDS = (1, 2, 3)


def checkpoints(lm: LanguageModelConfig, where: Path) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """Checkpoints of trainings from the same start, each with the whole weights that it stands for."""
    for seed in SEEDS:
        model = load_language_model(lm)
        shake(model, seed)
        file = save_checkpoint(model, where / f"step-{seed}.ckpt")
        out = export_checkpoint(file, lm, where / f"export-{seed}", settings(Path(lm.path), dtype="float32"))
        yield file, load(out).state_dict()


def check_mean(out: Path, models: list[dict[str, Tensor]], share: float = 1.0, base: Path | None = None) -> None:
    then = {} if base is None else load(base).state_dict()
    for name, tensor in load(out).state_dict().items():
        mean = sum((model[name].double() for model in models), torch.zeros(())) / len(models)
        expected = mean if share == 1 else (1 - share) * then[name].double() + share * mean
        error = (tensor.double() - expected).abs().max()
        assert error < 1e-6, f"{name}: {error}"


@pytest.mark.parametrize("tied", [False, True])
def test_whole_weights(tmp_path: Path, tied: bool) -> None:
    base = write_base(tmp_path / "base", tied=tied)
    lm = LanguageModelConfig(str(base))
    files, models = zip(*checkpoints(lm, tmp_path), strict=True)
    out = export_checkpoint(files[2], lm, tmp_path / "out", settings(base), files[:2])
    check_mean(out, [*models])
    assert stored(out).keys() == stored(base).keys()
    record = json.loads((out / "export.json").read_text())
    assert record == {"average_of": [files[2].name, files[0].name, files[1].name]}
    out = export_checkpoint(files[0], lm, tmp_path / "out", settings(base, toward_base=0.7), files[1:])
    check_mean(out, [*models], 0.7, base)


@pytest.mark.parametrize("options", [{}, {"target_parameters": "all-experts"}], ids=["layers", "experts"])
def test_adapters(tmp_path: Path, options: dict[str, Any]) -> None:
    """The mean of the products, which is not the product of the means."""
    base = write_base(tmp_path / "base")
    if options:
        random_model(CONFIGS["one to many, more"]).save_pretrained(base)
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(r=4, alpha=8, **options))
    files, models = zip(*checkpoints(lm, tmp_path), strict=True)
    out = export_checkpoint(files[0], lm, tmp_path / "out", settings(base), files[1:])
    check_mean(out, [*models])
    apart = export_checkpoint(files[0], lm, tmp_path / "apart", settings(base, adapter="separate"), files[1:])
    assert json.loads((apart / "adapter_config.json").read_text())["r"] == 12
    peft: Any = PeftModel.from_pretrained(load(base), str(apart))
    torch.testing.assert_close(logits(peft), logits(load(out)), rtol=1e-4, atol=1e-5)
    out = export_checkpoint(files[0], lm, tmp_path / "out", settings(base, toward_base=0.5), files[1:])
    check_mean(out, [*models], 0.5, base)


def test_bfloat16_weights_are_added_in_float32(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype="bfloat16")
    lm = LanguageModelConfig(str(base), dtype="bfloat16")
    files, models = zip(*checkpoints(lm, tmp_path), strict=True)
    out = export_checkpoint(files[0], lm, tmp_path / "out", settings(base, dtype="float32"), files[1:])
    check_mean(out, [*models])
    out = export_checkpoint(files[0], lm, tmp_path / "rounded", settings(base), files[1:])
    assert {tensor.dtype for tensor in stored(out).values()} == {torch.bfloat16}


def test_other_models_are_refused(tmp_path: Path, base: Path) -> None:
    lm, other = LanguageModelConfig(str(base)), write_base(tmp_path / "other", width=32)
    file = save_checkpoint(load(base), tmp_path / "step-1.ckpt")
    wide = save_checkpoint(load(other), tmp_path / "step-2.ckpt")
    with refused(r"step-2.ckpt and .*step-1.ckpt cannot be averaged: they differ in model.embed_tokens.weight \(21 "):
        export_checkpoint(file, lm, tmp_path / "out", settings(base), [wide])
    with refused("step-3.ckpt: no checkpoint, or not a complete one"):
        export_checkpoint(file, lm, tmp_path / "out", settings(base), [tmp_path / "step-3.ckpt"])
