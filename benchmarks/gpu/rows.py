"""Rows of logits that a head gives exactly, in float32 and in bfloat16 alike, so that one reference serves both.

Row i of the hidden states is 1 in columns i and n + i and zero elsewhere. So logits i are the sum of two columns of
the head's matrix, each a bfloat16 number and the second the rest that the first leaves: exact in float32, with 16
significant bits. And column i of the gradient of the matrix is the gradient of logits i, in every entry.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ts2_lightning.types import ReferenceOutput, Targets

KINDS = ("peaked", "random", "nearly flat", "flat", "equal", "tied", "extreme", "small tail")
"""Kinds of rows; `masked` ones come in a batch of their own, since a head masks columns for all of its rows."""

TURN = 7
"""Tokens of a response."""


@dataclass(frozen=True)
class Rows:
    """Logits, and what a head makes them of.

    Attributes:
        logits: Logits [n, K] float32.
        labels: Gold tokens [n]; of four rows of a kind the largest, the smallest, the second and any.
        kinds: Kind of each row.
        masked: Columns [K] whose logits are -inf, or None.
    """

    logits: Tensor
    labels: Tensor
    kinds: list[str]
    masked: Tensor | None = None

    @cached_property
    def exact_logits(self) -> Tensor:
        """Logits [n, K] float64 as the loss reads them, masked ones included."""
        logits = self.logits.double()
        return logits if self.masked is None else logits.masked_fill(self.masked, -math.inf)

    @cached_property
    def probabilities(self) -> Tensor:
        """Softmax [n, K] float64 of the logits."""
        return self.exact_logits.softmax(-1)

    @cached_property
    def matrix_sizes(self) -> Tensor:
        """Absolute values [K, 2 n] float64 of the head's matrix."""
        return self.head(torch.float64, "cpu").weight.detach().abs()

    def weights(self, device: str) -> Tensor:
        """Weights [n] of the tokens."""
        return torch.linspace(0.5, 2, len(self.labels), device=device)

    def head(self, dtype: torch.dtype, device: str) -> nn.Linear:
        """The head that gives these logits."""
        n, k = self.logits.shape
        high = self.logits.to(torch.bfloat16)
        low = (self.logits - high.float()).to(torch.bfloat16)
        head = nn.Linear(2 * n, k, bias=self.masked is not None, device=device, dtype=dtype)
        with torch.no_grad():
            head.weight.copy_(torch.cat([high, low]).T)
            if self.masked is not None:
                head.bias.zero_()
                head.bias[self.masked.to(device)] = -math.inf
        return head

    def hidden_states(self, dtype: torch.dtype, device: str) -> Tensor:
        """The hidden states [n, 2 n] that give these logits, a leaf that wants its gradient."""
        one = torch.eye(len(self.logits), dtype=dtype, device=device)
        return torch.cat([one, one], dim=1).requires_grad_()

    def targets(self, device: str, dtype: torch.dtype, reference: bool) -> Targets:
        """Labels, weights, places and, if it is wanted, a reference model whose logits are other rows of these."""
        n = len(self.labels)
        places = torch.arange(n) % TURN + 1
        output = None
        if reference:
            states = self.hidden_states(dtype, device).detach().roll(1, 0)
            output = ReferenceOutput(states, self.head(dtype, device).requires_grad_(False))
        lengths = torch.full((n,), TURN)
        labels, places, lengths = (x.to(device) for x in (self.labels, places, lengths))
        return Targets(labels, self.weights(device), places, lengths, output)


def _of_16_bits(logits: Tensor) -> Tensor:
    """The nearest logits that are sums of two bfloat16 numbers."""
    high = logits.to(torch.bfloat16).float()
    return high + (logits - high).to(torch.bfloat16).float()


def all_rows(n: int, k: int, seed: int = 0) -> list[Rows]:
    """n rows of each kind: those of a head without a mask, and those of one with."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    def peaked(z: Tensor) -> Tensor:
        some = min(3, k)
        return z.scatter_add_(1, torch.randint(k, (n, some), generator=g), 10 + randn(n, some))

    def small_tail(z: Tensor) -> Tensor:
        z[:, k // 2] = 27.6 + math.log(k)  # all others together have a mass of about 1e-12
        return z

    make: dict[str, Callable[[], Tensor]] = {
        "peaked": lambda: peaked(randn(n, k) * 2 + 5),
        "random": lambda: randn(n, k) * 3 - 20,
        "nearly flat": lambda: randn(n, k) * 0.05,
        "flat": lambda: randn(n, k) * 0.002 + 11,
        "equal": lambda: torch.full((n, k), 3.75),
        "tied": lambda: (randn(n, k) * 2).round() / 2,
        "extreme": lambda: randn(n, k) * 30,
        "small tail": lambda: small_tail(randn(n, k)),
    }
    unmasked = _of_16_bits(torch.cat([make[kind]() for kind in KINDS]))
    masked = torch.zeros(k, dtype=torch.bool)
    masked[max(1, k // 3) : k - k // 4] = True
    partly = _of_16_bits(randn(n, k) * 3)
    return [
        Rows(unmasked, _labels(unmasked, n, g), [kind for kind in KINDS for _ in range(n)]),
        Rows(partly, _labels(partly.masked_fill(masked, -math.inf), n, g), ["masked"] * n, masked),
    ]


def _labels(logits: Tensor, n: int, g: torch.Generator) -> Tensor:
    """Of each kind's rows in turn: the largest, the smallest that is not masked, the second, and any."""
    top = logits.topk(2).indices
    any_of_them = torch.multinomial(logits.isfinite().float(), 1, generator=g)[:, 0]
    smallest = logits.masked_fill(logits == -math.inf, math.inf).argmin(-1)
    place = torch.arange(len(logits)) % n % 4
    return torch.stack([top[:, 0], smallest, top[:, 1], any_of_them]).gather(0, place[None])[0]
