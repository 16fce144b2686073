"""The kernels' twin against what is known otherwise: other packages' projections, and autograd of losses' formulas."""

from collections.abc import Callable

import entmax
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.kernels import twin
from tests.kernels.cases import KINDS, REQUESTS, rows_of
from ts2_lightning.ops.summary import FIELDS, SummaryRequest

Formula = Callable[[Tensor, Tensor], Tensor]
"""Values [n] of a loss, from logits and labels."""


def fields_of(logits: Tensor, labels: Tensor, request: SummaryRequest) -> dict[str, Tensor]:
    return dict(zip(FIELDS, twin.summarize(logits, labels, request), strict=True))


def projection(logits: Tensor, alpha: float) -> Tensor:
    shifted = logits - logits.amax(-1, keepdim=True)
    return entmax.sparsemax(shifted, -1) if alpha == 2 else entmax.entmax15(shifted, -1)


@pytest.mark.parametrize("name", [name for name, request in REQUESTS.items() if request.support_scale])
@pytest.mark.parametrize("kind", KINDS)
def test_support(kind: str, name: str) -> None:
    request = REQUESTS[name]
    assert request.support_scale is not None
    logits, labels = rows_of(kind, 4, 300)
    logits = logits.double()
    p = projection(request.support_scale * logits, request.alpha)
    fields = fields_of(logits, labels, request)
    shifted = (logits - logits.amax(-1, keepdim=True)).clamp(min=-1e300)
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(fields["size"], (p > 0).sum(-1).double())
    torch.testing.assert_close(fields["powers"], p.pow(request.alpha).sum(-1), **close)
    torch.testing.assert_close(fields["expected"], request.support_scale * (p * shifted).sum(-1), **close)
    torch.testing.assert_close(fields["gold_in_support"], (p.gather(-1, labels[:, None])[:, 0] > 0).double())
    scaled = (request.alpha - 1) * request.support_scale * shifted - fields["threshold"][:, None]
    torch.testing.assert_close(scaled.clamp(min=0).pow(1 / (request.alpha - 1)), p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_softmax_and_order(kind: str) -> None:
    request = REQUESTS["two_scales"]
    logits, labels = rows_of(kind, 4, 300)
    logits, fields = logits.double(), fields_of(logits.double(), labels, request)
    finite, gold = logits.isfinite(), logits.gather(-1, labels[:, None])
    close = {"rtol": 1e-10, "atol": 1e-12}
    for scale, prefix in ((1.0, ""), (request.softmax_scale, "scaled_")):
        scaled = scale * (logits - logits.amax(-1, keepdim=True))
        p = scaled.softmax(-1)
        normalizer = fields[f"{prefix}normalizer"]
        torch.testing.assert_close(normalizer.log(), scaled.logsumexp(-1), **close)
        expected = (p * scaled.where(finite, 0)).sum(-1)
        torch.testing.assert_close(fields[f"{prefix}weighted"] / normalizer, expected, **close)
        torch.testing.assert_close(fields[f"{prefix}tail"] + fields[f"{prefix}kept"], normalizer, **close)
        kept = (projection(logits, 2) > 0).scatter(-1, labels[:, None], True)
        torch.testing.assert_close(fields[f"{prefix}tail"] / normalizer, (p * ~kept).sum(-1), **close)
    torch.testing.assert_close(fields["above"], (logits > gold).sum(-1).double())
    ordered = logits.sort(-1, descending=True).values
    torch.testing.assert_close(fields["maximum"], ordered[:, 0], rtol=0, atol=0)
    torch.testing.assert_close(fields["second"], ordered[:, 1] - ordered[:, 0])
    torch.testing.assert_close(fields["third"], ordered[:, 2] - ordered[:, 0])
    torch.testing.assert_close(fields["unmasked"], finite.sum(-1).double())
    torch.testing.assert_close(fields["total"], (logits - ordered[:, :1]).where(finite, 0).sum(-1), **close)


def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def with_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    p, log_p = logits.softmax(-1), logits.log_softmax(-1)
    return F.nll_loss(log_p, labels, reduction="none") + 0.3 * (p * log_p).sum(-1)


def fenchel_young(alpha: float) -> Formula:
    loss = entmax.SparsemaxLoss if alpha == 2 else entmax.Entmax15Loss
    return loss(reduction="none")


def suppressed(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the softmax mass of sparsemax's support and y, at a scale of 1.3."""
    kept = (projection(logits.detach(), 2) > 0).scatter(-1, labels[:, None], True)
    return (1.3 * logits).logsumexp(-1) - (1.3 * logits).masked_fill(~kept, -torch.inf).logsumexp(-1)


Coefficients = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def of_smoothing(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    share = 1 / fields["normalizer"]
    return {"outside": share, "inside": share, "uniform": -0.1 / fields["unmasked"], "gold": 0.9 + 0 * share}


def of_entropy(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    share = 1 / fields["normalizer"]
    expected = share * (1 - 0.3 * fields["weighted"] / fields["normalizer"])
    return {"outside": expected, "inside": expected, "slope": 0.3 * share, "gold": 1 + 0 * share}


def of_projection(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    one = torch.ones_like(fields["normalizer"])
    return {"outside": 0 * one, "inside": 0 * one, "sparse": one, "gold": one}


def of_suppression(fields: dict[str, Tensor]) -> dict[str, Tensor]:
    outside = 1.3 / fields["scaled_normalizer"]
    return {"outside": outside, "inside": -outside * fields["scaled_tail"] / fields["scaled_kept"]}


@pytest.mark.parametrize(
    ("formula", "wanted", "coefficients"),
    [
        (smoothed, SummaryRequest(uniform=True), of_smoothing),
        (with_entropy, SummaryRequest(), of_entropy),
        (fenchel_young(2), SummaryRequest(support_scale=1.0), of_projection),
        (fenchel_young(1.5), SummaryRequest(support_scale=1.0, alpha=1.5), of_projection),
        (suppressed, SummaryRequest(1.3, 1.0), of_suppression),
    ],
    ids=["smoothed", "with_entropy", "sparsemax", "entmax", "suppressed"],
)
def test_gradients_of_losses(formula: Formula, wanted: SummaryRequest, coefficients: Coefficients) -> None:
    logits, labels = rows_of("randn", 4, 300)
    logits = logits.double().requires_grad_()
    formula(logits, labels).sum().backward()
    fields = twin.summarize(logits.detach(), labels, wanted)
    nonzero = coefficients(dict(zip(FIELDS, fields, strict=True)))
    names = ("outside", "inside", "slope", "sparse", "gold", "uniform")
    vectors = torch.stack([nonzero.get(name, torch.zeros_like(fields[0])) for name in names])
    out = torch.empty_like(logits, requires_grad=False)
    support = wanted.support_scale is not None
    twin.write_gradient(
        logits.detach(), labels, fields, vectors, wanted, out, support, "slope" in nonzero, wanted.uniform
    )
    torch.testing.assert_close(out, logits.grad, rtol=1e-10, atol=1e-14)
