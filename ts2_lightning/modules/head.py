"""The output head of a language model: everything between its last hidden states and its logits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ts2_lightning.modules.nonfinite import first_nonfinite
from ts2_lightning.types import UserError


class ScaledHead(nn.Module):
    """A head whose logits are scaled, or soft-capped: cap * tanh(logits / cap).

    Args:
        head: maps hidden states [*, H] to logits [*, K].
        scale: factor on the logits (Cohere, Granite).
        softcap: bound of the logits (Gemma), or None.
    """

    def __init__(self, head: nn.Module, scale: float = 1.0, softcap: float | None = None) -> None:
        super().__init__()
        self.head = head
        self.scale = scale
        self.softcap = softcap

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Logits [*, K] of hidden states [*, H]."""
        logits: Tensor = self.head(hidden_states) * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def output_head(model: PreTrainedModel) -> nn.Module:
    """The module that turns the backbone's last hidden states into the model's logits.

    A plain linear layer where the model has nothing else; with its scale or soft cap where its config says so.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(f"{type(model).__name__} has no output head: it is not a causal language model")
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return head if scale == 1.0 and softcap is None else ScaledHead(head, scale, softcap)


def backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its head: its output has `last_hidden_state` [B, T, H]."""
    decoder = model.base_model
    if decoder is model:
        raise UserError(f"{type(model).__name__} has no backbone below its head (`base_model`)")
    return decoder


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raises a `UserError` if a model cannot be trained as backbone and head.

    Either its logits are not finite, or a token's logits depend on the tokens after it, as those of an encoder do, or
    backbone and head do not reproduce them: some architectures do more than their config tells, and training such a
    model would silently be wrong.

    Args:
        model: whole in this process, on any device.
    """
    name, vocabulary = type(model).__name__, model.config.get_text_config().vocab_size
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]], device=next(model.parameters()).device) % vocabulary
    with evaluated(model):
        expected = model(input_ids=ids, use_cache=False).logits.float()
        logits = output_head(model)(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    if (expected.isnan() | expected.isposinf()).any():  # minus infinity masks a token
        weights = first_nonfinite(model.named_parameters())
        reason = f"nor is {weights}" if weights else "but its weights are: look at its config.json and model.lm.dtype"
        raise UserError(f"the logits of {name} are not finite, {reason}")
    resolution = torch.finfo(model.dtype).eps
    *before, changed = (expected[0] - expected[1]).abs().amax(-1).tolist()  # only the last token differs
    if max(before) > 1e-3 * changed + 16 * resolution * expected.abs().max():
        raise UserError(
            f"{name} lets a token see the tokens after it, as encoders do; a causal language model is needed"
        )
    error = max(1e-3, 2 * resolution)  # a factor of 1 / s instead of a division by s is rounded otherwise
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=error, atol=error):
        raise UserError(
            f"{name} does something between its last hidden states and its logits that is not known "
            "here; it would be trained on wrong logits, so it is refused"
        )


@contextmanager
def evaluated(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, and an attention that every device and dtype has: flash attention refuses a CPU, and float32."""
    attention, training = model.config._attn_implementation, model.training
    model.eval()
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = attention
        model.train(training)
