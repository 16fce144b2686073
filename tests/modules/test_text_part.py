"""Models with a vision tower, trained on text: the tower gets no gradient, no adapter, and is exported as it was."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig

from tests.callbacks.tiny_llama import write_base
from tests.export.stand_ins import save_checkpoint, settings, shake, stored
from tests.modules import normaliser
from tests.modules.architectures import ARCHITECTURES, MIXTURES, SEEING, random_model, uneven_batch
from tests.modules.normaliser import conversation
from tests.modules.test_adapters import logits, merged, speak
from tests.modules.test_head import gradients, plain_cross_entropy
from tests.support.ranks import launch
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.evaluation.loading import load_model
from ts2_lightning.export import export_checkpoint
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdamWConfig, AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapters import adapted_weights, adapter_line, add_adapter
from ts2_lightning.modules.language_model import build_language_model, load_language_model
from ts2_lightning.modules.model_files import auto_class
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.optimization import make_optimizer
from ts2_lightning.modules.sharding import decoder_layers, text_layers
from ts2_lightning.modules.text_part import freeze_left_out, is_below, left_out, tell_left_out, text_part
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.layout import read_layout
from ts2_lightning.planning.model import measure
from ts2_lightning.toyworld import write_blank_model
from ts2_lightning.types import UserError

_PROJECTED = ["model.multi_modal_projector", "model.vision_tower"]
_CONNECTED = ["model.connector", "model.vision_model"]
_VISUAL = ["model.visual"]
TOWERS = {
    "gemma3": _PROJECTED, "llava": _PROJECTED, "mistral3": _PROJECTED, "internvl": _PROJECTED, "idefics3": _CONNECTED,
    "smolvlm": _CONNECTED, "qwen2_vl": _VISUAL, "qwen2_5_vl": _VISUAL, "qwen3_vl": _VISUAL,
}  # fmt: skip


@pytest.mark.parametrize("architecture", SEEING)
def test_what_is_left_out_is_what_gets_no_gradient_from_text(architecture: str) -> None:
    model = random_model(SEEING[architecture])
    model(input_ids=uneven_batch()[0]["input_ids"], use_cache=False).logits.sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert sorted(left_out(model)) == TOWERS[architecture]
    assert {name for name, _ in model.named_parameters() if is_below(name, left_out(model))} == without
    freeze_left_out(model)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == without


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *MIXTURES])
def test_a_model_for_text_alone_is_trained_whole(architecture: str) -> None:
    model = random_model({**ARCHITECTURES, **MIXTURES}[architecture])
    assert left_out(model) == []
    freeze_left_out(model)
    assert all(p.requires_grad for p in model.parameters())
    assert text_part(model) is model.base_model
    assert text_layers(model) == decoder_layers(model)


@pytest.mark.parametrize("architecture", SEEING)
def test_loss_and_gradients_are_those_of_the_models_own_logits(architecture: str, tmp_path: Path) -> None:
    """Of a model that was saved, loaded as `fit` loads it, and is trained on text."""
    random_model(SEEING[architecture]).save_pretrained(tmp_path)
    model = load_language_model(LanguageModelConfig(str(tmp_path), dtype="float64", attn_implementation="eager"))
    wanted, wanted_gradients = plain_cross_entropy(copy.deepcopy(model))
    output = SFTNetwork(model, CrossEntropyLoss(), ChunkedEngine(3))(uneven_batch()[0])
    output.total.backward()
    torch.testing.assert_close(output.total.detach(), wanted, rtol=1e-6, atol=0)
    result = gradients(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert result.keys() == wanted_gradients.keys() == trained
    for name, gradient in result.items():
        scale = wanted_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=0, atol=1e-6 * scale, msg=name)
    held = {id(p) for group in make_optimizer(model, AdamWConfig(fused=False)).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("architecture", SEEING)
def test_adapters_go_where_text_goes(architecture: str) -> None:
    model = random_model(SEEING[architecture])
    before = logits(model)
    add_adapter(model, AdapterConfig(r=3, alpha=6))
    assert torch.equal(logits(model), before)
    names = adapted_weights(model)
    assert len(names) == 2 * 7
    assert not any(is_below(name, TOWERS[architecture]) for name in names)
    assert not any(place in adapter_line(model) for place in TOWERS[architecture])
    speak(model)
    SFTNetwork(model.train(), CrossEntropyLoss(), ChunkedEngine(3))(uneven_batch()[0]).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)


def test_one_line_names_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = random_model(SEEING["gemma3"])
    tell_left_out(model)
    tell_left_out(random_model("llama"))
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    share = sum(size for name, size in sizes.items() if "vision" in name or "projector" in name) / sum(sizes.values())
    assert 0.1 < share < 0.9
    assert [record.getMessage() for record in caplog.records] == [
        f"Text gives no gradient to model.vision_tower and model.multi_modal_projector ({share:.1%} of the weights): "
        "they are neither trained nor adapted, and exported as they are"
    ]


# -- exports


def base_of(architecture: str, directory: Path) -> Path:
    write_base(directory)
    random_model(SEEING[architecture]).float().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("architecture", SEEING)
@pytest.mark.parametrize("adapter", [None, AdapterConfig(r=4, alpha=8)], ids=["whole", "adapter"])
def test_the_export_is_whole(architecture: str, adapter: AdapterConfig | None, tmp_path: Path) -> None:
    base = base_of(architecture, tmp_path / "base")
    lm = LanguageModelConfig(str(base), adapter=adapter)
    model = load_language_model(lm)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    if adapter is None:  # what `fit` saves of a model that is trained whole
        state = {f"network.language_model.{name}": weight for name, weight in model.state_dict().items()}
        torch.save({"state_dict": state, "global_step": 3}, checkpoint)
    out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base))
    before, after = stored(base), stored(out)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(word in name for name in changed for word in ("vision", "visual", "projector", "connector"))
    loaded, _ = load_model(out)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-5)
    assert json.loads((out / "config.json").read_text())["architectures"] == [type(model).__name__]


def test_what_a_checkpoint_leaves_out_is_the_base_models(tmp_path: Path) -> None:
    base = base_of("gemma3", tmp_path / "base")
    lm = LanguageModelConfig(str(base))
    model = load_language_model(lm)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")  # without frozen weights
    out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base))
    before, after = stored(base), stored(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if "vision" in name or "projector" in name)
    torch.testing.assert_close(logits(load_model(out)[0]), logits(model), rtol=1e-4, atol=1e-5)
    other = LanguageModelConfig(str(tmp_path / "config alone"), init="random")
    shutil.copytree(base, other.path, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match=r"ckpt: it has no model\.vision_tower\..*, which was not trained, and no base"):
        export_checkpoint(checkpoint, other, tmp_path / "another", settings(base))
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2_5_vl", "llava"])
def test_separate_adapter_is_pefts(architecture: str, tmp_path: Path) -> None:
    base = base_of(architecture, tmp_path / "base")
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(r=4, alpha=8))
    model = load_language_model(lm)
    shake(model)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base, adapter="separate"))
    plain = auto_class(model.config).from_pretrained(base, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, str(out))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-6)
    assert len(stored(out)) == sum(p.requires_grad for p in model.parameters())


def test_four_bits_are_of_the_language_model_alone(tmp_path: Path) -> None:
    """What text does not reach would be exported in the values of 4 bits."""
    pytest.importorskip("bitsandbytes")
    base = write_base(tmp_path / "base")
    config = copy.deepcopy(SEEING["gemma3"])
    config.text_config.update({"hidden_size": 128, "intermediate_size": 128, "head_dim": 32})
    random_model(config).to(torch.bfloat16).save_pretrained(base)
    lm = LanguageModelConfig(str(base), adapter=AdapterConfig(r=4, alpha=8), quantization="nf4", dtype="bfloat16")
    model = load_language_model(lm)
    in_four_bits = {name for name, p in model.named_parameters() if hasattr(p, "quant_state")}
    assert len(in_four_bits) == 2 * 7
    assert not any(is_below(name, TOWERS["gemma3"]) for name in in_four_bits)
    checkpoint = save_checkpoint(model, tmp_path / "last.ckpt")
    out = export_checkpoint(checkpoint, lm, tmp_path / "export", settings(base))
    before, after = stored(base), stored(out)
    assert before.keys() == after.keys()
    untouched = [name for name in before if "vision" in name or "projector" in name]
    assert untouched
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_merged_weights_are_all_of_them() -> None:
    model = random_model(SEEING["gemma3"])
    add_adapter(model, AdapterConfig(r=3))
    speak(model)
    assert logits(merged(model)).shape == logits(model).shape
    torch.testing.assert_close(logits(merged(model)), logits(model), rtol=1e-9, atol=1e-9)


# -- elsewhere


@pytest.mark.parametrize("architecture", ["gemma3", "qwen2_5_vl", "llava"])
def test_a_plan_counts_the_language_model(architecture: str, tmp_path: Path) -> None:
    SEEING[architecture].save_pretrained(tmp_path)
    lm = LanguageModelConfig(str(tmp_path))
    sizes = measure(lm, read_layout("auto", None, 1), MicroBatch(2, 16))
    model = build_language_model(lm)
    assert sizes.layers == 2
    assert sum(w.elements for w in sizes.weights) == sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for n, p in model.named_parameters() if not is_below(n, TOWERS[architecture]))
    assert sum(w.elements for w in sizes.weights if w.trained) == trained
    assert all(w.trained for w in sizes.weights if w.linear)


def write_seeing(directory: Path, architecture: str) -> Path:
    """A model that sees, with the toy world's tokenizer."""
    write_blank_model(directory)
    blank = AutoConfig.from_pretrained(directory)
    config = copy.deepcopy(SEEING[architecture])
    for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings"):
        setattr(config.get_text_config(), name, getattr(blank, name))
    random_model(config).float().save_pretrained(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gemma3", "qwen2_5_vl", "llava"])
def test_two_ranks(architecture: str, tmp_path: Path) -> None:
    """DDP ended with unused parameters."""
    for split, numbers in {"train": range(19), "many": range(19, 22), "few": range(22, 24)}.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(conversation(n)) + "\n" for n in numbers))
    model = write_seeing(tmp_path / "model", architecture)
    wanted = normaliser.run(str(tmp_path), str(model), "ce", 16)
    launch("tests.modules.normaliser", tmp_path, model, tmp_path, "ce", 4, "none")
    for number in (0, 1):
        (result,) = torch.load(tmp_path / f"rank{number}.pt")
        assert result["logged"][2]["train/objective"] == pytest.approx(wanted["logged"][2]["train/objective"], rel=1e-5)
        for name, weight in wanted["weights"][1].items():
            torch.testing.assert_close(result["weights"][1][name], weight, rtol=1e-4, atol=1e-5, msg=name)
