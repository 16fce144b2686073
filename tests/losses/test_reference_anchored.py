"""The anchor: its value and gradient by float64 autograd, at extreme logits, and what it comes to where it is known."""

import pickle

import pytest
import torch
from torch import Tensor

from tests.losses.test_losses import EXTREME, tokens
from tests.reference import ANCHORED, divergence
from ts2_lightning.losses import CrossEntropyLoss, ReferenceAnchored, TS2Loss, reference_divergence
from ts2_lightning.ops import LogitRows
from ts2_lightning.types import UserError


def evaluate(z: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The divergence [n] and its dense gradient [n, K]."""
    term = reference_divergence(LogitRows(z, torch.zeros(len(z), dtype=torch.long), reference=reference))
    out = torch.empty_like(z)
    term.gradient.write_to(out)
    return term.value, out


@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_value_and_gradient_are_autograds(spread: float) -> None:
    z, reference = tokens(7, 600, spread)[0].requires_grad_(), tokens(9, 600)[0][:7]
    wanted = divergence(reference, z)
    (wanted_gradient,) = torch.autograd.grad(wanted.sum(), z)
    for offset in (0.0, 1e4):
        value, gradient = evaluate(z.detach() + offset, reference - offset)
        torch.testing.assert_close(value, wanted.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-12)
    value, gradient = evaluate(z.detach().float(), reference.float())
    torch.testing.assert_close(value.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-5, atol=1e-6)


def test_equal_logits_cost_exactly_nothing_and_no_rounding_makes_it_negative() -> None:
    z = tokens(60, 500, 5.0)[0].float()
    value, gradient = evaluate(z, z.clone())
    assert (value == 0).all()
    assert gradient.abs().max() < torch.finfo(torch.float32).eps  # a fused product and sum is rounded once
    value, _ = evaluate(z, z + torch.randn(60, 500) * 1e-6)
    assert (value >= 0).all()


@pytest.mark.parametrize("case", EXTREME)
def test_extreme_logits(case: str) -> None:
    """On either side: finite, and the gradient sums to zero."""
    extreme = torch.tensor([EXTREME[case][0]])
    for z, reference in ((extreme, torch.zeros_like(extreme)), (torch.zeros_like(extreme), extreme)):
        value, gradient = evaluate(z, reference)
        assert torch.isfinite(value).all()
        assert gradient.sum().item() == pytest.approx(0, abs=1e-5)
        torch.testing.assert_close(value.double(), divergence(reference.double(), z.double()), rtol=1e-4, atol=1e-5)


def test_a_vocabulary_that_both_mask_changes_nothing() -> None:
    z, reference = tokens(5, 40)[0], tokens(6, 40)[0][:5]
    masked, masked_reference = (torch.full((5, 1040), -torch.inf, dtype=z.dtype) for _ in range(2))
    masked[:, ::26], masked_reference[:, ::26] = z, reference
    value, gradient = evaluate(masked, masked_reference)
    wanted, wanted_gradient = evaluate(z, reference)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(gradient[:, ::26], wanted_gradient)
    masked_reference[:, 26] = -torch.inf  # what the reference alone rules out gets its share of softmax(z) pushed down
    value, gradient = evaluate(masked, masked_reference)
    assert torch.isfinite(value).all()
    assert (gradient[:, 26] > 0).all()
    masked[:, 52] = -torch.inf  # what the model alone rules out
    assert (evaluate(masked, masked_reference)[0] > 1e300).all()


def test_beside_cross_entropy_it_is_smoothing_towards_the_reference() -> None:
    """CE + w KL(r || p) is (1 + w) times the cross-entropy to the labels (e_y + w r) / (1 + w), but for a constant."""
    z, labels = tokens(6, 30)
    reference, weight = tokens(7, 30)[0][:6], 0.7
    result = ReferenceAnchored(CrossEntropyLoss(), weight).evaluate(LogitRows(z, labels, reference=reference))
    gradient = torch.empty_like(z)
    result.term.gradient.write_to(gradient)
    soft = (torch.nn.functional.one_hot(labels, 30) + weight * reference.softmax(-1)) / (1 + weight)
    torch.testing.assert_close(gradient, (1 + weight) * (z.softmax(-1) - soft))


@pytest.mark.parametrize("name", ANCHORED)
def test_parts_sum_to_the_objective_and_the_loss_can_be_sent(name: str) -> None:
    loss = pickle.loads(pickle.dumps(ANCHORED[name][0]))
    z, labels = tokens(6, 30)
    result = loss.evaluate(LogitRows(z, labels, reference=z.flip(1)))
    assert "reference_divergence" in result.parts
    assert len(result.parts) >= 2
    torch.testing.assert_close(sum(result.parts.values()), result.term.value)


def test_what_it_takes_from_the_anchored_loss_and_refuses() -> None:
    assert ReferenceAnchored(TS2Loss(logit_scale=2.5)).logit_scale == 2.5
    assert ReferenceAnchored().needs_reference
    assert not TS2Loss().needs_reference
    with pytest.raises(UserError, match=r"^ReferenceAnchored: loss is anchored already"):
        ReferenceAnchored(ReferenceAnchored())
