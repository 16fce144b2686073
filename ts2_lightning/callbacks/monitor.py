"""What the token distributions are like: statistics of every supervised token, exact over the optimizer step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from ts2_lightning.callbacks.flattening import FlatteningRule, FlatteningWatch, LoggedStep
from ts2_lightning.callbacks.step_lines import StepLines
from ts2_lightning.callbacks.tensorboard_tabs import diagnostics_layout
from ts2_lightning.callbacks.token_groups import class_table_of, groups_of, means_of_groups, split
from ts2_lightning.metrics import BySet, TokenMeans
from ts2_lightning.metrics.functional import count_sizes_of_rows, quantiles_of_counts
from ts2_lightning.metrics.functional.tspd import check_tspd
from ts2_lightning.ops import HeadAndTail, tspd_names
from ts2_lightning.ranges import COUNT, NULL, check_number
from ts2_lightning.types import TOKEN_STATISTICS, Batch, UserError

ON_PROGRESS_BAR = ("objective", "cross_entropy", "support_size", "tail_mass", "entropy")
"""The means that progress bars show; they are in `trainer.callback_metrics` too."""

COUNTED = ("support_size", "gold_rank")
"""Whole numbers, whose quantiles and histograms are kept as well."""

QUANTILES = {"p50": 0.5, "p90": 0.9}

LARGEST = 4096
"""The largest whole number that is counted by itself; a quantile above it is inf."""

SplitBy = Literal["position", "token_class"]


@dataclass(frozen=True)
class TSPDSetting:
    """Which tail-suppressed plausible diversity is asked for: TSPD(m, eps_head, eps_tail) of TS2, definition 1.

    Args:
        m: tokens that are to be plausible, at least 2.
        eps_head: each of them has this probability at least; above 0, at most 1 / m.
        eps_tail: all others together have this probability at most; from 0 to 1 - m eps_head.
    """

    m: int
    eps_head: float
    eps_tail: float

    def __post_init__(self) -> None:
        check_tspd(self.m, self.eps_head, self.eps_tail)

    @property
    def name(self) -> str:
        """For logging."""
        return f"tspd/m{self.m}_head{self.eps_head:g}_tail{self.eps_tail:g}"

    def of_tokens(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """[N] 1 where it is satisfied, else 0."""
        head, tail = (tokens[name] for name in tspd_names(self.m))
        return HeadAndTail(head, tail).satisfies(self.eps_head, self.eps_tail).to(head.dtype)


class DistributionMonitor(Callback):
    """Logs, over all supervised tokens of the optimizer step, what the step published of each.

    `training_step` publishes `outputs["tokens"]`: one `[N]` tensor per statistic, for the N supervised tokens
    of a micro-batch. For each key the callback keeps the float64 sum over all micro-batches of the optimizer
    step, adds the sums and the number of tokens over ranks with one all-reduce at the step's end, and
    divides:

        train/KEY = sum over the step's tokens of tokens[KEY] / number of the step's tokens

    so a micro-batch or rank with few tokens weighs little: never a mean of means. Whole numbers (support size, gold
    rank) are counted, the counts added over micro-batches and ranks, and median and 90th percentile read off them:
    exact too. Nothing is computed from the logits again. The module logs it all (`SFTModule.add_to_row`): every logger
    gets one row per logged step, at `step = trainer.global_step` (the number of optimizer steps done). Lightning's own
    `log` would give the last micro-batch's mean instead, at a step counted from 0.

    Keys are those of `types.TOKEN_STATISTICS`, `objective/PART` for each part of a composite loss, `zero_gradient`, the
    share of tokens at which sparsemax has stopped (its support is the gold token alone), and `tspd/...` as asked for. A
    step without any supervised token logs nothing. So in a validation, over all rows and those of each named set.

    The statistics are measured because this callback asks for them; without it, or in steps that it does not log, the
    loss engine leaves them out.

    TensorBoard's tab Custom Scalars has them on one page, see `tensorboard_tabs.diagnostics_layout`.

    Where the tail mass of the training rows has clearly risen, one line says so, once in a run: the objective flattens
    the distributions (`FlatteningRule`).

    Args:
        every_n_steps: measure and log optimizer steps whose number is a multiple of this; the others cost nothing.
            Steps must be multiples of the trainer's `log_every_n_steps` too (0 there switches all logging off).
        tspd: the shares of tokens with TSPD to log.
        split_by: also log all means by `position` in the response (`train_by_position/KEY/GROUP`), and by
            `token_class` (`train_by_token_class/KEY/GROUP`: first token of a response, end tokens, digits, words,
            other ones).
        positions: the first position of each group, from 1 on.
        histogram_every_n_steps: write histograms of support size and gold rank in logged steps whose number is a
            multiple of this, to TensorBoard and as counts to `histograms.jsonl` in the run's directory; null: none. In
            a validation they are written if this is not null.
        flattening: the rise of the tail mass that is warned of; null: none.

    Raises:
        UserError: if an argument is out of its range.
    """

    def __init__(
        self,
        every_n_steps: int = 1,
        tspd: list[TSPDSetting] | None = None,
        split_by: list[SplitBy] | None = None,
        positions: tuple[int, ...] = (1, 2, 5, 17, 65, 257),
        histogram_every_n_steps: int | None = None,
        flattening: FlatteningRule | None = FlatteningRule(),  # noqa: B008 (it cannot be changed)
    ) -> None:
        super().__init__()
        check_number("DistributionMonitor: every_n_steps", every_n_steps, COUNT)
        check_number("DistributionMonitor: histogram_every_n_steps", histogram_every_n_steps, COUNT, NULL)
        for place, position in enumerate(positions):
            check_number(f"DistributionMonitor: positions[{place}]", position, COUNT)
        if list(positions) != sorted(set(positions)) or not positions or positions[0] != 1:
            raise UserError(f"DistributionMonitor: positions must rise from 1 on, got {list(positions)}")
        if unknown := set(split_by or ()) - set(get_args(SplitBy)):
            raise UserError(f"DistributionMonitor: split_by takes position and token_class, got {sorted(unknown)[0]!r}")
        self.every_n_steps = every_n_steps
        self.tspd = list(tspd or ())
        self.split_by = list(split_by or ())
        self.positions = list(positions)
        self.histogram_every_n_steps = histogram_every_n_steps
        self.flattening = flattening
        self._flattening = None if flattening is None else FlatteningWatch(flattening)
        self.latest: dict[str, float] = {}
        """The means of the last logged step, the objective included, under their logging names."""
        self._last_step = 0
        self._table: Tensor | None = None
        self._training, self._evaluation = self._window(), BySet("val", None, self._window)

    @property
    def statistics(self) -> list[str]:
        """What a step is asked to measure."""
        return [*TOKEN_STATISTICS, *(name for m in sorted({t.m for t in self.tspd}) for name in tspd_names(m))]

    # -- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty sums; a checkpoint is only ever written between two optimizer steps."""
        self._last_step = trainer.global_step
        self._training, self.latest = self._window(), {}
        if self.flattening is not None and trainer.global_step == 0:  # another training with the same callback
            self._flattening = FlatteningWatch(self.flattening)
        if trainer.is_global_zero:
            self._lines(trainer).rewind(trainer.global_step)
            layout = diagnostics_layout(self.split_by, has_tspd=bool(self.tspd))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_custom_scalars(layout)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask for statistics in the micro-batches of a step that will be logged."""
        if self._is_due(trainer, self._last_step + 1):
            pl_module.request_statistics(self.statistics)  # type: ignore[operator]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add a micro-batch's sums; at the end of the optimizer step reduce, divide and log."""
        due = self._is_due(trainer, self._last_step + 1)
        if due:
            self._add(trainer, [self._training], outputs, batch)
        # The counter moves on the window's last micro-batch only, also when the epoch's last window is a
        # short one.
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if due:
            self._publish_step(trainer, pl_module)

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and step % every == 0 and step % self.every_n_steps == 0

    def _publish_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = self._training.finish(trainer)
        if not measured.means:
            return
        self.latest = measured.scalars("train")
        pl_module.add_to_row(self.latest)  # type: ignore[operator]
        if self._flattening is not None and measured.means.keys() >= {"tail_mass", "entropy"}:
            means = measured.means["tail_mass"], measured.means["entropy"]
            line = self._flattening.add(LoggedStep(trainer.global_step, *means))
            if line is not None:
                rank_zero_warn(line)
        every = self.histogram_every_n_steps
        if every is not None and trainer.global_step % every == 0:
            self._write_histograms(trainer, "train", measured.counts)
        bar = {f"train/{name}": measured.means[name] for name in ON_PROGRESS_BAR if name in measured.means}
        # Not `pl_module.log_dict`, which would cost several milliseconds in every step, to reach the same two places.
        trainer.progress_bar_metrics.update(bar)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in bar.items()})

    def state_dict(self) -> dict[str, Any]:
        """Tail mass of the first and the latest logged steps, for the warning alone."""
        return {} if self._flattening is None else {"flattening": self._flattening.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run compares with the same first steps."""
        if self._flattening is not None and "flattening" in state_dict:
            self._flattening.load_state_dict(state_dict["flattening"])

    # -- validation and test

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with empty sums."""
        self._evaluation = BySet("val", trainer.val_dataloaders, self._window)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Ask for what the module does not measure by itself."""
        pl_module.request_statistics(self.statistics)  # type: ignore[operator]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add a batch's sums."""
        self._add(trainer, self._evaluation.of(dataloader_idx), outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the module what was measured."""
        self._publish_evaluation(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See `on_validation_start`."""
        self._evaluation = BySet("test", trainer.test_dataloaders, self._window)

    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end

    def _publish_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        for prefix, window in self._evaluation.items():
            measured = window.finish(trainer)
            pl_module.add_to_row(measured.scalars(prefix))  # type: ignore[operator]
            if self.histogram_every_n_steps is not None:
                self._write_histograms(trainer, prefix, measured.counts)

    # -- both

    def _window(self) -> "_Window":
        return _Window(self.tspd, self.split_by)

    def _add(self, trainer: Trainer, windows: Iterable["_Window"], outputs: Any, batch: Batch) -> None:
        tokens = (outputs.get("tokens") or {}) if isinstance(outputs, Mapping) else {}
        if "token_class" in self.split_by and self._table is None:
            self._table = class_table_of(trainer.datamodule)  # type: ignore[attr-defined]
        groups = groups_of(batch, self.split_by, self.positions, self._table) if tokens else {}
        for window in windows:
            window.add(tokens, groups)

    @staticmethod
    def _lines(trainer: Trainer) -> StepLines:
        return StepLines(Path(trainer.default_root_dir) / "histograms.jsonl")

    def _write_histograms(self, trainer: Trainer, prefix: str, counts: dict[str, Tensor]) -> None:
        if not trainer.is_global_zero:
            return
        for name, of_name in counts.items():
            tag, of_sizes = f"{prefix}/{name}", of_name.tolist()
            filled = {str(size): count for size, count in enumerate(of_sizes) if count}
            self._lines(trainer).add(trainer.global_step, name=tag, counts=filled)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_histogram_raw(tag, **histogram(of_sizes), global_step=trainer.global_step)


@dataclass(frozen=True)
class _Measured:
    """What a window comes to, the same on every rank.

    Attributes:
        means: over all tokens.
        groups: `position` or `token_class` -> `KEY/GROUP` -> mean.
        counts: Counts [LARGEST + 2] of each of `COUNTED`, int64 on the CPU.
    """

    means: dict[str, float]
    groups: dict[str, dict[str, float]]
    counts: dict[str, Tensor]

    def scalars(self, prefix: str) -> dict[str, float]:
        """All numbers, under their logging names; `prefix` is a stage, and maybe a set: `val/chat`."""
        stage, slash, of_set = prefix.partition("/")
        scalars = {f"{prefix}/{name}": mean for name, mean in self.means.items()}
        if self.counts:
            quantiles = quantiles_of_counts(torch.stack(list(self.counts.values())), list(QUANTILES.values())).tolist()
            for name, values in zip(self.counts, quantiles, strict=True):
                scalars |= {f"{prefix}/{name}_{ending}": value for ending, value in zip(QUANTILES, values, strict=True)}
        for kind, means in self.groups.items():
            scalars |= {f"{stage}_by_{kind}{slash}{of_set}/{name}": mean for name, mean in means.items()}
        return scalars


class _Window:
    """Sums and counts over the tokens of a step, or of a validation.

    Args:
        tspd: shares to measure.
        split_by: kinds of groups.
    """

    def __init__(self, tspd: Sequence[TSPDSetting], split_by: Sequence[str]) -> None:
        self._tspd = tspd
        self._means = TokenMeans()
        self._of_groups = {kind: TokenMeans() for kind in split_by}
        self._counts: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, tokens: Mapping[str, Tensor], groups: Mapping[str, dict[str, Tensor]]) -> None:
        """A micro-batch's tokens, each [N], and their groups of each kind."""
        if names := [name for name in COUNTED if name in tokens]:
            rows = count_sizes_of_rows(torch.stack([tokens[name] for name in names]), LARGEST)
            for name, counts in zip(names, rows, strict=True):
                self._counts[name] = self._counts[name] + counts if name in self._counts else counts
        values = self._derive(tokens)
        self._means.update(values)
        for kind, of_kind in groups.items():
            self._of_groups[kind].update(split(values, of_kind))

    def _derive(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What means are taken of: what was published, and what follows from it at each token."""
        derived = {name: values for name, values in tokens.items() if not name.startswith("tspd_")}
        if tokens.keys() >= {"support_size", "gold_in_support"}:
            derived["zero_gradient"] = (tokens["support_size"] == 1) * tokens["gold_in_support"]
        if tokens.keys() >= {name for setting in self._tspd for name in tspd_names(setting.m)}:
            derived |= {setting.name: setting.of_tokens(tokens) for setting in self._tspd}
        return derived

    def finish(self, trainer: Trainer) -> _Measured:
        """Over all ranks, every one of which must call; starts again from nothing."""
        strategy = trainer.strategy
        means = self._means.compute(strategy)
        groups = {kind: means_of_groups(of_kind.compute(strategy)) for kind, of_kind in self._of_groups.items()}
        kwargs = trainer.distributed_sampler_kwargs
        copies = 1 if kwargs is None else trainer.world_size // kwargs["num_replicas"]  # ranks that share their rows
        names = [name for name in COUNTED if name in means]  # on every rank or on none
        counts: dict[str, Tensor] = {}
        if names:
            none = torch.zeros(LARGEST + 2, dtype=torch.long, device=strategy.root_device)
            mine = torch.stack([self._counts.get(name, none) for name in names])
            summed = (strategy.reduce(mine, reduce_op="sum") // copies).cpu()
            counts = dict(zip(names, summed, strict=True))
        self._counts = {}
        for sums in (self._means, *self._of_groups.values()):
            sums.reset()
        return _Measured(means, groups, counts)


def histogram(counts: Sequence[int]) -> dict[str, Any]:
    """Counts of whole numbers as TensorBoard takes them, in buckets that widen from 8 on.

    Args:
        counts: [s + 1], at i how often i came, at the end how often something larger than s - 1.

    Example:
        >>> buckets = histogram([0, 3, 1, 0])
        >>> buckets["num"], buckets["sum"], buckets["bucket_limits"], buckets["bucket_counts"]
        (4, 5, [0.5, 1.5, 2.5, 3.5], [0, 3, 1, 0])
    """
    limits: list[int] = []
    last = len(counts) - 1
    while not limits or limits[-1] < last:
        limits.append(min(last, max(len(limits), limits[-1] * 5 // 4 if limits else 0)))
    starts = [0, *(limit + 1 for limit in limits[:-1])]
    filled = [size for size, count in enumerate(counts) if count]
    return {
        "min": min(filled, default=0),
        "max": max(filled, default=0),
        "num": sum(counts),
        "sum": sum(size * count for size, count in enumerate(counts)),
        "sum_squares": sum(size * size * count for size, count in enumerate(counts)),
        "bucket_limits": [limit + 0.5 for limit in limits],
        "bucket_counts": [sum(counts[a : b + 1]) for a, b in zip(starts, limits, strict=True)],
    }
