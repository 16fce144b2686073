"""What a configuration, or making responses, will take: memory, time and checkpoints, before anything runs.

In: a model's config, a trainer's settings, a kind of GPU; out: bytes, seconds, and what they are made of. It may import
`modules` and what lies below it. Not here: weights, rows, and the words in which a command says all this.
"""

from ts2_lightning.hardware import GPU, GPUS, Machine, find_gpu, gpu_of_device, this_machine
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.duration import EFFICIENCY, WARNING_SECONDS, WRITE_SPEED, Duration, Saving
from ts2_lightning.planning.estimate import Job, Memory, Plan, make_plan
from ts2_lightning.planning.generation import (
    TRANSFORMERS,
    VLLM,
    Decoding,
    GenerationCost,
    Sampler,
    Wanted,
    generation_cost,
)

__all__ = [
    "EFFICIENCY",
    "GPU",
    "GPUS",
    "TRANSFORMERS",
    "VLLM",
    "WARNING_SECONDS",
    "WRITE_SPEED",
    "Decoding",
    "Duration",
    "GenerationCost",
    "Job",
    "Machine",
    "Memory",
    "MicroBatch",
    "Plan",
    "Sampler",
    "Saving",
    "Wanted",
    "find_gpu",
    "generation_cost",
    "gpu_of_device",
    "make_plan",
    "this_machine",
]
