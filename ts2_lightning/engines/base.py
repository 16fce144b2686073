"""How rows of logits come to be, and how a loss is run over them.

Shapes: N supervised tokens, H the width of the model, K the vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection

from torch import Tensor, nn

from ts2_lightning.engines.linear import frozen_head
from ts2_lightning.engines.memory import FLOAT, LossSizes
from ts2_lightning.losses import TokenLoss
from ts2_lightning.types import TOKEN_STATISTICS, LossOutput, ReferenceOutput, Targets, UserError


class LossEngine(ABC):
    """Runs any loss on the hidden states of the supervised tokens, through any head.

    All engines give the same numbers; they differ in memory and speed. Logits reach the loss in float32 at least,
    whatever the dtype of the model: thresholds of bfloat16 logits get the support wrong.
    """

    def __call__(
        self,
        loss: TokenLoss,
        head: nn.Module,
        hidden_states: Tensor,
        targets: Targets | Tensor,
        statistics: Collection[str] = TOKEN_STATISTICS,
    ) -> LossOutput:
        """The loss of N supervised tokens.

        Args:
            loss: The objective.
            head: A module that maps hidden states [*, H] to logits [*, K].
            hidden_states: Hidden states [N, H] of the supervised tokens: row i predicts `targets.labels[i]`.
            targets: What is known of the tokens; or their labels [N] int64 alone.
            statistics: Names of what to measure at every token, see `ops.token_statistics`; the others cost nothing.

        Returns:
            The sum of the tokens' weighted losses, differentiable with respect to `hidden_states` and the head's
            parameters, and what was measured at every token, unweighted. With N = 0 the sum is a zero that is
            connected to the graph.
        """
        return self.run(loss, head, hidden_states, _with_frozen_head(loss, Targets.of(targets)), statistics)

    @abstractmethod
    def run(
        self, loss: TokenLoss, head: nn.Module, hidden_states: Tensor, targets: Targets, statistics: Collection[str]
    ) -> LossOutput:
        """What an engine does when it is called."""

    def peak_bytes(self, sizes: LossSizes) -> int:
        """Most bytes that a step holds at a time beyond the hidden states and the head; `plan` asks for it.

        Here what `FullEngine` needs: logits and their gradient, 8 N K, from float32 factors (the backward pass of the
        product comes later). An engine that holds fewer logits says what it needs in a method of its own.
        """
        logits = sizes.tokens * sizes.vocabulary
        copies = sizes.copies(FLOAT) if sizes.head_plain else sizes.factor_itemsize * logits
        return 2 * FLOAT * logits + copies + sizes.block + sizes.reference_logits(sizes.tokens) + sizes.reference_head


def _with_frozen_head(loss: TokenLoss, targets: Targets) -> Targets:
    """Targets whose reference gives logits in float32 and no gradient; without one where the loss needs none.

    Raises:
        UserError: the loss needs a reference, and there is none.
    """
    if not loss.needs_reference:
        return targets._replace(reference=None)
    if targets.reference is None:
        raise UserError(
            f"{type(loss).__name__}: it needs what a reference model says about each token, and got none; give the "
            "engine Targets with a reference (SFTModule does)"
        )
    states, head = targets.reference.hidden_states, targets.reference.head
    if isinstance(head, nn.Module):
        head = frozen_head(head, states)
    return targets._replace(reference=ReferenceOutput(states, head))
