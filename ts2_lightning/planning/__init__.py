"""What a configuration will take: memory per GPU, time per step and checkpoints, before anything runs."""

from ts2_lightning.hardware import GPU, GPUS, Machine, find_gpu, this_machine
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.duration import EFFICIENCY, WARNING_SECONDS, WRITE_SPEED, Duration, Saving
from ts2_lightning.planning.estimate import Job, Memory, Plan, make_plan

__all__ = [
    "EFFICIENCY",
    "GPU",
    "GPUS",
    "WARNING_SECONDS",
    "WRITE_SPEED",
    "Duration",
    "Job",
    "Machine",
    "Memory",
    "MicroBatch",
    "Plan",
    "Saving",
    "find_gpu",
    "make_plan",
    "this_machine",
]
