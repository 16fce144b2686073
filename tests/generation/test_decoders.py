"""Decoders: what top-p keeps is what transformers keeps, and draws never take what is impossible."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from transformers import TopKLogitsWarper, TopPLogitsWarper

from ts2_lightning.generation import Decoder
from ts2_lightning.generation.decoders import _NucleusWarper, draw
from ts2_lightning.types import UserError

NOTHING = torch.empty(0, 0, dtype=torch.long)


def same(logits: torch.Tensor, top_p: float, sizes: tuple[int, ...]) -> None:
    wanted = TopPLogitsWarper(top_p)(NOTHING, logits)
    assert torch.equal(_NucleusWarper(top_p, sizes)(NOTHING, logits), wanted)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    seed=some.integers(0, 10**6),
    width=some.integers(1, 300),
    scale=some.sampled_from([0.0, 0.01, 1.0, 4.0, 30.0, 200.0]),
    levels=some.sampled_from([None, 2, 7]),
    top_p=some.sampled_from([1e-6, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1 - 1e-7]),
    sizes=some.sampled_from([(1,), (5,), (5, 40), (128, 1024), (400,)]),
    cut=some.booleans(),
)
def test_top_p_keeps_the_very_tokens_that_transformers_keeps(
    seed: int, width: int, scale: float, levels: int | None, top_p: float, sizes: tuple[int, ...], cut: bool
) -> None:
    """Also among ties, of which few levels make many, and behind a top-k."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, width, generator=generator) * scale
    if levels is not None:
        logits = (logits.sigmoid() * levels).round()
    if cut:
        logits = TopKLogitsWarper(7)(NOTHING, logits)
    same(logits, top_p, sizes)


@pytest.mark.parametrize("top_p", [0.5, 0.25, 0.75, 0.125])
def test_top_p_at_the_very_sum(top_p: float) -> None:
    """Equal probabilities whose sums are top-p to the last digit, or not."""
    for width in (2, 4, 8, 16, 64, 1024, 2048):
        same(torch.zeros(3, width), top_p, (128, 1024))
        same(torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(2, 4), top_p, (2,))


@pytest.mark.parametrize("width", [5000, 40_000])
def test_top_p_of_wide_rows(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 3.0, 6.0):
        same(torch.randn(6, width, generator=generator) * scale, 0.9, (128, 1024))
    same(torch.randn(6, width, generator=generator).bfloat16(), 0.9, (128, 1024))
    same(torch.randn(6, width, generator=generator).double() * 4, 0.9, (128, 1024))


def test_few_rows_are_sorted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_rows: list[int] = []
    whole = TopPLogitsWarper.__call__

    def counted(self: Any, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        sorted_rows.append(len(scores))
        return whole(self, ids, scores)

    monkeypatch.setattr(TopPLogitsWarper, "__call__", counted)
    logits = torch.randn(200, 5000, generator=torch.Generator().manual_seed(0)) * 4
    Decoder(top_p=0.9)(logits)
    Decoder(top_k=50, top_p=0.9)(logits)
    assert sum(sorted_rows) <= 4  # of 400


def test_draw_never_takes_what_is_impossible() -> None:
    """At the ends of the unit interval too, where sums in floating point would err."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, -40.0, -torch.inf])
    uniforms = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits.expand(3, 5), uniforms).tolist() == [1, 1, 1]
    wide = torch.zeros(1, 128_256)
    assert draw(wide, uniforms[2:]).tolist() == [128_255]
    assert draw(wide, uniforms[:1]).tolist() == [0]
    assert draw(wide, uniforms[1:2]).tolist() == [64_128]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"projection": "argmax"}, "softmax, sparsemax or entmax, got 'argmax'"),
        ({"logit_scale": 2.0}, "set the temperature"),
        ({"temperature": -1.0}, "Decoder: temperature must be"),
        ({"temperature": 1e-40}, "too small to calculate with"),  # logits over it are infinite
        ({"top_k": -1}, "Decoder: top_k must be"),
        ({"top_p": 0.0}, "Decoder: top_p must be"),
        ({"projection": "entmax", "alpha": 1.0}, "alpha"),
    ],
)
def test_bad_decoders(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Decoder(**settings)
