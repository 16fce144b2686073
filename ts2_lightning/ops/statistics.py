"""Statistics of every supervised token, from the very row of logits that the loss has read."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ts2_lightning.ops.precision import widest_float
from ts2_lightning.ops.rows import LogitRows
from ts2_lightning.ops.sparse import some_per_row
from ts2_lightning.ops.summary import SummaryRequest
from ts2_lightning.types import TOKEN_STATISTICS, UserError
from ts2_lightning.values import Value

TOKEN_VALUES = (
    Value("cross_entropy", "CE", "a supervised token, in nats", "lower", ".3f"),
    Value("entropy", "entropy", "of the model's distribution, in nats", None, ".3f"),
    Value("gold_probability", "p(gold)", "", "higher", ".3f"),
    Value(
        "gold_in_support",
        "gold in support",
        "share of tokens whose gold token is in the sparsemax support",
        None,
        ".3f",
    ),
    Value("support_size", "support", "sparsemax support, in tokens", None, ".2f"),
    Value("tail_mass", "tail mass", "softmax mass outside of the sparsemax support", None, ".3f", short="tail"),
    Value("gold_rank", "rank of gold", "1 where the gold token is the most probable one", "lower", ".2f"),
    Value("top1", "1st token", "probability of the most probable token", None, ".3f"),
    Value("top2", "2nd token", "probability of the second most probable token", None, ".3f"),
    Value("top3", "3rd token", "probability of the third most probable token", None, ".3f"),
)
"""Descriptions of `types.TOKEN_STATISTICS`."""


def token_statistics(
    rows: LogitRows, logit_scale: float = 1.0, names: Collection[str] = TOKEN_STATISTICS
) -> dict[str, Tensor]:
    """Statistics of n tokens; those that are not named cost nothing.

    Args:
        rows: n rows of logits z and their gold tokens y.
        logit_scale: factor c; the support S is that of sparsemax(c z). Probabilities are of softmax(z), for any c.
        names: names of the statistics: those in `types.TOKEN_STATISTICS`, and `tspd_head_M` and `tspd_tail_M` for any M
            of at least 2.

    Returns:
        Each [n], in the dtype of the logits and in the order of the names: `cross_entropy` -log p_y and `entropy` H(p)
        in nats; `gold_probability` p_y; `gold_in_support` 1 where y is in S, else 0; `support_size` |S|; `tail_mass`,
        the softmax mass outside S; `gold_rank`, see `gold_rank`; `top1`, `top2`, `top3`, the largest probabilities (0
        where K is smaller); `tspd_head_M`, `tspd_tail_M`, see `HeadAndTail`.

    Raises:
        UserError: an unknown name.

    Example:
        >>> rows = LogitRows(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([0]))
        >>> statistics = token_statistics(rows)
        >>> statistics["support_size"].item(), round(statistics["tail_mass"].item(), 4)
        (2.0, 0.0301)
    """
    statistics: dict[str, Tensor] = {}
    for group, measure in _MEASURES.items():
        if not set(group).isdisjoint(names):
            statistics |= zip(group, measure(rows, logit_scale), strict=True)
    for m, of_order in heads_and_tails(rows, tspd_orders(names)).items():
        statistics |= zip(tspd_names(m), of_order, strict=True)
    checked_statistics(names)
    return {name: statistics[name] for name in names}


def checked_statistics(names: Collection[str]) -> tuple[str, ...]:
    """Names of statistics, of which each is one.

    Args:
        names: As `token_statistics` takes them.

    Raises:
        UserError: a name that is none, or a text in place of names.

    Example:
        >>> checked_statistics(["entropy", "tspd_head_2"])
        ('entropy', 'tspd_head_2')
    """
    if isinstance(names, str):
        raise UserError(f"statistics: expected names, such as [{names!r}], got the text {names!r}")
    measured = {*TOKEN_STATISTICS, *(name for m in tspd_orders(names) for name in tspd_names(m))}
    if unknown := [str(name) for name in names if name not in measured]:
        raise UserError(
            f"unknown statistics: {', '.join(unknown)}; known: {', '.join(TOKEN_STATISTICS)}, and tspd_head_M and "
            "tspd_tail_M for any M of at least 2"
        )
    return tuple(names)


def summary_request(
    request: SummaryRequest | None, logit_scale: float, names: Collection[str] = TOKEN_STATISTICS
) -> SummaryRequest:
    """What a summary has to hold that serves a loss and statistics, by one read of the rows if that can be.

    Args:
        request: what the loss follows from, or None for a loss that reads the rows themselves.
        logit_scale: factor c of `token_statistics`.
        names: names of the statistics.

    Example:
        >>> summary_request(SummaryRequest(), 2.0, ["support_size"]).support_scale
        2.0
    """
    request = request or SummaryRequest()
    if request.support_scale is None and not _SUPPORT.isdisjoint(names):
        request = request._replace(support_scale=logit_scale, alpha=2.0)
    return request


def _of_support(rows: LogitRows, logit_scale: float) -> tuple[Tensor, Tensor, Tensor]:
    scaled = rows.scaled(logit_scale)
    support = scaled.sparsemax.support
    outside = rows.mass(scaled.with_gold(support)).outside
    in_support = support.contains(rows.labels)
    size = scaled.sparsemax.size.to(outside.dtype)
    return in_support.to(outside.dtype), size, outside + rows.gold_probability.masked_fill(in_support, 0)


_SUPPORT = {"gold_in_support", "support_size", "tail_mass"}

_MEASURES: dict[tuple[str, ...], Callable[[LogitRows, float], Sequence[Tensor]]] = {
    ("cross_entropy",): lambda rows, _: [rows.cross_entropy],
    ("entropy",): lambda rows, _: [rows.entropy],
    ("gold_probability",): lambda rows, _: [rows.gold_probability],
    ("gold_in_support", "support_size", "tail_mass"): _of_support,
    ("gold_rank",): lambda rows, _: [gold_rank(rows)],
    ("top1", "top2", "top3"): lambda rows, _: top_probabilities(rows, 3).unbind(-1),
}
"""The statistics that one pass over the rows gives together."""


def tspd_names(m: int) -> tuple[str, str]:
    """The names under which the head and the tail of TSPD of order m are published."""
    return f"tspd_head_{m}", f"tspd_tail_{m}"


def tspd_orders(names: Collection[str]) -> list[int]:
    """The orders m whose heads or tails are among some names of statistics, in rising order."""
    endings = {name.rpartition("_")[2] for name in names if name.startswith("tspd_")}
    return sorted(int(ending) for ending in endings if ending.isdecimal() and int(ending) >= 2)


def top_probabilities(rows: LogitRows, k: int) -> Tensor:
    """The k largest probabilities of softmax(z), in falling order; 0 where K is smaller than k.

    Returns:
        [n, k].

    Example:
        >>> rows = LogitRows(torch.tensor([[0.25, 0.5, 0.25]]).log(), torch.tensor([0]))
        >>> [round(p, 4) for p in top_probabilities(rows, 4)[0].tolist()]
        [0.5, 0.25, 0.25, 0.0]
    """
    return _probabilities(rows, rows.top_logits(k), k)


def gold_rank(rows: LogitRows) -> Tensor:
    """Rank of the gold token: one more than the number of tokens with a larger logit, so a tie is in its favour.

    Returns:
        [n], whole numbers from 1 in the dtype of the logits.

    Example:
        >>> rows = LogitRows(torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 2.0]]), torch.tensor([2, 2]))
        >>> gold_rank(rows).tolist()
        [2.0, 1.0]
    """
    return rows.above_gold + 1


class HeadAndTail(NamedTuple):
    """The two numbers that decide TSPD of order m (TS2, definition 1); thresholds are compared with them afterwards.

    S are the m most probable tokens if the gold token is among them, else the m - 1 most probable and the gold token.

    Attributes:
        head: [n] the smallest softmax probability in S; 0 where m > K, as if with impossible tokens.
        tail: [n] softmax mass outside S, summed by itself.
    """

    head: Tensor
    tail: Tensor

    def satisfies(self, eps_head: float, eps_tail: float) -> Tensor:
        """Whether tokens have TSPD(m, eps_head, eps_tail): head >= eps_head and tail <= eps_tail. Returns [n] bool."""
        return (self.head >= eps_head) & (self.tail <= eps_tail)


def head_and_tail(rows: LogitRows, m: int) -> HeadAndTail:
    """Head and tail of TSPD of order m, for any thresholds.

    Source: TS2, definition 1.

    Args:
        rows: n rows of logits z and their gold tokens y.
        m: order of TSPD, at least 2.

    Example:
        >>> rows = LogitRows(torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(), torch.tensor([2]))
        >>> [round(x.item(), 4) for x in head_and_tail(rows, 2)]  # S = {0, 2}
        [0.15, 0.35]
    """
    return heads_and_tails(rows, [m])[m]


def heads_and_tails(rows: LogitRows, orders: Sequence[int]) -> dict[int, HeadAndTail]:
    """`head_and_tail` of several orders, by one pass over the rows for them all.

    Ties at rank m do not matter: whichever of the tied tokens is taken, both numbers are the same.
    """
    if not orders:
        return {}
    most = max(orders)
    values, columns = rows.top(most)
    is_gold = columns == rows.labels[:, None]
    named = some_per_row(columns, rows.logits.shape[-1]).union(rows.labels)
    beyond = rows.mass(named).outside
    p = _probabilities(rows, values - rows.maximum[:, None], most)
    is_gold = torch.nn.functional.pad(is_gold, (0, most - is_gold.shape[-1]))
    of_order = {}
    for m in orders:
        gold_missing = ~is_gold[:, :m].any(-1)
        # The named tokens outside S: those below rank m except y, and rank m itself where y takes its place.
        outside = p[:, m - 1 :].masked_fill(is_gold[:, m - 1 :], 0)
        outside = outside[:, 1:].sum(-1) + outside[:, 0].masked_fill(~gold_missing, 0)
        # The last of Top_m is S's smallest where y is in Top_m, that is p_y is not below it; elsewhere y is.
        of_order[m] = HeadAndTail(torch.minimum(p[:, m - 1], rows.gold_probability), beyond + outside)
    return of_order


class Divergence(NamedTuple):
    """Distances of a distribution p from a reference p0.

    Attributes:
        kl: [n] KL(p0 || p) in nats.
        l2: [n] length of p - p0.
    """

    kl: Tensor
    l2: Tensor


def divergence(rows: LogitRows, reference: Tensor) -> Divergence:
    """The distances of softmax(z) from a reference distribution.

    Args:
        rows: n rows of logits z.
        reference: [n, K] log-probabilities; may be -inf.

    Example:
        >>> rows = LogitRows(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([0]))
        >>> [round(x.item(), 4) for x in divergence(rows, torch.tensor([[0.8, 0.2]]).log())]
        [0.1927, 0.4243]
    """
    log_p = (rows.logits - rows.maximum[:, None]) - rows.normalizer.log()[:, None]
    p0 = reference.exp()
    kl = torch.where(p0 > 0, p0 * (reference - log_p), 0.0).sum(-1, dtype=widest_float(p0.device))
    return Divergence(kl, torch.linalg.vector_norm(log_p.exp() - p0, dim=-1))


def _probabilities(rows: LogitRows, values: Tensor, k: int) -> Tensor:
    """Softmax probabilities [n, k] of some z - max(z) of each row, filled up with zeros. `values`: [n, at most k]."""
    probabilities = values.exp() / rows.normalizer[:, None]
    return torch.nn.functional.pad(probabilities, (0, k - probabilities.shape[-1]))
