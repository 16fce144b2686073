"""Weights between base and tuned model, against an interpolation in float64."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tests.callbacks.tiny_llama import edit, write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, shake, stored
from tests.export.test_hub_names import CONFIGS, random_model
from tests.support.errors import refused
from ts2_lightning.export import export_checkpoint, export_model
from ts2_lightning.export.interpolation import Interpolation
from ts2_lightning.export.rounding import Rounding
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.embeddings import resize_embeddings
from ts2_lightning.modules.language_model import load_language_model


def mixed(base: PreTrainedModel, tuned: PreTrainedModel, share: float) -> dict[str, Tensor]:
    """The weights between two models of one shape, in float64."""
    then, now = base.state_dict(), tuned.state_dict()
    return {name: (1 - share) * then[name].double() + share * now[name].double() for name in now}


def check(out: Path, expected: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Whether a directory has these weights, as transformers loads it."""
    found = load(out).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=tolerance, atol=1e-8, msg=name)


def trained(base: Path) -> PreTrainedModel:
    model = load(base)
    shake(model)
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_between_base_and_tuned(tmp_path: Path, base: Path, kind: str) -> None:
    """Whatever transformers renames, splits and fuses on loading; tied weights are written once."""
    random_model(CONFIGS[kind]).save_pretrained(base)
    model = trained(base)
    checkpoint, lm = save_checkpoint(model, tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    out = export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.7))
    check(out, mixed(load(base), model, 0.7))
    assert stored(out).keys() == stored(base).keys()
    same = export_model(model, tmp_path / "same", settings(base, toward_base=0.7))
    assert all(torch.equal(tensor, stored(out)[name]) for name, tensor in stored(same).items())


