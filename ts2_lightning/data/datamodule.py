"""The datamodule: files in, batches of the plan out."""

import itertools
import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ts2_lightning.data.collate import Packing, capacity_of
from ts2_lightning.data.encoded_rows import Counts, EncodedRows
from ts2_lightning.data.encoding import Overlong
from ts2_lightning.data.lengths import check_length, row_length
from ts2_lightning.data.loader import BatchLoader, TrainLoader
from ts2_lightning.data.naming import unknown_name
from ts2_lightning.data.plan import Shape, evaluation_plan, rows_per_epoch, steps_per_epoch
from ts2_lightning.data.reading import Encoder, Split, read_split
from ts2_lightning.data.renderer import TrainOn
from ts2_lightning.data.resume import StreamPosition, align_progress, check_plan_state, digest, plan_state
from ts2_lightning.data.row_stream import Stream
from ts2_lightning.data.sets import SPLITS, Files, RowSets, SetsOfFiles
from ts2_lightning.data.streaming import REPORT, Ledger, Steps, StreamLoader
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.data.thoughts import Thinking
from ts2_lightning.data.tokenizer import load_tokenizer
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.ranges import COUNT, NULL, SEED, SHARE, Range, check_number, check_numbers
from ts2_lightning.types import Batch, UserError

_STAGES = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
}

_WORKERS = Range(least=0, most=1024, whole=True)  # a process each


