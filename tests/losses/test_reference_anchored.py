"""The anchor: its value and gradient by float64 autograd, at extreme logits, and what it comes to where it is known."""

import pickle

import pytest
import torch
from torch import Tensor

from tests.losses.test_losses import EXTREME, tokens
from tests.reference import ANCHORED, Formula, divergence, reverse_divergence
from ts2_lightning.losses import CrossEntropyLoss, ReferenceAnchored, TS2Loss, reference_divergence
from ts2_lightning.losses.reference_anchored import Direction
from ts2_lightning.ops import LogitRows
from ts2_lightning.types import UserError

FORMULAS: dict[Direction, Formula] = {"forward": divergence, "reverse": reverse_divergence}
DIRECTIONS = pytest.mark.parametrize("direction", FORMULAS)


def evaluate(z: Tensor, reference: Tensor, direction: Direction = "forward") -> tuple[Tensor, Tensor]:
    """The divergence [n] and its dense gradient [n, K]."""
    rows = LogitRows(z, torch.zeros(len(z), dtype=torch.long), reference=reference)
    term = reference_divergence(rows, direction)
    out = torch.empty_like(z)
    term.gradient.write_to(out)
    return term.value, out


def autograds(z: Tensor, reference: Tensor, direction: Direction) -> tuple[Tensor, Tensor]:
    """The same by autograd of the plain formula, in float64."""
    z = z.to(torch.float64, copy=True).requires_grad_()
    value = FORMULAS[direction](reference.double(), z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


@DIRECTIONS
@pytest.mark.parametrize("shape", [(1, 2), (7, 600), (3, 1031)])
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_value_and_gradient_are_autograds(direction: Direction, spread: float, shape: tuple[int, int]) -> None:
    n, k = shape
    z, reference = tokens(n, k, spread)[0], tokens(n + 2, k)[0][:n]
    wanted, wanted_gradient = autograds(z, reference, direction)
    for offset in (0.0, 1e4):
        value, gradient = evaluate(z + offset, reference - offset, direction)
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-12)
    value, gradient = evaluate(z.float(), reference.float(), direction)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-5, atol=1e-5)


@DIRECTIONS
@pytest.mark.parametrize("distance", [1e-1, 1e-2, 1e-3])
def test_close_distributions_keep_their_digits(direction: Direction, distance: float) -> None:
    """In float32: the divergence is of the size of the distance squared, and sums of its size would cancel."""
    z = tokens(50, 500)[0].float()
    reference = z + distance * tokens(51, 500)[0][:50].float()
    exact = evaluate(z.double(), reference.double(), direction)
    value, gradient = evaluate(z, reference, direction)
    torch.testing.assert_close(value.double(), exact[0], rtol=3e-8 / distance + 1e-6, atol=0)
    # Forward it is the difference of two softmaxes, each with its own rounding; reverse each entry is small by itself.
    rounding = 1e-6 if direction == "forward" else 1e-6 * distance
    assert (gradient - exact[1]).abs().max() < rounding
    assert gradient.sum(-1).abs().max() < rounding


@DIRECTIONS
def test_equal_logits_cost_exactly_nothing_and_no_rounding_makes_it_negative(direction: Direction) -> None:
    z = tokens(60, 500, 5.0)[0].float()
    value, gradient = evaluate(z, z.clone(), direction)
    assert (value == 0).all()
    assert gradient.abs().max() < torch.finfo(torch.float32).eps  # a fused product and sum is rounded once
    value, _ = evaluate(z, z + torch.randn(60, 500) * 1e-6, direction)
    assert (value >= 0).all()


@DIRECTIONS
@pytest.mark.parametrize("case", EXTREME)
def test_extreme_logits(direction: Direction, case: str) -> None:
    """On either side: finite, and the gradient sums to zero."""
    extreme = torch.tensor([EXTREME[case][0]])
    for z, reference in ((extreme, torch.zeros_like(extreme)), (torch.zeros_like(extreme), extreme)):
        value, gradient = evaluate(z, reference, direction)
        assert torch.isfinite(value).all()
        wanted, wanted_gradient = autograds(z, reference, direction)
        scale = max(1.0, gradient.abs().max().item())
        assert gradient.sum().item() == pytest.approx(0, abs=1e-5 * scale)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-4, atol=1e-5)


