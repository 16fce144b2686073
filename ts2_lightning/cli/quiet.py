"""Keeps well-known noise of the libraries off the screen; everything else is shown."""

import logging
import os
import warnings

_WARNINGS = (
    r".*does not have many workers.*",
    r".*LeafSpec.*is deprecated.*",
    r".*treespec.*is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",  # a resumed run writes where it wrote before
    r".*The number of training batches .* is smaller than the logging interval.*",
    r".*`srun` command is available on your system but is not used.*",
    r".*Unable to serialize instance.*",
    r".*no current accelerator.*|.*pin_memory.*argument is set as true but no accelerator.*",
    r".*GPU available but not used.*",
    r".*recommended to use .*sync_dist=True.*",  # the module sums over ranks before it logs
    r".*LightningCLI's args parameter is intended.*",
    r".*`torch.distributed.(all_gather_into|reduce_scatter)_tensor` is deprecated.*",  # DeepSpeed's calls
    r".*When saving the DeepSpeed Stage 3 checkpoint.*",  # export makes the single file
)
_CALLBACKS_WARNING = r".*callbacks used to create the checkpoint need to be provided.*"
_MESSAGES = (
    "Tip:",
    "Seed set to",
    "LOCAL_RANK:",
    "GPU available",
    "TPU available",
    "HPU available",
    "Loading `train_dataloader` to estimate",
    "Restoring states from the checkpoint path",
    "Initializing distributed: GLOBAL_RANK",
    "initializing deepspeed distributed: GLOBAL_RANK",
    "Detected KeyboardInterrupt",
    "While redistributing from",  # tensor parallelism: the norm of the gradient in two exchanges
    "Failed to load CPU gemm_4bit_forward",  # bitsandbytes has another way, and who imports peft imports it
)


class _Unwanted(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a message is worth showing."""
        message = record.getMessage()
        return not any(unwanted in message for unwanted in _MESSAGES)


def quieten(command: str) -> None:
    """Filters the warnings and log lines that tell a user of the command line nothing.

    Args:
        command: what runs; evaluating a checkpoint needs none of the callbacks that it was trained with.
    """
    for pattern in _WARNINGS if command == "fit" else (*_WARNINGS, _CALLBACKS_WARNING):
        warnings.filterwarnings("ignore", message=pattern)
    # Said outright, since tokenizers would warn in every worker process otherwise.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    names = [name for name in logging.root.manager.loggerDict if name.startswith("lightning")]
    named = (
        "lightning.pytorch.utilities.rank_zero",
        "lightning.fabric.utilities.seed",
        "bitsandbytes.backends.cpu.ops",
        "torch.distributed.tensor._redistribute",
    )
    for name in (*named, *names):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _Unwanted) for existing in logger.filters):
            logger.addFilter(_Unwanted())
