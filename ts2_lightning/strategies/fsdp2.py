"""FSDP2 under Lightning, with optional hybrid sharding and tensor parallelism."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from ts2_lightning.checkpoint_files.deferred import DeferredWrites, write_file
from ts2_lightning.checkpoint_files.reading import EMA, StoredTensor, check_plain_values, read_checkpoint
from ts2_lightning.ranges import COUNT, NULL, POSITIVE, check_number
from ts2_lightning.types import UserError


def shard_ranks(
    shard_size: int | Literal["node"] | None, data_parallel: int, tensor_parallel: int, ranks_per_node: int
) -> int:
    """The number of ranks with rows of their own that one copy of the state is sharded over.

    Args:
        shard_size: setting of `FSDP2`.
        data_parallel: ranks with rows of their own, over all nodes.
        tensor_parallel: ranks that compute the same rows.
        ranks_per_node: ranks of a node.

    Raises:
        UserError: if copies, or the nodes' parts of them, would not be equal.

    Example:
        >>> shard_ranks("node", 32, 1, 8), shard_ranks("node", 16, 2, 8), shard_ranks(16, 32, 1, 8)
        (8, 4, 16)
    """
    if shard_size is None:
        return data_parallel
    if shard_size == "node" and ranks_per_node % tensor_parallel:
        raise UserError(
            f"FSDP2(shard_size): the {ranks_per_node} ranks of a node cannot be divided by tensor_parallel_size "
            f"{tensor_parallel}; set shard_size to a number of ranks"
        )
    size = ranks_per_node // tensor_parallel if shard_size == "node" else shard_size
    if data_parallel % size:
        raise UserError(f"FSDP2(shard_size): {data_parallel} ranks with rows of their own cannot be divided by {size}")
    return size


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all ranks, on GPUs or (a rehearsal) on CPUs.

    With a `shard_size` they are sharded over so many neighbouring ranks only, and every other group of as many has
    copies of the shards (hybrid sharding). Weights are then gathered inside a group. Only the gradients cross between
    groups: they are summed shard by shard, once for each optimizer step, however many micro-batches it has.

    Lightning's own default makes all GPUs of a node compute the same rows.

    Args:
        tensor_parallel_size: number of neighbouring ranks that compute the same rows, each with a part of every layer.
            For models of which a rank cannot hold one whole layer, or a micro-batch of one row; the GPUs of a node at
            most.
        shard_size: number of neighbouring ranks, each with rows of its own, that the state is sharded over; `node` is
            as many as a node has, null is all. The others have copies.
        save_distributed_checkpoint: whether each rank writes its shard to a directory; else rank 0 writes one file.
        process_group_backend: backend of torch.distributed; null is nccl on GPUs and gloo on CPUs.
        timeout: longest duration of a collective operation.

    Raises:
        UserError: if a number is out of its range, or does not divide the ranks.

    Attributes:
        deferred: where writes of a checkpoint are left to be done later; None: they are done.
    """

    deferred: DeferredWrites | None = None

    def __init__(
        self,
        tensor_parallel_size: int = 1,
        shard_size: int | Literal["node"] | None = None,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        check_number("FSDP2: tensor_parallel_size", tensor_parallel_size, COUNT)
        check_number("FSDP2: shard_size", 1 if shard_size == "node" else shard_size, COUNT, NULL)
        check_number("FSDP2: timeout", timeout.total_seconds(), POSITIVE)
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self._shard_size = shard_size

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        size = self._tensor_parallel_size
        assert isinstance(size, int)
        if self.world_size % size:
            raise UserError(f"FSDP2(tensor_parallel_size): {self.world_size} ranks cannot be divided by {size}")
        self._data_parallel_size = self.world_size // size
        shards = shard_ranks(self._shard_size, self._data_parallel_size, size, self.num_processes)
        self._copies = self._data_parallel_size // shards
        self._shape = (self._copies, shards, size)

    def setup_environment(self) -> None:
        """Start communication. With copies of the shards the mesh has two dimensions in place of `data_parallel`."""
        super().setup_environment()
        if self._copies > 1:
            names = ("replicate", "shard", "tensor_parallel")
            self._device_mesh = init_device_mesh(self.root_device.type, self._shape, mesh_dim_names=names)
            assert self.lightning_module is not None
            self.lightning_module._device_mesh = self._device_mesh

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """How many ranks have rows of their own, and the number of this one among them."""
        together = self.device_mesh["tensor_parallel"].size()
        return {"num_replicas": self.device_mesh.size() // together, "rank": self.global_rank // together}

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Within it, gradients are summed over the ranks of a copy alone, and kept by torch.

        Lightning enters it for every micro-batch of a step but the last, whose backward pass sums over the copies what
        has come together.
        """
        assert self.model is not None
        modules = self.model.modules() if self._copies > 1 else ()
        sharded = [module for module in modules if isinstance(module, FSDPModule)]
        for module in sharded:
            module.set_requires_all_reduce(False, recurse=False)
        try:
            yield
        finally:
            for module in sharded:
                module.set_requires_all_reduce(True, recurse=False)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state dict of the module; for a directory the shards where they lie: each is copied when it is written.

        Lightning copies a rank's whole share from the GPU to the host before the first tensor is written.
        """
        if not self._save_distributed_checkpoint:
            return super().lightning_module_state_dict()
        assert self.model is not None
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of an optimizer, like `lightning_module_state_dict`."""
        if not self._save_distributed_checkpoint:
            return super().optimizer_state(optimizer)
        assert self.model is not None
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return get_optimizer_state_dict(self.model, plain)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint as Lightning does; or leave copies of this rank's shards to be written later.

        Moving averages of the weights are shards like these.
        """
        averages = {f"{EMA}.{name}": average for name, average in checkpoint.pop(EMA, {}).items()}
        checkpoint["state_dict"] = {**checkpoint["state_dict"], **averages}
        if self.deferred is None or not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(filepath))
        path.mkdir(parents=True, exist_ok=True)
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{n}": own for n, own in enumerate(checkpoint.pop("optimizer_states", []))}
        self.deferred.add(partial(dcp.save, checkpoint_id=path, process_group=self.deferred.group), state)
        if self.global_rank == 0:
            self.deferred.add(partial(write_file, path / "meta.pt"), checkpoint)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint directory or file; nothing in it is run, and no weight is left out in silence.

        Raises:
            UserError: if it holds more than tensors and plain values, or is of another model.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            check_plain_values(path)  # what torch.distributed.checkpoint would unpickle
        assert self.lightning_module is not None
        model_shapes = {name: tuple(tensor.shape) for name, tensor in self.lightning_module.state_dict().items()}
        stored = read_checkpoint(path)
        checkpoint_shapes = {name: tuple(weight.shape) for name, weight in stored.weights.items()}
        for name in sorted(model_shapes.keys() | checkpoint_shapes.keys()):
            if model_shapes.get(name) != checkpoint_shapes.get(name):
                shapes = f"{checkpoint_shapes.get(name, 'missing')} there and {model_shapes.get(name, 'missing')} here"
                raise UserError(
                    f"--ckpt_path {path}: the checkpoint is not of this model: {name} is {shapes}; was it made with "
                    "another model.lm or model.lm.adapter?"
                )
        # The names have been compared. In a file Lightning would look for a shared weight under each of its places.
        strict = self.lightning_module.strict_loading
        self.lightning_module.strict_loading = strict and path.is_dir()
        try:
            checkpoint = super().load_checkpoint(path, weights_only)
        finally:
            self.lightning_module.strict_loading = strict
        return checkpoint | ({EMA: self._averages(path, stored.ema)} if path.is_dir() and stored.ema else {})

    def _averages(self, path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The moving averages in a directory, each rank's shards of them."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters(remove_duplicate=False))
        shards = {name: torch.empty_like(parameters[name], dtype=about.dtype) for name, about in stored.items()}
        dcp.load({"state_dict": {f"{EMA}.{name}": shard for name, shard in shards.items()}}, checkpoint_id=path)
        return {name: shard.detach() for name, shard in shards.items()}
