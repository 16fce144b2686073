"""Lightning's strategies, completed: correct steps under DeepSpeed, FSDP2 over all ranks, both on CPUs too.

In: the trainer's settings, gradients and weights wherever they lie; out: strategies, clipped gradients, the name of a
weight that is not finite. It may import only `checkpoint_files` (and what every room may). Not here: model and loss.
"""

from ts2_lightning.strategies.deepspeed import DeepSpeed
from ts2_lightning.strategies.fsdp2 import FSDP2, shard_ranks
from ts2_lightning.strategies.gradients import clip_gradients, nonfinite_weight

__all__ = ["FSDP2", "DeepSpeed", "clip_gradients", "nonfinite_weight", "shard_ranks"]
