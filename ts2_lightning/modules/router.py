"""The auxiliary loss of a mixture's routers: how evenly a row's tokens are spread over the experts.

Shapes: R rows in a micro-batch of B x T places, N supervised tokens, L layers with a router, E experts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.types import Batch, UserError

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")  # what transformers' classes call it; the second is JetMoe's
_SETTING = "model.lm.router_aux_loss_coef"


def balance_of_rows(logits: Sequence[Tensor], spans: Tensor, top_k: int) -> Tensor:
    """The load-balancing loss of each row by itself: E sum_e f_e P_e, which is top_k where the experts are in balance.

    f_e is the number of choices of expert e over the number of the row's tokens and layers, and P_e the mean of its
    softmax probability over them; f has no gradient. All tokens of a row count, supervised or not; padding does not.
    A row's value depends on no other row, which is what makes the sum over a step the same for any split of it.

    Source: Fedus et al. 2021, "Switch Transformer", https://arxiv.org/abs/2101.03961, equations 4 to 6, for top_k
    choices of each token; `load_balancing_loss_func` of transformers, called with one row alone, is the same number.

    Args:
        logits: Logits of the routers of each of L layers, [B T, E] or [B, T, E].
        spans: [R, 2] int64, start and end of each row in the flattened places; a row has a token at least.
        top_k: experts that a token goes to.

    Returns:
        [R], in float32 at least.

    Example:
        >>> even, uneven = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        >>> balance_of_rows([torch.cat([even, uneven])], torch.tensor([[0, 2], [2, 4]]), top_k=1)
        tensor([1.0000, 1.4621])
    """
    first = logits[0]
    dtype = torch.promote_types(first.dtype, torch.float32)
    with torch.autocast(first.device.type, enabled=False):  # it would turn the sums below to bfloat16
        places = torch.arange(first.numel() // first.shape[-1], device=first.device)
        inside = (places >= spans[:, :1]) & (places < spans[:, 1:])
        share = inside.to(dtype) / spans.diff().clamp(min=1)  # [R, B T]; a product is deterministic on every device
        choices = probabilities = share.new_zeros(len(spans), first.shape[-1])
        for layer in logits:
            routed = layer.reshape(-1, layer.shape[-1]).to(first.device, dtype).softmax(-1)
            chosen = torch.zeros_like(routed).scatter_(1, routed.detach().topk(top_k).indices, 1.0)
            choices = choices + share @ chosen
            probabilities = probabilities + share @ routed
        return (choices * probabilities).sum(-1) * (first.shape[-1] / len(logits) ** 2)


def balance_of_tokens(logits: Sequence[Tensor], batch: Batch, top_k: int) -> Tensor:
    """[N]: for each supervised token the value of its row, so that the mean over a step's tokens is over its rows."""
    return balance_of_rows(logits, batch["row_spans"], top_k)[batch["token_rows"]]


def has_routers(model: PreTrainedModel) -> bool:
    """Whether transformers adds such a loss to a model's, and so can tell its routers' logits."""
    return any(hasattr(model, name) for name in _COEFFICIENTS) and hasattr(model, "num_experts_per_tok")


def experts_per_token(model: PreTrainedModel) -> int:
    """To how many experts each token goes, of a model that has routers."""
    return int(getattr(model, "num_experts_per_tok"))  # noqa: B009 (it is none of nn.Module's)


def router_coefficient(model: PreTrainedModel, setting: float | None) -> float:
    """The factor of the routers' loss in training; 0 where there is none.

    Args:
        model: its config asks for the loss with `output_router_logits`, as in transformers, and has the factor.
        setting: The user's setting, instead of the config's; None for the config's.

    Raises:
        UserError: the loss is asked for, and it is not known here what the routers' logits are.
    """
    stated = _stated(model)
    asked = bool(getattr(model.config.get_text_config(), "output_router_logits", False))
    wanted = setting if setting is not None else (stated or 0.0) if asked else 0.0
    if wanted and not has_routers(model):
        whose = f"got {setting:g}" if setting is not None else "its config.json asks for it with output_router_logits"
        raise UserError(
            f"{_SETTING}: transformers has no loss of the routers of {type(model).__name__}, {whose}; set it to "
            f"{'null' if setting is not None else '0'}"
        )
    return float(wanted)


def tell_router_loss(model: PreTrainedModel, setting: float | None) -> None:
    """One line on what becomes of the loss of a mixture's routers, whose factor many a config states."""
    stated, coefficient = _stated(model), router_coefficient(model, setting)
    if coefficient:
        source = "its config.json" if setting is None else _SETTING
        rank_zero_info(f"The routers' auxiliary loss is added, times {coefficient:g} ({source}): train/router_loss")
    elif stated and setting is None and has_routers(model):
        rank_zero_info(
            f"The routers' auxiliary loss is not added: config.json has its factor {stated:g}, but "
            f"output_router_logits is false there; to add it, set {_SETTING}"
        )


@torch.no_grad()
def check_router_loss(model: PreTrainedModel, setting: float | None) -> None:
    """Raises a `UserError` if a loss of routers is asked for that is not the one of `balance_of_rows`.

    Args:
        model: whole in this process, in evaluation mode and with an attention that its device has.
        setting: setting as for `router_coefficient`.
    """
    if not router_coefficient(model, setting):
        return
    ids = torch.arange(8, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    output: Any = model(input_ids=ids, use_cache=False, output_router_logits=True)
    logits, name = getattr(output, "router_logits", None), type(model).__name__
    if not logits:
        raise UserError(f"{_SETTING}: {name} does not tell its routers' logits; set it to 0")
    ours = balance_of_rows(logits, torch.tensor([[0, 8]], device=ids.device), experts_per_token(model))[0]
    if not torch.allclose(ours, torch.as_tensor(output.aux_loss).to(ours), rtol=1e-3):
        raise UserError(
            f"{_SETTING}: {name} has a loss of its own for its routers, which is not built here; set it to 0"
        )


def _stated(model: PreTrainedModel) -> float | None:
    """The factor in a model's config, which its class keeps if it has the loss; None where there is none."""
    places = [(place, name) for place in (model, model.config.get_text_config()) for name in _COEFFICIENTS]
    return next((float(getattr(place, name)) for place, name in places if hasattr(place, name)), None)
