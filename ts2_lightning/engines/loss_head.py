"""The last module of the network: hidden states in, loss out."""

from typing import Any

from torch import Tensor, nn

from ts2_lightning.engines.base import LossEngine
from ts2_lightning.losses import TokenLoss
from ts2_lightning.types import LossOutput


class LossHead(nn.Module):
    """A head, an engine and a loss as one module.

    It registers the head's parameters as its own direct parameters too, shared and not copied, so that a sharded
    strategy gathers them around this module's forward and backward. They are not part of its state dict: a checkpoint
    lists them once, under the model.

    Args:
        head: maps hidden states [*, H] to logits [*, K].
        loss: the objective.
        engine: how the logits come to be.
    """

    def __init__(self, head: nn.Module, loss: TokenLoss, engine: LossEngine) -> None:
        super().__init__()
        # In a tuple, so that the head itself is no child: its parameters are this module's own.
        self._head = (head,)
        self.loss = loss
        self.engine = engine
        for name, parameter in head.named_parameters():
            self.register_parameter(name.replace(".", "__"), parameter)

    def forward(
        self,
        hidden_states: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        positions: Tensor | None = None,
        lengths: Tensor | None = None,
        statistics: bool = True,
    ) -> LossOutput:
        """The loss of [N, H] hidden states with [N] labels, see `LossEngine`."""
        return self.engine(
            self.loss, self._head[0], hidden_states, labels, weights, positions, lengths, statistics=statistics
        )

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Saves nothing: the parameters are the model's."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Loads nothing: the parameters are the model's."""
