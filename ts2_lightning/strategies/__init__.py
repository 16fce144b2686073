"""Lightning's strategies where they lack something: right steps under DeepSpeed, FSDP2 over all ranks; on CPUs too."""

from ts2_lightning.strategies.deepspeed import DeepSpeed
from ts2_lightning.strategies.fsdp2 import FSDP2
from ts2_lightning.strategies.gradients import clip_gradients
from ts2_lightning.strategies.weights import nonfinite_weight

__all__ = ["FSDP2", "DeepSpeed", "clip_gradients", "nonfinite_weight"]
