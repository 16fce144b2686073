"""Decoders against transformers' own warpers; the sparsemax support against entmax."""

import entmax
import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ts2_lightning.evaluation.distributions import PAPERS, PLAIN, Decoder, support_mask


def theirs(logits, decoder):
    """What `generate` samples from."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(decoder.temperature)])
    if decoder.top_k:
        warpers.append(TopKLogitsWarper(decoder.top_k))
    if decoder.top_p < 1:
        warpers.append(TopPLogitsWarper(decoder.top_p))
    return warpers(torch.zeros(len(logits), 1, dtype=torch.long), logits).log_softmax(-1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize(
    "decoder",
    [PLAIN, PAPERS, Decoder(0.3), Decoder(2.0, 1), Decoder(top_p=0.05), Decoder(1.3, 7, 0.5), Decoder(top_k=10**6)],
)
def test_decoders_are_those_of_transformers(decoder, scale):
    logits = torch.randn(300, 97, generator=torch.Generator().manual_seed(0)) * scale
    logits[:50] = logits[:50].round()  # ties
    assert torch.equal(decoder.log_probabilities(logits), theirs(logits, decoder))


def test_temperature_comes_before_top_p():
    """At temperature 0.5 the first token alone has 0.8 and fills the nucleus; without it, two are needed."""
    logits = torch.tensor([0.6, 0.3, 0.1]).log()
    assert Decoder(0.5, top_p=0.75).log_probabilities(logits).isfinite().sum() == 1
    assert Decoder(1.0, top_p=0.75).log_probabilities(logits).isfinite().sum() == 2


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": float("inf")}, {"top_k": -1}, {"top_p": 0.0}])
def test_values_out_of_range(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Decoder(**bad)


@pytest.mark.parametrize("width", [5, 428])
def test_support_is_that_of_sparsemax(width):
    logits = torch.randn(200, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    expected = entmax.sparsemax(logits, dim=-1) > 0
    assert torch.equal(support_mask(logits), expected)
    assert torch.equal(support_mask(logits.log_softmax(-1)), expected)
