"""The last module of the network: hidden states in, loss out."""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ts2_lightning.engines.base import LossEngine
from ts2_lightning.engines.chunked import logits_in_chunks
from ts2_lightning.losses import TokenLoss
from ts2_lightning.types import TOKEN_STATISTICS, LossOutput, Targets


class LossHead(nn.Module):
    """A head, an engine and a loss as one module.

    It registers the head's parameters as its own direct parameters too, shared and not copied, so that a sharded
    strategy gathers them around this module's forward and backward. They are not part of its state dict: a checkpoint
    lists them once, under the model.

    Args:
        head: maps hidden states [*, H] to logits [*, K].
        loss: the objective.
        engine: how the logits come to be.
        reference_head: The head of a frozen reference model, if the loss needs one.
    """

    def __init__(
        self, head: nn.Module, loss: TokenLoss, engine: LossEngine, reference_head: nn.Module | None = None
    ) -> None:
        super().__init__()
        # In a tuple, so that the head itself is no child: its parameters are this module's own.
        self._head = (head,)
        self._reference_head = (reference_head,)
        self.loss = loss
        self.engine = engine
        for name, parameter in head.named_parameters():
            self.register_parameter(name.replace(".", "__"), parameter)
        for name, parameter in [] if reference_head is None else reference_head.named_parameters():
            self.register_parameter(f"reference__{name.replace('.', '__')}", parameter)

    def forward(
        self, hidden_states: Tensor, targets: Targets | Tensor, statistics: Collection[str] = TOKEN_STATISTICS
    ) -> LossOutput:
        """The loss of hidden states [N, H] and their targets, see `LossEngine`."""
        return self.under(self.loss, hidden_states, targets, statistics)

    def under(
        self, loss: TokenLoss, hidden_states: Tensor, targets: Targets | Tensor, statistics: Collection[str]
    ) -> LossOutput:
        """As `forward`, under any loss. To be called where the weights are whole, as a hook on this module is."""
        (head,), (reference_head,) = self._head, self._reference_head
        with without_hooks_of_deepspeed(head), without_hooks_of_deepspeed(reference_head):
            return self.engine(loss, head, hidden_states, targets, statistics)

    def logits(self, hidden_states: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The logits of [N, H] hidden states, see `logits_in_chunks`. To be called where the weights are whole."""
        (head,) = self._head
        with without_hooks_of_deepspeed(head):
            yield from logits_in_chunks(head, hidden_states)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Saves nothing: the parameters are the model's."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Loads nothing: the parameters are the model's."""


@contextmanager
def without_hooks_of_deepspeed(head: nn.Module | None) -> Iterator[None]:
    """Takes the hooks away by which ZeRO-3 gathers the weights of the modules of a head; other hooks stay.

    The loss head has gathered them, and ranks that call the head for different numbers of chunks would disagree about
    the order of gathering.
    """
    taken = []
    for module in () if head is None else head.modules():
        for name in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks"):
            hooks = getattr(module, name)
            others = OrderedDict((k, hook) for k, hook in hooks.items() if not _is_of_deepspeed(hook))
            if len(others) < len(hooks):
                taken.append((module, name, hooks))
                setattr(module, name, others)
    try:
        yield
    finally:
        for module, name, hooks in taken:
            setattr(module, name, hooks)


def _is_of_deepspeed(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("deepspeed.")
