"""Decoding with the projection that a loss was trained with: sparsemax and alpha-entmax for `model.generate`.

They give log-probabilities, minus infinity outside of the support, so that the softmax with which transformers samples
gives the projection itself back:

    from transformers import LogitsProcessorList
    model.generate(
        **inputs, do_sample=True, logits_processor=LogitsProcessorList([SparsemaxLogitsProcessor()]),
        temperature=1.0, top_k=0, top_p=1.0,
    )

The other steps on the logits, in their order:

1. Processors that the generation config asks for (repetition penalty, suppressed tokens, ...): before the projection.
   The projection gives tokens that they set to minus infinity no probability.
2. Those of `logits_processor`, in the order of the list.
3. With `do_sample`, `temperature`, `top_k`, `top_p` and their kin: after the projection. Temperature T then leaves the
   support as it is and gives p^(1 / T), renormalised, on it; top-k and top-p cut it. transformers takes what the
   model's generation config says of them, and top-k 50 if that says nothing: name all three to have the projection
   alone.

A temperature T before the projection, which does change the support, is `logit_scale=1 / T`. (Or a
`transformers.TemperatureLogitsWarper(T)` before it in the list.)

Beam search hands over log-probabilities instead of logits; the projection is the same, as it does not see a constant
that is added to all logits.
"""

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ts2_lightning.ops import ENTMAX_ORDERS, entmax_probabilities
from ts2_lightning.ranges import Range, check_numbers

LOGIT_SCALES = Range(above=0, hint="it is 1 / T for a temperature T")


class SparsemaxLogitsProcessor(LogitsProcessor):
    """Samples from sparsemax(c z) of the logits z.

    A model that was trained with the sparsemax loss and is decoded so is the "unified sparsemax" of TS2, figure 4.

    Source: Martins and Astudillo (2016), equation 2; TS2, section 3.

    Args:
        logit_scale: factor c on the logits; 1 / T for a temperature T before the projection.

    Raises:
        UserError: if `logit_scale` is not a finite number above 0.

    Example:
        >>> process = SparsemaxLogitsProcessor()
        >>> process(torch.tensor([[0]]), torch.tensor([[1.0, 1.0, -3.0]])).softmax(-1).tolist()
        [[0.5, 0.5, 0.0]]
    """

    def __init__(self, logit_scale: float = 1.0) -> None:
        self.logit_scale = logit_scale
        check_numbers("SparsemaxLogitsProcessor: ", self, logit_scale=LOGIT_SCALES)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities [*, K], in float32 at least, of logits [*, K]."""
        return log_entmax(scores, 2.0, self.logit_scale)


class EntmaxLogitsProcessor(LogitsProcessor):
    """Samples from alpha-entmax(c z) of the logits z: the decoding twin of the entmax loss.

    Source: Peters, Niculae and Martins (2019), equation 9.

    Args:
        alpha: order of entmax, from 1.001 to 2; the larger, the smaller the support. At 2 it is sparsemax.
        logit_scale: factor c on the logits; 1 / T for a temperature T before the projection.

    Raises:
        UserError: if `alpha` or `logit_scale` is out of its range.

    Example:
        >>> process = EntmaxLogitsProcessor(alpha=1.5)
        >>> process(torch.tensor([[0]]), torch.tensor([[1.0, 1.0, -3.0]])).softmax(-1).tolist()
        [[0.5, 0.5, 0.0]]
    """

    def __init__(self, alpha: float = 1.5, logit_scale: float = 1.0) -> None:
        self.alpha = alpha
        self.logit_scale = logit_scale
        check_numbers("EntmaxLogitsProcessor: ", self, alpha=ENTMAX_ORDERS, logit_scale=LOGIT_SCALES)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities [*, K], in float32 at least, of logits [*, K]."""
        return log_entmax(scores, self.alpha, self.logit_scale)


def log_entmax(logits: Tensor, alpha: float, logit_scale: float = 1.0) -> Tensor:
    """Logarithm of alpha-entmax(c z).

    Args:
        logits: [*, K] logits z of any floating dtype. Entries may be -inf, but not all of a row.
        alpha: order, 1 < alpha <= 2; 2 is sparsemax.
        logit_scale: factor c > 0 on the logits.

    Returns:
        [*, K] in float32, or float64 if the logits are; -inf outside of the support.

    Example:
        >>> log_entmax(torch.tensor([0.0, -5.0]), 2.0).tolist()
        [0.0, -inf]
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wide = (wide - wide.amax(-1, keepdim=True)).mul_(logit_scale)  # shifted first: an offset would cost digits
    return entmax_probabilities(wide.reshape(-1, wide.shape[-1]), alpha).log_().view(wide.shape)