class SFTData(LightningDataModule):
    """Rows of conversations for supervised fine-tuning.

    A row of any format may have a number `weight` >= 0, a factor on the loss of its supervised tokens (1 where there is
    none). The divisor of an optimizer step stays its number of supervised tokens, also those of rows with weight 0.

    Args:
        train: training rows: files (.jsonl, .json, both also with .gz, .parquet, .arrow), folders and globs of them,
            `hub:ORG/NAME`, or `toyworld:` sources. In a list may be objects with a `path` and more about it: split,
            name and revision of a data set, how many times its rows come in an epoch, their format, the size of a
            sample.
        validation: validation rows; or a fraction of the training rows, which is held out of them. Which rows are held
            out follows from their content and `seed` alone. Or several sets, as a mapping of names to either: each is
            logged under its name (`val/NAME/cross_entropy`), and all their rows together as one set would be.
        test: test rows, in the same ways.
        predict: rows for `predict`.
        tokenizer: directory or hub name, or `toyworld`.
        template: `auto` (the tokenizer's own chat template, else `plain`), `tokenizer`, a name from the table in
            `ts2_lightning.data.bundled` such as `llama3`, a registered name, or a `.jinja` file. Its rendering of a row
            is bounded in time and memory, see `ts2_lightning.data.sandbox`.
        train_on: `all` turns of the assistant, or only the `last` one of each conversation.
        train_on_end: whether the token that closes a turn of the assistant is learnt.
        thinking: what becomes of the thoughts of the assistant, which a row has beside an answer (`reasoning_content`,
            `reasoning`, `thinking`) or in front of it (`<think>...</think>`): `keep` (learnt with it), `drop` (left
            out, and learnt is the answer alone), or `refuse` (the row is a bad one).
        chat_template_kwargs: arguments of the template for all rows that give no others, such as `enable_thinking`.
            Without them each turn is written with the one with which the template prompts for such a turn. The
            export's template has them, and the one of most training rows, as what counts where nobody gives others.
        format: `auto` (found by each row's fields), a name from the table in `ts2_lightning.data.formats` such as
            `messages`, a registered name, or the import path of a function from a row's fields to messages.
        max_length: tokens of a row, at most; null: 2,048, or the model's context where that is shorter. More than the
            context is refused where positions are looked up in a table (GPT-2, OPT, MPT), and warned of elsewhere.
        overlong: what happens to longer rows: `truncate` (the end is cut off), `truncate_left` (the beginning; a turn
            of the assistant that is cut is not supervised then), `drop` or `raise`. A conversation of more than 64
            characters for each of `max_length` tokens, and of more than 2^20, is not tokenised, nor is a row of more
            than 2^25 bytes read: where they would be cut, they are bad rows.
        cache: keep encoded rows on disk and map them into memory, so that the next start and other processes need not
            tokenise; see `ts2_lightning.data.cache`.
        batch_size: rows per optimizer step, over all ranks and micro-batches.
        micro_batch_size: rows per forward pass on one rank, at most.
        eval_batch_size: rows per evaluation batch on one rank; null takes `micro_batch_size`.
        packing: how the rows of a micro-batch become sequences. `none` pads each, rows of like length together;
            `packed` lays several into one of at most `max_length` tokens; `padding_free` lays all into one, which suits
            flash attention (sdpa and eager hold a matrix of its length squared). Packed rows do not see each other: the
            loss and the gradients are those of `none`. Micro-batches then hold equally many tokens rather than rows,
            `micro_batch_size` rows in the mean of a step.
        max_rejects: share of the rows of a split that may be bad (malformed, without an answer, ...) and are left out;
            0 tolerates none. They are counted by kind, and listed in `rejects-SPLIT.jsonl` in the run's directory
            (`rejects-SPLIT-NAME.jsonl` of one of several sets).
        num_workers: processes that collate batches; the rows are in memory, so 0 is rarely too few. Streamed rows they
            read and tokenise, a whole step each.
        seed: of the order of the training rows, which differs in every epoch.
        streaming: read and tokenise the training rows while they are trained on, for data that fits neither on the disk
            nor into memory; data sets of the hub are not downloaded. An epoch's length is not known then, so give
            `trainer.max_steps`. Bad rows are judged as they come, and again at the epoch's end; a step has
            `batch_size` rows before those that are left out. A validation that is a fraction needs its limit.
        shuffle_buffer: streamed rows out of which the next one is drawn, in the memory of each process that reads.
        limit_train: use only the first so many rows.
        limit_validation: use only the first so many rows, of each set.
        limit_test: use only the first so many rows, of each set.
        limit_predict: use only the first so many rows.

    Attributes:
        sets: the sets of rows, see `RowSets`.
        goes_on: these are the settings of a run that goes on, or is evaluated. One from before there was a check may
            have recorded a `max_length` above the model's context; its rows are looked at one by one instead.
        limits: what the model takes. Default: asked of the trainer's module in `setup`; None if it is not known.
        tokenizer_path: the argument `tokenizer`.
        tokenizer: the tokenizer, after `setup`.
        template: the chat template, after `setup`; None if the format is `tokens`.

    Raises:
        UserError: in `setup`, for anything that is wrong with names, files or rows, in one line.
    """

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
        given = dict(zip(SPLITS, (train, validation, test, predict), strict=True))
        limits = dict(zip(SPLITS, (limit_train, limit_validation, limit_test, limit_predict), strict=True))
        self.sets = RowSets(given, limits, format, seed, streaming)
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
        self._stream: Stream | None = None  # of the training rows, which then are no split
        self._position = StreamPosition()
        self._ledger: Ledger | None = None
        self._accumulation: int | None = None
        self._check()

    def _check(self) -> None:
        check_numbers(
            "data.",
            self,
            max_length=(COUNT, NULL),
            batch_size=COUNT,
            micro_batch_size=COUNT,
            eval_batch_size=COUNT,
            max_rejects=SHARE,
            num_workers=_WORKERS,
            seed=SEED,
            shuffle_buffer=COUNT,
        )
        for split, limit in self.sets.limits.items():
            check_number(f"data.limit_{split}", limit, COUNT, NULL)
        if self.overlong not in (choices := get_args(Overlong)):
            raise unknown_name("data.overlong", self.overlong, choices)
        if self.thinking not in (choices := get_args(Thinking)):
            raise unknown_name("data.thinking", self.thinking, choices)
        if self.packing not in (choices := get_args(Packing)):
            raise unknown_name("data.packing", self.packing, choices)
        self.sets.check()

    # Preparing -------------------------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Let the toy world write its files and `datasets` download those of the hub, in one process per node."""
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
        if stage == "fit" and self._stream is not None:
            self._begin_stream(self._stream)
        if stage == "fit" and self.trainer is not None:
            self._set_accumulation(self.trainer)
            if not self.sets.of("validation"):
                self.trainer.limit_val_batches = 0  # or Lightning would warn about a loader of length 0

    def load(self, name: str) -> None:
        """Read and tokenise the rows of one set.

        Raises:
            UserError: naming file and line if a row is wrong.
        """
        if self.tokenizer is None and self.tokenizer_path is not None:
            self.tokenizer = load_tokenizer(self.tokenizer_path)
        selection = self.sets.selection(name)
        self._meet_model()
        is_text = any((source.format or self.format) != "tokens" for source in selection.sources)
        if self.template is None and self.tokenizer is not None and is_text:
            learnt = (self.train_on, self.train_on_end, self.thinking, self.chat_template_kwargs)
            self.template = make_template(self.template_name, self.tokenizer, *learnt)
        if self.streaming and name == "train":
            self._stream = Stream.of(selection, self.seed, self.shuffle_buffer)
            undecided = self.template is not None and self.template.asks_in_two_ways
            self._ask_as(self._encoder.peek(selection) if undecided else Counts(kept=1))
            return
        # With a cache only one process of all tokenises, whichever it is.
        quiet = self._replica()[1] != 0 and not self.cache
        rows = read_split(name, selection, self._encoder, self.max_rejects, self.cache, quiet)
        rows.judge(self.max_rejects, rows.beside if self.trainer is None else self._reject_file(name))
        rows.check(self._encoder)
        if name == "train" or (self._stream is None and not self._splits):  # else others have decided
            self._ask_as(rows.rows.counts)
        self._splits[name] = rows

    def _ask_as(self, counts: Counts) -> None:
        """Let the template's prompts, and those of the trained model's own, be as most of the rows have them."""
        if self.template is not None and counts.kept:
            self.template = self.template.asking(thoughts=2 * counts.thoughts >= counts.kept)

    def _begin_stream(self, stream: Stream) -> None:
        """Start at the beginning, or where the trainer has come to in an earlier call of `fit`.

        Raises:
            UserError: if the trainer would have to know how long an epoch is.
        """
        for name in () if self.trainer is None else ("limit_train_batches", "val_check_interval"):
            value = getattr(self.trainer, name)
            if isinstance(value, float) and value != 1:
                raise UserError(
                    f"trainer.{name} is {value}, a share of an epoch, whose length is not known with data.streaming; "
                    "give a number of micro-batches"
                )
        if self.trainer is None or self.trainer.global_step == 0:
            self._position = StreamPosition()
        self._ledger = Ledger(self.max_rejects, self._reject_file("train"), stream.selection.named())

    def _meet_model(self) -> None:
        """Learn what the model takes, and whether it takes rows that long.

        Raises:
            UserError: it does not.
        """
        ask = getattr(getattr(self.trainer, "lightning_module", None), "model_limits", None)
        if self.limits is None and ask is not None:
            self.limits = ask()
        if not (self.goes_on and self.limits is not None and self.limits.is_table):
            check_length(self.max_length, self.limits)

    @property
    def row_length(self) -> int:
        """Tokens of a row, at most: `max_length`, or what the model takes, once that is known."""
        return row_length(self.max_length, self.limits)

    @property
    def _encoder(self) -> Encoder:
        vocabulary = None if self.tokenizer is None else len(self.tokenizer)
        return Encoder(self.template, self.format, self.row_length, self.overlong, vocabulary, self.limits)

    def _reject_file(self, name: str) -> Path | None:
        """In the run's directory, which one rank writes to."""
        if self.trainer is None or not self.trainer.is_global_zero:
            return None
        return Path(self.trainer.default_root_dir) / f"rejects-{name.replace('.', '-')}.jsonl"

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

    def preview(self, rows: int) -> None:
        """Read and encode the first streamed rows, which `rows("train")` then has, file by file; after `setup`.

        Args:
            rows: how many are read, at most.

        Raises:
            UserError: if more of them are bad than `max_rejects` allows, or none is left.
        """
        assert self._stream is not None
        first = sorted(itertools.islice(self._stream.read(0), rows), key=lambda numbered: numbered[0])
        counts = np.bincount([file for file, _ in first], minlength=len(self._stream.rows)).tolist()
        encoded = self._encoder.encode(row for _, row in first)
        split = Split("train", self._stream.selection, encoded, counts)
        split.judge(self.max_rejects, None)
        split.check(self._encoder)
        self._splits["train"] = split

    # Planning --------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> Shape:
        """How optimizer steps are split over ranks and micro-batches."""
        return Shape(self.batch_size, self.micro_batch_size, self._replica()[0], packed=self.packing != "none")

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch, after `setup`; the last may have fewer rows. Not known of streamed rows."""
        return steps_per_epoch(rows_per_epoch(len(self.rows("train")), self.times), self.batch_size)

    @property
    def times(self) -> NDArray[np.floating] | None:
        """[R] how often each training row comes in an epoch, after `setup`; None if each comes once."""
        return self._splits["train"].times if "train" in self._splits else None

    def rows(self, name: str) -> EncodedRows:
        """The encoded rows of a set, after `setup`; `Batch.row_index` refers to them."""
        if name not in self._splits:
            streamed = self.streaming and name == "train"
            raise UserError(
                f"data.{name} is {'streamed: its rows are not held' if streamed else 'not set or not set up'}"
            )
        return self._splits[name].rows

    @property
    def pad_id(self) -> int:
        """Id of the padding, which is masked: the tokenizer's pad token, else its eos, else 0; one that has a row."""
        ids = () if self.tokenizer is None else (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        rows = math.inf if self.limits is None else self.limits.embeddings
        return next((int(number) for number in ids if number is not None and number < rows), 0)

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """Micro-batches of the plan or the stream, from the optimizer step that the trainer stands at."""
        loader: TrainLoader | StreamLoader
        if self._stream is not None:
            loader = self._stream_loader(self._stream)
        else:
            loader = TrainLoader(
                self.rows("train"), self.shape, self._replica()[1], self.seed, self.trainer, self.pad_id,
                self.num_workers, self._capacity, self.times,
            )  # fmt: skip
        if self.trainer is not None and self.trainer.fit_loop.is_resuming:
            align_progress(self.trainer, *loader.position, self.shape.accumulation)
        return loader

    def _stream_loader(self, stream: Stream) -> StreamLoader:
        limit: Any = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        end = -(-limit // self.shape.accumulation) if isinstance(limit, int) else None
        steps = Steps(stream, self._encoder, self.shape, self._replica()[1], end=end)
        return StreamLoader(steps, self._position, self.trainer, self.pad_id, self.num_workers, self._capacity)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Give a micro-batch of the stream the divisor of its step, which all ranks add up."""
        if self._ledger is not None and (report := batch.pop(REPORT, None)) is not None:
            batch["divisor"] = torch.full_like(batch["divisor"], self._ledger.divisor(report))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What determines the training rows and their order; Lightning puts it into checkpoints.

        Of a stream also where in it the training stands: its epochs have no length that would tell.
        """
        if self._stream is not None:
            done = 0 if self.trainer is None else self.trainer.global_step
            return {**self._stream_state(self._stream), "position": self._position.state(done)}
        rows = self._splits.get("train")
        return {} if rows is None else plan_state(rows.rows, self.seed, self.batch_size, rows.times)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Make sure that the checkpoint's training plan is this one. Lightning calls it on resumption.

        Raises:
            UserError: naming what changed.
        """
        if self._stream is not None:
            check_plan_state(state_dict, self._stream_state(self._stream))
            self._position = StreamPosition(**state_dict["position"])
        elif "train" in self._splits:
            check_plan_state(state_dict, self.state_dict())

    def _stream_state(self, stream: Stream) -> dict[str, Any]:
        return {**stream.identity(), "batch_size": self.batch_size, "encoding": digest(self._encoder.identity())}

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
        """The first rows of a split, the same on every rank, for what is measured again and again; after `setup`.

        Args:
            split: one that is not streamed; each of its sets has the same share.
            tokens: how many supervised tokens are enough; the split may have fewer.
        """
        names = self.sets.named(split)
        share = -(-tokens // len(names))
        return [batch for name in names for batch in self._first_batches(self.rows(name), share)]

    def _first_batches(self, rows: EncodedRows, tokens: int) -> BatchLoader:
        count = int(np.searchsorted(np.cumsum(rows.supervised), tokens)) + 1
        plan = evaluation_plan(rows.supervised[:count], self.eval_batch_size)
        return BatchLoader(rows, lambda: plan, len(plan), self.pad_id, capacity=self._capacity)

    def _evaluation_loaders(self, split: str) -> BatchLoader | dict[str, BatchLoader]:
        loaders = {name: self._evaluation_loader(name) for name in self.sets.of(split)}
        if split in loaders:
            return loaders[split]
        return {name.removeprefix(f"{split}."): loader for name, loader in loaders.items()}

    def _evaluation_loader(self, name: str) -> BatchLoader:
        rows = self.rows(name)
        plan = evaluation_plan(rows.supervised, self.eval_batch_size, *self._replica())
        return BatchLoader(rows, lambda: plan, len(plan), self.pad_id, self.num_workers, self._capacity)

    @property
    def _capacity(self) -> float | None:
        return capacity_of(self.packing, self.row_length)

    def teardown(self, stage: str) -> None:
        """Tell what became of the streamed rows of an epoch that the training did not finish."""
        if self._ledger is not None:
            self._ledger.close()

    # Recording -------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """What was read, as plain values for the record of a run: files with hashes, rows, tokens.

        `weighted` is the number of rows whose weight is not 1. Of streamed rows only the files are known.
        """
        streamed = {} if self._stream is None else {"train": self._stream.describe()}
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
