"""Two gloo ranks that publish given numbers of tokens: `two_ranks.py DIRECTORY COUNTS_AS_JSON`.

A script of its own, so that the ranks are forked from one fresh interpreter: imports cost most of the time.
"""

import json
import os
import socket
import sys
from pathlib import Path

import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from publisher import Publisher, loader, make_rows, make_trainer
from torch import multiprocessing

from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, TSPDSetting


def rank(number: int, port: int, directory: str, counts: list[list[int]]) -> None:
    """One rank, as torchrun would start it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    torch.set_num_threads(1)
    trainer = make_trainer(
        Path(directory),
        callbacks=[
            DistributionMonitor(
                tspd=[TSPDSetting(2, 0.3, 0.4)], split_by=["position"], positions=(1, 2), histogram_every_n_steps=1
            ),
            Checkpoints(every_n_steps=2),
        ],
        enable_checkpointing=True,
        logger=CSVLogger(directory, name="csv", version=""),
        accumulate_grad_batches=2,
        devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"),
    )
    trainer.fit(Publisher(), loader(make_rows(counts[number], seed=number)))


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        free_port = free.getsockname()[1]
    settings = (free_port, sys.argv[1], json.loads(sys.argv[2]))
    multiprocessing.start_processes(rank, settings, nprocs=2, start_method="fork")
