"""Public models whose sizes the package has: the parameters that follow are those that the models' pages state."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ts2_lightning.planning.public_models import PUBLIC_MODELS, public_config

PARAMETERS = {
    "meta-llama/Llama-3.2-1B": 1_235_814_400, "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248, "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496, "meta-llama/Llama-3.1-405B": 405_853_388_800,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-1.5B": 1_543_714_304, "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512, "Qwen/Qwen2.5-14B": 14_770_033_664, "Qwen/Qwen2.5-32B": 32_763_876_352,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-1.7B": 1_720_574_976, "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360, "Qwen/Qwen3-14B": 14_768_307_200, "Qwen/Qwen3-32B": 32_762_123_264,
    "google/gemma-3-270m": 268_098_176, "google/gemma-3-1b-pt": 999_885_952,
    "mistralai/Mistral-Nemo-Base-2407": 12_247_782_400,
    "allenai/OLMo-2-0425-1B": 1_484_916_736, "allenai/OLMo-2-1124-7B": 7_298_617_344,
    "allenai/OLMo-2-1124-13B": 13_716_198_400, "allenai/OLMo-2-0325-32B": 32_234_279_936,
    "microsoft/phi-4": 14_659_507_200,
}  # fmt: skip


def parameters(config: dict[str, object], layers: int, directory: Path) -> int:
    (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(directory))
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_parameters_of_a_public_model(name: str, tmp_path: Path) -> None:
    """Of one and of two layers, from which those of all follow: 126 would take their time."""
    config = PUBLIC_MODELS[name]
    one, two = (parameters(config, layers, tmp_path) for layers in (1, 2))
    assert one + (config["num_hidden_layers"] - 1) * (two - one) == PARAMETERS[name]


def test_every_model_is_counted_or_tuned_from_one_that_is() -> None:
    counted = [PUBLIC_MODELS[name] for name in PARAMETERS]
    assert all(any(config is other for other in counted) for config in PUBLIC_MODELS.values())
    assert public_config("META-LLAMA/llama-3.1-8b-instruct") is PUBLIC_MODELS["meta-llama/Llama-3.1-8B"]
