"""The loss through backbone and loss head is the loss of the model's own logits, for many architectures."""

import copy

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from tests.modules.architectures import ARCHITECTURES, OTHER_KINDS, PLAIN, VOCABULARY, random_model, uneven_batch
from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine
from ts2_lightning.engines.linear import is_plain_linear
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules.head import ScaledHead, backbone, check_head, output_head
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.types import UserError

ENGINES = {"full": FullEngine(), "chunks of 3": ChunkedEngine(3)}


def plain_cross_entropy(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the supervised tokens, from the model's own logits, and the gradients of all parameters."""
    batch, labels = uneven_batch()
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    loss.backward()
    return loss.detach(), gradients(model)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_that_of_the_models_own_logits(architecture: str) -> None:
    model = random_model(architecture)
    wanted, wanted_gradients = plain_cross_entropy(copy.deepcopy(model))
    assert len(wanted_gradients) > 5
    for engine in ENGINES.values():
        check_one(copy.deepcopy(model), engine, wanted, wanted_gradients)


def check_one(model: PreTrainedModel, engine: LossEngine, wanted: Tensor, wanted_gradients: dict[str, Tensor]) -> None:
    batch, _ = uneven_batch()
    output = SFTNetwork(model, CrossEntropyLoss(), engine)(batch)
    output.total.backward()
    torch.testing.assert_close(output.total.detach().double(), wanted, rtol=1e-6, atol=0)
    assert output.tokens["cross_entropy"].shape == batch["labels"].shape
    found = gradients(model)
    assert found.keys() == wanted_gradients.keys()
    for name, gradient in found.items():
        scale = wanted_gradients[name].abs().max().item()
        torch.testing.assert_close(gradient, wanted_gradients[name], rtol=0, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_known_architectures_pass_the_check(architecture: str) -> None:
    model = random_model(architecture)
    check_head(model)
    assert model.training
    assert not gradients(model)
    check_head(model.eval())
    assert not model.training
    # A plain head takes the fast way through the engines.
    assert is_plain_linear(output_head(model)) == (architecture in PLAIN)


@pytest.mark.parametrize(
    ("architecture", "scale", "softcap"), [("cohere", 0.25, None), ("granite", 0.125, None), ("gemma2", 1.0, 2.0)]
)
def test_scale_and_soft_cap_come_from_the_config(architecture: str, scale: float, softcap: float | None) -> None:
    head = output_head(random_model(architecture))
    assert isinstance(head, ScaledHead)
    assert (head.scale, head.softcap) == (scale, softcap)


def test_an_unknown_step_before_the_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model("llama")
    forward = type(model).forward

    def scaled(self: PreTrainedModel, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        output.logits = output.logits * 1.01
        return output

    check_head(model)
    monkeypatch.setattr(type(model), "forward", scaled)
    with pytest.raises(UserError, match="LlamaForCausalLM does something between"):
        check_head(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_check_allows_for_a_dtypes_rounding(architecture: str, dtype: torch.dtype) -> None:
    check_head(random_model(architecture).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_multiplier_that_this_package_does_not_know_is_refused(dtype: torch.dtype) -> None:
    """Falcon-H1 multiplies its logits by a factor of its own name."""
    config = transformers.FalconH1Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=16, mamba_n_groups=1,
        lm_head_multiplier=0.3, pad_token_id=0,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        output_head(model).weight.normal_()
    with pytest.raises(UserError, match="FalconH1ForCausalLM"):
        check_head(model)


def test_weights_that_are_not_finite_are_no_unknown_architecture() -> None:
    model = random_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :2] = torch.nan
        model.model.norm.weight[5] = torch.inf
    with pytest.raises(UserError) as error:
        check_head(model)
    assert str(error.value) == (
        "the logits of LlamaForCausalLM are not finite, nor is model.layers.1.mlp.up_proj.weight (2 of its 1,536 "
        "numbers, and 1 tensor more)"
    )


def test_masked_logits_are_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture may set logits to minus infinity, if it says so in its head."""
    model = random_model("llama")
    monkeypatch.setattr(
        model.lm_head, "forward", lambda x: F.linear(x, model.lm_head.weight).index_fill(-1, _LAST, -torch.inf)
    )
    check_head(model)


_LAST = torch.tensor([VOCABULARY - 1])


@pytest.mark.parametrize("seed", range(3))
def test_a_model_whose_tokens_see_what_comes_after_them_is_refused(seed: int) -> None:
    torch.manual_seed(seed)
    config = OTHER_KINDS["BertModel"]().config
    with pytest.raises(UserError, match="BertLMHeadModel lets a token see the tokens after it"):
        check_head(transformers.BertLMHeadModel(config))
    config.is_decoder = True
    with pytest.raises(UserError, match="BertLMHeadModel does something between"):
        check_head(transformers.BertLMHeadModel(config))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="LlamaModel has no output head"):
        output_head(random_model("llama").model)
    with pytest.raises(UserError, match="LlamaModel has no backbone below its head"):
        backbone(random_model("llama").model)
