"""An adapter that was exported by itself: trained on from where it was, and told from a model in one line."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from tests.callbacks.tiny_llama import edit, write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, shake, stored
from tests.modules.architectures import random_model
from tests.modules.test_expert_adapters import ALL
from ts2_lightning.export import export_checkpoint
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.language_model import build_language_model, check_model_files, load_language_model
from ts2_lightning.modules.weights import load_weights
from ts2_lightning.types import UserError


def exported(directory: Path, **adapter: Any) -> tuple[LanguageModelConfig, PreTrainedModel, Path]:
    """A base model, its adapted model, and its adapter as `export --adapter separate` writes it."""
    base = write_base(directory / "base")
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(**{"r": 4, "alpha": 8, **adapter}))
    model = load_language_model(lm)
    shake(model)
    checkpoint = save_checkpoint(model, directory / "last.ckpt")
    out = export_checkpoint(checkpoint, lm, directory / "adapter", settings(base, adapter="separate"))
    return lm, model, out


def again(lm: LanguageModelConfig, out: Path, **changes: Any) -> LanguageModelConfig:
    """The same model, starting from the adapter."""
    config = copy.deepcopy(lm)
    assert config.adapter is not None
    for name, value in {"path": str(out), **changes}.items():
        setattr(config.adapter, name, value)
    return config


@pytest.mark.parametrize("head", [False, True])
def test_it_goes_on_where_it_was(tmp_path: Path, head: bool) -> None:
    lm, model, out = exported(tmp_path, head=head)
    config = again(lm, out)
    check_model_files(config)
    start = load_language_model(config)
    assert torch.equal(logits(start), logits(model))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in start.named_parameters() if p.requires_grad} == trained.keys()
    assert all(torch.equal(dict(start.named_parameters())[name], p) for name, p in trained.items())
    sharded = build_language_model(config)
    load_weights(sharded, config)
    assert torch.equal(logits(sharded), logits(model))


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_experts_too(tmp_path: Path, architecture: str) -> None:
    base = write_base(tmp_path / "base")
    random_model(ALL[architecture]).float().save_pretrained(base)
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(r=4, alpha=8, target_parameters="all-experts"))
    model = load_language_model(lm)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    out = export_checkpoint(checkpoint, lm, tmp_path / "adapter", settings(base, adapter="separate"))
    assert torch.equal(logits(load_language_model(again(lm, out))), logits(model))


def test_what_was_trained_on_is_exported_without_the_start(tmp_path: Path) -> None:
    """The checkpoint has all that was trained; the adapter that it began with may be gone."""
    lm, _, out = exported(tmp_path)
    config = again(lm, out)
    model = load_language_model(config)
    shake(model, seed=2)
    checkpoint = save_checkpoint(model, tmp_path / "next.ckpt")
    (out / "adapter_model.safetensors").unlink()
    merged = export_checkpoint(checkpoint, config, tmp_path / "merged", settings(Path(lm.path)))
    torch.testing.assert_close(logits(load(merged)), logits(model), rtol=1e-5, atol=1e-5)
    apart = export_checkpoint(checkpoint, config, tmp_path / "apart", settings(Path(lm.path), adapter="separate"))
    assert len(stored(apart)) == 28


# -- what is said


def refused(config: LanguageModelConfig) -> str:
    def start() -> None:
        check_model_files(config)
        load_language_model(config)

    with pytest.raises(UserError) as caught:
        start()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    lm, _, out = exported(tmp_path)
    wanted = (
        f"model.lm.path: cannot load {str(out)!r}: it is a PEFT adapter of {lm.path!r}, no model: to go on training "
        f"it, --model.lm.path {lm.path} --model.lm.adapter.path {out} --model.lm.adapter.r 4 --model.lm.adapter.alpha "
        "8; to use it as a model, merge it into its base first (export without --adapter separate)"
    )
    assert refused(LanguageModelConfig(str(out))) == wanted
    gone = AdapterConfig(r=4, alpha=8, path=str(tmp_path / "gone"))
    message = refused(replace(lm, adapter=gone))
    assert message.startswith(
        f"model.lm.adapter.path: there is no directory {gone.path!r}, nor such an adapter on the hub"
    )
    assert message.endswith("to go on from one, give --model.lm.adapter.path null")
    # Transformers would take the base's config.json, or the model beside it, and put the adapter on it, frozen.
    load(Path(lm.path)).save_pretrained(out)
    assert refused(LanguageModelConfig(str(out))) == wanted
    (out / "adapter_config.json").write_text("{")
    assert "it is a PEFT adapter, no model, and its adapter_config.json is not JSON" in refused(
        LanguageModelConfig(str(out))
    )


def test_other_settings_than_the_adapters(tmp_path: Path) -> None:
    lm, _, out = exported(tmp_path)
    assert refused(again(lm, out, r=3)) == (
        f"model.lm.adapter.r is 3, and that of {str(out)!r} is 4; set --model.lm.adapter.r 4"
    )
    assert "model.lm.adapter.alpha is 16, and that of" in refused(again(lm, out, alpha=16))
    said = refused(again(lm, out, target_modules=["q_proj", "k_proj"]))
    assert "has, and model.lm.adapter has not, model.layers.0.mlp.down_proj.lora_A.default.weight (20 such" in said
    assert "its own settings are {'target_modules': [" in said
    said = refused(again(lm, out, head=True))
    assert "lacks lm_head.lora_A.default.weight (2 such weights)" in said
    (tmp_path / "wide").mkdir()
    other = write_base(tmp_path / "wide", width=32)
    wide = LanguageModelConfig(str(other), adapter=AdapterConfig(r=4, alpha=8, path=str(out)))
    with pytest.warns(UserWarning, match="says that it was trained on .*; here it is put on "):
        assert "has in another shape model.layers.0.mlp.down_proj.lora_A" in refused(wide)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"use_dora": True}, "uses use_dora, which is not built here; merge it into its model first"),
        ({"bias": "all"}, "uses bias, which"),
        ({"rank_pattern": {"q_proj": 2}}, "uses rank_pattern, which"),
        ({"peft_type": "IA3"}, "is of the kind IA3, which is not built here"),
    ],
)
def test_other_kinds(entries: dict[str, Any], said: str, tmp_path: Path) -> None:
    lm, _, out = exported(tmp_path)
    edit(out / "adapter_config.json", **entries)
    assert said in refused(again(lm, out))


def test_what_is_not_there_or_damaged(tmp_path: Path) -> None:
    lm, _, out = exported(tmp_path)
    assert "there is no adapter_config.json in" in refused(again(lm, Path(lm.path)))
    weights = out / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    save_file({**tensors, name: torch.full_like(tensors[name], torch.nan)}, weights)
    assert "is NaN or infinite; take another copy" in refused(again(lm, out))
    weights.write_bytes(weights.read_bytes()[:100])
    assert "is cut short or damaged" in refused(again(lm, out))
    weights.unlink()
    assert "there is no adapter_model.safetensors in" in refused(again(lm, out))
    (out / "adapter_config.json").write_text("[]")
    assert "must hold an object, got list" in refused(again(lm, out))
    assert refused(again(lm, tmp_path / "nowhere")).startswith("model.lm.adapter.path: ")


# -- how an export names its base


def test_the_base_is_named_as_the_user_did(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lm, model, out = exported(tmp_path)
    assert f"names its base model {lm.path!r}, as model.lm.path does; that is no name on the hub" in caplog.text
    lm.written_path = "toyworld?seed=1"
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    named = export_checkpoint(checkpoint, lm, tmp_path / "named", settings(Path(lm.path), adapter="separate"))
    assert json.loads((named / "adapter_config.json").read_text())["base_model_name_or_path"] == "toyworld?seed=1"
    assert str(tmp_path) not in (named / "adapter_config.json").read_text()
    caplog.clear()
    lm.written_path = "org/model"
    export_checkpoint(checkpoint, lm, tmp_path / "hub", settings(Path(lm.path), adapter="separate"))
    assert "base model" not in caplog.text
    assert str(out) not in caplog.text
