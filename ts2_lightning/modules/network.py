"""Backbone and loss head as one module, so that one sharded wrapper gathers both."""

from collections.abc import Collection
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedModel

from ts2_lightning.engines import LossEngine, LossHead
from ts2_lightning.losses import TokenLoss
from ts2_lightning.modules.head import backbone, output_head
from ts2_lightning.modules.reference import ReferenceModel
from ts2_lightning.modules.router import balance_of_tokens, experts_per_token, has_routers
from ts2_lightning.types import TOKEN_STATISTICS, Batch, LossOutput, Targets


class NetworkOutput(NamedTuple):
    """What the network returns.

    Attributes:
        total: [] differentiable sum over the supervised tokens of what is minimised: their losses, and in training the
            loss of a mixture's routers times its factor. Not divided by anything.
        tokens: values per token as in `LossOutput`, of the objective alone.
        router: [N] for each supervised token the loss of the routers over its row, detached and without the factor;
            None where it is not added.
    """

    total: Tensor
    tokens: dict[str, Tensor]
    router: Tensor | None = None


class SFTNetwork(nn.Module):
    """A language model that is called with a batch and answers with its loss.

    The model's own head is not called: the hidden states of the supervised tokens alone go through the loss head.

    Args:
        language_model: a causal language model.
        loss: the objective.
        engine: how logits come to be.
        router_coefficient: factor of the loss of a mixture's routers, see `router_coefficient`; 0 leaves it out.
        reference: The frozen model that the loss is told about, if it needs one.
    """

    def __init__(
        self,
        language_model: PreTrainedModel,
        loss: TokenLoss,
        engine: LossEngine,
        router_coefficient: float = 0.0,
        reference: ReferenceModel | None = None,
    ) -> None:
        super().__init__()
        self.language_model = language_model
        self.router_coefficient = router_coefficient
        self.reference = reference
        reference_head = None if reference is None else reference.head
        self.loss_head = LossHead(output_head(language_model), loss, engine, reference_head)

    @property
    def models(self) -> list[PreTrainedModel]:
        """The model that is trained, and the frozen copy of it, if there is one."""
        copies = [self.reference.model] if self.reference is not None and self.reference.is_copy else []
        return [self.language_model, *copies]

    @property
    def uses_flash_attention(self) -> bool:
        """Whether attention is one of the flash kernels, of whatever name."""
        return "flash" in (self.language_model.config._attn_implementation or "")

    def forward(self, batch: Batch, statistics: Collection[str] = TOKEN_STATISTICS) -> NetworkOutput:
        """The sum of the losses of the batch's supervised tokens, and the statistics that are wanted of them."""
        balanced = self.training and self.router_coefficient > 0
        inputs, targets = self._inputs(batch), Targets.of(batch)
        if self.reference is not None:  # first, as nothing is held for a backward pass yet
            reference = self.reference({**inputs, **self._switches(False)}, batch["supervised"])
            targets = targets._replace(reference=reference)
        # Transformers keeps packed rows apart only where it finds neither a mask nor a cache.
        output = backbone(self.language_model)(**inputs, **self._switches(balanced), use_cache=False)
        hidden_states = output.last_hidden_state.flatten(0, 1).index_select(0, batch["supervised"])
        result: LossOutput = self.loss_head(hidden_states, targets, statistics)
        if not balanced:
            return NetworkOutput(*result)
        # Each row counts as often as it has supervised tokens, so the divisor of the step is that of this sum too.
        router = balance_of_tokens(output.router_logits, batch, experts_per_token(self.language_model))
        return NetworkOutput(result.total + self.router_coefficient * router.sum(), result.tokens, router.detach())

    def _switches(self, balanced: bool) -> dict[str, Any]:
        """A config that asks for the routers' logits would have them kept in evaluation too."""
        return {"output_router_logits": balanced} if has_routers(self.language_model) else {}

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "position_ids")
        inputs: dict[str, Tensor] = {name: value for name, value in batch.items() if name in names}  # type: ignore[misc]
        # Flash attention finds the rows by their positions in a batch of one sequence only, and needs no other shape.
        if "position_ids" in batch and self.uses_flash_attention:
            inputs = {name: value.reshape(1, -1) for name, value in inputs.items()}
        return inputs
