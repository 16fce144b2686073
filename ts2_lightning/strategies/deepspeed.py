"""DeepSpeed's ZeRO under Lightning, with the steps that every other strategy takes."""

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from lightning.pytorch.trainer import call
from torch import Tensor, nn

from ts2_lightning.checkpoint_files.reading import load_plain_values
from ts2_lightning.ranges import POSITIVE, check_number
from ts2_lightning.types import UserError

PRECISIONS = ("32-true", "bf16-mixed")


class DeepSpeed(DeepSpeedStrategy):
    """ZeRO, stage 1, 2 or 3, on GPUs or (a rehearsal) on CPUs.

    It differs from Lightning's own strategy in this:

    - Gradients are not divided a second time by `accumulate_grad_batches`, and a step that ends with an epoch before it
      has all its micro-batches is made then, not joined to the next epoch's first.
    - `bf16-mixed` means what it means elsewhere, autocast over float32 weights, with gradients summed in float32;
      DeepSpeed's own would hold and sum weights and gradients in bfloat16, and round the batch's row weights.
    - The step is clipped, and left out where the gradient's norm is not finite, by DeepSpeed; the module hears of the
      norm after it.

    Args:
        stage: stage of ZeRO: 1 shards the optimizer's state, 2 gradients too, 3 weights too.
        offload_optimizer: whether to keep the optimizer's state, and update the weights, in the CPU's memory.
        offload_parameters: whether to keep weights that are not in use in the CPU's memory; stage 3 only.
        process_group_backend: backend of torch.distributed; null is nccl on GPUs and gloo on CPUs.
        timeout: longest duration of a collective operation.

    Raises:
        UserError: DeepSpeed is not installed, parameters are to be offloaded below stage 3, or a number is out of its
            range.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        check_number("DeepSpeed: timeout", timeout.total_seconds(), POSITIVE)
        if find_spec("deepspeed") is None:
            raise UserError("strategy: DeepSpeed is not installed; pip install 'ts2-lightning[deepspeed]'")
        if offload_parameters and stage != 3:
            raise UserError(f"DeepSpeed(offload_parameters) needs stage 3, whose weights are sharded; got {stage}")
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that there is no GPU
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            process_group_backend=process_group_backend,
            timeout=timeout,
            exclude_frozen_parameters=True,  # as the module's own state does; DeepSpeed keeps them beside it
            logging_batch_size_per_gpu=1,  # for its own throughput; else Lightning asks for the training rows
            logging_level=logging.ERROR,  # it warns of steps that are left out, which the module tells of
        )
        assert isinstance(self.config, dict)
        # Torch's fused AdamW is the optimizer everywhere; DeepSpeed asks for its own one where it offloads.
        self.config["zero_force_ds_cpu_optimizer"] = False

    # --- on a CPU ------------------------------------------------------------------------------------------------

    @property
    def _on_cpu(self) -> bool:
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank].type == "cpu"

    @property
    def root_device(self) -> torch.device:
        """The rank's device; DeepSpeed wants an index from a CPU too."""
        return torch.device("cpu", self.local_rank) if self._on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Joins the other ranks; Lightning refuses CPUs here, but DeepSpeed has them."""
        if not self._on_cpu:
            super().setup_environment()
            return
        import deepspeed
        from deepspeed.accelerator import set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        set_accelerator(CPU_Accelerator())  # on a machine with GPUs it chose those
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, and gloo does as well
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Set up torch.distributed as Lightning does, without its check of GPU indices."""
        if not self._on_cpu:
            super().setup_distributed()
            return
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint as Lightning does, without running anything in it, as DeepSpeed's reader would.

        Raises:
            UserError: it holds more than tensors and plain values.
        """
        reader = self.deepspeed_engine.checkpoint_engine
        reader.load = load_plain_values
        try:
            return super().load_checkpoint(checkpoint_path, weights_only)
        finally:
            del reader.load  # of the instance; the class has its own

    # --- the step ------------------------------------------------------------------------------------------------

    @property
    def precision_plugin(self) -> Precision:
        """The plugin that steps DeepSpeed."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        """Lightning's plugin is replaced by one that steps as the other strategies do."""
        if isinstance(precision_plugin, DeepSpeedPrecision):
            precision_plugin = DeepSpeedSteps(precision_plugin.precision)
        self._precision_plugin = precision_plugin

    @property
    def handles_gradient_accumulation(self) -> bool:
        """False: Lightning's loop says which micro-batch is a step's last, as everywhere."""
        return False

    def block_backward_sync(self) -> Any:
        """An empty context: before each backward pass the engine learns whether it is a step's last."""
        return nullcontext()

    def _format_config(self) -> None:
        """Format the config as Lightning does, except for the precision."""
        self._format_batch_size_and_grad_accum_config()
        assert isinstance(self.config, dict)
        self.config |= self._autocast_config()

    def _autocast_config(self) -> dict[str, Any]:
        enabled = self.precision_plugin.precision == "bf16-mixed"
        # No module is safe to communicate in bfloat16: gradients are summed in float32.
        autocast = {"enabled": enabled, "dtype": "bfloat16", "lower_precision_safe_modules": []}
        return {"torch_autocast": autocast} if enabled else {}

    def init_deepspeed(self) -> None:
        """Wraps the module, without Lightning's warning about a clipping that the module leaves to DeepSpeed."""
        module = self.lightning_module
        assert module is not None
        if module.trainer.gradient_clip_algorithm == "value":
            raise UserError(
                "trainer.gradient_clip_algorithm: DeepSpeed clips by norm only; set norm, or take another strategy"
            )
        assert isinstance(self.model, nn.Module)
        if module.trainer.training:
            self._initialize_deepspeed_train(self.model)
        else:
            self._initialize_deepspeed_inference(self.model)

    def _initialize_deepspeed_inference(self, model: nn.Module) -> None:
        """Set up inference as Lightning does, with autocast, and with the optimizer that ZeRO-3 needs to load."""
        import deepspeed

        assert isinstance(self.config, dict)
        names = ("zero_allow_untested_optimizer", "zero_optimization") if self.zero_stage_3 else ()
        config = {name: self.config[name] for name in names}
        config |= {"train_micro_batch_size_per_gpu": 1, **self._autocast_config()}
        remove_module_hooks(model)  # of a training before
        trained = [p for p in model.parameters() if p.requires_grad]
        self.model, *_ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.root_device.index),
            config=config,
            model=model,
            model_parameters=trained if self.zero_stage_3 else [],
            optimizer=torch.optim.SGD(trained, lr=0.0) if self.zero_stage_3 else None,
            dist_init_required=False,
        )


