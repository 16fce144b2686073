"""The names and shapes of the hub's checkpoints: as transformers itself writes them, but a few tensors at a time."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FlexOlmoConfig,
    GPTNeoXConfig,
    HrmTextConfig,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, shake, stored
from ts2_lightning.export import export_checkpoint, export_model
from ts2_lightning.export.hub_names import Ties, in_file_layout, plain_structure
from ts2_lightning.export.shards import write_shards
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.types import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "renamed": GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "one to many": MixtralConfig(**SIZES, num_local_experts=3),
    "one to many, more": Qwen3MoeConfig(**SIZES, **EXPERTS),
    "one to many, others": FlexOlmoConfig(**SIZES, **EXPERTS),
    "many to one": HrmTextConfig(**SIZES),
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", CONFIGS)
def test_as_transformers_writes_it(tmp_path: Path, kind: str) -> None:
    model = random_model(CONFIGS[kind])
    model.save_pretrained(tmp_path)
    expected = stored(tmp_path)
    structure = plain_structure(model)
    assert all(parameter.is_meta for parameter in structure.parameters())
    made = dict(in_file_layout(structure, Ties(structure).once(model.state_dict().items())))
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_conversions_are_worth_testing() -> None:
    """The configurations above do what their names say."""
    counts = {}
    for kind, config in CONFIGS.items():
        structure = plain_structure(random_model(config))
        names = list(structure.state_dict())
        counts[kind] = (len(names), len(list(in_file_layout(structure, structure.state_dict().items()))))
    assert counts["many to one"][1] < counts["many to one"][0]
    assert all(after > before for kind, (before, after) in counts.items() if kind.startswith("one to many"))


def test_fused_weights_in_a_checkpoint(tmp_path: Path, base: Path) -> None:
    """From a file whose names transformers has changed on loading, to the base model's own names again."""
    model = random_model(CONFIGS["one to many"])
    model.save_pretrained(base)
    trained = load(base)
    shake(trained)
    lm = LanguageModelConfig(str(base))
    out = export_checkpoint(save_checkpoint(trained, tmp_path / "last.ckpt"), lm, tmp_path / "out", settings(base))
    assert stored(out).keys() == stored(base).keys()
    assert torch.equal(logits(load(out)), logits(trained))


def test_a_base_in_another_layout_keeps_it(tmp_path: Path, base: Path) -> None:
    """Files that hold fused experts, as transformers 5 has them, stay so: nothing else knows their names."""
    random_model(CONFIGS["one to many"]).save_pretrained(base, save_original_format=False)
    trained = load(base)
    shake(trained)
    lm = LanguageModelConfig(str(base))
    out = export_checkpoint(save_checkpoint(trained, tmp_path / "last.ckpt"), lm, tmp_path / "out", settings(base))
    assert stored(out).keys() == stored(base).keys()
    assert any("gate_up_proj" in name for name in stored(out))
    assert torch.equal(logits(load(out)), logits(trained))


def test_parted_ties_are_both_written(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=True)
    model = load(base)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 1)
    out = export_model(model, tmp_path / "out", settings(base))
    assert torch.equal(stored(out)["lm_head.weight"], stored(out)["model.embed_tokens.weight"] + 1)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(logits(load(out)), logits(model))


def test_shards_are_those_of_their_index(tmp_path: Path) -> None:
    tensors = {f"w{n}": torch.full((n + 1, 100), float(n)) for n in range(6)}  # 400 to 2400 bytes
    write_shards(tensors.items(), tmp_path, expected=8400, shard_bytes=2000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    places = {
        "w0": 1, "w1": 1,  # 1200 bytes; w2 has 1200 more
        "w2": 2, "w3": 3, "w4": 4, "w5": 5,  # the last two are larger than a file should be
    }  # fmt: skip
    assert index["weight_map"] == {name: f"model-{n:05d}-of-00005.safetensors" for name, n in places.items()}
    assert index["metadata"] == {"total_size": 8400}
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == sorted(set(index["weight_map"].values()))
    assert all(torch.equal(stored(tmp_path)[name], tensor) for name, tensor in tensors.items())


def test_sharded_export_loads(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(base)
    shake(model)
    monkeypatch.setattr("ts2_lightning.export.export.SHARD_BYTES", 5000)
    out = export_model(model, tmp_path / "out", settings(base))
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    assert not (out / "model.safetensors").exists()
    assert torch.equal(logits(load(out)), logits(model))
    monkeypatch.undo()
    export_model(model, out, settings(base))  # one file in their place
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("from_file", [False, True])
def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path, base: Path, from_file: bool) -> None:
    """An earlier export stays as it was."""
    model = load(base)
    out = export_model(model, tmp_path / "export", settings(base))
    before = stored(out)
    shake(model)
    model.model.norm.weight.data[2:4] = torch.nan
    lm, checkpoint = LanguageModelConfig(str(base)), save_checkpoint(model, tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"cannot export NaN or infinite weights: model\.norm\.weight \(2 of its "):
        export_checkpoint(checkpoint, lm, out, settings(base)) if from_file else export_model(
            model, out, settings(base)
        )
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored(out).items())


def test_weights_that_are_too_large_for_a_dtype_are_not_exported_in_it(tmp_path: Path, base: Path) -> None:
    model = load(base)
    model.model.norm.weight.data[1] = 1e5
    with pytest.raises(UserError, match=r"float16, .* do not fit: model\.norm\.weight \(1 of its .*; choose another"):
        export_model(model, tmp_path / "half", settings(base, dtype="float16"))
    export_model(model, tmp_path / "whole", settings(base, dtype="bfloat16"))
