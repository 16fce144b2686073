"""Two gloo ranks that publish given numbers of tokens: `two_ranks.py DIRECTORY COUNTS_AS_JSON`."""

import json
import sys
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.ranks import fork_ranks
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Checkpoints, DistributionMonitor, TSPDSetting


def rank(number: int, directory: str, counts: list[list[int]]) -> None:
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
    fork_ranks(rank, sys.argv[1], json.loads(sys.argv[2]))
