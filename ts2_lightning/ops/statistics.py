"""What is measured at every supervised token, from the very row that the loss has read."""

from torch import Tensor

from ts2_lightning.ops.rows import LogitRows


def token_statistics(rows: LogitRows, logit_scale: float = 1.0) -> dict[str, Tensor]:
    """Statistics of n tokens, under the names of `types.TOKEN_STATISTICS`.

    Args:
        rows: n rows of logits z and their gold tokens y.
        logit_scale: c; the support S is that of sparsemax(c z). Probabilities are those of softmax(z), whatever c.

    Returns:
        Each [n], in the dtype of the logits: `cross_entropy` -log p_y and `entropy` H(p) in nats;
        `gold_probability` p_y; `gold_in_support` 1 where y is in S, else 0; `support_size` |S|; `tail_mass`, the
        softmax mass outside S; `top1`, `top2`, `top3`, the largest probabilities (0 where K is smaller).

    Example:
        >>> import torch
        >>> rows = LogitRows(torch.tensor([[2.0, 1.5, -1.0]]), torch.tensor([0]))
        >>> statistics = token_statistics(rows)
        >>> statistics["support_size"].item(), round(statistics["tail_mass"].item(), 4)
        (2.0, 0.0301)
    """
    scaled = rows.scaled(logit_scale)
    support = scaled.sparsemax.support
    outside = rows.mass(scaled.with_gold(support)).outside
    in_support = support.contains(rows.labels)
    top = (rows.top(3)[0] - rows.maximum[:, None]).exp() / rows.normalizer[:, None]
    probabilities = [top[:, i] if i < top.shape[-1] else top.new_zeros(len(rows)) for i in range(3)]
    return {
        "cross_entropy": rows.cross_entropy,
        "entropy": rows.entropy,
        "gold_probability": rows.gold_probability,
        "gold_in_support": in_support.to(outside.dtype),
        "support_size": scaled.sparsemax.size.to(outside.dtype),
        "tail_mass": outside + rows.gold_probability.masked_fill(in_support, 0),
        "top1": probabilities[0],
        "top2": probabilities[1],
        "top3": probabilities[2],
    }
