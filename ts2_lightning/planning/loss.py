"""What a loss engine allocates beyond the hidden states and the head it is given.

Shapes: N supervised tokens, H the width of the model, K the vocabulary, n tokens of a chunk. The terms follow
`engines.full`, `engines.chunked` and `engines.linear` line by line; a test counts what those allocate.
"""

import torch
from torch import nn

from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine
from ts2_lightning.engines.chunked import default_chunk_size
from ts2_lightning.losses import TokenLoss
from ts2_lightning.ops import LogitRows, rows_per_block, token_statistics
from ts2_lightning.ops.rows import Workspace
from ts2_lightning.planning.counting import LiveBytes
from ts2_lightning.planning.model import Head
from ts2_lightning.types import Targets, UserError

_GPU = torch.device("cuda")
_FLOAT = 4  # logits and sums of gradients are float32


def loss_bytes(
    engine: LossEngine,
    loss: TokenLoss,
    head: Head,
    tokens: int,
    hidden: int,
    autocast: torch.dtype | None,
    device: torch.device = _GPU,
) -> int:
    """The peak of an engine.

    Args:
        engine: of ours.
        loss: the objective, statistics included.
        head: of the model.
        tokens: N, all of them supervised.
        hidden: bytes of an element of the hidden states.
        autocast: dtype of autocast, or None.
        device: that computes; a CPU takes smaller chunks.

    Raises:
        UserError: an engine that is not known here.
    """
    factors = autocast.itemsize if autocast else max(hidden, head.itemsize)
    block = count_block(loss, min(tokens, rows_per_block(head.vocabulary, device)), head.vocabulary)
    if type(engine) is FullEngine:
        return _full(head, tokens, hidden, factors) + block
    if type(engine) is not ChunkedEngine:
        raise UserError(f"model.engine: nothing is known of the memory of {type(engine).__name__}")
    with torch.device("meta"):
        plain = nn.Linear(head.width, head.vocabulary, bias=False)
    chunk = min(tokens, engine.chunk_size or default_chunk_size(tokens, plain, device.type))
    term = _chunked if head.plain else _chunked_module
    return term(head, tokens, chunk, hidden, factors, block)


def _gradients(head: Head, tokens: int) -> int:
    """4 N H + 4 K H: sums of the gradients of hidden states and head, in float32."""
    return _FLOAT * head.width * (tokens + (head.vocabulary if head.trained else 0))


def _copies(head: Head, tokens: int, hidden: int, factors: int) -> int:
    """Hidden states [N, H] and head [K, H] in the dtype of the factors, where that is another."""
    return factors * head.width * (tokens * (hidden != factors) + head.vocabulary * (head.itemsize != factors))


def _chunked(head: Head, tokens: int, chunk: int, hidden: int, factors: int, block: int) -> int:
    """The sums, the copies, a buffer of logits 4 n K; and a block's temporaries or the gradient's copy, if any."""
    logits = _FLOAT * chunk * head.vocabulary
    copy = factors * chunk * head.vocabulary if factors != _FLOAT else 0
    return _gradients(head, tokens) + _copies(head, tokens, hidden, factors) + logits + max(block, copy)


def _chunked_module(head: Head, tokens: int, chunk: int, hidden: int, factors: int, block: int) -> int:
    """A head called as a module: its output, logits and gradient of a chunk, a copy of the hidden states; then the
    gradient in the output's dtype, and what autograd gives for hidden states and head.
    """
    output = factors * chunk * head.vocabulary
    logits = 2 * _FLOAT * chunk * head.vocabulary
    inputs = hidden * chunk * head.width
    weights = head.itemsize * head.vocabulary * head.width if head.trained else 0
    copy = factors * head.vocabulary * head.width if head.itemsize != factors else 0
    return _gradients(head, tokens) + output + logits + inputs + copy + max(block, output + inputs + weights)


def _full(head: Head, tokens: int, hidden: int, factors: int) -> int:
    """Logits and their gradient, 8 N K, from float32 factors; the backward pass of the product comes later."""
    copies = _copies(head, tokens, hidden, _FLOAT) if head.plain else factors * tokens * head.vocabulary
    return 2 * _FLOAT * tokens * head.vocabulary + copies


def count_block(loss: TokenLoss, rows: int, vocabulary: int) -> int:
    """Bytes that a loss and the statistics allocate on a block of rows, counted on tensors without memory.

    Without memory no value is known, so the loss takes the way of a GPU, on which no size depends on a value.

    Args:
        loss: of ours, or of anybody.
        rows: of the block.
        vocabulary: K.
    """
    with torch.device("meta"):
        logits, labels, weights = torch.empty(rows, vocabulary), torch.empty(rows, dtype=torch.long), torch.empty(rows)
        with LiveBytes([logits, labels, weights]) as live:
            workspace = Workspace()
            for _ in range(2):  # results of the last block live until those of the next take their place
                workspace.clear()
                block = LogitRows(logits, Targets(labels, weights, labels, labels), workspace)
                result = loss.evaluate(block)
                values = token_statistics(block, loss.logit_scale)
                gradient = result.term.gradient.scaled(weights)
                gradient.write_to(logits)
            del result, values, gradient
    return live.peak
