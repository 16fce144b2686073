"""Means of token statistics. All have `update(logits, labels)`, see `TokenMean`; z, y, p, S and c as
in `metrics.functional.tokens`, which has the definitions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ts2_lightning.metrics import functional
from ts2_lightning.metrics.functional.rows import check_logit_scale
from ts2_lightning.metrics.functional.sizes import check_shares
from ts2_lightning.metrics.means import ExactMean, TokenMean
from ts2_lightning.ranges import COUNT, check_number
from ts2_lightning.types import IGNORE_INDEX, TOKEN_STATISTICS


class SupportSize(TokenMean):
    """Mean |S|: how many tokens sparsemax(c z) keeps. Works without labels too.

    Args:
        logit_scale: factor c > 0 on the logits.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = SupportSize()
        >>> metric.update(torch.tensor([[2.0, 1.5, -1.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1]))
        >>> metric.compute().item()
        1.5
    """

    def __init__(self, logit_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(functional.support_size, {"logit_scale": check_logit_scale(logit_scale)}, **kwargs)


class TailMass(TokenMean):
    """Mean softmax mass outside S. Works without labels too.

    Args:
        logit_scale: factor c > 0 on the logits.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> round(TailMass()(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([0])).item(), 4)
        0.0301
    """

    def __init__(self, logit_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(functional.tail_mass, {"logit_scale": check_logit_scale(logit_scale)}, **kwargs)


class TokenEntropy(TokenMean):
    """Mean Shannon entropy of p, in nats. Works without labels too.

    Args:
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> round(TokenEntropy()(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([0])).item(), 4)
        0.6931
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(functional.token_entropy, {}, **kwargs)


class TopProbabilities(TokenMean):
    """Means of the k largest probabilities, [k]. Works without labels too.

    Args:
        k: number of probabilities.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> metric = TopProbabilities(k=2)
        >>> [round(p, 4) for p in metric(torch.tensor([[0.25, 0.6, 0.15]]).log(), torch.tensor([0])).tolist()]
        [0.6, 0.25]
    """

    def __init__(self, k: int = 3, **kwargs: Any) -> None:
        check_number("TopProbabilities: k", k, COUNT)
        super().__init__(functional.top_probabilities, {"k": k}, (k,), **kwargs)


class GoldProbability(TokenMean):
    """Mean p_y.

    Args:
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> round(GoldProbability()(torch.tensor([[0.25, 0.6, 0.15]]).log(), torch.tensor([2])).item(), 4)
        0.15
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(functional.gold_probability, {}, **kwargs)


class GoldRank(TokenMean):
    """Mean rank of y, from 1.

    Args:
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> GoldRank()(torch.tensor([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0]]), torch.tensor([2, 0])).item()
        2.5
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(functional.gold_rank, {}, **kwargs)


