"""Background writes that wait until a test lets them go, so that nothing depends on how long anything takes."""

import threading

from ts2_lightning.checkpoint_files.deferred import DeferredWrites


class HeldWrites:
    """Has the threads that write checkpoints wait for `released`.

    Args:
        first: number of the first write that waits, from 1.

    Attributes:
        released: lets all threads write while it is set.
    """

    def __init__(self, first: int = 1) -> None:
        self.released = threading.Event()
        self._first = first
        self._run = DeferredWrites.run

    def install(self) -> None:
        """From now on."""

        def held(writes: DeferredWrites) -> None:
            self._first -= 1
            if self._first <= 0:
                self.released.wait()
            self._run(writes)

        DeferredWrites.run = held  # type: ignore[method-assign]

    def remove(self) -> None:
        """As before; who waits still, goes on."""
        DeferredWrites.run = self._run  # type: ignore[method-assign]
        self.released.set()
