"""Statistics of every token. All return one value per token; for shapes, dtypes and errors see `per_token`.

Notation: z the logits of a token, y its gold token, p = softmax(z), S the support of sparsemax(c z) with c the
`logit_scale`. Probabilities are those of softmax(z), whatever c.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ts2_lightning import ops
from ts2_lightning.metrics.functional.rows import any_gold, check_logit_scale, per_token
from ts2_lightning.ops import LogitRows
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import IGNORE_INDEX, TOKEN_STATISTICS


def support_size(logits: Tensor, logit_scale: float = 1.0, labels: Tensor | None = None) -> Tensor:
    """|S|: how many tokens sparsemax keeps.

    Args:
        logits: [..., K] logits.
        logit_scale: factor c > 0 on the logits.
        labels: [...] labels, of which -100 leaves a token out. Default: no token is left out.

    Returns:
        [...], whole numbers.

    Example:
        >>> support_size(torch.tensor([[2.0, 1.5, -1.0], [3.0, 1.0, 0.0]])).tolist()
        [2.0, 1.0]
    """
    c = check_logit_scale(logit_scale)
    return per_token(lambda rows: rows.scaled(c).sparsemax.size.to(rows.logits.dtype), logits, any_gold(logits, labels))


def tail_mass(logits: Tensor, logit_scale: float = 1.0, labels: Tensor | None = None) -> Tensor:
    """Softmax mass outside S, summed by itself, so that a small tail keeps its digits.

    Args:
        logits: [..., K] logits.
        logit_scale: factor c > 0 on the logits.
        labels: [...] labels, of which -100 leaves a token out. Default: no token is left out.

    Example:
        >>> round(tail_mass(torch.tensor([2.0, 1.5, -1.0])).item(), 4)
        0.0301
    """
    c = check_logit_scale(logit_scale)
    return per_token(lambda rows: rows.mass(rows.scaled(c).sparsemax.support).outside, logits, any_gold(logits, labels))


def token_entropy(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Shannon entropy of p, in nats.

    Args:
        logits: [..., K] logits.
        labels: [...] labels, of which -100 leaves a token out. Default: no token is left out.

    Example:
        >>> round(token_entropy(torch.tensor([0.0, 0.0, -torch.inf])).item(), 4)
        0.6931
    """
    return per_token(lambda rows: rows.entropy, logits, any_gold(logits, labels))


def top_probabilities(logits: Tensor, k: int = 3, labels: Tensor | None = None) -> Tensor:
    """The k largest probabilities, in falling order; 0 where K is smaller.

    Args:
        logits: [..., K] logits.
        k: number of probabilities.
        labels: [...] labels, of which -100 leaves a token out. Default: no token is left out.

    Returns:
        [..., k].

    Example:
        >>> [round(p, 4) for p in top_probabilities(torch.tensor([0.25, 0.6, 0.15]).log(), 2).tolist()]
        [0.6, 0.25]
    """
    check_number("top_probabilities: k", k, COUNT)
    return per_token(lambda rows: ops.top_probabilities(rows, k), logits, any_gold(logits, labels))


def gold_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """p_y. Where y is a sampled token, its probability before temperature and truncation.

    Args:
        logits: [..., K] logits.
        labels: [...] gold tokens.

    Example:
        >>> round(gold_probability(torch.tensor([0.25, 0.6, 0.15]).log(), torch.tensor(2)).item(), 4)
        0.15
    """
    return per_token(lambda rows: rows.gold_probability, logits, labels)


def gold_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """1 + the number of tokens with a larger logit than y; a tie is in y's favour.

    Args:
        logits: [..., K] logits.
        labels: [...] gold tokens.

    Returns:
        [...], whole numbers from 1.

    Example:
        >>> gold_rank(torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 2.0]]), torch.tensor([2, 2])).tolist()
        [2.0, 1.0]
    """
    return per_token(ops.gold_rank, logits, labels)


def gold_in_support(logits: Tensor, labels: Tensor, logit_scale: float = 1.0) -> Tensor:
    """1 where y is in S, else 0.

    Args:
        logits: [..., K] logits.
        labels: [...] gold tokens.
        logit_scale: factor c > 0 on the logits.

    Example:
        >>> gold_in_support(torch.tensor([2.0, 1.5, -1.0]).expand(3, 3), torch.arange(3)).tolist()
        [1.0, 1.0, 0.0]
    """
    c = check_logit_scale(logit_scale)
    return per_token(lambda rows: _gold_in_support(rows, c).to(rows.logits.dtype), logits, labels)


def zero_gradient(logits: Tensor, labels: Tensor, logit_scale: float = 1.0) -> Tensor:
    """1 where the sparsemax loss has stopped, else 0: S is the gold token alone, so that sparsemax(c z) - e_y is zero.

    It is so once z_y leads every other logit by 1 / c. Source: Martins and Astudillo (2016), proposition 3.

    Args:
        logits: [..., K] logits.
        labels: [...] gold tokens.
        logit_scale: factor c > 0 on the logits.

    Example:
        >>> zero_gradient(torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.5, 0.0]]), torch.tensor([0, 0])).tolist()
        [1.0, 0.0]
    """
    c = check_logit_scale(logit_scale)

    def stopped(rows: LogitRows) -> Tensor:
        return ((rows.scaled(c).sparsemax.size == 1) & _gold_in_support(rows, c)).to(rows.logits.dtype)

    return per_token(stopped, logits, labels)


def token_statistics(
    logits: Tensor, labels: Tensor, logit_scale: float = 1.0, names: Sequence[str] = TOKEN_STATISTICS
) -> dict[str, Tensor]:
    """Several statistics in one pass: see `ops.token_statistics`.

    Args:
        logits: [..., K] logits.
        labels: [...] gold tokens.
        logit_scale: factor c > 0 on the logits.
        names: names of the statistics, see `ops.token_statistics`.

    Returns:
        Name -> [...].

    Example:
        >>> statistics = token_statistics(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([0]))
        >>> statistics["support_size"].tolist(), [round(p, 4) for p in statistics["top1"].tolist()]
        ([2.0], [0.6037])
    """
    c = check_logit_scale(logit_scale)

    def columns(rows: LogitRows) -> Tensor:
        statistics = ops.token_statistics(rows, c, names)
        return torch.stack([statistics[name] for name in names], dim=-1)

    return dict(zip(names, per_token(columns, logits, labels).unbind(-1), strict=True))


def mean_selected_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of p_y over the tokens of each response: the model's confidence in its own text.

    For sampled tokens and plain logits TS2's figure 5 shows its histogram: before temperature and truncation, one mean
    per response.

    Args:
        logits: [..., T, K] logits.
        labels: [..., T] tokens of the responses; -100 for prompt and padding.

    Returns:
        [...]; NaN for a response without a token.

    Example:
        >>> logits = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]]).log()
        >>> round(mean_selected_probability(logits, torch.tensor([[0, 0, -100]])).item(), 4)
        0.7
    """
    ignored = labels == IGNORE_INDEX
    return gold_probability(logits, labels).masked_fill(ignored, 0).sum(-1) / (~ignored).sum(-1)


def _gold_in_support(rows: LogitRows, logit_scale: float) -> Tensor:
    return rows.scaled(logit_scale).sparsemax.support.contains(rows.labels)
