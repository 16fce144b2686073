"""What a configuration, or making responses, will take: memory, time and checkpoints, before anything runs.

In: a model's config, a trainer's settings, a kind of GPU; out: bytes, seconds, and what they are made of. It may import
`modules` and what lies below it. Only `micro_batch` runs a model, which it is handed with its rows. Not here: weights,
rows, and the words in which a command says all this.
"""

from ts2_lightning.hardware import GPU, GPUS, Machine, device_at_hand, find_gpu, gpu_of_device, this_machine
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.duration import EFFICIENCY, WARNING_SECONDS, WRITE_SPEED, Duration, Saving
from ts2_lightning.planning.estimate import GAPS, Job, Memory, Plan, make_plan, needed_bytes
from ts2_lightning.planning.generation import (
    TRANSFORMERS,
    VLLM,
    Decoding,
    GenerationCost,
    Sampler,
    Wanted,
    generation_cost,
)
from ts2_lightning.planning.micro_batch import StepCost, largest_that_fits, measure_step, micro_batch_sizes

__all__ = [
    "EFFICIENCY",
    "GAPS",
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
    "StepCost",
    "Wanted",
    "device_at_hand",
    "find_gpu",
    "generation_cost",
    "gpu_of_device",
    "largest_that_fits",
    "make_plan",
    "measure_step",
    "micro_batch_sizes",
    "needed_bytes",
    "this_machine",
]
