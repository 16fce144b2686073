"""What the theory tests share: how they draw tokens, and how they run the package's losses. All in float64."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from ts2_lightning.losses import TokenLoss
from ts2_lightning.ops import LogitRows, entmax_probabilities

holds = settings(derandomize=True, deadline=None, max_examples=80)
"""The settings of every property."""

GRID = 64
"""Logits are multiples of 1/64: exact, often tied, and never so near that rounding decides a strict inequality."""


def logits(low: int = 2, high: int = 12, bound: float = 8.0) -> st.SearchStrategy[Tensor]:
    """[1, K] float64 logits within `bound` of zero, low <= K <= high."""
    steps = st.integers(-int(bound * GRID), int(bound * GRID))
    return st.lists(steps, min_size=low, max_size=high).map(lambda values: row([v / GRID for v in values]))


@st.composite
def tokens(draw: st.DrawFn, low: int = 2, high: int = 12, bound: float = 8.0) -> tuple[Tensor, int]:
    """Logits [1, K] and any gold token."""
    z = draw(logits(low, high, bound))
    return z, draw(st.integers(0, z.shape[-1] - 1))


@st.composite
def leading_tokens(draw: st.DrawFn, low: int = 2, high: int = 12, bound: float = 8.0) -> tuple[Tensor, int]:
    """Logits [1, K] and a gold token that has the largest of them, possibly with others."""
    z = draw(logits(low, high, bound))
    best = (z[0] == z.max()).nonzero()[:, 0].tolist()
    return z, draw(st.sampled_from(best))


def row(values: list[float]) -> Tensor:
    """[1, K] float64."""
    return torch.tensor([values], dtype=torch.float64)


def one_hot(y: int, like: Tensor) -> Tensor:
    """e_y, [1, K]."""
    return torch.nn.functional.one_hot(torch.tensor([y]), like.shape[-1]).to(like.dtype)


def value_of(loss: TokenLoss, z: Tensor, y: int) -> float:
    """The loss of the token."""
    return loss.evaluate(LogitRows(z, torch.tensor([y]))).term.value.item()


def gradient_of(loss: TokenLoss, z: Tensor, y: int) -> Tensor:
    """dL/dz, [1, K]."""
    out = torch.empty_like(z)
    loss.evaluate(LogitRows(z, torch.tensor([y]))).term.gradient.write_to(out)
    return out


def sparsemax(z: Tensor) -> Tensor:
    """[1, K], the package's projection."""
    return entmax_probabilities(z, 2.0)


def by_autograd(value: Tensor, z: Tensor) -> Tensor:
    """The gradient of a plain torch value [] with respect to z."""
    (gradient,) = torch.autograd.grad(value, z)
    return gradient


def assert_equal(actual: Tensor | float, wanted: Tensor | float, tolerance: float = 1e-12) -> None:
    """Equal up to rounding."""
    torch.testing.assert_close(
        torch.as_tensor(actual, dtype=torch.float64),
        torch.as_tensor(wanted, dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
    )
