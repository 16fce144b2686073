"""FSDP2, with tensor parallelism if wanted, under Lightning."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from ts2_lightning.checkpoint_files.reading import check_plain_values, read_checkpoint
from ts2_lightning.ranges import COUNT, POSITIVE, check_number
from ts2_lightning.types import UserError


class FSDP2(ModelParallelStrategy):
    """Weights, gradients and optimizer state sharded over all ranks, on GPUs or (a rehearsal) on CPUs.

    Lightning's own default makes all GPUs of a node compute the same rows.

    Args:
        tensor_parallel_size: neighbouring ranks that compute the same rows, each with a part of every layer. For models
            of which a rank cannot hold one whole layer, or a micro-batch of one row; the GPUs of a node at most.
        save_distributed_checkpoint: a directory to which each rank writes its shard; else one file, by rank 0.
        process_group_backend: of torch.distributed; null is nccl on GPUs and gloo on CPUs.
        timeout: of a collective operation.

    Raises:
        UserError: a number out of its range, or ranks that cannot be divided so.
    """

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

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """As Lightning's, a directory or a file; but nothing in it is run, and no weight is left out in silence.

        Raises:
            UserError: it holds more than tensors and plain values, or is of another model.
        """
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            check_plain_values(path)  # what torch.distributed.checkpoint would unpickle
        assert self.lightning_module is not None
        here = {name: tuple(tensor.shape) for name, tensor in self.lightning_module.state_dict().items()}
        there = {name: tuple(weight.shape) for name, weight in read_checkpoint(path).weights.items()}
        for name in sorted(here.keys() | there.keys()):
            if here.get(name) != there.get(name):
                shapes = f"{there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
                raise UserError(
                    f"--ckpt_path {path}: the checkpoint is not of this model: {name} is {shapes}; was it made with "
                    "another model.lm or model.lm.adapter?"
                )
        return super().load_checkpoint(path, weights_only)
