"""What a loss is: pure mathematics on rows of logits.

Shapes: n supervised tokens, K columns (the vocabulary), s listed entries.

A loss reads `LogitRows` and returns a `Term`: a value per token and its gradient with respect to the logits. The
gradient is kept in parts, because every loss of this field has the same shape: a coefficient per token times a softmax,
and a few entries (the gold token, the support) that differ. Terms add and scale, so that an objective is written
as its formula, and an engine writes the gradient to memory once.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor

from ts2_lightning.losses.from_logits import loss_from_logits, promote
from ts2_lightning.ops import (
    Entmax,
    Entries,
    Listed,
    LogitRows,
    RowMatrix,
    SummaryRequest,
    check_gold,
    check_logits,
    row_numbers,
    supervised_tokens,
)
from ts2_lightning.types import ReferenceOutput, UserError

Reduction = Literal["mean", "sum"]
"""What becomes of the losses of tokens: their mean over the supervised ones, or their sum."""


class DensePart(NamedTuple):
    """coefficient_i * basis_ij in every column but those excluded.

    Attributes:
        coefficient: [n].
        basis: [n, K], or a matrix of the rows by its name, which a kernel never forms.
        excluded: entries at which this part is zero, or None.
    """

    coefficient: Tensor
    basis: Tensor | RowMatrix
    excluded: Entries | None = None

    @property
    def matrix(self) -> Tensor:
        """The basis as a tensor [n, K]."""
        return self.basis.tensor if isinstance(self.basis, RowMatrix) else self.basis

    def is_multiple_of(self, other: "DensePart") -> bool:
        """Whether another part differs in its coefficient alone."""
        if self.excluded is not other.excluded:
            return False
        if isinstance(self.basis, RowMatrix) and isinstance(other.basis, RowMatrix):
            return self.basis == other.basis
        return self.basis is other.basis


class Multiple(NamedTuple):
    """coefficient_i * basis_ij at some entries.

    Attributes:
        coefficient: [n], or one number.
        basis: a matrix of the rows, or a projection at its support.
    """

    coefficient: Tensor | float
    basis: RowMatrix | Entmax


class SparsePart(NamedTuple):
    """`values` at `entries`, zero elsewhere.

    Attributes:
        entries: the entries.
        values: a tensor of values at them, or a multiple of a basis that a kernel knows.
    """

    entries: Entries
    values: Tensor | Multiple

    @property
    def tensor(self) -> Tensor:
        """The values as a tensor."""
        if not isinstance(self.values, Multiple):
            return self.values
        coefficient, basis = self.values
        numbers = basis.at(self.entries)
        if isinstance(coefficient, Tensor):
            coefficient = self.entries.of_rows(coefficient)
        return numbers if isinstance(coefficient, float) and coefficient == 1.0 else numbers * coefficient

    def scaled(self, factor: Tensor | float) -> "SparsePart":
        """These values times a factor: a number, or [n] numbers."""
        if isinstance(self.values, Multiple):
            return self._replace(values=self.values._replace(coefficient=self.values.coefficient * factor))
        at = self.entries.of_rows(factor) if isinstance(factor, Tensor) else factor
        return self._replace(values=(self.values * at).to(self.values.dtype))


@dataclass(frozen=True, slots=True)
class Gradient:
    """dL_i / dz_ij of n tokens, as the sum of its parts.

    Attributes:
        dense: parts that touch every column.
        sparse: parts that touch few entries.
    """

    dense: tuple[DensePart, ...] = ()
    sparse: tuple[SparsePart, ...] = ()

    def __add__(self, other: "Gradient") -> "Gradient":
        dense = list(self.dense)
        for part in other.dense:
            # Multiples of the same softmax become one: each part is a pass over memory.
            same = [i for i, mine in enumerate(dense) if mine.is_multiple_of(part)]
            if same:
                dense[same[0]] = part._replace(coefficient=dense[same[0]].coefficient + part.coefficient)
            else:
                dense.append(part)
        return Gradient(tuple(dense), self.sparse + other.sparse)

    def scaled(self, factor: Tensor | float) -> "Gradient":
        """This gradient times a factor: a number, or [n] numbers."""

        dense = (DensePart((c * factor).to(c.dtype), b, x) for c, b, x in self.dense)
        return Gradient(tuple(dense), tuple(part.scaled(factor) for part in self.sparse))

    def write_to(self, out: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Writes the gradient over `out` [n, K], which may be the logits themselves.

        Args:
            out: memory of at least float32.
            dtype: bfloat16 lets a kernel, where one writes, round the gradient on its way: its rows then lie in
                those of `out`, as far apart. Default: that of `out`.

        Returns:
            The gradient [n, K]: `out`, or its memory seen as bfloat16.
        """
        numbers = row_numbers(self.dense, self.sparse)
        if numbers is not None:
            return numbers.write_to(out, dtype)
        # Everything is formed before the first write, which may be over the logits.
        dense = [(part.coefficient, part.matrix, part.excluded and part.excluded.formed()) for part in self.dense]
        sparse = [(part.entries.formed(), part.tensor) for part in self.sparse]
        if not dense:
            out.zero_()
        for i, (coefficient, basis, excluded) in enumerate(dense):
            before = excluded.at(out) if excluded is not None and i > 0 else 0.0
            if i == 0:
                torch.mul(basis, coefficient[:, None], out=out)
            else:
                out.addcmul_(basis, coefficient[:, None])
            if excluded is not None:
                excluded.put(out, before)
        for entries, values in sparse:
            entries.add(out, values)
        return out

    def formed(self) -> "Gradient":
        """The same gradient with its sparse values as tensors, which do not need the rows any more."""
        return Gradient(self.dense, tuple(part._replace(values=part.tensor) for part in self.sparse))

    @property
    def listed(self) -> int:
        """Number of entries of a gradient that consists of lists alone (a position may come twice), else 0."""
        lists = [entries for entries, _ in self.sparse if isinstance(entries, Listed)]
        return 0 if self.dense or len(lists) < len(self.sparse) else sum(len(entries.rows) for entries in lists)


