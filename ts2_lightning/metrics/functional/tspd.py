"""Tail-suppressed plausible diversity: a few tokens keep a real chance, the others have next to none."""

import torch
from torch import Tensor

from ts2_lightning import ops
from ts2_lightning.metrics.functional.rows import per_token
from ts2_lightning.ops import HeadAndTail
from ts2_lightning.ranges import Range, check_number


def tspd(logits: Tensor, labels: Tensor, m: int, eps_head: float, eps_tail: float) -> Tensor:
    """1 where softmax(z) satisfies TSPD(m, eps_head, eps_tail), else 0.

    S are the m most probable tokens if the gold token y is among them, else the m - 1 most probable and y. Each of S
    must have a probability of at least eps_head, all others together at most eps_tail. A vocabulary of fewer
    than m tokens never satisfies it.

    Source: TS2, definition 1.

    Args:
        logits: [..., K] logits, see `per_token`.
        labels: [...] gold tokens.
        m: order of TSPD, at least 2.
        eps_head: least probability of each token in S, above 0 and at most 1 / m.
        eps_tail: largest probability of all other tokens together, from 0 to 1 - m eps_head.

    Returns:
        [...], NaN where the label is -100.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> logits = torch.tensor([[0.5, 0.45, 0.05], [0.95, 0.04, 0.01], [0.4, 0.3, 0.3]]).log()
        >>> tspd(logits, torch.tensor([0, 0, 0]), m=2, eps_head=0.1, eps_tail=0.1).tolist()
        [1.0, 0.0, 0.0]
    """
    check_tspd(m, eps_head, eps_tail)
    pair = head_and_tail(logits, labels, m)
    return pair.satisfies(eps_head, eps_tail).to(pair.head.dtype).masked_fill(pair.head.isnan(), torch.nan)


def head_and_tail(logits: Tensor, labels: Tensor, m: int) -> HeadAndTail:
    """The two numbers that decide TSPD of order m, for any thresholds: `head_and_tail(z, y, m).satisfies(0.1, 0.05)`.

    Args:
        logits: [..., K] logits, see `per_token`.
        labels: [...] gold tokens.
        m: order of TSPD, at least 2.

    Returns:
        The smallest probability in S and the mass outside it, both [...]; see `ops.HeadAndTail`.

    Raises:
        UserError: m below 2.

    Example:
        >>> pair = head_and_tail(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), torch.tensor(2), m=2)
        >>> round(pair.head.item(), 4), round(pair.tail.item(), 4)  # S = {0, 2}
        (0.15, 0.35)
    """
    _check_order(m)
    both = per_token(lambda rows: torch.stack(ops.head_and_tail(rows, m), dim=-1), logits, labels)
    return HeadAndTail(*both.unbind(-1))


def check_tspd(m: int, eps_head: float, eps_tail: float) -> None:
    """Raises UserError where TSPD(m, eps_head, eps_tail) is not defined."""
    _check_order(m)
    check_number("TSPD: eps_head", eps_head, Range(above=0, most=1 / m, hint="it is at most 1 / m"))
    most = 1 - m * eps_head + 1e-12  # 1 - 3 * 0.1 is a hair below 0.7
    check_number("TSPD: eps_tail", eps_tail, Range(least=0, most=most, hint="it is at most 1 - m eps_head"))


def _check_order(m: int) -> None:
    check_number("TSPD: m", m, Range(least=2, whole=True))
