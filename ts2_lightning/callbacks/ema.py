"""An exponential moving average of the trained weights, beside them."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ts2_lightning.checkpoint_files.reading import EMA as ENTRY
from ts2_lightning.ranges import COUNT, COUNT_OR_ZERO, Range, check_numbers
from ts2_lightning.types import UserError


class EMA(Callback):
    """Keeps an exponential moving average of the trained weights, which `export --ema` exports.

    After a step, average = decay average + (1 - decay) weight, in float32 at least; what is frozen has none. Every
    checkpoint has the average beside the weights, and a run that goes on goes on with it exactly. It takes 4 bytes for
    each trained weight, in memory and in a checkpoint, and is sharded where FSDP2 shards the weights. Of an adapter the
    average is that of its two factors. Checkpoints with `save_weights_only` have none.

    Lightning's own `EMAWeightAveraging` copies the whole module before it is sharded, the frozen part too, and puts the
    average in the place of the weights, in checkpoints and at the end in the model.

    Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging".

    Args:
        decay: share of the average that stays in each update, from 0 and below 1. The average is over about
            1 / (1 - decay) updates: 0.999 is for trainings of many thousands of steps.
        every_n_steps: number of optimizer steps from one update to the next.
        start_step: number of optimizer steps after which averaging begins; until then the average is the weights
            themselves.
        validate: whether validations are of the average in place of the weights. What they measure, and which
            checkpoint is the best, is then that of the average.

    Raises:
        UserError: if a number is out of its range, or the strategy is DeepSpeed or FSDP1.
    """

    def __init__(
        self, decay: float = 0.999, every_n_steps: int = 1, start_step: int = 0, validate: bool = False
    ) -> None:
        super().__init__()
        self.decay = decay
        self.every_n_steps = every_n_steps
        self.start_step = start_step
        self.validate = validate
        check_numbers("EMA: ", self, decay=Range(least=0, below=1), every_n_steps=COUNT, start_step=COUNT_OR_ZERO)
        self._averages: dict[str, Tensor] = {}
        self._loaded: dict[str, Tensor] | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse the strategies whose weights it cannot read.

        Raises:
            UserError: for DeepSpeed, FSDP1, and FSDP2 with checkpoints of one file.
        """
        strategy = trainer.strategy
        if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy):
            name = "DeepSpeed" if isinstance(strategy, DeepSpeedStrategy) else "FSDP1"
            raise UserError(
                f"EMA: {name} keeps the float32 weights, or their names, inside its optimizer; take ddp or fsdp2, or "
                "average checkpoints afterwards (export --average)"
            )
        if isinstance(strategy, ModelParallelStrategy) and not strategy._save_distributed_checkpoint:
            raise UserError("EMA: its shards are written to a directory; set save_distributed_checkpoint to true")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the average of the checkpoint that the training goes on from, else with the weights.

        Raises:
            UserError: if that average is of another model.
        """
        self._averages = {name: _wide(parameter).clone() for name, parameter in _trained(pl_module).items()}
        if trainer.global_step == 0:
            self._step = 0
        elif self._loaded is None:
            rank_zero_warn(
                f"EMA: the checkpoint of step {trainer.global_step} has no average: it begins with the weights"
            )
            self._step = trainer.global_step
        else:
            if absent := sorted(self._averages.keys() - self._loaded.keys()):
                raise UserError(f"EMA: the average in the checkpoint is of another model: it has no {absent[0]}")
            for name, average in self._averages.items():
                _local(average).copy_(_local(_as(self._loaded[name], average)))
        self._loaded = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the weights in, once for each optimizer step."""
        step = trainer.global_step
        if step == self._step:
            return
        self._step = step
        if step > self.start_step and step % self.every_n_steps:
            return
        weight = 1 - self.decay if step > self.start_step else 1.0
        with torch.no_grad():
            for name, parameter in _trained(pl_module).items():
                _local(self._averages[name]).lerp_(_local(_wide(parameter)), weight)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the average; the last checkpoint has it."""
        self._averages = {}

    # -- validation

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in the place of the weights; a checkpoint before the validation has been written."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the weights back."""
        self._swap(pl_module)

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        if not (self.validate and self._averages):  # there is none where nothing is trained
            return
        _reshard(module)
        for name, parameter in _trained(module).items():
            weight, average = _local(parameter), _local(self._averages[name])
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The step of the last update; the average itself is an entry of its own."""
        return {"step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the step of the last update."""
        self._step = state_dict["step"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the average under the names that the weights have in the checkpoint, tied ones under each."""
        if not self._averages:
            rank_zero_warn(
                "EMA: there is an average only while a training runs: this checkpoint has none, the last one of the "
                "training has it"
            )
            return
        first = {parameter: name for name, parameter in _trained(pl_module).items()}
        named = pl_module.named_parameters(remove_duplicate=False)
        held = checkpoint["state_dict"]
        checkpoint[ENTRY] = {
            name: self._averages[first[parameter]] for name, parameter in named if parameter in first and name in held
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the average until the training starts."""
        self._loaded = checkpoint.get(ENTRY)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, each once."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def _wide(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _as(stored: Tensor, average: Tensor) -> Tensor:
    """A stored average, sharded as one in memory is."""
    if isinstance(average, DTensor) and not isinstance(stored, DTensor):
        whole = stored.to(average.device)
        return distribute_tensor(whole, average.device_mesh, average.placements, src_data_rank=None)
    return stored


def _reshard(module: nn.Module) -> None:
    """Forget whole weights that FSDP2 keeps from one forward pass to the next."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