class DeepSpeedSteps(DeepSpeedPrecision):
    """Backward pass and update of a DeepSpeed engine, in Lightning's windows of accumulation.

    Args:
        precision: precision of the trainer, one of `PRECISIONS`.

    Raises:
        UserError: for another precision.
    """

    def __init__(self, precision: Any) -> None:
        if precision not in PRECISIONS:
            raise UserError(f"trainer.precision: DeepSpeed takes {' or '.join(PRECISIONS)} here, got {precision}")
        super().__init__(precision)

    def convert_input(self, data: Any) -> Any:
        """The batch as it is: token ids have no precision, and row weights keep theirs."""
        return data

    def forward_context(self) -> AbstractContextManager[Any]:
        """Autocast as under other strategies; without a cache, which would hold the weights that ZeRO-3 gathers."""
        if self.precision != "bf16-mixed":
            return nullcontext()
        from deepspeed.accelerator import get_accelerator

        return torch.autocast(get_accelerator().device_name(), torch.bfloat16, cache_enabled=False)

    def backward(  # type: ignore[override]
        self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Adds to the step's gradients; the loss has been divided by the micro-batches already."""
        trainer: Any = model.trainer
        engine = trainer.model
        engine.set_gradient_accumulation_boundary(not trainer.fit_loop._should_accumulate())
        engine.backward(tensor, scale_wrt_gas=False)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """The last micro-batch of a step, the update, and then what it did: DeepSpeed measures and clips inside."""
        trainer: Any = model.trainer
        closure()
        call._call_callback_hooks(trainer, "on_before_optimizer_step", optimizer)
        call._call_lightning_module_hook(trainer, "on_before_optimizer_step", optimizer)
        trainer.model.step()
        self._clip_gradients(model, optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
