"""Loading language models: what they are after it, and what is said where they cannot be loaded."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import is_flash_attn_2_available

from tests.modules.architectures import ARCHITECTURES, random_model
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.head import check_head
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.types import UserError


def load(path: Path | str, **settings: Any) -> PreTrainedModel:
    return load_language_model(LanguageModelConfig(str(path), **settings))


@pytest.fixture(scope="module")
def bfloat16_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as most of the hub's are: weights and config in bfloat16."""
    directory = tmp_path_factory.mktemp("models") / "llama"
    random_model("llama").to(torch.bfloat16).save_pretrained(directory)
    assert {w.dtype for w in load_file(directory / "model.safetensors").values()} == {torch.bfloat16}
    return directory


@pytest.fixture
def directory(bfloat16_directory: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(bfloat16_directory, tmp_path / "llama"))


def edit_config(directory: Path, **entries: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_the_dtype_is_what_was_asked_for(name: str, init: str, bfloat16_directory: Path) -> None:
    model = load(bfloat16_directory, dtype=name, init=init)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, name)}


def test_a_bfloat16_checkpoint_gives_float32_masters_of_the_same_values(bfloat16_directory: Path) -> None:
    model = load(bfloat16_directory)
    stored = load_file(bfloat16_directory / "model.safetensors")
    assert stored.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, stored[name].float()), name
    assert model.training


def test_random_weights_come_from_the_config_and_the_seed(bfloat16_directory: Path, tmp_path: Path) -> None:
    shutil.copy(bfloat16_directory / "config.json", tmp_path)  # no weights, no tokenizer
    first, second, other = (
        (torch.manual_seed(seed), load(tmp_path, init="random"))[1].model.embed_tokens.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    stored = load_file(bfloat16_directory / "model.safetensors")["model.embed_tokens.weight"]
    assert first.shape == stored.shape
    assert not torch.allclose(first, stored.float(), atol=0.1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_loaded_whole(architecture: str, tmp_path: Path) -> None:
    """No weight of theirs is thought to be missing: tied heads, fused projections, renamed layers."""
    model = random_model(architecture)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype="float64")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_gradient_checkpointing_changes_memory_and_nothing_else(bfloat16_directory: Path) -> None:
    ids = torch.arange(12)[None]
    found = []
    for checkpointing in (False, True):
        model = load(bfloat16_directory, gradient_checkpointing=checkpointing)
        assert model.is_activation_checkpointing == checkpointing
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        found.append(model.model.layers[0].mlp.up_proj.weight.grad)
    assert torch.allclose(*found)


def test_gradient_checkpointing_of_a_model_that_has_none(
    bfloat16_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, "supports_gradient_checkpointing", False)
    load(bfloat16_directory)
    message = refused(bfloat16_directory, gradient_checkpointing=True)
    assert message == "model.lm.gradient_checkpointing: LlamaForCausalLM has none; set it to false"


def test_the_attention_implementation(
    bfloat16_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLASH_ATTENTION_DETERMINISTIC", raising=False)
    assert load(bfloat16_directory).config._attn_implementation == "sdpa"  # auto, on a CPU
    gemma = random_model("gemma2").config
    gemma.save_pretrained(tmp_path)
    assert load(tmp_path, init="random").config._attn_implementation == "eager"  # it has no sdpa
    assert load(bfloat16_directory, attn_implementation="eager").config._attn_implementation == "eager"
    monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "0")
    load(bfloat16_directory, deterministic_attention=True)
    assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"


def test_the_check_of_the_head_runs_under_flash_attention(bfloat16_directory: Path) -> None:
    """Flash attention refuses float32, which the masters are; in training autocast turns them to bfloat16."""

    def refusing(module: torch.nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_autocast_enabled("cpu") and query.dtype == torch.float32:
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("flash_stand_in", refusing)
    try:
        model = load(bfloat16_directory)
        model.config._attn_implementation = "flash_stand_in"
        with pytest.raises(RuntimeError, match="FlashAttention"):
            model(input_ids=torch.arange(3)[None])
        check_head(model)
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["flash_stand_in"]


def refused(path: Path | str, **settings: Any) -> str:
    """The one line that is said."""
    with pytest.raises(UserError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("model.lm")
    assert len(message) < 600
    return message


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", "./nowhere", "models/of/mine"):
        for init in ("pretrained", "random"):
            message = refused(path, init=init)
            assert f"cannot load '{path}': no such directory here" in message


def test_a_name_on_the_hub_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    start = time.perf_counter()
    message = refused("no-such-group/no-such-model")
    assert "cannot load 'no-such-group/no-such-model': no directory of that name" in message
    assert time.perf_counter() - start < 5


def test_an_attention_that_is_not_installed(bfloat16_directory: Path) -> None:
    if is_flash_attn_2_available():
        pytest.skip("it is installed here")
    message = refused(bfloat16_directory, attn_implementation="flash_attention_2")
    assert "FlashAttention2" in message


def test_code_in_a_model_directory_is_neither_run_nor_asked_about(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "theirs.py").write_text("raise SystemExit('run')")
    names = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    edit_config(directory, model_type="theirs", auto_map=names)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    for init in ("pretrained", "random"):
        assert "contains custom code" in refused(directory, init=init)


def test_a_plain_transformers_model_has_the_same_logits(bfloat16_directory: Path) -> None:
    ids = torch.arange(20)[None]
    ours = load(bfloat16_directory).eval()
    theirs = AutoModelForCausalLM.from_pretrained(bfloat16_directory, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
