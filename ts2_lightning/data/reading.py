"""The rows of a split that fit into memory or into the cache: read, encoded, judged, described."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ts2_lightning.data.cache import MappedRows, entry_key, make_rows
from ts2_lightning.data.counts import Counts
from ts2_lightning.data.encoded_rows import EncodedRows, join_chunks
from ts2_lightning.data.encoding import Overlong, encode_chunks
from ts2_lightning.data.formats import get_format
from ts2_lightning.data.lengths import USUAL_LENGTH
from ts2_lightning.data.rejects import Reject, Rejects
from ts2_lightning.data.selection import Selection
from ts2_lightning.data.sources import SourceRow, file_digest
from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.model_limits import ModelLimits
from ts2_lightning.types import SettingError

_PEEKED = 100  # rows of a stream that are looked at beforehand
_UNKNOWN = 0.1  # share of unknown tokens from which on a text is none of the tokenizer's
_PROGRESS_FROM = 2000  # rows; fewer are tokenised before a bar could be read


@dataclass(frozen=True)
class Encoder:
    """The settings with which rows become tokens.

    Attributes:
        template: chat template of conversations; None if the rows are tokens.
        format: format of the rows whose source names none.
        max_length: tokens of a row, at most.
        overlong: treatment of longer rows.
        vocabulary: number of token ids of the tokenizer; None if unknown.
        limits: limits of the model; None if unknown.
    """

    template: ChatTemplate | None
    format: str = "auto"
    max_length: int = USUAL_LENGTH
    overlong: Overlong = "truncate"
    vocabulary: int | None = None
    limits: ModelLimits | None = None

    def chunks(self, rows: Iterable[SourceRow | Reject]) -> Iterator[EncodedRows]:
        """See `encoding.encode_chunks`."""
        return encode_chunks(rows, self.template, get_format(self.format), self.max_length, self.overlong)

    def encode(self, rows: Iterable[SourceRow | Reject], setting: str = "data.train") -> EncodedRows:
        """A few rows, in memory.

        Args:
            rows: rows as they were read.
            setting: setting that names them, for messages.

        Raises:
            UserError: see `encoding.encode_rows` and `check`.
        """
        origins: list[str] = []

        def noted() -> Iterator[SourceRow | Reject]:
            for row in rows:
                origins.append(row.origin)
                yield row

        encoded = join_chunks(self.chunks(noted()))
        self.check(setting, encoded, origins.__getitem__)
        return encoded

    def peek(self, selection: Selection) -> Counts:
        """The counts of the first 100 rows, of which bad ones are passed over."""
        return join_chunks(self._peeked(selection)).counts

    def _peeked(self, selection: Selection) -> Iterator[EncodedRows]:
        rows = itertools.islice((row for _, row in selection.read()), _PEEKED)
        return encode_chunks(rows, self.template, get_format(self.format), self.max_length, "truncate")

    def check(self, setting: str, rows: EncodedRows, origin: Callable[[int], str]) -> None:
        """Make sure that the model has these tokens, and positions for them.

        Args:
            setting: setting that names the rows, for messages.
            rows: encoded rows.
            origin: function from a row's number among those that were read to its file and line.

        Raises:
            UserError: if a token is outside the vocabulary, has no row in the embedding, or no position.
        """
        limits = self.limits
        if limits is not None and limits.is_behind(length := int(rows.lengths.max(initial=0))):
            row = int(rows.lengths.argmax())
            raise SettingError(
                setting,
                f": {origin(int(rows.places[row]))}: {length:,} tokens are more than {limits.context_text}; set ",
                "data.max_length",
                f" to {limits.context}",
            )
        self._check_ids(setting, rows, origin)

    def _check_ids(self, setting: str, rows: EncodedRows, origin: Callable[[int], str]) -> None:
        largest, limits = int(rows.ids.max(initial=0)), self.limits
        outside = self.vocabulary is not None and largest >= self.vocabulary
        if not outside and (limits is None or largest < limits.embeddings):
            return
        bound = min(self.vocabulary or largest, largest if limits is None else limits.embeddings)
        first = int((rows.ids >= bound).argmax())
        row = int(np.searchsorted(rows.row_edges, first, side="right")) - 1
        token = int(rows.ids[first])
        where = f": {origin(int(rows.places[row]))}: token id {token}"
        if self.vocabulary is not None and token >= self.vocabulary:
            raise SettingError(setting, f"{where} is outside the tokenizer's vocabulary of {self.vocabulary}")
        assert limits is not None
        mend, resize = "take the model's own tokenizer", "true"
        if self.vocabulary is None:
            mend, resize = "mend the row", str(largest + 1)
        raise SettingError(
            setting,
            f"{where} has no row in the embedding of {limits.model}, which has {limits.embeddings:,}; {mend}, or set "
            f"model.lm.resize_embeddings to {resize} for new rows",
        )

    def unknown(self, rows: EncodedRows) -> tuple[str, float]:
        """The token for what the tokenizer does not know, and its share of the tokens of rows.

        The share is 0 where that token has another use too, as GPT-2's, which also ends texts.
        """
        tokenizer = None if self.template is None else self.template.tokenizer
        number = None if tokenizer is None else tokenizer.unk_token_id
        if tokenizer is None or number is None or not len(rows.ids):
            return "", 0.0
        if number in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
            return str(tokenizer.unk_token), 0.0
        return str(tokenizer.unk_token), float((rows.ids == number).mean())

    def identity(self) -> dict[str, Any]:
        """The plain values that determine the tokens, apart from the rows and their formats."""
        template = None if self.template is None else self.template.identity
        return {"template": template, "max_length": self.max_length, "overlong": self.overlong}


@dataclass(frozen=True)
class Split:
    """A split that was read.

    Attributes:
        name: name of the split.
        selection: selection of its rows.
        rows: encoded rows.
        read: number of rows that were read from each file of the selection.
    """

    name: str
    selection: Selection
    rows: EncodedRows
    read: list[int]

    @property
    def times(self) -> NDArray[np.floating] | None:
        """[R] number of times that each row comes in an epoch; None if each comes once."""
        return self.selection.times(self.rows.places, self.read)

    def check(self, encoder: Encoder) -> None:
        """Make sure that there are rows, and that the model has their tokens.

        Raises:
            UserError: if there are none, with the reason, or a token that the model has not.
        """
        if not len(self.rows):
            reason = self.rows.counts.why_empty()
            raise SettingError(f"data.{self.name}", f": {reason} in {self.selection.named()}")
        encoder.check(f"data.{self.name}", self.rows, self._origin)
        rank_zero_info(f"Data, {self.name}: {self.rows.counts.summary()}")
        token, share = encoder.unknown(self.rows)
        if share >= _UNKNOWN:
            rank_zero_warn(
                f"data.{self.name}: {share:.0%} of the tokens are {token}, which the tokenizer writes for what it does "
                "not know, so that no model can learn the text; take a model whose tokenizer knows it"
            )

    def _origin(self, place: int) -> str:
        """File and line of a row that was read, which is read again."""
        return next(row.origin for _, row in itertools.islice(self.selection.read(), place, None))

    @property
    def beside(self) -> Path | None:
        """The file of bad rows outside of a run, beside the cached rows; None if these are not cached either."""
        return self.rows.path.with_suffix(".rejects.jsonl") if isinstance(self.rows, MappedRows) else None

    def judge(self, max_rejects: float, file: Path | None) -> None:
        """List the bad rows, if there are any.

        Raises:
            UserError: if they are more than `max_rejects` allows.
        """
        if not self.rows.rejects:
            return
        rejects = Rejects(max_rejects, file)
        for reject in self.rows.rejects:
            rejects.add(reject)
        rejects.finish(self.rows.counts.read)
        warn_of(self.name, rejects, self.rows.counts.read)

    def describe(self) -> dict[str, Any]:
        """The files, the counts and the longest row, as plain values."""
        files = zip(self.selection.files, self.read, strict=True)
        whole = not self.selection.streaming  # else only the beginning of the files was read
        return {
            "files": [
                {
                    "path": str(file),
                    **({"sha256": file_digest(file)} if isinstance(file, Path) and whole else {}),
                    "rows": count,
                }
                for (_, file), count in files
            ],
            **asdict(self.rows.counts),
            "longest": int(self.rows.lengths.max()),
        }


def read_split(
    name: str, selection: Selection, encoder: Encoder, max_rejects: float = 1.0, cache: bool = True, quiet: bool = False
) -> Split:
    """The rows of a split, from the cache if they were encoded before.

    Args:
        name: name of the split.
        selection: selection of its rows.
        encoder: settings with which they become tokens.
        max_rejects: share of the rows that may be bad. If none may be, reading stops soon after the first; whatever is
            read to its end is for the caller to judge.
        cache: whether to keep them on the disk; never done for the first rows of a stream.
        quiet: whether to hide the progress bar.

    Raises:
        UserError: naming file and line, for what cannot be read or encoded at all, and for bad rows where none may be.
    """
    counts = [0] * len(selection.files)

    def chunks() -> Iterator[EncodedRows]:
        encoded = encoder.chunks(_counted(name, selection, counts, quiet))
        return encoded if max_rejects > 0 else _faultless(encoded)

    key = None
    if cache and not selection.streaming:
        key = entry_key(
            encoder.identity()["template"],
            selection.formats,
            selection=selection.identity(),
            max_length=encoder.max_length,
            overlong=encoder.overlong,
        )
    made = make_rows(key, chunks, lambda: counts, name)
    return Split(name, selection, made.rows, made.notes)


def _faultless(chunks: Iterable[EncodedRows]) -> Iterator[EncodedRows]:
    """The chunks up to the first that follows a bad row. Bad rows of the last chunk are left to the final judgement."""
    rejects, read = Rejects(), 0
    for chunk in chunks:
        if len(rejects):
            rejects.judge(read, so_far=True)
        for reject in chunk.rejects:
            rejects.add(reject)
        read += chunk.counts.read
        yield chunk


def _counted(name: str, selection: Selection, counts: list[int], quiet: bool) -> Iterator[SourceRow | Reject]:
    """The rows of a split, counted per file, with a progress bar if they are many."""
    counts[:] = [0] * len(counts)
    total = selection.count()
    quiet = quiet or total <= _PROGRESS_FROM
    for file, row in tqdm(selection.read(), desc=f"Tokenising {name}", total=total, unit=" rows", disable=quiet):
        counts[file] += 1
        yield row


def warn_of(split: str, rejects: Rejects, total: int) -> None:
    """Say how many rows were left out as bad, if any were."""
    if len(rejects):
        place = "" if rejects.file is None else f"; see {rejects.file}"
        rank_zero_warn(f"Data, {split}: left out {len(rejects)} bad of {total} rows ({rejects.summary()}){place}")
