"""Adapters on the experts of a mixture, which lie in parameters of three dimensions: right gradients, right merging."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from tests.modules.architectures import ARCHITECTURES, MIXTURES, random_model, uneven_batch
from tests.modules.test_adapters import logits, merged, speak
from tests.modules.test_head import gradients
from tests.support.ranks import launch
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapter_targets import check_gathering, expert_parameters
from ts2_lightning.modules.adapters import (
    adapted_layers,
    adapted_weights,
    adapter_line,
    add_adapter,
    check_trained_state,
    merged_weights,
    trained_state,
)
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.types import UserError

_DEEPSEEK = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 16,
    "first_k_dense_replace": 1, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
    "qk_nope_head_dim": 8,
}  # fmt: skip
_SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PARTLY_DENSE: dict[str, PreTrainedConfig] = {
    "qwen3_moe, a dense layer": transformers.Qwen3MoeConfig(
        **_SIZES, head_dim=8, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=16,
        mlp_only_layers=[0],
    ),
    "deepseek_v3": transformers.DeepseekV3Config(**_SIZES, **_DEEPSEEK),
}  # fmt: skip
"""Linear layers of dense layers and shared experts have the names that experts had in transformers 4."""
ALL = {**MIXTURES, **PARTLY_DENSE}


def adapted(architecture: str, **settings: Any) -> PreTrainedModel:
    """A float64 model with an adapter on all experts that says something."""
    model = random_model(ALL[architecture])
    add_adapter(model, AdapterConfig(**{"r": 3, "alpha": 6, "target_parameters": "all-experts", **settings}))
    speak(model)
    return model.train()


def matrices(model: nn.Module) -> set[str]:
    """All weights of linear layers but the head, and all experts."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return (linear | {name for name, p in model.named_parameters() if p.dim() == 3}) - {"lm_head.weight"}


@pytest.mark.parametrize("architecture", ALL)
def test_all_linear_layers_and_all_experts_and_nothing_else(architecture: str) -> None:
    plain = random_model(ALL[architecture])
    experts = set(expert_parameters(plain))
    assert experts == {name for name, p in plain.named_parameters() if p.dim() == 3}
    assert adapted_weights(adapted(architecture)).keys() == matrices(plain)
    assert adapted_weights(adapted(architecture, target_parameters=None)).keys() == matrices(plain) - experts


def test_the_experts_that_are_named() -> None:
    model = adapted("mixtral", target_modules=["q_proj"], target_parameters=["1.mlp.experts.down_proj"])
    assert {name for name in adapted_weights(model) if "q_proj" not in name} == {"model.layers.1.mlp.experts.down_proj"}


def test_at_first_the_model_is_what_it_was() -> None:
    for architecture in ALL:
        model = random_model(ALL[architecture])
        before = logits(model)
        add_adapter(model, AdapterConfig(r=3, target_parameters="all-experts"))
        assert torch.equal(logits(model), before)
        trained = [p for p in model.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)


# -- the numbers


def product(a: Tensor, b: Tensor, experts: int, rank: int) -> list[Tensor]:
    """B A of each expert [outputs, inputs], from PEFT's way to lay them out: A expert by expert, B rank by rank."""
    return [b[:, range(e, b.shape[1], experts)] @ a[e * rank : (e + 1) * rank] for e in range(experts)]


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss", "jetmoe", "deepseek_v3"])
def test_gradients_against_those_of_the_whole_weights(architecture: str) -> None:
    """With G the gradient of W + s B A: that of B is s G A^T, that of A is s B^T G, for each expert by itself."""
    model, rank, scale = adapted(architecture), 3, 6 / 3
    whole = merged(model).train()
    SFTNetwork(model, CrossEntropyLoss(), ChunkedEngine(3))(uneven_batch()[0]).total.backward()
    SFTNetwork(whole, CrossEntropyLoss(), ChunkedEngine(3))(uneven_batch()[0]).total.backward()
    of_whole = gradients(whole)
    for name, layer in adapted_weights(model).items():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        g = of_whole[name]
        g = g.transpose(1, 2) if architecture == "gpt_oss" and g.dim() == 3 else g
        g = g if g.dim() == 3 else g[None]
        experts = len(g)
        for e in range(experts):
            of_b, rows = slice(e, None, experts), slice(e * rank, (e + 1) * rank)
            for mine, wanted in (
                (b.grad[:, of_b], scale * g[e] @ a[rows].T),
                (a.grad[rows], scale * b[:, of_b].T @ g[e]),
            ):
                torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-6 * max(wanted.abs().max().item(), 1e-3))
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize("architecture", ALL)
def test_the_merged_model_says_the_same_without_an_adapter(architecture: str) -> None:
    model = adapted(architecture)
    plain = merged(model)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-6, atol=1e-6)
    assert (logits(plain) - logits(random_model(ALL[architecture]))).abs().max() > 0.1
    assert plain.state_dict().keys() == random_model(ALL[architecture]).state_dict().keys()


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_what_is_in_bfloat16_is_summed_in_float32(architecture: str, tmp_path: Path) -> None:
    """PEFT itself rounds the product to bfloat16 before it adds it."""
    random_model(ALL[architecture]).to(torch.bfloat16).save_pretrained(tmp_path)
    settings = AdapterConfig(r=3, target_parameters="all-experts")
    model = load_language_model(LanguageModelConfig(str(tmp_path), dtype="bfloat16", adapter=settings))
    speak(model)
    weights = {weight.name: weight for weight in merged_weights(model)}
    for name, layer in adapted_weights(model).items():
        base = weights[name].base.double()
        a, b = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
        changes = product(a, b, len(base) if base.dim() == 3 else 1, 3)
        change = (
            torch.stack([c.T if architecture == "gpt_oss" else c for c in changes]) if base.dim() == 3 else changes[0]
        )
        assert (weights[name].value.dtype, weights[name].held) == (torch.float32, torch.bfloat16)
        torch.testing.assert_close(weights[name].value.double(), base + 16 / 3 * change, rtol=1e-6, atol=1e-6)
        assert layer.lora_A["default"].weight.dtype == torch.float32


