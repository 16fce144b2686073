"""What the strategies refuse, in one line."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Phi3Config, PretrainedConfig

from tests.support.errors import refused
from ts2_lightning.engines import FullEngine
from ts2_lightning.losses import TS2Loss
from ts2_lightning.modules.adapters import add_adapter
from ts2_lightning.modules.config import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.sharding import make_network, split_layers
from ts2_lightning.strategies import DeepSpeed
from ts2_lightning.types import UserError


def test_settings() -> None:
    with refused(r"offload_parameters.*needs stage 3.*got 2"):
        DeepSpeed(stage=2, offload_parameters=True)


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_precisions_that_deepspeed_would_compute_otherwise(precision: Any) -> None:
    with pytest.raises(UserError, match=rf"trainer.precision.*32-true or bf16-mixed.*{precision}"):
        Trainer(accelerator="cpu", devices=1, strategy=DeepSpeed(), precision=precision, logger=False)


def test_deepspeed_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts2_lightning.strategies.deepspeed.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ts2-lightning\[deepspeed\]'"):
        DeepSpeed()


def test_lightnings_own_deepspeed() -> None:
    with pytest.raises(UserError, match=r"trainer.strategy.*divided twice.*ts2_lightning.strategies.DeepSpeed"):
        make_network(LanguageModelConfig("nowhere"), TS2Loss(), FullEngine(), DeepSpeedStrategy())


class Mesh:
    """As much of a device mesh as is looked at before anything is split."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "ranks", "message"),
    [
        (GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64), 2, "GPT2LMHeadModel has no plan for it"),
        (Phi3Config(**SIZES), 2, "Phi3ForCausalLM has a plan for it that asks for more.*colwise_gather_output"),
        (LlamaConfig(**SIZES), 4, "LlamaForCausalLM has 2 heads of keys, which 4 ranks cannot share equally"),
    ],
)
def test_models_that_cannot_be_split(config: PretrainedConfig, ranks: int, message: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    mesh: Any = Mesh(ranks)
    with pytest.raises(UserError, match=rf"tensor_parallel_size\): {message}.*; set it to 1"):
        split_layers(model, mesh)


def test_an_adapter_is_not_split() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES))
    add_adapter(model, AdapterConfig(r=2))
    mesh: Any = Mesh(2)
    with pytest.raises(UserError, match="has an adapter"):
        split_layers(model, mesh)
