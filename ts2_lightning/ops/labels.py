"""Labels of any shape: which tokens are supervised, and what labels alone say of each."""

from typing import NamedTuple

import torch
from torch import Tensor

from ts2_lightning.types import IGNORE_INDEX, Targets, UserError


class SupervisedTokens(NamedTuple):
    """The N supervised tokens of labels [..., T].

    Attributes:
        places: Place [N] of each token's row of logits in the flattened labels, int64.
        targets: Gold token of each, its 1-based position in its response, and the response's length.
    """

    places: Tensor
    targets: Targets


def supervised_tokens(labels: Tensor, *, shift: bool = False) -> SupervisedTokens:
    """The supervised tokens of labels, in their order.

    Supervised neighbours in the last dimension are one response, as labels alone can tell.

    Args:
        labels: Gold tokens [..., T] int; -100 at places that are not supervised.
        shift: Whether labels repeat the model's input, as transformers has them: the logits at place t are then held
            against the label at t + 1. By default they are held against the label at t.

    Raises:
        UserError: labels that are no integers, or a single one that is to be shifted.

    Example:
        >>> places, targets = supervised_tokens(torch.tensor([[-100, 5, 6], [-100, -100, 7]]), shift=True)
        >>> places.tolist(), targets.labels.tolist(), targets.positions.tolist(), targets.lengths.tolist()
        ([0, 1, 4], [5, 6, 7], [1, 2, 1], [2, 2, 1])
    """
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        what = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise UserError(f"labels: expected a tensor of integers, got {what}")
    if shift:
        if not labels.dim():
            raise UserError("shift: a single label has no next one; give labels [..., T], or shift=False")
        labels = torch.cat([labels[..., 1:], torch.full_like(labels[..., :1], IGNORE_INDEX)], dim=-1)
    labels = labels.unsqueeze(0).flatten(0, -2) if labels.dim() else labels.view(1, 1)
    learnt = labels != IGNORE_INDEX
    places = learnt.reshape(-1).nonzero()[:, 0]
    positions, lengths = (values.reshape(-1)[places] for values in _runs(learnt))
    return SupervisedTokens(places, Targets(labels.reshape(-1)[places].long(), positions=positions, lengths=lengths))


def _runs(learnt: Tensor) -> tuple[Tensor, Tensor]:
    """Where each place stands in its run of true values, from 1, and how long the run is; [B, T] each."""
    if not learnt.numel():
        return learnt.long(), learnt.long()
    width = learnt.shape[-1]
    places = torch.arange(width, device=learnt.device).expand_as(learnt)
    edge = torch.ones_like(learnt[:, :1])
    is_first = torch.cat([edge, learnt[:, 1:] != learnt[:, :-1]], dim=-1)
    is_last = torch.cat([is_first[:, 1:], edge], dim=-1)
    first = torch.where(is_first, places, 0).cummax(-1).values
    last = torch.where(is_last, places, width).flip(-1).cummin(-1).values.flip(-1)
    return places - first + 1, last - first + 1


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raises a `UserError` unless there is one integer label [...] for each row of logits [..., K]."""
    if not isinstance(logits, Tensor) or logits.dim() < 1 or not logits.shape[-1] or not logits.is_floating_point():
        what = f"{logits.dtype} of shape {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"logits: expected floats of shape [..., K], got {what}")
    expected = f"labels: expected integers of shape {list(logits.shape[:-1])}, one for each row of logits, got "
    if not isinstance(labels, Tensor):
        raise UserError(f"{expected}{type(labels).__name__}")
    if labels.shape != logits.shape[:-1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"{expected}{labels.dtype} of shape {list(labels.shape)}")


def check_gold(gold: Tensor, vocabulary: int) -> None:
    """Raises a `UserError` unless all gold tokens [N] are in the vocabulary."""
    if len(gold) and not bool(((gold >= 0) & (gold < vocabulary)).all()):
        wrong = gold[(gold < 0) | (gold >= vocabulary)][0].item()
        raise UserError(
            f"labels: expected 0 to {vocabulary - 1}, or {IGNORE_INDEX} for tokens to leave out, got {wrong}"
        )
