"""How long a run needs to save when it is told to end: while it can, it must be warned so early."""

import math
from dataclasses import dataclass

WARNING_SECONDS = 300
"""Before its time limit a job is warned, if nothing else is said; `configs/cluster/fit.slurm` says it to SLURM."""

WRITE_SPEED = 1e9
"""Bytes per second that all processes together write to a shared file system, if nothing else is said; a guess."""

_MARGIN = 1.25  # file systems are slower at times
_LONGEST = 65535  # seconds that SLURM takes


@dataclass(frozen=True)
class Saving:
    """The end of a run that was warned: it finishes its step and writes a checkpoint.

    Attributes:
        size: Size of the checkpoint in bytes, over all processes.
        speed: bytes per second at which it is written.
        step: seconds of a step; 0 where that is not known.

    Example:
        >>> saving = Saving(size=846_600_000_000, speed=1e9, step=23.0)
        >>> saving.write, saving.seconds, saving.is_warned_in_time, saving.warning
        (846.6, 869.6, False, 1140)
    """

    size: int
    speed: float
    step: float

    @property
    def write(self) -> float:
        """Seconds to write the checkpoint."""
        return self.size / self.speed

    @property
    def seconds(self) -> float:
        """Seconds from the warning to the end."""
        return self.step + self.write

    @property
    def is_warned_in_time(self) -> bool:
        """Whether the default is enough."""
        return self.seconds <= WARNING_SECONDS

    @property
    def warning(self) -> int:
        """Seconds before the time limit at which to be warned: a quarter more, in whole minutes."""
        return max(WARNING_SECONDS, min(_LONGEST, 60 * math.ceil(_MARGIN * self.seconds / 60)))
