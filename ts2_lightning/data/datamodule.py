"""The datamodule: files in, batches of the plan out."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ts2_lightning.data.encoding import EncodedRows, Overlong, encode_rows
from ts2_lightning.data.formats import get_format
from ts2_lightning.data.loader import BatchLoader, TrainLoader
from ts2_lightning.data.naming import unknown_name
from ts2_lightning.data.plan import Shape, evaluation_plan, steps_per_epoch
from ts2_lightning.data.resume import align_progress, check_plan_state, plan_state
from ts2_lightning.data.sources import TOYWORLD, Row, count_rows, file_digest, read_rows, resolve_sources
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.suggestions import did_you_mean
from ts2_lightning.types import UserError

SPLITS = ("train", "validation", "test", "predict")
_STAGES = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}
_PROGRESS_FROM = 2000  # rows; fewer are tokenised before a bar could be read

Files = str | list[str] | None


class SFTData(LightningDataModule):
    """Rows of conversations for supervised fine-tuning.

    A row of any format may have a number `weight` >= 0, a factor on the loss of its supervised tokens (1 where there is
    none). The divisor of an optimizer step stays its number of supervised tokens, also those of rows with weight 0.

    Args:
        train: files of training rows (.jsonl, .jsonl.gz, .json, .parquet), globs, or `toyworld:` sources.
        validation: files of validation rows.
        test: files of test rows.
        predict: files of rows for `predict`.
        tokenizer: directory or hub name, or `toyworld`.
        template: `auto` (the tokenizer's own chat template, else `plain`), `tokenizer`, `llama3`, `chatml`, `plain`, a
            registered name, or a `.jinja` file.
        format: `auto` (found by each row's keys), `messages`, `prompt_completion`, `alpaca`, `tokens`, a registered
            name, or the import path of a function from a row's fields to messages.
        max_length: tokens of a row, at most.
        overlong: what happens to longer rows: `truncate` (at the end), `drop` or `raise`.
        batch_size: rows per optimizer step, over all ranks and micro-batches.
        micro_batch_size: rows per forward pass on one rank, at most.
        eval_batch_size: rows per evaluation batch on one rank; null takes `micro_batch_size`.
        num_workers: processes that collate batches; the rows are in memory, so 0 is rarely too few.
        seed: of the order of the training rows, which differs in every epoch.
        limit_train: use only the first so many rows.
        limit_validation: use only the first so many rows.
        limit_test: use only the first so many rows.
        limit_predict: use only the first so many rows.

    Attributes:
        tokenizer_path: the argument `tokenizer`.
        tokenizer: the tokenizer, after `setup`.
        template: the chat template, after `setup`; None if the format is `tokens`.

    Raises:
        UserError: in `setup`, for anything that is wrong with names, files or rows, in one line.
    """

    def __init__(
        self,
        train: Files = None,
        validation: Files = None,
        test: Files = None,
        predict: Files = None,
        tokenizer: str | None = None,
        template: str = "auto",
        format: str = "auto",
        max_length: int = 2048,
        overlong: Overlong = "truncate",
        batch_size: int = 128,
        micro_batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        limit_train: int | None = None,
        limit_validation: int | None = None,
        limit_test: int | None = None,
        limit_predict: int | None = None,
    ) -> None:
        super().__init__()
        self.sources: dict[str, Files] = dict(zip(SPLITS, (train, validation, test, predict), strict=True))
        limits = (limit_train, limit_validation, limit_test, limit_predict)
        self.limits = dict(zip(SPLITS, limits, strict=True))
        self.tokenizer_path = tokenizer
        self.template_name = template
        self.format = format
        self.max_length = max_length
        self.overlong: Overlong = overlong
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = micro_batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.template: ChatTemplate | None = None
        self._rows: dict[str, EncodedRows] = {}
        self._files: dict[str, dict[Path, int]] = {}  # rows read from each file of a split
        self._accumulation: int | None = None
        self._check()

    def _check(self) -> None:
        limits = {f"limit_{split}": limit for split, limit in self.limits.items() if limit is not None}
        at_least_one = ("max_length", "batch_size", "micro_batch_size", "eval_batch_size")
        for name, value in [*((name, getattr(self, name)) for name in at_least_one), *limits.items()]:
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, got {value}")
        for name, value in (("num_workers", self.num_workers), ("seed", self.seed)):
            if value < 0:
                raise UserError(f"data.{name} must not be negative, got {value}")
        choices = ("truncate", "drop", "raise")
        if self.overlong not in choices:
            raise unknown_name("data.overlong", self.overlong, choices)

    # Preparing -------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Let the toy world write its files, in one process per node."""
        for files in self.sources.values():
            names = [files] if isinstance(files, str) else files or []
            resolve_sources([name for name in names if name.startswith(TOYWORLD)])

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise the rows of a stage, each split once.

        Args:
            stage: `fit`, `validate`, `test`, `predict`, or None for every split that has files.

        Raises:
            UserError: naming file and line if a row is wrong.
        """
        splits = SPLITS if stage is None else _STAGES[stage]
        required = () if stage is None else splits[:1]
        for split in splits:
            if split in required and not self.sources[split]:
                raise UserError(f"data.{split} is not set: name the files with the rows")
            if split not in self._rows and self.sources[split]:
                self._load(split)
        if stage == "fit" and self.trainer is not None:
            self._set_accumulation(self.trainer)
            if not self.sources["validation"]:
                self.trainer.limit_val_batches = 0  # or Lightning would warn about a loader of length 0

    def _load(self, split: str) -> None:
        if self.tokenizer is None and self.tokenizer_path is not None:
            self.tokenizer = load_tokenizer(self.tokenizer_path)
        format_function = get_format(self.format)
        if self.template is None and self.tokenizer is not None and self.format != "tokens":
            self.template = make_template(self.template_name, self.tokenizer)
        sources = self.sources[split]
        files = resolve_sources(sources) if sources else []
        rows = encode_rows(self._progress(split, files), self.template, format_function, self.max_length, self.overlong)
        if not len(rows):
            reason = f"all {rows.counts.read} rows are longer than max_length" if rows.counts.read else "no rows"
            raise UserError(f"data.{split}: {reason} in {', '.join(map(str, files))}")
        self._check_vocabulary(split, rows)
        self._rows[split] = rows
        rank_zero_info(f"Data, {split}: {_summary(rows)}")

    def _progress(self, split: str, files: list[Path]) -> Iterator[Row]:
        """The rows of files, counted per file, with a progress bar if they are many."""
        limit = self.limits[split]
        total = sum(count_rows(file) for file in files)
        total = total if limit is None else min(limit, total)
        counts = self._files[split] = dict.fromkeys(files, 0)
        rows = ((file, row) for file in files for row in read_rows(file))
        quiet = total <= _PROGRESS_FROM or self._replica()[1] != 0
        for file, row in tqdm(
            itertools.islice(rows, limit), desc=f"Tokenising {split}", total=total, unit=" rows", disable=quiet
        ):
            counts[file] += 1
            yield row

    def _check_vocabulary(self, split: str, rows: EncodedRows) -> None:
        if self.tokenizer is not None and (largest := int(rows.ids.max())) >= len(self.tokenizer):
            raise UserError(
                f"data.{split}: token id {largest} is outside the tokenizer's vocabulary of {len(self.tokenizer)}"
            )

    def _set_accumulation(self, trainer: Trainer) -> None:
        """Tell the trainer how many micro-batches make a step."""
        given, wanted = trainer.accumulate_grad_batches, self.shape.accumulation
        if given not in (1, wanted, self._accumulation):
            raise UserError(
                f"trainer.accumulate_grad_batches is {given}, but follows from data.batch_size and "
                f"data.micro_batch_size ({wanted} here); leave it out"
            )
        trainer.accumulate_grad_batches = self._accumulation = wanted

    def _replica(self) -> tuple[int, int]:
        """Number of ranks that hold different rows, and which this is; ranks of a tensor-parallel group share rows."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (1, 0) if kwargs is None else (kwargs["num_replicas"], kwargs["rank"])

    # Planning --------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """How optimizer steps are split over ranks and micro-batches."""
        return Shape(self.batch_size, self.micro_batch_size, self._replica()[0])

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, after `setup`; the last may have fewer rows."""
        return steps_per_epoch(len(self.rows("train")), self.batch_size)

    def rows(self, split: str) -> EncodedRows:
        """The encoded rows of a split, after `setup`; `Batch.row_index` refers to them."""
        if split not in self._rows:
            raise UserError(f"data.{split} is not set or not set up")
        return self._rows[split]

    @property
    def pad_id(self) -> int:
        """Id of the padding, which is masked: the tokenizer's pad token, else its eos, else 0."""
        ids = () if self.tokenizer is None else (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((int(number) for number in ids if number is not None), 0)

    def train_dataloader(self) -> TrainLoader:
        """Micro-batches of the plan, from the optimizer step that the trainer stands at."""
        loader = TrainLoader(
            self.rows("train"), self.shape, self._replica()[1], self.seed, self.trainer, self.pad_id, self.num_workers
        )
        if self.trainer is not None and self.trainer.fit_loop.is_resuming:
            align_progress(self.trainer, *loader.position, loader.steps_per_epoch, self.shape.accumulation)
        return loader

    def state_dict(self) -> dict[str, Any]:
        """What determines the training plan and the rows' weights; Lightning puts it into checkpoints."""
        return plan_state(self.rows("train"), self.seed, self.batch_size) if "train" in self._rows else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make sure that the checkpoint's training plan is this one. Lightning calls it on resumption.

        Raises:
            UserError: naming what changed.
        """
        if "train" in self._rows:
            check_plan_state(state_dict, self.state_dict())

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Every validation row once; no loader if there is no validation split."""
        return self._evaluation_loader("validation") if "validation" in self._rows else []

    def test_dataloader(self) -> BatchLoader:
        """Every test row once."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> BatchLoader:
        """Every row once, in the order of the files."""
        return self._evaluation_loader("predict")

    def _evaluation_loader(self, split: str) -> BatchLoader:
        rows = self.rows(split)
        plan = evaluation_plan(rows.supervised, self.eval_batch_size, *self._replica())
        return BatchLoader(rows, lambda: plan, len(plan), self.pad_id, self.num_workers)

    # Recording -------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What was read, as plain values for the record of a run: files with hashes, rows, tokens.

        `weighted` is the number of rows whose weight is not 1.
        """
        return {
            "tokenizer": self.tokenizer_path,
            "template": None if self.template is None else self.template.name,
            "end_of_turn_ids": [] if self.template is None else list(self.template.end_of_turn_ids),
            "splits": {split: self._describe_split(split) for split in self._rows},
        }

    def _describe_split(self, split: str) -> dict[str, Any]:
        rows = self._rows[split]
        return {
            "files": [
                {"path": str(file), "sha256": file_digest(file), "rows": count}
                for file, count in self._files[split].items()
            ],
            **rows.counts._asdict(),
            "weighted": rows.weighted,
            "tokens": len(rows.ids),
            "supervised_tokens": int(rows.supervised.sum()),
            "longest": int(rows.lengths.max()),
        }


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory, the hub, or the toy world.

    Raises:
        UserError: if there is none; for a directory with the nearest name.
    """
    if path == TOYWORLD.rstrip(":"):
        from ts2_lightning.data.toyworld import build_tokenizer

        return build_tokenizer()
    place = Path(path).expanduser()
    if not place.exists() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UserError(f"data.tokenizer: no directory {path}{did_you_mean(place.name, siblings)}")
    try:
        return AutoTokenizer.from_pretrained(place if place.exists() else path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"data.tokenizer: cannot load {path!r} ({reason})") from error


def _summary(rows: EncodedRows) -> str:
    counts = rows.counts
    parts = [f"{counts.kept} rows", f"{len(rows.ids)} tokens", f"{int(rows.supervised.sum())} supervised"]
    if rows.weighted:
        parts.append(f"{rows.weighted} rows with a weight other than 1")
    if counts.truncated:
        parts.append(f"{counts.truncated} rows truncated")
    if counts.dropped:
        parts.append(f"{counts.dropped} rows dropped as too long")
    return ", ".join(parts)