def masked_in_both() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of 40 tokens of a model and of its reference; and the same among 1,000 tokens that both mask."""
    z, reference = tokens(5, 40)[0], tokens(6, 40)[0][:5]
    masked, masked_reference = (torch.full((5, 1040), -torch.inf, dtype=z.dtype) for _ in range(2))
    masked[:, ::26], masked_reference[:, ::26] = z, reference
    return z, reference, masked, masked_reference


@DIRECTIONS
def test_a_vocabulary_that_both_mask_changes_nothing(direction: Direction) -> None:
    z, reference, masked, masked_reference = masked_in_both()
    value, gradient = evaluate(masked, masked_reference, direction)
    wanted, wanted_gradient = evaluate(z, reference, direction)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(gradient[:, ::26], wanted_gradient)
    gradient[:, ::26] = 0
    assert (gradient == 0).all()


def test_what_the_reference_alone_masks() -> None:
    """Forward it costs the model its probability there, of which it is relieved; reverse it cannot be paid for."""
    _, _, masked, masked_reference = masked_in_both()
    masked_reference[:, 26] = -torch.inf
    value, gradient = evaluate(masked, masked_reference)
    assert torch.isfinite(value).all()
    torch.testing.assert_close(gradient[:, 26], masked.softmax(-1)[:, 26])
    assert (evaluate(masked, masked_reference, "reverse")[0] > 1e300).all()


def test_what_the_model_alone_masks() -> None:
    """Forward it cannot be paid for; reverse it is as if there were no such token, but for the reference's share."""
    _, _, masked, masked_reference = masked_in_both()
    masked[:, 52] = -torch.inf
    assert (evaluate(masked, masked_reference)[0] > 1e300).all()
    value, gradient = evaluate(masked, masked_reference, "reverse")
    left = [column for column in range(0, 1040, 26) if column != 52]
    wanted, wanted_gradient = evaluate(masked[:, left], masked_reference[:, left], "reverse")
    lost = -torch.log1p(-masked_reference.softmax(-1)[:, 52])
    torch.testing.assert_close(value, wanted + lost)
    torch.testing.assert_close(gradient[:, left], wanted_gradient)
    assert (gradient[:, 52] == 0).all()


def test_which_direction_lets_a_mode_go_and_which_presses_on_the_tail() -> None:
    """The reference has two modes and a tail that it nearly rules out."""
    reference = torch.tensor([[0.499, 0.499, 0.002]], dtype=torch.float64).log()
    one_mode = torch.tensor([[0.997, 0.001, 0.002]], dtype=torch.float64).log()
    tail = torch.tensor([[0.4, 0.4, 0.2]], dtype=torch.float64).log()
    forward, reverse = (evaluate(torch.cat([one_mode, tail]), reference.expand(2, 3), d)[0] for d in FORMULAS)
    assert forward[0] > 3 * reverse[0]
    assert reverse[1] > 2 * forward[1]


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
    added = "reference_divergence" if isinstance(loss, ReferenceAnchored) else "reference_suppression"
    assert added in result.parts
    assert len(result.parts) >= 2
    torch.testing.assert_close(sum(result.parts.values()), result.term.value)


def test_what_it_takes_from_the_anchored_loss_and_refuses() -> None:
    assert ReferenceAnchored(TS2Loss(logit_scale=2.5)).logit_scale == 2.5
    assert ReferenceAnchored().needs_reference
    assert not TS2Loss().needs_reference
    with pytest.raises(UserError, match=r"^ReferenceAnchored: loss is anchored already"):
        ReferenceAnchored(ReferenceAnchored())
    with pytest.raises(UserError, match=r"^ReferenceAnchored: direction must be forward or reverse, got 'backward'"):
        ReferenceAnchored(direction="backward")  # type: ignore[arg-type]