@dataclass(frozen=True, slots=True)
class Term:
    """A value per token, and its gradient with respect to the logits.

    `a + b` and `a.scaled(factor)` follow the rules of calculus for a factor that is held constant.

    Attributes:
        value: [n].
        gradient: The gradient of each value with respect to its own row of logits.
    """

    value: Tensor
    gradient: Gradient

    def __add__(self, other: "Term") -> "Term":
        return Term(self.value + other.value, self.gradient + other.gradient)

    def scaled(self, factor: Tensor | float) -> "Term":
        """This term times a constant factor: a number, or [n] numbers."""
        return Term(self.value * factor, self.gradient.scaled(factor))

    def reweighted(self, of_value: Tensor, of_gradient: Tensor) -> "Term":
        """This term times a factor [n] that depends on the logits, so that the gradient has another one, [n]."""
        return Term(self.value * of_value, self.gradient.scaled(of_gradient))

    def chain(self, scale: float) -> "Term":
        """A term computed at logits `scale * z`, with its gradient turned into the one with respect to z."""
        return self if scale == 1.0 else Term(self.value, self.gradient.scaled(scale))


class LossResult(NamedTuple):
    """What a loss returns for n tokens.

    Attributes:
        term: the objective, value and gradient.
        parts: [n] values of the parts of a composite objective, by name, as they enter its sum.
    """

    term: Term
    parts: dict[str, Tensor]


