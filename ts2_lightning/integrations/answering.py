"""A causal language model of transformers that also answers with a loss, and then forms no logits [N, K].

Trainers wrap a model: DDP, autocast and DeepSpeed act around its `forward`. So the loss head is a child of the model,
and its `forward` the way to it; without a request, both are as if they were not there.
"""

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from ts2_lightning.engines import LossEngine, LossHead
from ts2_lightning.losses import TokenLoss
from ts2_lightning.modules.adapters import is_adapted
from ts2_lightning.modules.head import backbone, check_head, output_head
from ts2_lightning.modules.reference import ReferenceModel
from ts2_lightning.types import LossOutput, Targets, UserError

LOSS_HEAD = "token_loss_head"
"""Name of the loss head among the model's children; it is in no state dict."""

_NOT_FOR_BACKBONE = {"labels", "shift_labels", "num_items_in_batch", "logits_to_keep", "return_dict", "use_cache"}


class LossRequest(NamedTuple):
    """What a model is asked for, as the argument `loss_request` of its `forward`.

    Attributes:
        places: Places [N] of the rows of logits in the flattened sequences.
        targets: What is known of the N tokens.
        statistics: Names of what to measure at each of them.
    """

    places: Tensor
    targets: Targets
    statistics: tuple[str, ...]


def add_loss_head(model: PreTrainedModel, loss: TokenLoss, engine: LossEngine) -> None:
    """Has a model answer a `LossRequest` with a `LossOutput`. Before a trainer wraps it, and after PEFT does.

    Args:
        model: A causal language model.
        loss: The objective. If it needs a reference, that is the model without its adapter.
        engine: How logits come to be.

    Raises:
        UserError: the model has no head, its head is not all there is behind its hidden states, or there is no
            reference.
    """
    if _is_whole(model):
        check_head(model)
    reference = ReferenceModel(model) if loss.needs_reference and is_adapted(model) else None
    if loss.needs_reference and reference is None:
        raise UserError(
            f"token_loss: {type(loss).__name__} needs a reference model, which here is the model without its LoRA "
            "adapter, and it has none; train an adapter, or the whole model with `ts2 fit`"
        )
    is_new = not hasattr(model, LOSS_HEAD)
    reference_head = None if reference is None else reference.head
    setattr(model, LOSS_HEAD, LossHead(output_head(model), loss, engine, reference_head))
    if is_new:
        model.forward = MethodType(_answering(model), model)
    # In a tuple, so that the model itself is not its own child.
    model._token_loss_reference = (reference,)  # type: ignore[assignment]


def _is_whole(model: PreTrainedModel) -> bool:
    """Whether all weights are here: a strategy may have sharded them while they were loaded."""
    return all(type(p.data) is Tensor and p.numel() and not p.is_meta for p in model.parameters())


def _answering(model: PreTrainedModel) -> Callable[..., Any]:
    """The forward of a model, unbound, which takes a request too."""
    bound = model.forward
    # A copy of the model has to call its own; a hook of accelerate is bound to nothing.
    own = bound.__func__ if inspect.ismethod(bound) else lambda _, *args, **kwargs: bound(*args, **kwargs)

    def forward(self: PreTrainedModel, *args: Any, loss_request: LossRequest | None = None, **kwargs: Any) -> Any:
        if loss_request is None:
            return own(self, *args, **kwargs)
        return _answer(self, loss_request, kwargs)

    # `generate` and the trainers look at the arguments; `functools.wraps` would let accelerate take this one off.
    forward.__signature__ = inspect.signature(type(model).forward)  # type: ignore[attr-defined]
    return forward


def _answer(model: PreTrainedModel, request: LossRequest, arguments: dict[str, Any]) -> LossOutput:
    inputs = {name: x for name, x in arguments.items() if x is not None and name not in _NOT_FOR_BACKBONE}
    targets = request.targets
    (reference,) = model._token_loss_reference  # type: ignore[misc]
    if reference is not None:  # first, as nothing is held for a backward pass yet
        targets = targets._replace(reference=reference(inputs, request.places))
    states = backbone(model)(**inputs, use_cache=False).last_hidden_state
    hidden_states = states.flatten(0, 1).index_select(0, request.places)
    answer: LossOutput = getattr(model, LOSS_HEAD)(hidden_states, targets, request.statistics)
    return answer
