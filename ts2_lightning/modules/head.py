"""The output head of a language model: everything between its last hidden states and its logits."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

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
    """Raises a `UserError` if backbone and head do not reproduce the model's own logits.

    Some architectures do more than their config tells; training such a model would silently be wrong.

    Args:
        model: whole in this process, on any device.
    """
    config, training, device = model.config, model.training, next(model.parameters()).device
    ids = torch.arange(3, device=device)[None] % config.get_text_config().vocab_size
    attention = config._attn_implementation
    model.eval()
    config._attn_implementation = "eager"  # flash attention refuses a CPU, on which a model is loaded, and float32
    try:
        expected = model(input_ids=ids, use_cache=False).logits.float()
        logits = output_head(model)(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    finally:
        config._attn_implementation = attention
        model.train(training)
    # A factor of 1 / s instead of a division by s is rounded otherwise.
    error = max(1e-3, 2 * torch.finfo(model.dtype).eps)
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=error, atol=error):
        raise UserError(
            f"{type(model).__name__} does something between its last hidden states and its logits that is not known "
            "here; it would be trained on wrong logits, so it is refused"
        )
