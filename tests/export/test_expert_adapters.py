"""Adapters on a mixture's experts, from a checkpoint to what transformers and PEFT load."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, shake, stored
from tests.modules.architectures import random_model
from tests.modules.test_expert_adapters import ALL
from ts2_lightning.export import export_checkpoint, export_model
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model

ARCHITECTURES = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3"]


def adapted(
    base: Path, architecture: str, dtype: torch.dtype = torch.float32
) -> tuple[LanguageModelConfig, PreTrainedModel]:
    """A mixture in a directory, and the same with an adapter on its experts that does something."""
    write_base(base)
    random_model(ALL[architecture]).to(dtype).save_pretrained(base)
    adapter = AdapterConfig(r=4, alpha=8, target_parameters="all-experts")
    lm = LanguageModelConfig(str(base), adapter=adapter)
    model = load_language_model(lm)
    shake(model)
    return lm, model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("from_file", [False, True])
def test_merged_logits_are_the_adapted_models(tmp_path: Path, architecture: str, from_file: bool) -> None:
    base = tmp_path / "base"
    lm, model = adapted(base, architecture)
    if from_file:
        checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
        out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base))
    else:
        out = export_model(model, tmp_path / "export", settings(base))
    assert stored(out).keys() == stored(base).keys()
    torch.testing.assert_close(logits(load(out)), logits(model), rtol=1e-4, atol=1e-5)
    assert (logits(load(base)) - logits(model)).abs().max() > 0.03


def test_bfloat16_experts_are_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    lm, model = adapted(tmp_path / "base", "olmoe", torch.bfloat16)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    exact = export_checkpoint(checkpoint, lm, tmp_path / "exact", settings(tmp_path / "base", dtype="float32"))
    rounded = export_checkpoint(checkpoint, lm, tmp_path / "rounded", settings(tmp_path / "base"))
    weights = {name: weight for name, weight in stored(rounded).items() if "experts" in name}
    assert weights
    for name, weight in weights.items():
        assert torch.equal(weight, stored(exact)[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_separate_adapter_is_pefts(tmp_path: Path, architecture: str) -> None:
    base = tmp_path / "base"
    lm, model = adapted(base, architecture)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base, adapter="separate"))
    assert {"experts.down_proj", "experts.gate_up_proj"} <= set(
        json.loads((out / "adapter_config.json").read_text())["target_parameters"]
    )
    loaded = PeftModel.from_pretrained(load(base), str(out))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)
