"""The directory of a run's checkpoints: what is written gets its names there, and older ones go."""

import threading
from functools import partial
from pathlib import Path

from ts2_lightning import checkpoint_files as files
from ts2_lightning.callbacks.checkpoint_writing import Ranks

LAST, BEST = "last", "best"


class CheckpointDirectory:
    """Checkpoints `step-000123.ckpt`, and the links `last.ckpt` and `best.ckpt` to them.

    A checkpoint may get its names in one thread while another says which is the best.

    Args:
        path: the directory.
        keep_last: number of newest checkpoints to keep beside the best one.
    """

    def __init__(self, path: Path, keep_last: int) -> None:
        self.path = path
        self._keep_last = keep_last
        self._naming = threading.Lock()
        self._published_step = self._best_step = -1

    def place(self, step: int) -> Path:
        """The place of the checkpoint of a step."""
        return self.link(f"step-{step:06d}")

    def partial(self, step: int) -> Path:
        """The hidden place at which it is written."""
        return files.hidden(self.place(step), "partial")

    def link(self, name: str) -> Path:
        """The place of a name."""
        return self.path / f"{name}{files.SUFFIX}"

    @property
    def newest(self) -> str | None:
        """The file name of the newest checkpoint; None if there is none."""
        last = self.link(LAST)
        return last.resolve().name if last.exists() else None

    def complete(self, ranks: Ranks, step: int, failure: str | None) -> str | None:
        """Bring what all ranks have written to the disk, and give it its names; or remove it. Every rank must call.

        Args:
            ranks: ranks that have written it.
            step: step of the checkpoint.
            failure: reason for which it could not be written; None if it was.

        Returns:
            The reason for which there is no such checkpoint; None if there is.
        """
        written = self.partial(step)
        checksums: dict[str, list[int]] = {}

        def check() -> None:
            if ranks.local_rank == 0:  # one rank of each node, for what its ranks have written
                files.sync(written)
            # Of the files that this rank has written, which are still in its node's memory.
            checksums.update(files.block_checksums(written, ranks.rank, ranks.size))

        failure = failure or ranks.together(check)
        if failure is None:
            everything = {name: values for own in ranks.gathered(checksums) for name, values in own.items()}
            failure = ranks.first(partial(self._publish, step, ranks.size, everything))
        if failure is not None and ranks.rank == 0:
            files.remove_remains(self.path)  # it takes up space
        return failure

    def _publish(self, step: int, world_size: int, checksums: dict[str, list[int]]) -> None:
        written = self.partial(step)
        if written.is_dir():
            files.write_manifest(written, world_size, checksums)
            files.sync(written)
        with self._naming:
            files.publish(written, self.place(step))
            files.link(self.link(LAST), self.place(step))
            if self._best_step == step:
                files.link(self.link(BEST), self.place(step))
            self._published_step, self._best_step = step, -1
            self._remove_older()

    def call_best(self, step: int, in_flight: bool) -> None:
        """Link a checkpoint as the best.

        Args:
            step: step of the checkpoint.
            in_flight: whether a thread has it, or had it: then it may have no name yet, and is linked when it gets one.
        """
        with self._naming:
            if in_flight and self._published_step != step:
                self._best_step = step
                return
            files.link(self.link(BEST), self.place(step))
            self._remove_older()

    def call_none_best(self) -> None:
        """Take back what `call_best` has said of a checkpoint that will get no name."""
        with self._naming:
            self._best_step = -1

    def _remove_older(self) -> None:
        """Keep the newest by their age: a run that goes on from an older checkpoint counts its steps again."""
        steps = sorted(self.path.glob(f"step-*{files.SUFFIX}"), key=lambda path: (path.stat().st_mtime_ns, path))
        best = self.link(BEST).resolve()
        for path in steps[: -self._keep_last]:
            if path.resolve() != best:
                files.remove(path)
