"""Does a model keep packed rows apart? Asked of the model itself, as it stands and as it is called in training."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ts2_lightning.model_limits import limits_of
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.types import Batch, UserError

_LENGTH = 8  # tokens of a probing row, at most; short, as a leak is largest next to the seam
_FINE, _COARSE = 1e-4, 0.1  # what counts as rounding, as a share of a whole leak: in 32 bits at least, and in fewer


class Vote(Protocol):
    """What is asked of a Lightning strategy."""

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Whether all ranks say yes."""


def check_isolation(network: SFTNetwork, vote: Vote) -> None:
    """Make sure that packed rows do not see each other. Every rank must call.

    Raises:
        UserError: on every rank, if they do.
    """
    model = network.language_model
    # A state that runs through the whole sequence, such as Mamba's, does not start again with a row.
    isolated = not model._is_stateful and keeps_rows_apart(network)
    if not vote.reduce_boolean_decision(isolated):
        attention = model.config._attn_implementation
        otherwise = " or model.lm.attn_implementation to sdpa" if network.uses_flash_attention else ""
        raise UserError(
            f"data.packing: {type(model).__name__} with attn_implementation {attention} does not keep packed rows "
            f"apart, they would be trained on each other's text; set data.packing to none{otherwise}"
        )


@torch.no_grad()
def keeps_rows_apart(network: SFTNetwork) -> bool:
    """Compares the hidden states of a row that is packed behind another with those that it has alone.

    They must not change when the row before it says something else: not at all, but for what is rounded otherwise
    depending on what else is computed at the time (by experts). And they must be those of the row alone, but for the
    rounding of another kernel. Both differences are held against those of rows joined to one, which is a whole leak.

    Args:
        network: on its device, sharded or not. It is called three times, with 32 tokens at most, in evaluation mode.
    """
    training = network.training
    network.eval()
    try:
        alone, joined, packed = (_last_row(network, batch) for batch in _probes(network))
    except TypeError as error:
        if "position_ids" not in str(error):
            raise
        return False  # it takes none
    finally:
        network.train(training)
    exact = torch.finfo(packed.dtype).bits >= 32 and not _needs_autocast(network, packed.device)
    unchanged = _distance(*packed) <= (_FINE if exact else _COARSE) * _distance(*joined)
    unmoved = _distance(packed[0], alone[0]) <= _COARSE * _distance(joined[0], alone[0])
    return unchanged and unmoved


def _needs_autocast(network: SFTNetwork, device: torch.device) -> bool:
    """Flash attention refuses float32, and in the trainer's autocast FSDP2 gathers weights that are rounded."""
    rounded = isinstance(network, FSDPModule) and torch.is_autocast_enabled(device.type)
    return network.uses_flash_attention or rounded


def _distance(left: Tensor, right: Tensor) -> float:
    return (left.float() - right.float()).norm().item()


def _length(network: SFTNetwork) -> int:
    """Tokens of a probing row, two of which have to find room in the model's context."""
    context = limits_of(network.language_model.config).context
    return _LENGTH if context is None else max(1, min(_LENGTH, context // 2))


def _probes(network: SFTNetwork) -> list[Batch]:
    """A row alone, behind each of two others as if the two were one row, and packed behind each of them."""
    device, length = next(network.parameters()).device, _length(network)
    vocabulary = network.language_model.config.get_text_config().vocab_size
    first, other, last = torch.linspace(1, vocabulary - 1, 3 * length, device=device).long().view(3, 1, length)
    pairs = torch.cat([torch.cat([first, last], dim=1), torch.cat([other, last], dim=1)])
    own_places = torch.arange(length, device=device).repeat(2, 2)
    return [
        {"input_ids": last, "attention_mask": torch.ones_like(last)},
        {"input_ids": pairs, "attention_mask": torch.ones_like(pairs)},
        {"input_ids": pairs, "position_ids": own_places},
    ]


def _last_row(network: SFTNetwork, batch: Batch) -> Tensor:
    """[B, T, H] hidden states of the last row of each sequence, caught on their way to the loss head."""
    ids, length = batch["input_ids"], _length(network)
    places = torch.arange(ids.numel(), device=ids.device).view_as(ids)[:, -length:]
    positions = torch.arange(1, length + 1, device=ids.device).expand_as(places)
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: Any) -> None:
        caught.append(args[0])

    whole: Batch = {
        **batch,
        "supervised": places.flatten(),
        "labels": ids[:, -length:].flatten(),
        "positions": positions.flatten(),
        "lengths": torch.full_like(places, length).flatten(),
    }
    handle = network.loss_head.register_forward_pre_hook(catch)
    try:
        # The trainer's autocast would blur the comparison.
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=_needs_autocast(network, ids.device)):
            network(whole, statistics=())
    finally:
        handle.remove()
    return caught[0].view(*places.shape, -1)
