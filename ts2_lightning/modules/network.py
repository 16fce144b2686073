"""Backbone and loss head as one module, so that one sharded wrapper gathers both."""

from collections.abc import Collection

from torch import Tensor, nn
from transformers import PreTrainedModel

from ts2_lightning.engines import LossEngine, LossHead
from ts2_lightning.losses import TokenLoss
from ts2_lightning.modules.head import backbone, output_head
from ts2_lightning.types import TOKEN_STATISTICS, Batch, LossOutput


class SFTNetwork(nn.Module):
    """A language model that is called with a batch and answers with its loss.

    The model's own head is not called: the hidden states of the supervised tokens alone go through the loss head.

    Args:
        language_model: a causal language model.
        loss: the objective.
        engine: how logits come to be.
    """

    def __init__(self, language_model: PreTrainedModel, loss: TokenLoss, engine: LossEngine) -> None:
        super().__init__()
        self.language_model = language_model
        self.loss_head = LossHead(output_head(language_model), loss, engine)

    @property
    def uses_flash_attention(self) -> bool:
        """Whether attention is one of the flash kernels, of whatever name."""
        return "flash" in (self.language_model.config._attn_implementation or "")

    def forward(self, batch: Batch, statistics: Collection[str] = TOKEN_STATISTICS) -> LossOutput:
        """The sum of the losses of the batch's supervised tokens, and the statistics that are wanted of them."""
        # Transformers keeps packed rows apart only where it finds neither a mask nor a cache.
        output = backbone(self.language_model)(**self._inputs(batch), use_cache=False)
        hidden_states = output.last_hidden_state.flatten(0, 1).index_select(0, batch["supervised"])
        result: LossOutput = self.loss_head(
            hidden_states,
            batch["labels"],
            batch.get("weights"),
            batch.get("positions"),
            batch.get("lengths"),
            statistics=statistics,
        )
        return result

    def _inputs(self, batch: Batch) -> dict[str, Tensor]:
        names = ("input_ids", "attention_mask", "position_ids")
        inputs: dict[str, Tensor] = {name: value for name, value in batch.items() if name in names}  # type: ignore[misc]
        # Flash attention finds the rows by their positions in a batch of one sequence only, and needs no other shape.
        if "position_ids" in batch and self.uses_flash_attention:
            inputs = {name: value.reshape(1, -1) for name, value in inputs.items()}
        return inputs
