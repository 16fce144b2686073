"""New rows of embedding and head: at the mean, however a model comes to its weights, and in the export."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tests.callbacks.tiny_llama import WORDS, write_base
from tests.export.stand_ins import load, logits, save_checkpoint, settings, shake
from tests.modules.architectures import ARCHITECTURES, VOCABULARY, random_model
from ts2_lightning.export import export_checkpoint, export_model
from ts2_lightning.model_limits import limits_of
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig, SFTModule
from ts2_lightning.modules.distance import squared_distance, start_weights
from ts2_lightning.modules.embeddings import resize_embeddings
from ts2_lightning.modules.head import check_head
from ts2_lightning.modules.language_model import (
    build_language_model,
    load_language_model,
    read_limits,
    settle_embeddings,
    stored_dtype,
)
from ts2_lightning.modules.weights import load_weights
from ts2_lightning.types import UserError

NEW = 5
_SMALL = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": VOCABULARY}
KINDS: dict[str, PreTrainedConfig] = {
    **{name: ARCHITECTURES[name] for name in ("llama", "llama, tied", "gemma2", "gpt_neox", "cohere", "opt")},
    "gpt2": transformers.GPT2Config(**_SMALL, n_positions=16),
    "gptj": transformers.GPTJConfig(**_SMALL, n_positions=16, rotary_dim=4),  # its head has a bias
    "bloom": transformers.BloomConfig(hidden_size=32, n_layer=1, n_head=4, vocab_size=VOCABULARY),
    "gemma3": transformers.Gemma3Config(
        text_config={
            "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        },
        mm_tokens_per_image=4,
    ),
}  # fmt: skip


def tables(model: PreTrainedModel) -> dict[str, Tensor]:
    """What has a row for every token."""
    head = model.get_output_embeddings()
    found = {"embedding": model.get_input_embeddings().weight, "head": head.weight, "bias": getattr(head, "bias", None)}
    return {name: values.detach().clone() for name, values in found.items() if values is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_are_the_mean_and_old_ones_stay(kind: str) -> None:
    model = random_model(KINDS[kind])
    before, tied = tables(model), model.get_output_embeddings().weight is model.get_input_embeddings().weight
    names = {name: parameter.shape for name, parameter in model.named_parameters()}
    ids = torch.tensor([[5, 9, 3, 40]])
    model.eval()
    old = model(input_ids=ids).logits
    resize_embeddings(model, VOCABULARY + NEW)
    after = tables(model)
    assert after.keys() == before.keys()
    assert (kind == "gptj") == ("bias" in before)
    for name, values in after.items():
        assert torch.equal(values[:VOCABULARY], before[name]), name
        mean = before[name].mean(0).expand_as(values[VOCABULARY:])
        torch.testing.assert_close(values[VOCABULARY:], mean, rtol=1e-12, atol=1e-14)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert tied == ("tied" in kind or kind in ("gemma2", "cohere", "opt", "gpt2", "bloom", "gemma3"))
    torch.testing.assert_close(model(input_ids=ids).logits[..., :VOCABULARY], old, rtol=1e-12, atol=1e-12)
    assert limits_of(model.config).embeddings == VOCABULARY + NEW
    changed = [name for name, p in model.named_parameters() if p.shape != names[name]]
    assert len(changed) == len(before) - tied, "and nothing else"
    assert all(p.requires_grad for p in model.parameters())
    check_head(model)
    resize_embeddings(model, VOCABULARY + NEW)
    assert all(torch.equal(values, after[name]) for name, values in tables(model).items())


def test_the_mean_of_rounded_rows_is_rounded_once() -> None:
    """In bfloat16 a sum of many rows would be lost; 9,001 rows are more than are added at a time."""
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9001, n_embd=8, n_layer=1, n_head=1))
    with torch.no_grad():
        model.transformer.wte.weight.normal_(mean=3.0)
    model = model.to(torch.bfloat16)
    exact = model.transformer.wte.weight.detach().double().mean(0)
    resize_embeddings(model, 9003)
    assert torch.equal(model.transformer.wte.weight[9001:], exact.to(torch.bfloat16).expand(2, 8))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_every_way_to_the_weights(tmp_path: Path, tied: bool, init: str) -> None:
    """Loaded whole, or built without memory and filled from rank 0; mapped in the dtype of the files."""
    base = write_base(tmp_path / "base", tied=tied, dtype="bfloat16")
    config = LanguageModelConfig(str(base), init=init, resize_embeddings=len(WORDS) + NEW)  # type: ignore[arg-type]
    torch.manual_seed(3)
    whole = load_language_model(config)
    built = build_language_model(config)
    assert built.config.vocab_size == len(WORDS) + NEW
    torch.manual_seed(3)
    load_weights(built, config)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(dict(built.named_parameters())[name], parameter, rtol=0, atol=0)
    assert whole.get_input_embeddings().weight.shape[0] == len(WORDS) + NEW
    if init == "pretrained":
        own = load_language_model(LanguageModelConfig(str(base))).get_input_embeddings().weight
        mean = own.double().mean(0).to(torch.bfloat16).float()  # rounded as the files are
        assert torch.equal(whole.get_input_embeddings().weight[len(WORDS) :], mean.expand(NEW, -1))


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("kind", ["llama", "llama, tied", "gpt2", "gemma3", "opt"])
def test_an_export_has_the_rows(tmp_path: Path, kind: str, from_file: bool) -> None:
    place, out = tmp_path / "base", tmp_path / "export"
    random_model(KINDS[kind]).float().save_pretrained(place)
    write_base(tmp_path / "tokenizer")
    config = LanguageModelConfig(str(place), resize_embeddings=VOCABULARY + NEW)
    model = load_language_model(config)
    shake(model)
    if from_file:
        export_checkpoint(save_checkpoint(model, tmp_path / "last.ckpt"), config, out, settings(tmp_path / "tokenizer"))
    else:
        export_model(model, out, settings(tmp_path / "tokenizer"))
    stated = json.loads((out / "config.json").read_text())
    assert stated.get("text_config", stated)["vocab_size"] == VOCABULARY + NEW
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor([[5, 9, VOCABULARY + NEW - 1, 40]])
    with torch.no_grad():
        wanted, found = model.eval()(input_ids=ids).logits, loaded.eval()(input_ids=ids).logits
    assert found.shape[-1] == VOCABULARY + NEW
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_distance_from_the_start_counts_new_rows(base: Path) -> None:
    config = LanguageModelConfig(str(base), resize_embeddings=len(WORDS) + NEW)
    model = load_language_model(config)
    start = start_weights(config, model)
    assert squared_distance(model, start) == 0
    with torch.no_grad():
        model.get_input_embeddings().weight[-1, 0] += 2.0
    assert squared_distance(model, start) == pytest.approx(4.0)


def test_true_is_as_many_as_there_are_tokens(base: Path) -> None:
    config = LanguageModelConfig(str(base), resize_embeddings=True)
    rows = len(WORDS)
    assert settle_embeddings(config, rows + 3).resize_embeddings == rows + 3
    assert settle_embeddings(config, rows - 3).resize_embeddings == rows, "padding of the vocabulary is kept"
    again = settle_embeddings(settle_embeddings(config, rows + 3))
    assert again.resize_embeddings == rows + 3
    assert read_limits(again).embeddings == rows + 3
    for nothing in (None, False):
        config = LanguageModelConfig(str(base), resize_embeddings=nothing)
        assert load_language_model(settle_embeddings(config, rows + 3)).config.vocab_size == rows
        assert read_limits(config).embeddings == rows


def test_what_cannot_be(base: Path) -> None:
    def error(**settings: object) -> str:
        with pytest.raises(UserError) as raised:
            SFTModule(LanguageModelConfig(str(base), **settings)).configure_model()  # type: ignore[arg-type]
        return str(raised.value)

    assert error(resize_embeddings=3) == (
        f"model.lm.resize_embeddings is 3, and the embedding of llama has {len(WORDS)} rows; none is taken away, so "
        "set it to more, or to null"
    )
    assert error(resize_embeddings=True).startswith(
        "model.lm.resize_embeddings is true, and there is no tokenizer whose tokens could be counted; name one with"
    )
    assert error(resize_embeddings=True, adapter=AdapterConfig()) == (
        "model.lm.resize_embeddings: an adapter leaves embeddings as they are, so that new tokens would all stay the "
        "mean of the others; train the whole model, or take a tokenizer whose tokens it has"
    )
    with pytest.raises(UserError, match=r"resize_embeddings is 3, and the embedding of llama has"):
        build_language_model(LanguageModelConfig(str(base), resize_embeddings=3))


def test_the_number_is_no_default_of_another_model(base: Path) -> None:
    """Configs are values: what is settled for one model leaves the user's own as it was."""
    config = LanguageModelConfig(str(base), resize_embeddings=True)
    before = copy.deepcopy(config)
    settle_embeddings(config, 99)
    assert config == before
    assert stored_dtype(config) == torch.float32
    assert logits(load(base)).shape[-1] == len(WORDS)
