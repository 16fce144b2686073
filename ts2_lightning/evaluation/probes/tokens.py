"""The table of all supervised tokens of rows: one forward pass for all probes that read rows."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ts2_lightning.evaluation.loading import supervised_logits
from ts2_lightning.metrics.functional import token_statistics
from ts2_lightning.types import TOKEN_STATISTICS, Batch

TSPD_ORDERS = (2, 3, 5)
"""The m of TSPD(m, eps_head, eps_tail) that are looked at."""


class Batches(Protocol):
    """Batches whose number is known: a list, or a loader."""

    def __len__(self) -> int:
        """How many there are."""

    def __iter__(self) -> Iterator[Batch]:
        """One after the other."""


def token_table(model: PreTrainedModel, batches: Batches, name: str = "") -> dict[str, Tensor]:
    """Numbers of every supervised token, each [N] on the CPU.

    Args:
        model: the loaded model, in evaluation mode.
        batches: at least one, padded; `row_index` tells rows apart.
        name: name for the progress bar.

    Returns:
        The names of `types.TOKEN_STATISTICS`, `zero_gradient`, `row`, and for each m of `TSPD_ORDERS` what TSPD is
        judged by, `head/m` and `tail/m`.
    """
    orders = {f"tspd_{part}_{m}": f"{part}/{m}" for m in TSPD_ORDERS for part in ("head", "tail")}
    parts: list[dict[str, Tensor]] = []
    for batch in tqdm(batches, desc=f"Reading rows, {name}", unit=" batches", disable=len(batches) < 2):
        rows = batch["row_index"][batch["token_rows"]]
        for here, logits in supervised_logits(model, batch):
            labels = batch["labels"][here].to(logits.device)
            # In one pass: with a real vocabulary, reading a row of logits again takes as long as the model.
            measured = token_statistics(logits, labels, names=(*TOKEN_STATISTICS, *orders))
            part = {orders.get(name, name): values.cpu() for name, values in measured.items()}
            stopped = (part["support_size"] == 1) & (part["gold_in_support"] == 1)  # sparsemax's gradient is zero
            parts.append({**part, "zero_gradient": stopped.to(part["entropy"].dtype), "row": rows[here]})
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
