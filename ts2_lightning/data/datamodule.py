"""The datamodule: files in, batches of the plan out."""

import math
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.batch_plan import StepShape, rows_per_epoch, steps_per_epoch
from ts2_lightning.data.collate import Packing, capacity_of
from ts2_lightning.data.counts import Counts
from ts2_lightning.data.encoded_rows import EncodedRows
from ts2_lightning.data.encoding import Overlong
from ts2_lightning.data.lengths import check_length, row_length
from ts2_lightning.data.loader import (
    BatchLoader,
    TrainLoader,
    evaluation_loader,
    first_batches,
    full_batch,
    hint_at_few_steps,
    largest_batch,
)
from ts2_lightning.data.naming import check_literal
from ts2_lightning.data.reading import Encoder, Split, read_split
from ts2_lightning.data.renderer import TrainOn
from ts2_lightning.data.resume import check_plan_state, plan_state
from ts2_lightning.data.row_stream import Stream
from ts2_lightning.data.sets import SPLITS, Files, RowSets, SetsOfFiles
from ts2_lightning.data.streamed_training import StreamedTraining
from ts2_lightning.data.streaming import StreamLoader
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.data.thoughts import Thinking
from ts2_lightning.data.tokenizer import load_tokenizer, padding_id
from ts2_lightning.data.trainer import (
    align_progress,
    limits_of_model,
    path_of_model,
    reject_file,
    replica_of,
    set_accumulation,
)
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.ranges import COUNT, NULL, SEED, SHARE, Range, check_number, check_numbers
from ts2_lightning.types import Batch, UserError

_STAGES = {
    "fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",),
}  # fmt: skip
_WORKERS = Range(least=0, most=1024, whole=True)  # a process each


