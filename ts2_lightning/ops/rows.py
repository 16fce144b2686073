"""Rows of logits, with everything that several formulas need of them computed once.

A loss, its parts and the statistics all read the same row: its maximum, its normaliser, its support. `LogitRows`
computes each of these on first use. It is meant for a few rows at a time: an engine cuts its chunk into
blocks whose temporaries stay in the cache.

Shapes: n rows, K columns (the vocabulary).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ts2_lightning.ops import sparse
from ts2_lightning.ops.entmax import Entmax, block_maxima, block_width, entmax
from ts2_lightning.ops.sparse import Entries, Listed, one_per_row, some_per_row
from ts2_lightning.types import Targets, UserError

ELEMENTS_PER_BLOCK = {"cpu": 3 * 2**18, "cuda": 2**25}
"""Number of logits to process at a time: on a CPU their temporaries stay in the cache; on a GPU they stay small."""

NARROW = 512
"""Columns up to which the largest logits of a row are looked for in all of them at once, not in blocks."""


def rows_per_block(vocabulary: int, device: torch.device) -> int:
    """The number of rows of logits, at least one, to process at a time."""
    return max(1, ELEMENTS_PER_BLOCK.get(device.type, ELEMENTS_PER_BLOCK["cuda"]) // vocabulary)


class Mass(NamedTuple):
    """Softmax probability inside and outside a set of tokens.

    The outside is summed by itself: one minus the inside loses all digits of a small tail.

    Attributes:
        inside: [n] mass of the tokens in the set.
        outside: [n] mass of all other tokens.
    """

    inside: Tensor
    outside: Tensor


@dataclass(frozen=True, slots=True)
class RowMatrix:
    """A matrix [n, K] of rows of logits by its name: it is formed when it is read, and by a kernel never.

    Attributes:
        rows: the rows.
        name: the property of the rows that is the matrix.
    """

    rows: "LogitRows"
    name: Literal["exponentials", "weighted_exponentials", "unmasked"]

    @property
    def tensor(self) -> Tensor:
        """The matrix. Read only."""
        matrix: Tensor = getattr(self.rows, self.name)
        return matrix

    def at(self, entries: Entries) -> Tensor:
        """The values of the matrix at some entries."""
        return entries.at(self.tensor)


class Workspace:
    """Memory for temporaries of the size of the rows, used again for the next rows: new memory costs more than
    the arithmetic.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0

    def clear(self) -> None:
        """Takes all memory back, for the next rows; those of before must not be read any more."""
        self._used = 0

    def take(self, like: Tensor) -> Tensor:
        """A tensor with the shape and dtype of `like` [n, K], with any content. The first block must be the largest."""
        if self._used == len(self._buffers):
            self._buffers.append(torch.empty_like(like))
        self._used += 1
        return self._buffers[self._used - 1][: len(like)]