class GoldInSupport(TokenMean):
    """Share of tokens whose y is in S.

    Args:
        logit_scale: factor c > 0 on the logits.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> GoldInSupport()(torch.tensor([[2.0, 1.5, -1.0], [2.0, 1.5, -1.0]]), torch.tensor([1, 2])).item()
        0.5
    """

    def __init__(self, logit_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(functional.gold_in_support, {"logit_scale": check_logit_scale(logit_scale)}, **kwargs)


class ZeroGradient(TokenMean):
    """Share of tokens at which the sparsemax loss has stopped: S is y alone.

    Args:
        logit_scale: factor c > 0 on the logits.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> ZeroGradient()(torch.tensor([[3.0, 2.0, 0.0], [3.0, 2.5, 0.0]]), torch.tensor([0, 0])).item()
        0.5
    """

    def __init__(self, logit_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(functional.zero_gradient, {"logit_scale": check_logit_scale(logit_scale)}, **kwargs)


class TSPD(TokenMean):
    """Share of tokens whose softmax(z) satisfies TSPD(m, eps_head, eps_tail), see `functional.tspd`.

    Args:
        m: order of TSPD, at least 2.
        eps_head: least probability of each token in S, above 0 and at most 1 / m.
        eps_tail: largest probability of all other tokens together, from 0 to 1 - m eps_head.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> logits = torch.tensor([[0.5, 0.45, 0.05], [0.95, 0.04, 0.01]]).log()
        >>> TSPD(m=2, eps_head=0.1, eps_tail=0.1)(logits, torch.tensor([0, 0])).item()
        0.5
    """

    def __init__(self, m: int, eps_head: float, eps_tail: float, **kwargs: Any) -> None:
        functional.check_tspd(m, eps_head, eps_tail)
        super().__init__(functional.tspd, {"m": m, "eps_head": eps_head, "eps_tail": eps_tail}, **kwargs)


class TokenStatistics(TokenMean):
    """Means of all of `types.TOKEN_STATISTICS`, in one pass over the logits; `compute` gives name -> mean.

    Args:
        logit_scale: factor c > 0 on the logits.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> means = TokenStatistics()(torch.tensor([[2.0, 1.5, -1.0], [3.0, 1.0, 0.0]]), torch.tensor([0, 1]))
        >>> means["support_size"].item(), means["gold_in_support"].item()
        (1.5, 0.5)
    """

    def __init__(self, logit_scale: float = 1.0, **kwargs: Any) -> None:
        shape = (len(TOKEN_STATISTICS),)
        super().__init__(_stacked_statistics, {"logit_scale": check_logit_scale(logit_scale)}, shape, **kwargs)

    def compute(self) -> dict[str, Tensor]:
        """The mean under each name."""
        return dict(zip(TOKEN_STATISTICS, super().compute(), strict=True))


class MeanSelectedProbability(ExactMean):
    """Mean over responses of the mean p_y of their tokens (TS2, figure 5): every response counts the same.

    Args:
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Example:
        >>> logits = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
        >>> metric = MeanSelectedProbability()
        >>> round(metric(logits.expand(2, 2, 2), torch.tensor([[0, 0], [-100, 1]])).item(), 4)  # of 0.7 and 0.1
        0.4
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("mean_selected_probability", **kwargs)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds responses; those without a token are left out.

        Args:
            logits: [..., T, K] logits.
            labels: [..., T] tokens of the responses; -100 for prompt and padding.
        """
        values = functional.mean_selected_probability(logits, labels)
        self._add(values[(labels != IGNORE_INDEX).any(-1)])


def _stacked_statistics(logits: Tensor, labels: Tensor, logit_scale: float) -> Tensor:
    """[..., number of statistics]"""
    return torch.stack(list(functional.token_statistics(logits, labels, logit_scale).values()), dim=-1)


class SupportSizes(Metric):
    """Histogram and quantiles of |S|, the support size of sparsemax(c z), over all supervised tokens.

    `compute` gives `counts` [largest + 2] (see `functional.count_sizes`) and `quantile_Q` for each Q of `quantiles`
    (see `functional.quantiles_of_counts`).

    Args:
        quantiles: shares from 0 to 1.
        logit_scale: factor c > 0 on the logits.
        largest: largest size with a count of its own; a quantile above it is inf.
        kwargs: keyword arguments of `torchmetrics.Metric`.

    Raises:
        UserError: a setting out of its range.

    Example:
        >>> metric = SupportSizes(quantiles=(0.5, 0.9), largest=4)
        >>> metric.update(torch.tensor([[2.0, 1.5, -1.0], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
        >>> result = metric.compute()
        >>> result["counts"].tolist(), result["quantile_0.5"].item(), result["quantile_0.9"].item()
        ([0, 1, 1, 1, 0, 0], 2.0, 3.0)
    """

    is_differentiable = False
    full_state_update = False

    def __init__(
        self, quantiles: Sequence[float] = (0.5, 0.9), logit_scale: float = 1.0, largest: int = 1024, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_number("SupportSizes: largest", largest, COUNT)
        self.quantiles = check_shares(quantiles)
        self.logit_scale = check_logit_scale(logit_scale)
        self.largest = largest
        # Named after the settings, see `ExactMean`; the quantiles are no part of the state.
        self._counts = f"counts of support_size({logit_scale=!r}) up to {largest}"
        self.add_state(self._counts, torch.zeros(largest + 2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor | None = None) -> None:
        """Adds the tokens of a batch, see `TokenMean.update`."""
        sizes = functional.support_size(logits, self.logit_scale, labels)
        kept = sizes if labels is None else sizes[labels != IGNORE_INDEX]
        setattr(self, self._counts, getattr(self, self._counts) + functional.count_sizes(kept, self.largest))

    def compute(self) -> dict[str, Tensor]:
        """The counts and the quantiles."""
        counts = getattr(self, self._counts)
        values = functional.quantiles_of_counts(counts, self.quantiles)
        return {"counts": counts} | {f"quantile_{q:g}": value for q, value in zip(self.quantiles, values, strict=True)}
