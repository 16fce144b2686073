"""What the loss takes of a GPU's memory: the engine says it, the objective's share is counted.

Shapes: N supervised tokens, H the width of the model, K the vocabulary.
"""

import torch

from ts2_lightning.engines import LossEngine, LossSizes
from ts2_lightning.losses import TokenLoss
from ts2_lightning.ops import LogitRows, rows_per_block, token_statistics
from ts2_lightning.ops.rows import Workspace
from ts2_lightning.planning.counting import LiveBytes
from ts2_lightning.planning.model import Head
from ts2_lightning.types import Targets

_GPU = torch.device("cuda")


def loss_bytes(
    engine: LossEngine,
    loss: TokenLoss,
    head: Head,
    tokens: int,
    hidden: int,
    autocast: torch.dtype | None,
    device: torch.device = _GPU,
) -> int:
    """The peak of an engine in bytes, any engine's (see `LossEngine.peak_bytes`), and a reference's hidden states.

    Args:
        engine: The engine.
        loss: The objective, statistics included.
        head: The model's output head.
        tokens: Number N of tokens of a micro-batch, all of them supervised.
        hidden: Bytes of an element of the hidden states.
        autocast: The dtype of autocast, or None.
        device: The device that computes; a CPU takes smaller chunks.
    """
    sizes = LossSizes(
        tokens=tokens,
        width=head.width,
        vocabulary=head.vocabulary,
        hidden_itemsize=hidden,
        head_itemsize=head.itemsize,
        factor_itemsize=autocast.itemsize if autocast else max(hidden, head.itemsize),
        head_trained=head.trained,
        head_plain=head.plain,
        block=count_block(loss, min(tokens, rows_per_block(head.vocabulary, device)), head.vocabulary),
        reference=loss.needs_reference,
        device=device.type,
    )
    return engine.peak_bytes(sizes) + hidden * tokens * head.width * loss.needs_reference


def count_block(loss: TokenLoss, rows: int, vocabulary: int) -> int:
    """Bytes that a loss and the statistics allocate on a block of rows, counted on tensors without memory.

    Without memory no value is known, so the loss takes the way of a GPU, on which no size depends on a value.

    Args:
        loss: The objective, also one of a user's own.
        rows: Rows of the block.
        vocabulary: K.
    """
    with torch.device("meta"):
        logits, labels, weights = torch.empty(rows, vocabulary), torch.empty(rows, dtype=torch.long), torch.empty(rows)
        reference = torch.empty(rows, vocabulary) if loss.needs_reference else None  # the engine has counted it
        with LiveBytes([logits, labels, weights, *([] if reference is None else [reference])]) as live:
            workspace = Workspace()
            for _ in range(2):  # results of the last block live until those of the next take their place
                workspace.clear()
                block = LogitRows(logits, Targets(labels, weights, labels, labels), workspace, reference)
                result = loss.evaluate(block)
                values = token_statistics(block, loss.logit_scale)
                gradient = result.term.gradient.scaled(weights)
                gradient.write_to(logits)
            del result, values, gradient
    return live.peak
