"""What is said of a directory that holds no causal language model, or a damaged one."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from tests.modules.architectures import OTHER_KINDS, random_model
from tests.modules.test_loading import edit_config, load, refused
from ts2_lightning.modules import LanguageModelConfig, model_files
from ts2_lightning.modules.language_model import (
    build_language_model,
    check_model_files,
    load_language_model,
    stored_dtype,
)
from ts2_lightning.modules.weights import load_weights
from ts2_lightning.types import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "llama"
    random_model("llama").to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture
def directory(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "llama"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint of several files, and their index."""
    random_model("llama").to(torch.float32).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


def edit_index(directory: Path, **entries: object) -> None:
    file = directory / INDEX
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / WEIGHTS)
    edit(weights)
    save_file(weights, directory / WEIGHTS, {"format": "pt"})


def cut_short(directory: Path) -> None:
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:5000])


def pickled(directory: Path) -> None:
    torch.save(load_file(directory / WEIGHTS), directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: (d / "config.json").unlink(), "there is no config.json in it"),
        (lambda d: (d / "config.json").write_text("{"), "its config.json is not JSON (Expecting property name"),
        (lambda d: (d / "config.json").write_text("[" * 100_000), "its config.json is not JSON"),
        (lambda d: (d / "config.json").write_bytes(b"\xff{}"), "its config.json is not JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "its config.json must hold an object, got list; fetch or"),
        (lambda d: (d / "config.json").write_text("{}"), "its config.json has no model_type"),
        (lambda d: edit_config(d, model_type=["llama"]), "its config.json has no model_type"),
        (lambda d: edit_config(d, model_type="t5"), "of type t5, an encoder-decoder; a decoder-only causal language"),
        (lambda d: edit_config(d, model_type="unheard"), "unheard"),
        (lambda d: edit_config(d, num_attention_heads=5), "not a multiple of the number of attention heads"),
        (lambda d: edit_config(d, num_attention_heads=0), "its config.json cannot be used (ZeroDivisionError"),
        (lambda d: edit_config(d, num_hidden_layers=-1), "num_hidden_layers must be a whole number of at least 1"),
        (lambda d: edit_config(d, vocab_size=0), "in its config.json vocab_size must be a whole number of at least 1"),
        (lambda d: edit_config(d, rms_norm_eps=math.nan), "the logits of LlamaForCausalLM are not finite, but its"),
        (lambda d: edit_config(d, num_hidden_layers=3), "9 are missing or of another shape, such as model.layers.2"),
        (lambda d: edit_config(d, vocab_size=96), "2 are missing or of another shape, such as lm_head.weight"),
        (lambda d: (d / "generation_config.json").write_text("[]"), "its generation_config.json must hold an object"),
        (lambda d: (d / WEIGHTS).unlink(), "there is neither a model.safetensors nor"),
        (pickled, "its weights are pickled (pytorch_model.bin), and to read them may run code; if you trust them"),
        (cut_short, "its model.safetensors is cut short or damaged (Error while deserializing header: incomp"),
        (lambda d: (d / WEIGHTS).write_bytes(b""), "its model.safetensors is cut short or damaged"),
        (lambda d: (d / WEIGHTS).write_bytes(b"noise" * 99), "its model.safetensors is cut short or damaged"),
        (lambda d: (d / WEIGHTS).write_text("version https://git-lfs.github.com/spec"), "fetch it with git lfs pull"),
        (lambda d: edit_weights(d, lambda w: w.pop("lm_head.weight")), "1 are missing or of another shape, such as lm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_directory_with_something_wrong(spoil: Spoil, said: str, directory: Path) -> None:
    load(directory)
    spoil(directory)
    assert said in refused(directory)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: (d / "model-00002-of-00005.safetensors").unlink(), "1 of the 5 files that its model.safetensors.in"),
        (lambda d: (d / INDEX).write_text("{"), "model.safetensors.index.json is not JSON"),
        (lambda d: (d / INDEX).write_text("[]"), "model.safetensors.index.json must hold an object, got list"),
        (lambda d: edit_index(d, weight_map={}), "index.json has no weight_map from weights to files; fetch or"),
        (lambda d: edit_index(d, weight_map=[]), "index.json has no weight_map from weights to files"),
        (lambda d: edit_index(d, weight_map={"norm": 3}), "index.json has no weight_map from weights to files"),
        (lambda d: edit_index(d, metadata=None), "index.json has no metadata, which transformers needs"),
        (lambda d: (d / "model-00002-of-00005.safetensors").write_bytes(b"x"), "its model-00002-of-00005.safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_index_with_something_wrong(spoil: Spoil, said: str, sharded: Path) -> None:
    """Told where a model is loaded whole, and where it is built first and sharded."""
    config = LanguageModelConfig(str(sharded))
    load(sharded)
    model = build_language_model(config)
    load_weights(model, config)
    assert stored_dtype(config) == torch.float32
    spoil(sharded)
    assert said in refused(sharded)
    with pytest.raises(UserError, match=r"^model\.lm\.path: cannot load"):
        load_weights(build_language_model(config), config)


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_what_is_no_causal_language_model(name: str, tmp_path: Path) -> None:
    """Of some of these transformers would take a part, and train it."""
    model = OTHER_KINDS[name]()
    model.save_pretrained(tmp_path)
    for attempt in (load_language_model, build_language_model, check_model_files):
        with pytest.raises(UserError) as caught:
            attempt(LanguageModelConfig(str(tmp_path)))
        message = str(caught.value)
        assert f"cannot load '{tmp_path}': it is a {name} of type {model.config.model_type}" in message
        assert message.endswith("; a decoder-only causal language model is needed")
        assert (", an encoder-decoder;" in message) == model.config.is_encoder_decoder


def test_a_config_alone_may_be_of_whatever_was_saved(tmp_path: Path) -> None:
    """Random weights are drawn for a causal language model in any case, if there is one of that type."""
    OTHER_KINDS["LlamaForSequenceClassification"]().save_pretrained(tmp_path)
    assert type(load(tmp_path, init="random")).__name__ == "LlamaForCausalLM"
    OTHER_KINDS["T5ForConditionalGeneration"]().save_pretrained(tmp_path)
    assert "it is a model of type t5, an encoder-decoder; a decoder-only" in refused(tmp_path, init="random")


@pytest.mark.parametrize("architectures", [None, [], ["LLaMAForCausalLM"], "LlamaForCausalLM", [3, "LlamaForCausalLM"]])
def test_what_a_config_says_of_the_class_need_not_be_exact(architectures: object, directory: Path) -> None:
    edit_config(directory, architectures=architectures)
    load(directory)


def test_an_encoder_that_calls_itself_a_language_model(tmp_path: Path) -> None:
    transformers.BertLMHeadModel(OTHER_KINDS["BertModel"]().config).save_pretrained(tmp_path)
    assert "BertLMHeadModel lets a token see the tokens after it, as encoders do" in refused(tmp_path)


def test_a_file_an_adapter_and_names_that_cannot_be(directory: Path, tmp_path: Path) -> None:
    assert "it is a file; name the directory in which it lies" in refused(directory / WEIGHTS)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "it is a PEFT adapter of 'BASE', no model: to go on" in refused(tmp_path / "adapter")
    for path in ("a" * 300, "./" + "a" * 300, "x/" * 3000 + "y"):
        assert "(File name too long)" in refused(path)
    refused("/a\0b")
    refused("")


# Weights that are not finite ---------------------------------------------------------------------------------------


def spoil_weights(weights: dict[str, torch.Tensor]) -> None:
    weights["model.norm.weight"][3] = math.nan
    weights["model.layers.1.mlp.up_proj.weight"][0, :2] = math.inf
    weights["model.embed_tokens.weight"][90] = -math.inf  # of a token that the check of the head does not meet


def test_weights_that_are_not_finite_are_told_as_such(directory: Path) -> None:
    edit_weights(directory, spoil_weights)
    config = LanguageModelConfig(str(directory))
    with pytest.raises(UserError) as sharded:
        load_weights(build_language_model(config), config)
    assert str(sharded.value) == refused(directory)
    assert refused(directory) == (
        f"model.lm.path: weights of '{directory}' are NaN or infinite: model.embed_tokens.weight (32 of its 3,104 "
        "numbers, and 2 tensors more); nothing could be learnt from them, so take another copy of the model, or "
        "another model.lm.dtype"
    )


def test_one_token_that_is_not_finite(directory: Path) -> None:
    """It would not be noticed before a row has the token."""
    edit_weights(directory, lambda weights: weights["model.embed_tokens.weight"][90].fill_(math.nan))
    assert "model.embed_tokens.weight (32 of its 3,104 numbers)" in refused(directory)


def test_weights_that_only_the_dtype_makes_infinite(directory: Path) -> None:
    edit_weights(directory, lambda weights: weights["model.norm.weight"][3].fill_(1e6))
    load(directory)
    assert "model.norm.weight (1 of its 32 numbers)" in refused(directory, dtype="float16")


def test_weights_that_are_left_out_are_told(directory: Path) -> None:
    edit_config(directory, num_hidden_layers=1)
    with pytest.warns(UserWarning, match=r"9 weights in .* are left out, .* such as model\.layers\.1"):
        load(directory)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            LocalEntryNotFoundError("not here"),
            "not be loaded from the hub .it does not answer, or HF_HUB_OFFLINE",
        ),
        (EntryNotFoundError("404"), "could not be loaded from the hub .there is no config.json in it"),
    ],
)
def test_a_hub_that_does_not_answer_is_told_from_a_model_that_is_not_there(
    cause: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def from_hub(path: str, name: str, **settings: object) -> None:
        asked.append(name)
        if settings.get("_raise_exceptions_for_missing_entries", True):
            raise OSError("two lines\nof transformers") from cause

    monkeypatch.setattr(model_files, "cached_file", from_hub)
    with pytest.raises(UserError, match=message):
        check_model_files(LanguageModelConfig("someone/model"))
    assert asked.count("config.json") == 1
    assert len(asked) == (1 if isinstance(cause, LocalEntryNotFoundError) else 2)  # it is asked no second time in vain