class TokenLoss(ABC):
    """An objective on one token: subclass this to give value and gradient in closed form.

    To write only the value and leave the gradient to autograd, subclass `ValueLoss`. The docstring's
    paragraphs `L = ...` and `Source: ...` are what `python cli.py losses` shows.

    Attributes:
        logit_scale: c, the factor on the logits at which the loss projects them; the statistics report the support of
            sparsemax(c z).
        needs_reference: Whether the loss reads `rows.reference`, what a frozen reference model says about each token.
        summary: What value and gradient follow from, if a summary of each row is enough: a GPU's kernel then reads a
            whole chunk of rows at once. None: the loss may form matrices [n, K], and gets a few rows at a time.
    """

    logit_scale: float = 1.0
    needs_reference: bool = False
    summary: SummaryRequest | None = None

    @overload
    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        shift: bool = ...,
        reduction: Reduction = ...,
        statistics: None = ...,
        reference_logits: Tensor | None = ...,
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        shift: bool = ...,
        reduction: Reduction = ...,
        statistics: Collection[str],
        reference_logits: Tensor | None = ...,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        *,
        shift: bool = False,
        reduction: Reduction = "mean",
        statistics: Collection[str] | None = None,
        reference_logits: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss of logits that are all there, differentiable by its closed form; an engine spares their memory.

        Args:
            logits: Logits [..., K] of any float dtype; the loss is computed in float32 at least.
            labels: Gold tokens [...] int; -100 at places that are not supervised.
            shift: Whether labels repeat the model's input, as transformers has them: the logits at place t are then
                held against the label at t + 1. By default they are held against the label at t.
            reduction: `mean` over the supervised tokens (0 if there is none), or `sum`, to be divided by another
                number, such as the supervised tokens of all micro-batches of a step.
            statistics: Names of what to measure at every supervised token, see `ops.token_statistics`, if anything.
            reference_logits: Logits [..., K] of the reference model, for a loss that needs one.

        Returns:
            The loss []; with `statistics` also what was measured, [N] each in the order of the supervised tokens, with
            the values of the tokens' losses as `objective`.

        Raises:
            UserError: shapes or dtypes that do not fit, a label outside of the vocabulary, an unknown reduction, or a
                reference that is missing or too much.

        Example:
            >>> from ts2_lightning.losses import TS2Loss
            >>> logits = torch.zeros(1, 3, 4, requires_grad=True)
            >>> loss, measured = TS2Loss()(logits, torch.tensor([[2, 0, -100]]), shift=True, statistics=["entropy"])
            >>> loss.backward()
            >>> round(loss.item(), 4), measured["entropy"].shape, logits.grad[0, 1:].any().item()
            (0.375, torch.Size([1]), False)
        """
        check_logits(logits, labels)
        if reduction not in ("mean", "sum"):
            raise UserError(f"reduction: expected mean or sum, got {reduction!r}")
        places, targets = supervised_tokens(labels, shift=shift)
        check_gold(targets.labels, logits.shape[-1])
        rows = promote(_chosen(logits, places))
        if (reference := self._reference_rows(reference_logits, logits, places)) is not None:
            targets = targets._replace(reference=ReferenceOutput(reference, promote))
        total, tokens = loss_from_logits(self, rows, targets, statistics or ())
        value = total / max(1, len(places)) if reduction == "mean" else total
        return value if statistics is None else (value, tokens)

    def _reference_rows(self, reference_logits: Tensor | None, logits: Tensor, places: Tensor) -> Tensor | None:
        if self.needs_reference == (reference_logits is None):
            name, state = type(self).__name__, "needs a" if self.needs_reference else "reads no"
            raise UserError(f"reference_logits: {name} {state} reference, got {_shape(reference_logits)}")
        if reference_logits is None:
            return None
        if reference_logits.shape != logits.shape:
            raise UserError(
                f"reference_logits: expected the shape of the logits, {list(logits.shape)}, got "
                f"{list(reference_logits.shape)}"
            )
        return _chosen(reference_logits.detach(), places)

    @abstractmethod
    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value and gradient of n tokens, without weights: the engine applies those.

        `rows.positions` and `rows.lengths` say where a token stands in its response, `rows.reference` has the logits of
        the reference model, for a loss that needs it. Must not modify `rows`, nor use `rows.logits` as the basis of a
        gradient, which is written over them.
        """


def _chosen(logits: Tensor, places: Tensor) -> Tensor:
    """Rows [N, K] of logits [..., K]."""
    return logits.reshape(-1, logits.shape[-1]).index_select(0, places)


def _shape(value: Tensor | None) -> str:
    return "none" if value is None else f"a tensor of shape {list(value.shape)}"


class ValueLoss(TokenLoss):
    """An objective given by its value alone; the gradient comes from autograd on the rows at hand.

    Example:
        A focal loss in six lines:

        >>> class Focal(ValueLoss):
        ...     def __init__(self, gamma: float = 2.0):
        ...         self.gamma = gamma
        ...     def value(self, logits, labels):
        ...         log_p = logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
        ...         return -(1 - log_p.exp()) ** self.gamma * log_p
        >>> rows = LogitRows(torch.tensor([[2.0, 1.0]]), torch.tensor([0]))
        >>> round(Focal().evaluate(rows).term.value.item(), 4)
        0.0227
    """

    @abstractmethod
    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every token.

        Args:
            logits: [n, K] float32 or float64.
            labels: [n] int64, the gold tokens.

        Returns:
            [n], differentiable with respect to `logits`.
        """

    def evaluate(self, rows: LogitRows) -> LossResult:
        """Value, and its gradient by autograd."""
        with torch.inference_mode(False), torch.enable_grad():  # an evaluation may run in inference mode
            # A copy, so that a value that works in place cannot reach the rows that the statistics read.
            logits = rows.logits.detach().clone().requires_grad_()
            value = self.value(logits * 1, rows.labels.clone())
            self._check(value, len(rows))
            (gradient,) = torch.autograd.grad(value.sum(), logits)
        part = DensePart(torch.ones_like(rows.maximum), gradient)
        return LossResult(Term(value.detach(), Gradient(dense=(part,))), {})

    def _check(self, value: Tensor, n: int) -> None:
        if value.shape != (n,):
            raise ValueError(
                f"{type(self).__name__}.value must return one loss per token, shape [{n}], "
                f"but returned {list(value.shape)}: do not average or sum over tokens"
            )
        if not value.requires_grad:
            raise ValueError(
                f"{type(self).__name__}.value does not depend on the logits: was it computed under no_grad or detached?"
            )