def test_the_ends_are_the_models_themselves(tmp_path: Path, base: Path) -> None:
    """Bit for bit, the sign of zero too."""
    with torch.no_grad():
        model = load(base)
        model.model.embed_tokens.weight[0] = -0.0
        model.save_pretrained(base)
    model = trained(base)
    checkpoint, lm = save_checkpoint(model, tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    outs = {
        share: export_checkpoint(checkpoint, lm, tmp_path / str(share), settings(base, toward_base=share))
        for share in (0.0, 1.0)
    }
    plain = export_checkpoint(checkpoint, lm, tmp_path / "plain", settings(base))
    assert {file.name: file.read_bytes() for file in outs[1.0].iterdir()} == {
        file.name: file.read_bytes() for file in plain.iterdir()
    }
    for name, tensor in stored(base).items():
        assert torch.equal(stored(outs[0.0])[name].view(torch.int32), tensor.view(torch.int32)), name


def test_rounded_once(tmp_path: Path) -> None:
    """Of a bfloat16 base and float32 masters: the difference is not rounded before it is multiplied."""
    base = write_base(tmp_path / "base", dtype="bfloat16")
    model = load(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    checkpoint, lm = save_checkpoint(model, tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    out = export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.3))
    assert {tensor.dtype for tensor in stored(out).values()} == {torch.bfloat16}
    check(out, mixed(load(base), model, 0.3), tolerance=2**-8)
    exact = export_checkpoint(checkpoint, lm, tmp_path / "exact", settings(base, toward_base=0.3, dtype="float32"))
    check(exact, mixed(load(base), model, 0.3))


def test_what_is_rounded_away_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of a smaller update, more is."""
    base = write_base(tmp_path / "base", dtype="bfloat16")
    model = load(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 3e-3
    checkpoint, lm = save_checkpoint(model, tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    for share, share_lost in ((1.0, 0.0), (0.1, 0.15)):
        caplog.clear()
        export_checkpoint(checkpoint, lm, tmp_path / str(share), settings(base, toward_base=share))
        [line] = [record.message for record in caplog.records if "rounded to bfloat16" in record.message]
        assert float(line.partition(", by ")[2].partition("%")[0]) / 100 > share_lost


def test_files_without_the_prefix_of_the_body(tmp_path: Path, base: Path) -> None:
    """As those of GPT-2 on the hub; embedding and head are tied."""
    config = GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    body = GPT2LMHeadModel(config).transformer
    body.save_pretrained(base)
    assert "wte.weight" in stored(base)
    edit(base / "config.json", architectures=["GPT2LMHeadModel"])
    model = trained(base)
    checkpoint, lm = save_checkpoint(model, tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    out = export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.4))
    check(out, mixed(load(base), model, 0.4))


def test_tied_weights_that_training_has_parted(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tied=True)
    model = trained(base)
    expected = mixed(load(base), model, 0.5)
    state = {f"network.language_model.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    state["network.language_model.lm_head.weight"] += 1
    expected["lm_head.weight"] += 0.5
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "last.ckpt")
    lm = LanguageModelConfig(str(base))
    out = export_checkpoint(tmp_path / "last.ckpt", lm, tmp_path / "out", settings(base, toward_base=0.5))
    check(out, expected)


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_those_of_the_tuned_model(tmp_path: Path, tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    base = write_base(tmp_path / "base", tied=tied)
    model = load(base)
    rows = model.config.vocab_size
    resize_embeddings(model, rows + 3)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    lm = LanguageModelConfig(str(base), resize_embeddings=rows + 3)
    out = export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.25))
    then, now, found = load(base).state_dict(), model.state_dict(), load(out).state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected = 0.75 * then[name].double() + 0.25 * now[name][:rows].double()
        torch.testing.assert_close(found[name][:rows].double(), expected, rtol=1e-6, atol=1e-8)
        assert torch.equal(found[name][rows:], now[name][rows:])
    assert "the 3 rows of " in caplog.text
    assert "does not have are those of the tuned model" in caplog.text


def test_buffers_and_integers_are_the_tuned_models(base: Path) -> None:
    model = load(base)
    model.register_buffer("scale", torch.ones(2))
    between = Interpolation(model, str(base), None, 0.5)
    for name, tensor in (("scale", torch.full((2,), 3.0)), ("count", torch.tensor([7]))):
        assert torch.equal(between.between(name, tensor), tensor)
        assert dict(between.written([(name, tensor)], torch.bfloat16, Rounding()))[name].dtype in (
            torch.bfloat16, torch.int64,
        )  # fmt: skip


def test_another_base_is_refused(tmp_path: Path, base: Path) -> None:
    between = Interpolation(load(base), str(base), None, 0.5)
    with refused(
        r"has model.norm.weight in the shape \[16\] and the tuned one in \[8\], so there is nothing between them"
    ):
        between.between("model.norm.weight", torch.ones(8))
    with refused(r"has lm_head.weight in the shape \[14, 16\] and the tuned one in \[13, 16\]"):
        between.between("lm_head.weight", torch.ones(13, 16))
    with refused("has no weight model.other.weight, so there is nothing between it and the tuned one"):
        between.between("model.other.weight", torch.ones(8))
    model = trained(base)
    checkpoint, lm = save_checkpoint(model, tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    (base / "model.safetensors").unlink()
    with refused(
        f"the base model {str(base)!r}, without which there is nothing between it and the tuned one: there is"
    ):
        export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.5))
    assert not (tmp_path / "out").exists()


def test_what_has_no_start_is_refused(tmp_path: Path, base: Path) -> None:
    checkpoint = save_checkpoint(trained(base), tmp_path / "last.ckpt")
    with refused("the training began with random weights, which are kept nowhere"):
        lm = LanguageModelConfig(str(base), init="random")
        export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.5))
    with refused("the training began with the adapter 'first'"):
        lm = LanguageModelConfig(str(base), adapter=AdapterConfig(path="first"))
        export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.5))
    model = load(base)
    model.config._name_or_path = model.name_or_path = ""
    with refused("the model has no name_or_path"):
        export_model(model, tmp_path / "out", settings(base, toward_base=0.5))


def test_the_record_says_what_it_is(tmp_path: Path, base: Path) -> None:
    checkpoint, lm = save_checkpoint(trained(base), tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    out = export_checkpoint(
        checkpoint, lm, tmp_path / "out", replace(settings(base, toward_base=0.7), base="owner/base")
    )
    assert json.loads((out / "export.json").read_text()) == {"toward_base": 0.7, "base_model": "owner/base"}
    export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base))
    assert not (out / "export.json").exists()


# Adapters -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"target_parameters": "all-experts"}], ids=["layers", "experts"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    """The factor of the product alone is smaller, merged and by itself."""
    base = write_base(tmp_path / "base", dtype=dtype)
    if options:
        random_model(deepcopy(CONFIGS["one to many, more"])).to(getattr(torch, dtype)).save_pretrained(base)
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(r=4, alpha=8, **options))
    model = load_language_model(lm)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    exact = {"dtype": "float32"}
    whole = load(export_checkpoint(checkpoint, lm, tmp_path / "whole", settings(base, **exact)))
    out = export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.7, **exact))
    check(out, mixed(load(base), whole, 0.7), tolerance=1e-5)
    in_memory = export_model(model, tmp_path / "memory", settings(base, toward_base=0.7, **exact))
    check(in_memory, mixed(load(base), whole, 0.7), tolerance=1e-5)
    apart = export_checkpoint(checkpoint, lm, tmp_path / "apart", settings(base, adapter="separate", toward_base=0.7))
    peft: Any = PeftModel.from_pretrained(load(base), str(apart))
    torch.testing.assert_close(logits(peft), logits(load(out)), rtol=1e-4, atol=1e-5)
    assert json.loads((apart / "export.json").read_text())["toward_base"] == 0.7
    none = export_checkpoint(checkpoint, lm, tmp_path / "none", settings(base, toward_base=0.0))
    assert all(torch.equal(tensor, stored(base)[name]) for name, tensor in stored(none).items())


def test_four_bits(tmp_path: Path) -> None:
    """Between the base as it was held, in 4 bits, and the merged model."""
    pytest.importorskip("bitsandbytes")
    base = write_base(tmp_path / "base", width=128)
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(r=4, alpha=8), quantization="nf4")
    model = load_language_model(lm)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    half, one, zero = (
        load(export_checkpoint(checkpoint, lm, tmp_path / str(w), settings(base, toward_base=w, dtype="float32")))
        for w in (0.5, 1.0, 0.0)
    )
    check(Path(half.name_or_path), mixed(zero, one, 0.5), tolerance=1e-5)
    assert (logits(zero) - logits(load(base))).abs().max() > 0


def test_more_than_a_product_is_refused(tmp_path: Path, base: Path) -> None:
    model = load_language_model(LanguageModelConfig(str(base), adapter=AdapterConfig(r=4, alpha=8)))
    model.peft_config["default"].use_dora = True
    with refused("the adapter has use_dora, so it is more than a product"):
        export_model(model, tmp_path / "out", settings(base, toward_base=0.5))


# Memory ---------------------------------------------------------------------------------------------------------------


def anonymous_memory() -> int:
    """Bytes of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_no_second_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tensors of base and tuned model at a time."""
    base = write_base(tmp_path / "base", width=768)
    sizes = [tensor.nbytes for tensor in stored(base).values()]
    assert sum(sizes) > 6 * max(sizes) > 2e7
    checkpoint, lm = save_checkpoint(trained(base), tmp_path / "last.ckpt"), LanguageModelConfig(str(base))
    monkeypatch.setattr("ts2_lightning.export.export.SHARD_BYTES", 1)
    before, peak = anonymous_memory(), [0]
    between = Interpolation.between

    def watched(self: Interpolation, name: str, tuned: Tensor) -> Tensor:
        result = between(self, name, tuned)
        peak.append(anonymous_memory())
        return result

    monkeypatch.setattr(Interpolation, "between", watched)
    export_checkpoint(checkpoint, lm, tmp_path / "out", settings(base, toward_base=0.5))
    assert len(peak) > len(sizes)
    assert max(peak) - before < 4 * max(sizes)