def test_gradient_checkpointing_changes_nothing() -> None:
    results = []
    for checkpointing in (False, True):
        model = adapted("olmoe")
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        SFTNetwork(model, CrossEntropyLoss(), ChunkedEngine(3))(uneven_batch()[0]).total.backward()
        results.append(gradients(model))
    plain, checkpointed = results
    assert plain.keys() == checkpointed.keys()
    assert any("experts" in name and gradient.any() for name, gradient in plain.items())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


def test_a_checkpoint_has_what_is_trained_and_gives_it_back() -> None:
    model, other = adapted("gpt_oss"), adapted("gpt_oss")
    state = trained_state(model.state_dict(), model)
    assert len(state) == 2 * len(adapted_weights(model))
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    check_trained_state(state, other)
    other.load_state_dict(state, strict=False)
    assert torch.equal(logits(other), logits(model))


@pytest.mark.slow
def test_sharded_on_two_ranks(tmp_path: Path) -> None:
    """FSDP2, checkpointed and not, with the loss of the routers, whole and adapted: the gradients of one process."""
    launch("tests.modules.experts_on_two_ranks", tmp_path)
    for rank in (0, 1):
        answers = torch.load(tmp_path / f"{rank}.pt")
        assert len(answers) == 4
        for sharded, whole in answers.values():
            assert sharded.keys() == whole.keys()
            assert any("experts" in name for name in whole)
            for name, gradient in whole.items():
                torch.testing.assert_close(sharded[name], gradient, rtol=1e-9, atol=1e-9, msg=name)


# -- what is said


def test_a_line_names_what_is_not_adapted() -> None:
    model = random_model("llama")
    add_adapter(model, AdapterConfig(r=3))
    total = sum(p.numel() for n, p in model.named_parameters() if "lora_" not in n)
    share = 97 * 32 / total
    assert adapter_line(model) == (
        f"LoRA trains 2,784 weights beside the {total:,} of the model; not adapted: model.embed_tokens {share:.1%}, "
        f"lm_head {share:.1%}"
    )
    model = random_model(MIXTURES["mixtral"])
    add_adapter(model, AdapterConfig(r=3))
    assert adapter_line(model) == (
        "LoRA trains 1,344 weights beside the 49,632 of the model; not adapted: experts.gate_up_proj 49.5%, "
        "experts.down_proj 24.8%, model.embed_tokens 6.3%, lm_head 6.3%, mlp.gate 0.5%; "
        "model.lm.adapter.target_parameters: all-experts adapts experts.down_proj and experts.gate_up_proj too"
    )
    assert "experts" not in adapter_line(adapted("mixtral"))


def test_names_that_match_nothing() -> None:
    for wanted, said in (
        ("all-experts", "LlamaForCausalLM has no experts in one parameter; its linear layers are adapted by"),
        (
            ["down"],
            "no parameter of LlamaForCausalLM with the matrices of several experts is called 'down'; it has none",
        ),
    ):
        with pytest.raises(UserError, match=rf"^model\.lm\.adapter\.target_parameters: {said}"):
            add_adapter(random_model(ARCHITECTURES["llama"]), AdapterConfig(target_parameters=wanted))
    with pytest.raises(UserError, match=r"called 'down'; it has experts\.down_proj, experts\.gate_up_proj"):
        adapted("mixtral", target_parameters=["experts.down_proj", "down"])


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match=r"dropout must be 0 with target_parameters, got 0\.1"):
        AdapterConfig(dropout=0.1, target_parameters="all-experts")
    with pytest.raises(UserError, match="target_parameters must be null, all-experts or a list of names, got an empty"):
        AdapterConfig(target_parameters=[])
    model = random_model(PARTLY_DENSE["deepseek_v3"])
    with pytest.raises(UserError, match=r"dropout must be 0, got 0\.5, to adapt down_proj, gate_proj, up_proj of Deep"):
        add_adapter(copy.deepcopy(model), AdapterConfig(dropout=0.5))
    add_adapter(model, AdapterConfig(dropout=0.5, target_modules=["o_proj", "q_a_proj"]))
    check_gathering(adapted_layers(model).values())
    with pytest.raises(
        UserError, match=r"ZeRO-3 does not gather the parameters down_proj, gate_up_proj for their adap"
    ):
        check_gathering(adapted_layers(adapted("mixtral")).values())
