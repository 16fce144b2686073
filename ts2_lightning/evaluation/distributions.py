"""Next-token distributions: what a model is decoded with, and the support that sparsemax keeps."""

from torch import Tensor

from ts2_lightning.generation import Decoder
from ts2_lightning.ops import entmax_probabilities

DECODINGS = {
    "softmax": Decoder("softmax"),
    "sparsemax": Decoder("sparsemax"),
    "entmax": Decoder("entmax", alpha=1.5),
}
"""The distribution that a model is decoded with, before temperature and truncation."""

PLAIN = Decoder()
"""Sampling at temperature 1 from the whole vocabulary."""

PAPERS = Decoder(temperature=0.6, top_k=50, top_p=0.9)
"""What the TS2 and GEM papers sample with (TS2, appendix B; GEM, appendix E.1)."""


def log_probabilities(logits: Tensor, decoder: Decoder) -> Tensor:
    """The distribution that a decoder samples from.

    Args:
        logits: [n, K].
        decoder: its temperature must be above 0.

    Returns:
        [n, K], -inf for the tokens that it removes.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
        >>> [round(p, 3) for p in log_probabilities(logits, Decoder(top_p=0.7)).exp()[0].tolist()]
        [0.625, 0.375, 0.0]
        >>> log_probabilities(torch.tensor([[1.0, 1.0, -3.0]]), Decoder("sparsemax")).exp().tolist()
        [[0.5, 0.5, 0.0]]
    """
    return decoder(logits).log_softmax(-1)


def support_mask(logits: Tensor) -> Tensor:
    """The support of sparsemax(z).

    Args:
        logits: [n, K]; log-probabilities give the same support, since sparsemax ignores a shift of a row.

    Returns:
        [n, K] bool.

    Example:
        >>> import torch
        >>> support_mask(torch.tensor([[1.0, 0.6, -3.0]])).tolist()
        [[True, True, False]]
    """
    return entmax_probabilities(logits) > 0
