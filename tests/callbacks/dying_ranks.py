"""Two gloo ranks, of which the second one dies before or after training: `dying_ranks.py DIRECTORY TIMEOUT`.

Each place is played on its own, forked from one interpreter: imports cost most of the time. `ended.json` has the first
rank's exit status, its seconds, and what it printed.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.strategies import DDPStrategy

from tests.callbacks.publisher import Publisher, loader, make_rows
from tests.support.ranks import become_rank, free_port
from tests.support.training import make_trainer
from ts2_lightning.callbacks import Watchdog


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def frozen() -> None:
    """Its connections stay open, as those of a machine do that has vanished."""
    os.kill(os.getpid(), signal.SIGSTOP)


PLACES: dict[str, tuple[str, Callable[[], None]]] = {
    "before it joins": ("join", killed),
    "after it has joined": ("joined", killed),
    "before the barrier of the data": ("barrier", killed),
    "while it prepares data": ("data", killed),
    "while it loads": ("load", killed),
    "frozen while it loads": ("load", frozen),
    "frozen at the end": ("end", frozen),
}


class Strategy(DDPStrategy):
    """On gloo."""

    at: Callable[[str], None]

    def setup_environment(self) -> None:
        self.at("join")
        super().setup_environment()
        self.at("joined")


class Data(LightningDataModule):
    """Rows; the second rank reads its own in `setup`."""

    at: Callable[[str], None]

    @property
    def prepare_data_per_node(self) -> bool:
        """Lightning asks for it before it makes the group whose barrier waits for 10,000 days."""
        self.at("barrier")
        return True

    @prepare_data_per_node.setter
    def prepare_data_per_node(self, value: bool) -> None:
        """It sets it first."""

    def prepare_data(self) -> None:
        """There is a barrier around it only where there is something to prepare."""

    def setup(self, stage: str) -> None:
        self.at("data")

    def train_dataloader(self) -> Any:
        return loader(make_rows([2, 2, 2, 2]))


class Module(Publisher):
    """A learner."""

    at: Callable[[str], None]

    def configure_model(self) -> None:
        self.at("load")


class End(Callback):
    """The ranks meet when all is done."""

    at: Callable[[str], None]

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.at("end")
        trainer.strategy.barrier()


def rank(number: int, port: int, directory: Path, timeout: float, place: str) -> None:
    become_rank(number, 2, port)
    where, die = PLACES[place]

    def at(here: str) -> None:
        if number == 1 and here == where:
            time.sleep(0.5)
            die()

    watchdog, end, strategy = Watchdog(timeout), End(), Strategy(process_group_backend="gloo")
    module, data = Module(), Data()
    for part in (end, strategy, module, data):
        part.at = at
    trainer = make_trainer(directory, callbacks=[watchdog, end], devices=2, strategy=strategy)
    watchdog.begin(trainer)
    trainer.fit(module, datamodule=data)


def fork(*settings: Any) -> int:
    child = os.fork()
    if child == 0:
        try:
            rank(*settings)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def play(directory: Path, timeout: float, place: str) -> tuple[int, float, str]:
    """The first rank's end; what is left of the second one is removed."""
    port = free_port()
    printed = directory / "printed.txt"
    stream = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    began = time.monotonic()
    first, second = (fork(number, port, directory, timeout, place) for number in range(2))
    status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    seconds = time.monotonic() - began
    os.kill(second, signal.SIGKILL)
    os.waitpid(second, 0)
    return status, seconds, printed.read_text()


if __name__ == "__main__":
    where = Path(sys.argv[1])
    ends = {place: play(where, float(sys.argv[2]), place) for place in PLACES}
    (where / "ended.json").write_text(json.dumps(ends))
