"""How long an optimizer step takes: an estimate from operations, bytes and the figures of a GPU.

    step = micro-batches x max(compute, overlapped communication) + exposed communication + update

Compute is the operations that are executed, recomputation included, over a share of the GPU's peak ("hardware FLOPs
utilisation", Chowdhery et al. 2022, PaLM, appendix B; it was 57.8 % there, and 40 to 50 % is common for Hugging Face
models with checkpointing). DDP, FSDP and ZeRO send gradients and gather weights while layers are computed, so that a
micro-batch takes the longer of both. ZeRO-1 and 2 gather the new weights, and tensor parallelism sums activations,
while nothing else runs. All sequences are taken to be full.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from ts2_lightning.hardware import GPU
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.layout import Layout
from ts2_lightning.planning.model import Sizes, Weight
from ts2_lightning.planning.state import State

EFFICIENCY = 0.4
"""Share of a GPU's peak operations, if nothing else is said."""

COLLECTIVES = 0.75
"""Share of a link's bandwidth that a ring of collective operations reaches on large messages."""

_HOST_MEMORY = 40e9  # bytes per second of the host's memory, for each GPU: a CPU's AdamW is bound by it


class Operations(NamedTuple):
    """Floating-point operations of one micro-batch on one GPU.

    Attributes:
        executed: with recomputation.
        needed: without; what "model FLOPs utilisation" counts.
    """

    executed: float
    needed: float


class Communication(NamedTuple):
    """Bytes that a GPU sends.

    Attributes:
        overlapped: traffic in every micro-batch while it is computed.
        exposed: traffic in every micro-batch while nothing else is done.
        once: traffic once in a step, while nothing else is done.
        across: traffic between copies of the state, once in a step, during the last backward pass.
    """

    overlapped: float = 0
    exposed: float = 0
    once: float = 0
    across: float = 0


@dataclass(frozen=True)
class Duration:
    """Seconds of an optimizer step, and of its parts.

    Attributes:
        compute: Computation of all micro-batches.
        communication: Communication that is not hidden behind it.
        update: Update of the weights.
        tokens_per_second: over all GPUs.
        mfu: share of the peak by the operations that are needed.
    """

    compute: float
    communication: float
    update: float
    tokens_per_second: float
    mfu: float

    @property
    def step(self) -> float:
        """The whole."""
        return self.compute + self.communication + self.update


def forward_operations(sizes: Sizes) -> float:
    """Operations of a token's forward pass in the layers, without attention and head: 2 for every weight."""
    return 2.0 * sum(w.elements * w.used for w in sizes.weights if w.linear)


def operations(sizes: Sizes, batch: MicroBatch, checkpointing: bool, reference: bool = False) -> Operations:
    """Operations of a micro-batch: 6 for every weight and token (2 forward, 4 backward), and the attention's.

    A frozen weight takes 4, and of a mixture's experts those count that a token goes to. Checkpointing makes the
    forward pass of the layers once more. The head has 6 K H a token and is not computed again: the chunked engine makes
    its gradients in the forward pass. Attention multiplies every token with all of its sequence, twice, 4 T d heads
    forward; fused kernels without a mask skip what is not causal, half of it, and compute the scores once more in the
    backward pass (Dao 2023, section 3.1). A frozen reference model makes one forward pass more, head included.

    Source: Narayanan et al. (2021), Megatron-LM on GPU clusters, appendix; Kaplan et al. (2020), table 1.
    """
    matrices = [w for w in sizes.weights if w.linear]
    forward = forward_operations(sizes)
    backward = forward + 2.0 * sum(w.elements * w.used for w in matrices if w.trained)
    causal = 0.5 if sizes.attention == "fused" and not sizes.masked else 1.0
    attention = 4.0 * batch.length * sizes.heads_width * sizes.layers * causal
    attention_backward = attention * (2.5 if sizes.attention == "fused" else 2.0)
    head = 2.0 * sizes.head.vocabulary * sizes.head.width * (3 if sizes.head.trained else 2)
    frozen = reference * (forward + attention + 2.0 * sizes.head.vocabulary * sizes.head.width)
    needed = forward + backward + 3 * attention + head + frozen
    again = checkpointing * (forward + attention)
    executed = forward + backward + attention + attention_backward + head + again + frozen
    return Operations(executed * batch.tokens, needed * batch.tokens)


def communication(
    weights: list[Weight], layout: Layout, sizes: Sizes, batch: MicroBatch, reference: bool = False
) -> Communication:
    """What a GPU sends by rings: (n - 1)/n of a tensor to gather it or to sum it into shares, twice that to sum it.

    The weights of a frozen reference model are gathered once more than those of the model. Copies of the state sum
    their shards of the gradients at the end of a step (hybrid sharding; Zhao et al. 2023, PyTorch FSDP, section 3.2).

    Source: ZeRO, section 7 (2 N for stages 1 and 2, 3 N for stage 3); Megatron-LM, section 3 (two sums of activations
    in each layer, forward and backward).
    """
    n, copies = layout.shards, layout.copies
    ring = (n - 1) / n
    gradients = float(sum(w.elements * w.itemsize for w in weights if w.trained))
    all_weights = float(sum(w.elements * w.gathered for w in weights))
    tensor = 0.0
    if (t := layout.tensor_parallel) > 1:
        activations = batch.tokens * sizes.head.width * (layout.autocast or layout.dtype or _FLOAT32).itemsize
        tensor = (5 if reference else 4) * sizes.layers * activations * 2 * (t - 1) / t
    if layout.kind in ("fsdp", "fsdp2") or layout.stage == 3:
        across = 2 * (copies - 1) / copies * gradients / n
        return Communication(ring * ((2 + reference) * all_weights + gradients), tensor, across=across)
    if layout.stage == 2:
        return Communication(overlapped=ring * gradients, once=ring * gradients)
    if layout.stage == 1:
        return Communication(once=ring * 2 * gradients)
    return Communication(once=2 * ring * gradients)


