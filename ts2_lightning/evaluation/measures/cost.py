"""What a run cost, from what it has written."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ts2_lightning.evaluation.measure import Measure, Measured
from ts2_lightning.evaluation.model import Model
from ts2_lightning.json_files import read_json
from ts2_lightning.runs.contents import METRICS, read_curves
from ts2_lightning.runs.stamps import file_stamps
from ts2_lightning.runs.state import STATE
from ts2_lightning.types import UserError
from ts2_lightning.values import Value

_Sum = Callable[[Sequence[float]], float]
_LOGGED: dict[str, tuple[str, _Sum]] = {
    "tokens_per_second": ("throughput/tokens_per_second", statistics.median),
    "supervised_tokens_per_second": ("train/supervised_tokens_per_second", statistics.median),
    "peak_memory_gb": ("train/peak_memory_gb", max),
}
"""Value -> (column of the log, what is taken of the logged steps)."""

_SPEED = "median over the logged steps; it follows the machine and its load"


@dataclass(frozen=True)
class Cost(Measure):
    """Time, throughput and memory of a training."""

    name: ClassVar[str] = "cost"
    usual: ClassVar[bool] = True
    values: ClassVar[tuple[Value, ...]] = (  # times follow the load of the machine, so that none is the best
        Value("seconds", "seconds", "of training; it follows the machine and its load", None, ".1f", True),
        Value("steps", "steps", "", None, ".0f"),
        Value("tokens_per_second", "tokens/s", "", None, ".0f"),
        Value("supervised_tokens_per_second", "supervised tokens/s", _SPEED, None, ".0f", True),
        Value("peak_memory_gb", "memory, GB", "the most that the process had", "lower", ".2f", True),
    )
    decoded: ClassVar[bool] = False

    def inputs(self, model: Model) -> Any:
        """The run's own files."""
        return None if model.run is None else [file_stamps(model.run / name) for name in (STATE, METRICS)]

    def check_model(self, model: Model) -> None:
        """Raises UserError unless it comes from a run that has written what it did."""
        if model.run is None:
            raise UserError(f"cost: {model.name} is not a run; leave the measure out")
        if not any((model.run / name).is_file() for name in (STATE, METRICS)):
            raise UserError(f"cost: {model.run} has neither {STATE} nor {METRICS}")

    def measure(self, model: Model, beside: Path) -> Measured:
        """What there is of `seconds` of training over all starts of the run, `steps`, and over the logged steps the
        median `tokens_per_second` and `supervised_tokens_per_second` and the largest `peak_memory_gb`.

        Raises:
            UserError: a file is damaged.
        """
        assert model.run is not None
        try:
            values = _of_state(model.run) | _of_log(model.run)
        except UserError as error:
            raise UserError(f"cost: {error}") from error
        if not values:
            raise UserError(f"cost: {model.run} has logged nothing")
        return Measured(values)


def _of_state(run: Path) -> dict[str, float]:
    if not (run / STATE).is_file():
        return {}
    try:
        state = read_json(run / STATE)
        return {"seconds": float(state["seconds"]), "steps": float(state["step"])}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run / STATE}: cannot be read ({type(error).__name__}: {error})") from error


def _of_log(run: Path) -> dict[str, float]:
    curves = read_curves(run)
    return {name: summed([*curves[column].values()]) for name, (column, summed) in _LOGGED.items() if column in curves}
