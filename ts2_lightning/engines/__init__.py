"""How rows of logits come to be: all at once, or a chunk at a time. Any engine takes any loss.

In: hidden states, a head, labels and a loss; out: sums, statistics of tokens, and gradients. It may import only `ops`
and `losses` (and what every room may). Not here: models, batches, trainers, and the formula of any loss.
"""

from ts2_lightning.engines.base import LossEngine
from ts2_lightning.engines.chunked import ChunkedEngine
from ts2_lightning.engines.full import FullEngine
from ts2_lightning.engines.loss_head import LossHead
from ts2_lightning.engines.memory import LossSizes

__all__ = ["ChunkedEngine", "FullEngine", "LossEngine", "LossHead", "LossSizes"]
