"""The plan of a configuration: what a GPU holds, whether that fits, what else would, and how long a step takes."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from ts2_lightning.engines import LossEngine
from ts2_lightning.hardware import GPU, Machine
from ts2_lightning.losses import TokenLoss
from ts2_lightning.modules.config import LanguageModelConfig
from ts2_lightning.modules.reference import check_same_vocabulary, named_as_reference, reference_config
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.duration import EFFICIENCY, WRITE_SPEED, Duration, Saving, duration
from ts2_lightning.planning.layout import Layout, read_layout
from ts2_lightning.planning.loss import loss_bytes
from ts2_lightning.planning.model import Sizes, measure
from ts2_lightning.planning.state import frozen_copy, state_of
from ts2_lightning.ranges import COUNT, POSITIVE, Range, check_numbers

CONTEXT = 2 * 2**30
"""Bytes that a process needs beside its tensors on a GPU: the CUDA context, workspaces of cuBLAS and NCCL."""

PROCESS = 2**30
"""Bytes that a process needs beside its tensors on a CPU: the interpreter and the libraries."""

GAPS = 0.05
"""Share of the tensors' bytes that the allocator loses to rounding and gaps."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the peak of a step.

    Attributes:
        weights: exact.
        gradients: their sums, exact.
        optimizer: exact.
        communication: buffers, weights and gradients that are gathered for a while; an upper bound.
        activations: held for the backward pass; exact.
        backward: what the backward pass adds at its peak; exact for whole gradients.
        loss: what the loss engine adds at its peak, before the backward pass; its gradients included.
        update: what the update adds, when the activations are gone.
        host: bytes in the memory of the host, for this GPU.
        context: what the process needs beside tensors; a guess.
        reference: Weights of the frozen model that the objective is anchored to; exact.
    """

    weights: int
    gradients: int
    optimizer: int
    communication: int
    activations: int
    backward: int
    loss: int
    update: int
    host: int
    context: int = CONTEXT
    reference: int = 0

    @property
    def tensors(self) -> int:
        """The peak: in the loss engine, in the backward pass, or in the update, whichever is highest."""
        held = self.weights + self.reference + self.gradients + self.optimizer + self.communication
        return held + max(self.activations + max(self.loss, self.backward), self.update)

    @property
    def margin(self) -> int:
        """For what is not a tensor; a guess."""
        return int(self.context + GAPS * self.tensors)

    @property
    def total(self) -> int:
        """Tensors and margin."""
        return self.tensors + self.margin


@dataclass(frozen=True)
class Job:
    """All that a plan follows from.

    Attributes:
        lm: the model.
        loss: the objective.
        engine: how logits come to be.
        strategy: the trainer's setting: a name, or a mapping of `class_path` and `init_args`.
        precision: the trainer's setting.
        rows: Rows of an optimizer step.
        micro_batch: rows of a forward pass on one GPU.
        max_length: tokens of a row.
        packing: How the rows of a micro-batch are packed.
        device: the kind of GPU, or the machine whose CPU computes.
        gpus_per_node: how many in a node; on a CPU the processes.
        nodes: how many.
        efficiency: share of a GPU's peak operations.
        write_speed: bytes per second of a checkpoint.
        reference: another model than the base that the objective is anchored to; its weights are counted as they are,
            its time, and what it takes in the loss engine, as of a model like the one that is trained.
        asynchronous: whether checkpoints are written while training goes on, from a copy in the host's memory.

    Raises:
        UserError: a number out of its range.
    """

    lm: LanguageModelConfig
    loss: TokenLoss
    engine: LossEngine
    strategy: object
    precision: object
    rows: int
    micro_batch: int
    max_length: int
    packing: str
    device: GPU | Machine
    gpus_per_node: int = 1
    nodes: int = 1
    efficiency: float = EFFICIENCY
    write_speed: float = WRITE_SPEED
    reference: str | None = None
    asynchronous: bool = False

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("rows", "micro_batch", "max_length", "gpus_per_node", "nodes"), COUNT)
        check_numbers("Job: ", self, **counts, efficiency=Range(above=0, most=1), write_speed=POSITIVE)

    @property
    def gpus(self) -> int:
        """Over all nodes."""
        return self.gpus_per_node * self.nodes

    @property
    def room(self) -> float:
        """Bytes of memory for each process: a GPU's, or a share of the machine's."""
        return self.device.memory / (1 if isinstance(self.device, GPU) else self.gpus_per_node)

    @property
    def layout(self) -> Layout:
        """How the strategy divides the model."""
        return read_layout(self.strategy, self.precision, self.gpus, self.gpus_per_node)

    @property
    def batch(self) -> MicroBatch:
        """The largest micro-batch: no row is shorter than `max_length`."""
        if self.packing == "padding_free":
            return MicroBatch(1, self.micro_batch * self.max_length, packed=True)
        return MicroBatch(self.micro_batch, self.max_length, packed=self.packing == "packed")

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on each GPU."""
        return -(-self.rows // (self.micro_batch * self.layout.data_parallel))


@dataclass(frozen=True)
class Plan:
    """What `plan` says of a job.

    Attributes:
        job: the settings.
        sizes: Sizes of its model.
        memory: figures by whether gradients are checkpointed.
        duration: likewise; nothing where the speed of the device is not known.
        saving: How a checkpoint is saved.
        remedies: changes with which it would fit, where it does not.
    """

    job: Job
    sizes: Sizes
    memory: dict[bool, Memory]
    duration: dict[bool, Duration]
    saving: Saving
    remedies: list[str] = field(default_factory=list)

    @property
    def checkpointing(self) -> bool:
        """As the settings have it."""
        return self.job.lm.gradient_checkpointing

    @property
    def needed(self) -> int:
        """Bytes of the device's memory for each process, as the job is set; on a CPU that is the host's too."""
        memory = self.memory[self.checkpointing]
        return memory.total + (0 if isinstance(self.job.device, GPU) else memory.host)

    @property
    def fits(self) -> bool:
        """Whether the job as it is set fits."""
        return self.needed <= self.job.room


def make_plan(job: Job) -> Plan:
    """The plan of a job, with remedies where it does not fit.

    Raises:
        UserError: what is asked for is not known, or cannot be.
    """
    plan = _plan(job, _measured(job, (True, False)))
    return plan if plan.fits else replace(plan, remedies=list(_remedies(plan)))


def needed_bytes(job: Job) -> int:
    """Bytes that a job needs as it is set, see `Plan.needed`; nothing else of a plan is calculated.

    Raises:
        UserError: what is asked for is not known, or cannot be.
    """
    return _plan(job, _measured(job, (job.lm.gradient_checkpointing,))).needed


def _measured(job: Job, modes: tuple[bool, ...]) -> Sizes:
    return measure(job.lm, job.layout, job.batch, modes)


def _plan(job: Job, sizes: Sizes) -> Plan:
    layout, batch = job.layout, job.batch
    state = state_of(sizes.weights, layout, job.accumulation)
    copy = _copy(job, sizes)
    frozen = [] if copy is None else frozen_copy(copy.weights, sizes.weights)
    both = state_of((*sizes.weights, *frozen), layout, job.accumulation) if frozen else state
    gpu = job.device if isinstance(job.device, GPU) else None
    device = torch.device("cuda" if gpu else "cpu")
    loss = loss_bytes(job.engine, job.loss, sizes.head, batch.tokens, sizes.hidden_itemsize, layout.autocast, device)
    memory = {
        mode: Memory(
            weights=state.held_weights() + sizes.buffers,
            gradients=state.held_gradients(),
            optimizer=state.held_optimizer(),
            communication=both.gathered(),
            activations=activations.kept,
            backward=activations.backward,
            loss=loss,
            update=state.at_the_update(),
            host=both.on_host() + state.copied() * job.asynchronous,
            context=CONTEXT if gpu else PROCESS,
            reference=both.held_weights() - state.held_weights() + (0 if copy is None else copy.buffers),
        )
        for mode, activations in sizes.activations.items()
    }
    durations: dict[bool, Duration] = {}
    if gpu:
        place = (gpu, job.gpus_per_node, job.nodes)
        asked = job.loss.needs_reference
        durations = {mode: duration(sizes, state, batch, *place, mode, job.efficiency, asked) for mode in memory}
    step = durations[job.lm.gradient_checkpointing].step if gpu else 0.0
    return Plan(job, sizes, memory, durations, Saving(state.checkpoint(), job.write_speed, step))


def _copy(job: Job, sizes: Sizes) -> Sizes | None:
    """Sizes of the frozen copy; None if there is none: below an adapter the model without it takes nothing."""
    config = reference_config(job.lm, job.reference) if job.loss.needs_reference else None
    if config is None or job.reference is None:
        return None if config is None else sizes
    check_same_vocabulary(job.lm, job.reference)
    with named_as_reference():
        return measure(config, job.layout, job.batch, modes=())


def _remedies(plan: Plan) -> Iterator[str]:
    """Single changes with which the job fits; if there is none, all of them together, as far as they help."""
    single = [name for name, change in _changes(plan.job, plan.sizes) if change.fits]
    if single:
        yield from single
        return
    names: list[str] = []
    for kind in (_checkpointed, _divided, _smaller):
        best = min(kind(plan.job, plan.sizes), key=lambda change: change[1].needed, default=None)
        if best is not None and best[1].needed < plan.needed:
            names, plan = [*names, best[0]], best[1]
            if plan.fits:
                yield " and ".join(names)
                return


def _changes(job: Job, sizes: Sizes) -> Iterator[tuple[str, Plan]]:
    """Settings that take less memory, those that cost the least time first; of the micro-batches the largest."""
    yield from _checkpointed(job, sizes)
    yield from _divided(job, sizes)
    for name, plan in _smaller(job, sizes):
        yield name, plan
        if plan.fits:
            return


def _checkpointed(job: Job, sizes: Sizes) -> Iterator[tuple[str, Plan]]:
    if not job.lm.gradient_checkpointing and True in sizes.activations:
        yield "gradient_checkpointing", _plan(replace(job, lm=replace(job.lm, gradient_checkpointing=True)), sizes)


def _divided(job: Job, sizes: Sizes) -> Iterator[tuple[str, Plan]]:
    """Strategies that divide more; weights and activations are the same to all of ours."""
    layout = job.layout
    if job.gpus == 1 or layout.tensor_parallel > 1 or job.lm.quantization is not None:
        return
    now = {"ddp": 0.0, "zero": layout.stage, "fsdp2": _HYBRID if layout.copies > 1 else _ALL}.get(layout.kind, _ALL)
    for name, (stage, class_path, options) in _STRATEGIES.items():
        if stage > now and (stage != _HYBRID or job.nodes > 1):
            strategy = {"class_path": class_path, "init_args": options}
            yield f"strategy {name}", _plan(replace(job, strategy=strategy), sizes)


def _smaller(job: Job, sizes: Sizes) -> Iterator[tuple[str, Plan]]:
    size = job.micro_batch // 2
    while size >= 1:
        change = replace(job, micro_batch=size)
        modes = (job.lm.gradient_checkpointing,)
        yield f"micro_batch_size {size}", _plan(change, _measured(change, modes))
        size //= 2


_HYBRID, _ALL = 2.5, 3.0
_STRATEGIES: dict[str, tuple[float, str, dict[str, int | str]]] = {
    "zero2": (2, "ts2_lightning.strategies.DeepSpeed", {"stage": 2}),
    "fsdp2_hybrid": (_HYBRID, "ts2_lightning.strategies.FSDP2", {"shard_size": "node"}),
    "fsdp2": (_ALL, "ts2_lightning.strategies.FSDP2", {}),
    "zero3": (_ALL, "ts2_lightning.strategies.DeepSpeed", {"stage": 3}),
}
"""Names of fragments in `configs/strategy`: how much each divides, in ZeRO's stages. Hybrid sharding divides all of it,
over the GPUs of a node."""
