"""Adapters: merged exports answer as the adapted model did, separate ones are PEFT's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, shake, stored
from ts2_lightning.export import export_checkpoint, export_model
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.types import UserError


def adapted(base: Path, **options: Any) -> tuple[LanguageModelConfig, PreTrainedModel]:
    """A model with an adapter that does something."""
    adapter = AdapterConfig(r=4, alpha=8, head=options.pop("head", False))
    lm = LanguageModelConfig(str(base), adapter=adapter, **options)
    model = load_language_model(lm)
    shake(model)
    return lm, model


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("from_file", [False, True])
def test_merged_logits_are_the_adapted_models(tmp_path: Path, tied: bool, head: bool, from_file: bool) -> None:
    base = write_base(tmp_path / "base", tied=tied)
    lm, model = adapted(base, head=head)
    if from_file:
        checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
        out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base))
    else:
        out = export_model(model, tmp_path / "export", settings(base))
    torch.testing.assert_close(logits(load(out)), logits(model), rtol=1e-5, atol=1e-5)
    assert (logits(load(base)) - logits(model)).abs().max() > 0.1
    assert ("lm_head.weight" in stored(out)) is (head or not tied)
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is (tied and not head)


def test_bfloat16_base_is_merged_in_float32_and_rounded_once(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype="bfloat16")
    lm, model = adapted(base, dtype="float32")
    out = export_checkpoint(save_checkpoint(model, tmp_path / "last.ckpt"), lm, tmp_path / "export", settings(base))
    layer = model.model.layers[0].self_attn.q_proj
    exact = layer.base_layer.weight + layer.get_delta_weight("default")
    merged = stored(out)["model.layers.0.self_attn.q_proj.weight"]
    assert merged.dtype == torch.bfloat16
    assert torch.equal(merged, exact.to(torch.bfloat16))
    assert torch.equal(stored(out)["model.norm.weight"], stored(base)["model.norm.weight"])


def test_four_bits_become_sixteen(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = write_base(tmp_path / "base", width=128)
    lm, model = adapted(base, quantization="nf4")
    out = export_checkpoint(save_checkpoint(model, tmp_path / "last.ckpt"), lm, tmp_path / "export", settings(base))
    assert {tensor.dtype for tensor in stored(out).values()} == {torch.bfloat16}
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    trained, merged = logits(model).float(), logits(load(out))
    assert (merged - trained).abs().max() < 0.02 * trained.abs().max()
    # The same adapter on the weights as they were before they were cut to 4 bits is not what was trained.
    plain = load_language_model(LanguageModelConfig(str(base), adapter=lm.adapter))
    plain.load_state_dict({n: p for n, p in model.named_parameters() if "lora" in n}, strict=False)
    assert (logits(plain) - trained).abs().max() > 3 * (merged - trained).abs().max()


@pytest.mark.parametrize(("quantization", "head"), [(None, False), (None, True), ("nf4", False)])
def test_separate_adapter_is_pefts(tmp_path: Path, quantization: Any, head: bool) -> None:
    base = write_base(tmp_path / "base", width=128, tied=True)
    lm, model = adapted(base, quantization=quantization, head=head)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base, adapter="separate"))
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert not list(out.glob("model*"))
    weights = stored(out)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in weights)
    assert any(name.startswith("base_model.model.lm_head.") for name in weights) is head
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    loaded = PeftModel.from_pretrained(load(base), str(out))
    here = load_language_model(LanguageModelConfig(str(base), adapter=lm.adapter))
    here.load_state_dict({n: p for n, p in model.named_parameters() if "lora" in n}, strict=False)
    torch.testing.assert_close(logits(loaded), logits(here), rtol=1e-6, atol=1e-6)


def test_separate_needs_an_adapter(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UserError, match="separate needs a run with an adapter"):
        export_model(load(base), tmp_path / "export", settings(base, adapter="separate"))
    with pytest.raises(UserError, match="must be merged or separate, got 'both'"):
        settings(base, adapter="both")
    assert not (tmp_path / "export").exists()


def test_adapter_of_another_rank_is_refused(tmp_path: Path, base: Path) -> None:
    lm, model = adapted(base)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    other = LanguageModelConfig(lm.path, adapter=AdapterConfig(r=2))
    with pytest.raises(UserError, match=r"not of this model: it has in another shape .*lora_A"):
        export_checkpoint(checkpoint, other, tmp_path / "export", settings(base))


@pytest.mark.parametrize("form", ["merged", "separate"])
def test_an_adapter_that_is_not_finite_is_not_exported(tmp_path: Path, base: Path, form: Any) -> None:
    _, model = adapted(base)
    next(p for name, p in model.named_parameters() if "lora_B" in name).data[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"cannot export NaN or infinite weights: .*\.layers\.0\."):
        export_model(model, tmp_path / "export", settings(base, adapter=form))
    assert not (tmp_path / "export").exists()