def bandwidth(gpu: GPU, gpus_per_node: int, nodes: int) -> float:
    """Bytes per second of a ring over all GPUs: of the links of a node, or of its network cards together."""
    return COLLECTIVES * (gpu.link if nodes == 1 else min(gpu.link, gpu.network * gpus_per_node))


def bandwidth_of_shards(layout: Layout, gpu: GPU, gpus_per_node: int, nodes: int) -> tuple[float, float]:
    """Bytes per second of a ring over the GPUs of one copy of the state, and of one over the copies of a shard.

    A copy within a node uses the links there. As many rings over the copies as there are shards in a node share its
    network cards.
    """
    size = layout.shards * layout.tensor_parallel
    within = bandwidth(gpu, gpus_per_node, 1 if size <= gpus_per_node else nodes)
    if nodes == 1:
        return within, within
    rings = min(size, gpus_per_node)
    return within, COLLECTIVES * min(gpu.link, gpu.network * gpus_per_node / rings)


def duration(
    sizes: Sizes,
    state: State,
    batch: MicroBatch,
    gpu: GPU,
    gpus_per_node: int,
    nodes: int,
    checkpointing: bool,
    efficiency: float = EFFICIENCY,
    reference: bool = False,
) -> Duration:
    """The estimate.

    Args:
        sizes: Sizes of the model.
        state: how it is divided, and into how many micro-batches.
        batch: a micro-batch, all of whose tokens are there and supervised.
        gpu: Kind of GPU.
        gpus_per_node: how many in a node.
        nodes: how many.
        checkpointing: whether layers are computed twice.
        efficiency: share of the GPU's peak that is reached.
        reference: Whether a frozen reference model is asked about every micro-batch.
    """
    layout, count = state.layout, state.accumulation
    done = operations(sizes, batch, checkpointing, reference)
    sent = communication(list(state.weights), layout, sizes, batch, reference)
    speed, between = bandwidth_of_shards(layout, gpu, gpus_per_node, nodes)
    compute = done.executed / (gpu.flops * efficiency)
    hidden = max(0.0, sent.overlapped / speed - compute)
    # DDP sums gradients while the last micro-batch's backward pass, two thirds of it, runs.
    once = sent.once / speed if layout.stage else max(0.0, sent.once / speed - compute * 2 / 3)
    across = max(0.0, sent.across / between - compute * 2 / 3)
    waiting = count * (hidden + sent.exposed / (COLLECTIVES * gpu.link)) + once + across
    updating = update(state, gpu)
    step = count * compute + waiting + updating
    return Duration(
        count * compute,
        waiting,
        updating,
        count * batch.tokens * layout.data_parallel / step,
        count * done.needed / (gpu.flops * step),
    )


def update(state: State, gpu: GPU) -> float:
    """Seconds of AdamW: it reads weight, gradient and two moments, and writes all but the gradient, 28 N / n bytes.

    On a host the same goes through its slower memory, after the gradients and before the weights came over the bus.
    """
    layout = state.layout
    shares = 1 if layout.kind in ("single", "ddp") else layout.shards
    held = sum(w.elements * (4 if layout.kind == "zero" else w.itemsize) for w in state.trained) / shares
    if layout.offload_optimizer:
        return 7 * held / _HOST_MEMORY + 2 * held / gpu.host
    return 7 * held / gpu.bandwidth


class _Float32(NamedTuple):
    itemsize: int = 4


_FLOAT32 = _Float32()


WARNING_SECONDS = 300
"""Before its time limit a job is warned, if nothing else is said; `configs/cluster/fit.slurm` says it to SLURM."""

WRITE_SPEED = 1e9
"""Bytes per second that all processes together write to a shared file system, if nothing else is said; a guess."""

_MARGIN = 1.25  # file systems are slower at times
_LONGEST = 65535  # seconds that SLURM takes


@dataclass(frozen=True)
class Saving:
    """The end of a run that was warned: it finishes its step and writes a checkpoint.

    Attributes:
        size: Size of the checkpoint in bytes, over all processes.
        speed: bytes per second at which it is written.
        step: seconds of a step; 0 where that is not known.

    Example:
        >>> saving = Saving(size=846_600_000_000, speed=1e9, step=23.0)
        >>> saving.write, saving.seconds, saving.is_warned_in_time, saving.warning
        (846.6, 869.6, False, 1140)
    """

    size: int
    speed: float
    step: float

    @property
    def write(self) -> float:
        """Seconds to write the checkpoint."""
        return self.size / self.speed

    @property
    def seconds(self) -> float:
        """Seconds from the warning to the end."""
        return self.step + self.write

    @property
    def is_warned_in_time(self) -> bool:
        """Whether the default is enough."""
        return self.seconds <= WARNING_SECONDS

    @property
    def warning(self) -> int:
        """Seconds before the time limit at which to be warned: a quarter more, in whole minutes."""
        return max(WARNING_SECONDS, min(_LONGEST, 60 * math.ceil(_MARGIN * self.seconds / 60)))
