"""What a configuration will take: memory per GPU and time per step, before anything runs."""

from ts2_lightning.hardware import GPU, GPUS, find_gpu
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.duration import EFFICIENCY, Duration
from ts2_lightning.planning.estimate import Job, Memory, Plan, make_plan

__all__ = ["EFFICIENCY", "GPU", "GPUS", "Duration", "Job", "Memory", "MicroBatch", "Plan", "find_gpu", "make_plan"]
