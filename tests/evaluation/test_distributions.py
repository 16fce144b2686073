"""What decoders sample from, against plain formulas in float64; the sparsemax support against entmax."""

from dataclasses import replace

import entmax
import pytest
import torch

from ts2_lightning.evaluation.distributions import DECODINGS, PAPERS, PLAIN, log_probabilities, support_mask
from ts2_lightning.generation import Decoder

PROJECTIONS = {
    "softmax": lambda z: z.softmax(-1),
    "sparsemax": lambda z: entmax.sparsemax(z, dim=-1),
    "entmax": lambda z: entmax.entmax15(z, dim=-1),
}


def plain(logits: torch.Tensor, decoder: Decoder) -> torch.Tensor:
    """Row by row and in the order of the definition: projection, temperature, top-k, top-p. No two logits are equal."""
    rows = []
    for z in logits:
        p = PROJECTIONS[decoder.projection](z[None])[0] ** (1 / decoder.temperature)
        kept = p.argsort(descending=True)[: decoder.top_k or len(p)]
        p = torch.zeros_like(p).index_copy(0, kept, p[kept])
        p = p / p.sum()
        nucleus, mass = [], 0.0
        for token in p.argsort(descending=True).tolist():
            if decoder.top_p == 1 or mass < decoder.top_p:
                nucleus.append(token)
                mass += p[token].item()
        p = torch.zeros_like(p).index_copy(0, torch.tensor(nucleus), p[nucleus])
        rows.append(p / p.sum())
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("projection", DECODINGS)
@pytest.mark.parametrize(
    "behind",
    [
        PLAIN,
        PAPERS,
        Decoder(temperature=0.3),
        Decoder(temperature=5.0),
        Decoder(temperature=2.0, top_k=1),
        Decoder(top_p=0.05),
        Decoder(temperature=1.3, top_k=7, top_p=0.5),
        Decoder(top_k=10**6),
    ],
)
def test_decoders_are_their_definition(projection, behind, scale):
    logits = torch.randn(40, 97, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * scale
    decoder = replace(behind, projection=projection)
    expected = plain(logits, decoder)
    found = log_probabilities(logits, decoder).exp()
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_temperature_keeps_the_support():
    logits = torch.randn(50, 97, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2
    sparse = log_probabilities(logits, Decoder("sparsemax")).isfinite()
    assert torch.equal(log_probabilities(logits, Decoder("sparsemax", temperature=5.0)).isfinite(), sparse)
    assert 1 < sparse.sum(-1).double().mean() < 20


def test_temperature_comes_before_top_p():
    """At temperature 0.5 the first token alone has 0.8 and fills the nucleus; without it, two are needed."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert log_probabilities(logits, Decoder(temperature=0.5, top_p=0.75)).isfinite().sum() == 1
    assert log_probabilities(logits, Decoder(top_p=0.75)).isfinite().sum() == 2


@pytest.mark.parametrize("width", [5, 428])
def test_support_is_that_of_sparsemax(width):
    logits = torch.randn(200, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    expected = entmax.sparsemax(logits, dim=-1) > 0
    assert torch.equal(support_mask(logits), expected)
    assert torch.equal(support_mask(logits.log_softmax(-1)), expected)
