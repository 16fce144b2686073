"""FSDP2 under Lightning, with optional tensor parallelism."""

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.optim import Optimizer

from ts2_lightning.checkpoint_files.deferred import DeferredWrites, write_file
from ts2_lightning.checkpoint_files.reading import EMA, StoredTensor, check_plain_values, read_checkpoint
from ts2_lightning.ranges import COUNT, POSITIVE, check_number
from ts2_lightning.types import UserError


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all ranks, on GPUs or (a rehearsal) on CPUs.

    Lightning's own default makes all GPUs of a node compute the same rows.

    Args:
        tensor_parallel_size: number of neighbouring ranks that compute the same rows, each with a part of every layer.
            For models of which a rank cannot hold one whole layer, or a micro-batch of one row; the GPUs of a node at
            most.
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
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        check_number("FSDP2: tensor_parallel_size", tensor_parallel_size, COUNT)
        check_number("FSDP2: timeout", timeout.total_seconds(), POSITIVE)
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=tensor_parallel_size,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        size = self._tensor_parallel_size
        assert isinstance(size, int)
        if self.world_size % size:
            raise UserError(f"FSDP2(tensor_parallel_size): {self.world_size} ranks cannot be divided by {size}")
        self._data_parallel_size = self.world_size // size

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
        checkpoint = super().load_checkpoint(path, weights_only)
        return checkpoint | ({EMA: self._averages(path, stored.ema)} if path.is_dir() and stored.ema else {})

    def _averages(self, path: Path, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """The moving averages in a directory, each rank's shards of them."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters(remove_duplicate=False))
        shards = {name: torch.empty_like(parameters[name], dtype=about.dtype) for name, about in stored.items()}
        dcp.load({"state_dict": {f"{EMA}.{name}": shard for name, shard in shards.items()}}, checkpoint_id=path)
        return {name: shard.detach() for name, shard in shards.items()}
