"""How rows of logits come to be: all at once, or a chunk at a time. Any engine takes any loss."""

from ts2_lightning.engines.base import LossEngine
from ts2_lightning.engines.chunked import ChunkedEngine
from ts2_lightning.engines.full import FullEngine
from ts2_lightning.engines.loss_head import LossHead
from ts2_lightning.engines.memory import LossSizes

__all__ = ["ChunkedEngine", "FullEngine", "LossEngine", "LossHead", "LossSizes"]