class SFTData(LightningDataModule):
    """Rows of conversations for supervised fine-tuning.

    A row of any format may have a `weight` >= 0, a factor on the loss of its supervised tokens (default 1). The divisor
    of an optimizer step stays its number of supervised tokens, also those of rows with weight 0.

    Args:
        train: training rows: files (.jsonl, .json, both also with .gz, .parquet, .arrow), folders and globs of them,
            `hub:ORG/NAME`, or `toyworld:` sources. A list may also hold objects with a `path` and more settings, see
            `Source`: split, name and revision of a data set, how often its rows come, their format, a sample size.
        validation: validation rows; or a fraction of the training rows, which is held out of them by their content and
            `seed` alone. A mapping of names to either makes several sets: each is logged under its name
            (`val/NAME/cross_entropy`), and all their rows together as one set would be.
        test: test rows, in the same forms as `validation`.
        predict: rows for `predict`.
        tokenizer: directory or hub name of the tokenizer, or `toyworld`. Default: that of the model, by the path that
            the trainer's module has for it.
        template: chat template: `auto` (the tokenizer's own, else `plain`), `tokenizer`, a name from the table in
            `ts2_lightning.data.bundled` such as `llama3`, a registered name, or a `.jinja` file. Its rendering of a row
            is bounded in time and memory, see `ts2_lightning.data.sandbox`.
        train_on: turns that are learnt: `all` of the assistant, or only the `last` one of each conversation.
        train_on_end: whether the token that closes a turn of the assistant is learnt.
        thinking: treatment of the assistant's thoughts, which a row has beside an answer (`reasoning_content`,
            `reasoning`, `thinking`) or in front of it (`<think>...</think>`): `keep` (learnt with the answer), `drop`
            (only the answer is learnt), or `refuse` (the row is a bad one).
        chat_template_kwargs: arguments of the template for all rows that give no others, such as `enable_thinking`.
            Without them each turn is written with those with which the template prompts for such a turn. The exported
            template has them, and those of most training rows, as its defaults.
        format: row format: `auto` (detected from each row's fields), a name from the table in
            `ts2_lightning.data.formats` such as `messages`, a registered name, or the import path of a function from a
            row's fields to messages.
        max_length: tokens of a row, at most; null: 2,048, or the model's context where that is shorter. More than the
            context is refused where positions are looked up in a table (GPT-2, OPT, MPT), and warned of elsewhere.
        overlong: treatment of longer rows: `truncate` (cut the end off), `truncate_left` (cut the beginning off; a turn
            of the assistant that is cut is not supervised then), `drop` or `raise`. A conversation of more than 64
            characters for each of `max_length` tokens, and of more than 2^20, is not tokenised, nor is a row of more
            than 2^25 bytes read: where they would be cut, they are bad rows.
        cache: keep encoded rows on disk and map them into memory, so that the next start and other processes need not
            tokenise; see `ts2_lightning.data.cache`.
        batch_size: rows per optimizer step, over all ranks and micro-batches.
        micro_batch_size: rows per forward pass on one rank, at most.
        eval_batch_size: rows per evaluation batch on one rank; null takes `micro_batch_size`.
        packing: layout of a micro-batch: `none` pads each row, rows of like length together; `packed` puts several into
            one sequence of at most `max_length` tokens; `padding_free` puts all into one, which suits flash attention
            (sdpa and eager hold a matrix of its length squared). Packed rows do not see each other: loss and gradients
            are those of `none`. Micro-batches then hold equally many tokens instead of rows, and `micro_batch_size`
            rows on average.
        max_rejects: share of the rows of a split that may be bad (malformed, without an answer, ...) and are left out;
            0 tolerates none. They are counted by kind, and listed in `rejects-SPLIT.jsonl` (`rejects-SPLIT-NAME.jsonl`
            of one of several sets) in the run's directory.
        num_workers: processes that collate batches, for which 0 is rarely too few; they also read and tokenise streamed
            rows, a whole step each.
        seed: seed of the order of the training rows, which differs in every epoch.
        streaming: read and tokenise the training rows while they are trained on, for data that fits neither on the disk
            nor into memory; data sets of the hub are not downloaded. An epoch's length is unknown then, so set
            `trainer.max_steps`. Bad rows are judged as they come, and again at the epoch's end; a step has `batch_size`
            rows, those that are left out included. A validation that is a fraction needs its limit.
        shuffle_buffer: streamed rows from which the next one is drawn, in the memory of each process that reads.
        limit_train: number of rows that are used, the first ones; null uses all.
        limit_validation: number of rows of each set that are used, the first ones; null uses all.
        limit_test: number of rows of each set that are used, the first ones; null uses all.
        limit_predict: number of rows that are used, the first ones; null uses all.

    Attributes:
        sets: sets of rows, see `RowSets`.
        goes_on: whether these are the settings of a run that goes on, or is evaluated. An old one may have recorded a
            `max_length` above the model's context; its rows are checked one by one instead.
        limits: limits of the model, by default those of the trainer's module, from `setup` on; None if unknown.
        tokenizer_path: the argument `tokenizer`, or the model's path once that is known to be the tokenizer's.
        tokenizer: tokenizer, after `setup`.
        template: chat template, after `setup`; None if the format is `tokens`.

    Raises:
        UserError: in `setup`, for anything that is wrong with names, files or rows, in one line.
    """

    _hinted_at: int | None = None  # steps of the epoch of the last hint: Lightning asks for the loader twice

    def __init__(
        self,
        train: Files = None,
        validation: SetsOfFiles = None,
        test: SetsOfFiles = None,
        predict: Files = None,
        tokenizer: str | None = None,
        template: str = "auto",
        train_on: TrainOn = "all",
        train_on_end: bool = True,
        thinking: Thinking = "keep",
        chat_template_kwargs: dict[str, Any] | None = None,
        format: str = "auto",
        max_length: int | None = None,
        overlong: Overlong = "truncate",
        cache: bool = True,
        batch_size: int = 128,
        micro_batch_size: int = 8,
        eval_batch_size: int | None = None,
        packing: Packing = "none",
        max_rejects: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
        streaming: bool = False,
        shuffle_buffer: int = 10_000,
        limit_train: int | None = None,
        limit_validation: int | None = None,
        limit_test: int | None = None,
        limit_predict: int | None = None,
    ) -> None:
        super().__init__()
        sources = dict(zip(SPLITS, (train, validation, test, predict), strict=True))
        limits = dict(zip(SPLITS, (limit_train, limit_validation, limit_test, limit_predict), strict=True))
        self.sets = RowSets(sources, limits, format, seed, streaming)
        self.tokenizer_path = tokenizer
        self.template_name = template
        self.train_on: TrainOn = train_on
        self.train_on_end = train_on_end
        self.thinking: Thinking = thinking
        self.chat_template_kwargs = chat_template_kwargs
        self.format = format
        self.max_length = max_length
        self.overlong: Overlong = overlong
        self.cache = cache
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = micro_batch_size if eval_batch_size is None else eval_batch_size
        self.packing: Packing = packing
        self.max_rejects = max_rejects
        self.num_workers = num_workers
        self.seed = seed
        self.streaming, self.shuffle_buffer = streaming, shuffle_buffer
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.template: ChatTemplate | None = None
        self.goes_on = False
        self.limits: ModelLimits | None = None
        self._splits: dict[str, Split] = {}
        self._streamed: StreamedTraining | None = None  # training rows that are streamed are no split
        self._accumulation: int | None = None
        self._check()

    def _check(self) -> None:
        check_numbers(
            "data.", self, max_length=(COUNT, NULL), batch_size=COUNT, micro_batch_size=COUNT, eval_batch_size=COUNT,
            max_rejects=SHARE, num_workers=_WORKERS, seed=SEED, shuffle_buffer=COUNT,
        )  # fmt: skip
        for split, limit in self.sets.limits.items():
            check_number(f"data.limit_{split}", limit, COUNT, NULL)
        for name, literal in (("overlong", Overlong), ("thinking", Thinking), ("packing", Packing)):
            check_literal(f"data.{name}", getattr(self, name), literal)
        self.sets.check()

    # Preparing -------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Let plug-ins write their files and `datasets` download those of the hub, in one process per node."""
        for name in (name for split in SPLITS for name in self.sets.of(split)):
            self.sets.prepare(name)

    def setup(self, stage: str | None = None) -> None:
        """Read and tokenise the rows of a stage, each split once; those of a stream later, while they are trained on.

        Args:
            stage: `fit`, `validate`, `test`, `predict`, or None for every split that has files.

        Raises:
            UserError: naming file and line if a row is wrong.
        """
        splits = SPLITS if stage is None else _STAGES[stage]
        if stage is not None:
            self.sets.named(splits[0])  # has to be there
        for name in (name for split in splits for name in self.sets.of(split)):
            if name not in self._splits:
                self.load(name)
        if stage == "fit" and self._streamed is not None:
            self._streamed.begin(self.trainer, self.max_rejects, reject_file(self.trainer, "train"))
        if stage == "fit" and self.trainer is not None:
            self._accumulation = set_accumulation(self.trainer, self.shape.accumulation, self._accumulation)
            if not self.sets.of("validation"):
                self.trainer.limit_val_batches = 0  # or Lightning would warn about a loader of length 0

    def load(self, name: str) -> None:
        """Read and tokenise the rows of one set.

        Raises:
            UserError: naming file and line if a row is wrong.
        """
        selection = self.sets.selection(name)
        is_text = any((source.format or self.format) != "tokens" for source in selection.sources)
        if self.tokenizer_path is None and is_text:
            self.tokenizer_path = path_of_model(self.trainer)
        if self.tokenizer is None and self.tokenizer_path is not None:
            self.tokenizer = load_tokenizer(self.tokenizer_path)
        self.limits = self.limits or limits_of_model(self.trainer)
        if not (self.goes_on and self.limits is not None and self.limits.is_table):
            check_length(self.max_length, self.limits)
        if self.template is None and self.tokenizer is not None and is_text:
            learnt = (self.train_on, self.train_on_end, self.thinking, self.chat_template_kwargs)
            self.template = make_template(self.template_name, self.tokenizer, *learnt)
        if self.streaming and name == "train":
            position = None if self._streamed is None else self._streamed.position
            self._streamed = StreamedTraining(Stream.of(selection, self.seed, self.shuffle_buffer), position)
            undecided = self.template is not None and self.template.prompts_differ
            self._prompt_like(self._encoder.peek(selection) if undecided else Counts(kept=1))
            return
        # With a cache only one process of all tokenises, whichever it is.
        quiet = replica_of(self.trainer)[1] != 0 and not self.cache
        split = read_split(name, selection, self._encoder, self.max_rejects, self.cache, quiet)
        split.judge(self.max_rejects, split.beside if self.trainer is None else reject_file(self.trainer, name))
        split.check(self._encoder)
        if name == "train" or (self._streamed is None and not self._splits):  # else others have decided
            self._prompt_like(split.rows.counts)
        self._splits[name] = split

    def _prompt_like(self, counts: Counts) -> None:
        """Make the template's prompts, and those of the exported template, those of most of the rows."""
        if self.template is not None and counts.kept:
            self.template = self.template.prompting(thoughts=2 * counts.thoughts >= counts.kept)

    @property
    def row_length(self) -> int:
        """The largest number of tokens in a row: `max_length`, or the model's limit once that is known."""
        return row_length(self.max_length, self.limits)

    @property
    def _encoder(self) -> Encoder:
        vocabulary = None if self.tokenizer is None else len(self.tokenizer)
        return Encoder(self.template, self.format, self.row_length, self.overlong, vocabulary, self.limits)

    def preview(self, rows: int) -> None:
        """Read and encode at most so many of the first streamed rows, for `rows("train")`; after `setup`.

        Raises:
            UserError: if more of them are bad than `max_rejects` allows, or none is left.
        """
        assert self._streamed is not None
        self._splits["train"] = self._streamed.preview(self._encoder, rows, self.max_rejects)

    # Planning --------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> StepShape:
        """Division of optimizer steps into micro-batches and ranks."""
        ranks, packed = replica_of(self.trainer)[0], self.packing != "none"
        return StepShape(self.batch_size, self.micro_batch_size, ranks, packed)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, after `setup`; the last may have fewer rows. Unknown for streamed rows."""
        return steps_per_epoch(rows_per_epoch(len(self.rows("train")), self.times), self.batch_size)

    @property
    def times(self) -> NDArray[np.floating] | None:
        """[R] number of times that each training row comes in an epoch, after `setup`; None if each comes once."""
        return self._splits["train"].times if "train" in self._splits else None

    def rows(self, name: str) -> EncodedRows:
        """The encoded rows of a set, after `setup`; `Batch.row_index` refers to them."""
        if name not in self._splits:
            streamed = self.streaming and name == "train"
            state = "streamed: its rows are not held" if streamed else "not set or not set up"
            raise UserError(f"data.{name} is {state}")
        return self._splits[name].rows

    @property
    def pad_id(self) -> int:
        """Id of the padding; see `padding_id`."""
        return padding_id(self.tokenizer, math.inf if self.limits is None else self.limits.embeddings)

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """Micro-batches of the plan or the stream, from the optimizer step that the trainer stands at."""
        loader: TrainLoader | StreamLoader
        rank = replica_of(self.trainer)[1]
        options: dict[str, Any] = {"pad_id": self.pad_id, "num_workers": self.num_workers, "capacity": self._capacity}
        if self._streamed is not None:
            loader = self._streamed.loader(self._encoder, self.shape, rank, self.trainer, **options)
        else:
            rows = self.rows("train")
            loader = TrainLoader(rows, self.shape, rank, self.seed, self.trainer, times=self.times, **options)
        if self.trainer is not None and self.trainer.fit_loop.is_resuming:
            align_progress(self.trainer, *loader.position, self.shape.accumulation)
        elif self.trainer is not None and isinstance(loader, TrainLoader):
            steps = len(loader) // self.shape.accumulation
            if steps != self._hinted_at:
                hint_at_few_steps(steps, self.batch_size)
            self._hinted_at = steps
        return loader

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Give a micro-batch of the stream the divisor of its step, which all ranks add up."""
        if self._streamed is not None:
            self._streamed.set_divisor(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The values that determine the training rows and their order; Lightning puts them into checkpoints.

        For a stream also the position in it, since its epochs have no known length.
        """
        if self._streamed is not None:
            return self._streamed.state(self._encoder, self.batch_size, self.trainer)
        split = self._splits.get("train")
        return {} if split is None else plan_state(split.rows, self.seed, self.batch_size, split.times)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make sure that the checkpoint's training plan is this one. Lightning calls it on resumption.

        Raises:
            UserError: naming what changed.
        """
        if self._streamed is not None:
            self._streamed.restore(state_dict, self._encoder, self.batch_size)
        elif "train" in self._splits:
            check_plan_state(state_dict, self.state_dict())

    def val_dataloader(self) -> BatchLoader | dict[str, BatchLoader]:
        """Every validation row once; of several sets name -> loader, of none no loader."""
        return self._evaluation_loaders("validation")

    def test_dataloader(self) -> BatchLoader | dict[str, BatchLoader]:
        """Every test row once; of several sets name -> loader."""
        return self._evaluation_loaders("test")

    def predict_dataloader(self) -> BatchLoader:
        """Every row once, in the order of the files."""
        return self._evaluation_loader("predict")

    def fixed_batches(self, split: str, tokens: int) -> list[Batch]:
        """The first rows of a split, the same on every rank, for measurements that are repeated; after `setup`.

        Args:
            split: split that is not streamed; each of its sets has the same share.
            tokens: number of supervised tokens that the rows have at least, unless the split has fewer.
        """
        names = self.sets.named(split)
        share = -(-tokens // len(names))
        options = self.eval_batch_size, self.pad_id, self._capacity
        return [batch for name in names for batch in first_batches(self.rows(name), share, *options)]

    def largest_batch(self, micro_batch_size: int) -> Batch:
        """The micro-batch of the most tokens that a training may have on this rank; after `load("train")`.

        Args:
            micro_batch_size: rows per forward pass, at most. Streamed rows count as `row_length` tokens each. With
                packing another micro-batch may have more tokens, by part of a row.
        """
        if self._streamed is not None:
            return full_batch(micro_batch_size, self.row_length, self.pad_id, self._capacity)
        shape = self.shape._replace(micro_batch_size=micro_batch_size)
        return largest_batch(self.rows("train"), shape, self.times, self.pad_id, self._capacity)

    def _evaluation_loaders(self, split: str) -> BatchLoader | dict[str, BatchLoader]:
        loaders = {name: self._evaluation_loader(name) for name in self.sets.of(split)}
        if split in loaders:
            return loaders[split]
        return {name.removeprefix(f"{split}."): loader for name, loader in loaders.items()}

    def _evaluation_loader(self, name: str) -> BatchLoader:
        options = self.pad_id, self.num_workers, self._capacity
        return evaluation_loader(self.rows(name), self.eval_batch_size, replica_of(self.trainer), *options)

    @property
    def _capacity(self) -> float | None:
        return capacity_of(self.packing, self.row_length)

    def teardown(self, stage: str) -> None:
        """Log the counts of the streamed rows of an epoch that training did not finish."""
        if self._streamed is not None:
            self._streamed.close()

    def describe(self) -> dict[str, Any]:
        """Settings, files with hashes and counts, as plain values for a run's record; of a stream only the files."""
        streamed = {} if self._streamed is None else {"train": self._streamed.stream.describe()}
        return {
            "tokenizer": self.tokenizer_path,
            "template": None if self.template is None else self.template.name,
            "chat_template": None if self.template is None else self.template.jinja,
            "end_of_turn_ids": [] if self.template is None else list(self.template.end_of_turn_ids),
            "train_on": self.train_on,
            "train_on_end": self.train_on_end,
            "max_length": self.row_length,
            "thinking": self.thinking,
            "chat_template_kwargs": {} if self.template is None else self.template.recorded,
            "splits": streamed | {split: rows.describe() for split, rows in self._splits.items()},
        }