class LogitRows:
    """n rows of logits z and their gold tokens y.

    Args:
        logits: [n, K] logits, float32 or float64, contiguous. May contain -inf (a masked vocabulary), not +inf or NaN;
            the gold tokens' must be finite.
        targets: What is known of the n tokens (`targets` of the rows has all of it, `labels`, `positions` and `lengths`
            are short for its fields); or their gold tokens [n] int64 alone.
        workspace: memory to compute in, cleared; it must not be used otherwise while the rows live. Default: new
            memory.
        reference: Logits [n, K] of a reference model for the same tokens, or None.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        >>> round(rows.cross_entropy.item(), 4), round(rows.entropy.item(), 4)
        (0.4076, 0.8324)
    """

    def __init__(
        self,
        logits: Tensor,
        targets: Targets | Tensor,
        workspace: Workspace | None = None,
        reference: Tensor | None = None,
    ) -> None:
        self.logits = logits
        self.targets = Targets.of(targets)
        self.labels = self.targets.labels
        self.positions = self.targets.positions
        self.lengths = self.targets.lengths
        self._workspace = workspace or Workspace()
        self._reference = reference
        self._scaled: dict[float, LogitRows] = {}
        self._entmax: dict[float, Entmax] = {}
        # Under the identity of a set, which is kept alive beside what was computed of it.
        self._masses: dict[int, tuple[Entries, Mass]] = {}
        self._with_gold: dict[int, tuple[Entries, Entries]] = {}

    def __len__(self) -> int:
        return self.logits.shape[0]

    def scaled(self, scale: float) -> "LogitRows":
        """These rows with logits `scale * (z - max(z))`, for formulas that a shift leaves alone; itself at scale 1."""
        if scale == 1.0:  # not kept in the dict: a cycle would keep every row's temporaries until garbage is collected
            return self
        if scale not in self._scaled:
            # Shifted before it is scaled: an offset common to all logits would cost digits.
            top = self.maximum[:, None]
            logits = torch.sub(self.logits, top, out=self.buffer()).mul_(scale)
            rows = LogitRows(logits, self.targets, self._workspace, self._reference)
            rows.block_maxima = (self.block_maxima - top) * scale  # rounding keeps the order: exactly the maxima
            self._scaled[scale] = rows
        return self._scaled[scale]

    @cached_property
    def reference(self) -> "LogitRows":
        """Rows of the reference model's logits, for the same tokens.

        Raises:
            UserError: there is no reference; the loss has to say that it needs one.
        """
        if self._reference is None:
            raise UserError(
                "the loss reads rows.reference, and there is none: set needs_reference = True in its class, and give "
                "the engine Targets with a reference (SFTModule does)"
            )
        return LogitRows(self._reference, self.targets, self._workspace)

    def buffer(self) -> Tensor:
        """[n, K] memory with any content, to compute in for as long as these rows live."""
        return self._workspace.take(self.logits)

    # -- maxima and the gold token

    @cached_property
    def gold(self) -> Listed:
        """The n entries (i, y_i)."""
        return one_per_row(self.labels)

    @cached_property
    def unmasked(self) -> Tensor:
        """[n, K] one where the logit is finite, zero where the vocabulary is masked. Read only."""
        return torch.gt(self.logits, -torch.inf, out=self.buffer())

    @cached_property
    def unmasked_count(self) -> Tensor:
        """[n] number of tokens that are not masked, in the dtype of the logits."""
        return self.unmasked.sum(-1)

    @cached_property
    def mean_logit(self) -> Tensor:
        """[n] mean of z_j - max(z) over the tokens that are not masked, never positive."""
        shifted = torch.sub(self.logits, self.maximum[:, None], out=self.buffer()).nan_to_num_(neginf=0.0)
        return shifted.sum(-1) / self.unmasked_count

    @cached_property
    def block_maxima(self) -> Tensor:
        """[n, ceil(K / block_width(K))] maxima of blocks of columns."""
        return block_maxima(self.logits)

    @cached_property
    def maximum(self) -> Tensor:
        """[n] largest logit."""
        return self.block_maxima.amax(-1)

    @cached_property
    def gold_logit(self) -> Tensor:
        """[n] z_y - max(z), never positive."""
        return self.gold.at(self.logits) - self.maximum

    @cached_property
    def above_gold(self) -> Tensor:
        """[n] number of tokens with a larger logit than the gold one's, in the dtype of the logits."""
        gold = self.gold.at(self.logits)
        return torch.gt(self.logits, gold[:, None], out=self.buffer()).sum(-1)

    def top_logits(self, k: int) -> Tensor:
        """The k largest z_j - max(z) of each row, [n, min(k, K)] in falling order."""
        return self.top(k)[0] - self.maximum[:, None]

    # -- softmax

    def matrix(self, name: Literal["exponentials", "weighted_exponentials", "unmasked"]) -> RowMatrix:
        """One of these rows' matrices [n, K], for a gradient that is a multiple of it."""
        return RowMatrix(self, name)

    @cached_property
    def _shifted_and_exponentials(self) -> tuple[Tensor, Tensor]:
        """z - max(z) and its exponentials; both [n, K]."""
        shifted = torch.sub(self.logits, self.maximum[:, None], out=self.buffer())
        return shifted, torch.exp(shifted, out=self.buffer())

    @property
    def exponentials(self) -> Tensor:
        """[n, K] exp(z - max(z)): the softmax times `normalizer`. Read only."""
        return self._shifted_and_exponentials[1]

    @cached_property
    def weighted_exponentials(self) -> Tensor:
        """[n, K] (z - max(z)) exp(z - max(z)), zero for masked tokens. Read only."""
        shifted, exponentials = self._shifted_and_exponentials  # nobody else reads the shifted logits
        if not sparse.sizes_may_depend_on_data(shifted.device):  # a GPU waits for memory, not for logarithms
            return torch.special.xlogy(exponentials, exponentials, out=shifted)
        # A masked token's -inf would turn into NaN, where the limit is zero.
        return shifted.clamp_(min=torch.finfo(shifted.dtype).min).mul_(exponentials)

    @cached_property
    def normalizer(self) -> Tensor:
        """[n] sum of `exponentials`, at least 1."""
        return self.exponentials.sum(-1)

    @cached_property
    def expected_logit(self) -> Tensor:
        """[n] E[z_j - max(z)] under softmax(z), never positive."""
        return self.weighted_exponentials.sum(-1) / self.normalizer

    @cached_property
    def cross_entropy(self) -> Tensor:
        """[n] -log softmax(z)_y, in nats."""
        return self.normalizer.log() - self.gold_logit

    @cached_property
    def gold_probability(self) -> Tensor:
        """[n] softmax(z)_y."""
        return self.gold_logit.exp() / self.normalizer

    @cached_property
    def entropy(self) -> Tensor:
        """[n] Shannon entropy of softmax(z), in nats."""
        # Rounding can leave a one-hot row a hair below zero.
        return (self.normalizer.log() - self.expected_logit).clamp(min=0)

    def probabilities_at(self, entries: Entries) -> Tensor:
        """softmax(z) at the entries."""
        return entries.at(self.exponentials) / entries.of_rows(self.normalizer)

    def mass(self, entries: Entries) -> Mass:
        """Softmax mass inside and outside a set of entries, computed once for each set."""
        if id(entries) not in self._masses:
            inside = entries.sum(entries.at(self.exponentials))
            outside = entries.sum_outside(self.exponentials)
            self._masses[id(entries)] = entries, Mass(inside / self.normalizer, outside / self.normalizer)
        return self._masses[id(entries)][1]

    # -- supports

    def entmax(self, alpha: float) -> Entmax:
        """alpha-entmax(z), see `ops.entmax`."""
        if alpha not in self._entmax:
            self._entmax[alpha] = entmax(self.logits, alpha, self.block_maxima)
        return self._entmax[alpha]

    @property
    def sparsemax(self) -> Entmax:
        """sparsemax(z), which is 2-entmax(z)."""
        return self.entmax(2.0)

    def expected_under(self, projection: Entmax) -> Tensor:
        """E[z_j - max(z)] under a sparse distribution of each row, [n]; never positive."""
        support = projection.support
        shifted = support.at(self.logits) - support.of_rows(self.maximum)
        return support.sum(projection.probabilities * shifted)

    def with_gold(self, entries: Entries) -> Entries:
        """A set of entries and the gold token of every row, made once for each set."""
        if id(entries) not in self._with_gold:
            self._with_gold[id(entries)] = entries, entries.union(self.labels)
        return self._with_gold[id(entries)][1]

    def top_k(self, k: int) -> Entries:
        """The k largest logits of every row."""
        return some_per_row(self.top(k)[1], self.logits.shape[-1])

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """The k largest logits of each row and their columns, both [n, min(k, K)], in falling order."""
        K = self.logits.shape[-1]
        blocks = self.block_maxima.shape[-1]
        if blocks <= 2 * k or K <= NARROW:
            values, columns = self.logits.topk(min(k, K), dim=-1)
            return values, columns
        # The k largest entries lie in the k blocks with the largest maxima.
        chosen = self.block_maxima.topk(k, dim=-1).indices
        width = block_width(K)
        columns = (chosen[..., None] * width + torch.arange(width, device=chosen.device)).flatten(1)
        inside = columns < K
        columns = columns.clamp(max=K - 1)
        candidates = self.logits.gather(-1, columns).masked_fill(~inside, -torch.inf)
        values, order = candidates.topk(k, dim=-1)
        return values, columns.gather(-1, order)
