"""What the objectives promise beyond their formula: finiteness, early stopping, errors that teach."""

import pickle

import pytest
import torch
from torch import Tensor

from tests.reference import OBJECTIVES, ts2
from ts2_lightning.losses import CrossEntropyLoss, Gradient, LossResult, TokenLoss, TS2Loss, ValueLoss
from ts2_lightning.ops import LogitRows
from ts2_lightning.types import UserError


def evaluate(loss: TokenLoss, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Values [n] and dense gradient [n, K]."""
    term = loss.evaluate(LogitRows(z, labels)).term
    out = torch.empty_like(z)
    term.gradient.write_to(out)
    return term.value, out


EXTREME = {
    "gap_of_1e4": ([[0.0, 1e4, -1e4, 5.0]], [0]),
    "gold_leads_by_1e4": ([[1e4, 0.0, 0.0, 0.0]], [0]),
    "all_ties": ([[2.0, 2.0, 2.0, 2.0]], [3]),
    "two_classes": ([[0.3, -0.3]], [1]),
    "gold_underflows": ([[-200.0, 0.0, 0.0]], [0]),
}


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "value_only"])
@pytest.mark.parametrize("case", EXTREME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_and_gradient_sums_to_zero(name: str, case: str, dtype: torch.dtype) -> None:
    """Every objective here is invariant to a shift of the logits, so its gradient sums to zero."""
    z, labels = torch.tensor(EXTREME[case][0], dtype=dtype), torch.tensor(EXTREME[case][1])
    value, gradient = evaluate(OBJECTIVES[name][0], z, labels)
    assert torch.isfinite(value).all()
    assert (value >= 0).all()
    assert torch.isfinite(gradient).all()
    assert gradient.sum().item() == pytest.approx(0, abs=1e-5)


def test_masked_vocabulary() -> None:
    """-inf logits get no gradient and change nothing."""
    z, labels = torch.randn(5, 40, dtype=torch.float64), torch.arange(5)
    masked = torch.cat([z, torch.full((5, 7), -torch.inf, dtype=z.dtype)], -1)
    for loss in (CrossEntropyLoss(), TS2Loss(), TS2Loss(top_k=5)):
        value, gradient = evaluate(loss, z, labels)
        value_masked, gradient_masked = evaluate(loss, masked, labels)
        torch.testing.assert_close(value, value_masked)
        torch.testing.assert_close(gradient, gradient_masked[:, :40])
        assert gradient_masked[:, 40:].abs().sum() == 0


@pytest.mark.parametrize("logit_scale", [1.0, 2.0])
def test_sparsemax_part_stops_at_a_lead_of_one_over_c(logit_scale: float) -> None:
    lead = 1 / logit_scale
    for gap, stopped in ((lead * 1.001, True), (lead * 0.999, False)):
        z = torch.tensor([[gap, 0.0, -1.0]], dtype=torch.float64)
        value, gradient = evaluate(TS2Loss(alpha=0, logit_scale=logit_scale), z, torch.tensor([0]))
        assert (value.item() == 0) is stopped
        assert (gradient.abs().sum().item() == 0) is stopped


def test_once_stopped_it_is_alpha_times_cross_entropy() -> None:
    """Where the support is the gold token alone, for value and gradient."""
    z, labels = torch.randn(6, 50, dtype=torch.float64) * 0.3, torch.arange(6)
    z[torch.arange(6), labels] = 4
    value, gradient = evaluate(TS2Loss(alpha=0.25), z, labels)
    value_ce, gradient_ce = evaluate(CrossEntropyLoss(), z, labels)
    torch.testing.assert_close(value, 0.25 * value_ce)
    torch.testing.assert_close(gradient, 0.25 * gradient_ce)


def test_adaptive_variant_stops_altogether() -> None:
    z = torch.tensor([[3.0, 0.0, -1.0]])
    value, gradient = evaluate(TS2Loss(alpha=0.5, adaptive=True), z, torch.tensor([0]))
    assert value.item() == 0
    assert gradient.abs().sum().item() == 0


def test_capped_tail_has_no_gradient() -> None:
    """At random initialisation nearly all mass is tail: the cap silences the suppression, as it does in public code."""
    z, labels = torch.randn(4, 5000) * 0.02, torch.arange(4)
    z[:, 100] = 2.0  # a support of one token, and 99.9% of the mass outside
    suppressed = evaluate(TS2Loss(alpha=1), z, labels)[1] - evaluate(TS2Loss(alpha=0), z, labels)[1]
    capped = evaluate(TS2Loss(alpha=1, tail_mass_cap=0.99), z, labels)[1] - evaluate(TS2Loss(alpha=0), z, labels)[1]
    assert suppressed.abs().sum() > 0.1
    assert capped.abs().sum() < 1e-5


def test_suppression_keeps_the_ratios_of_the_plausible() -> None:
    """Its gradient inside the kept set is proportional to p: a step leaves their log ratios alone to first order."""
    z, labels = torch.tensor([[2.0, 1.5, 1.4, -1.0, -2.0]], dtype=torch.float64), torch.tensor([0])
    gradient = evaluate(TS2Loss(alpha=1), z, labels)[1] - evaluate(TS2Loss(alpha=0), z, labels)[1]
    ratio = gradient[0, :3] / z.softmax(-1)[0, :3]
    torch.testing.assert_close(ratio, ratio[:1].expand(3))
    assert (gradient[0, :3] < 0).all()
    assert (gradient[0, 3:] > 0).all()


# An adaptive weight is held constant by the gradient, but not by a difference of values.
@pytest.mark.parametrize("name", ["cross_entropy", "ts2", "ts2_strong", "ts2_scaled", "ts2_top_k", "ts2_capped"])
def test_gradient_by_finite_differences(name: str) -> None:
    loss = OBJECTIVES[name][0]
    z, labels = torch.randn(1, 9, dtype=torch.float64), torch.tensor([2])
    _, gradient = evaluate(loss, z, labels)
    step = 1e-6 * torch.eye(9, dtype=torch.float64)
    labels = labels.expand(9)
    difference = (evaluate(loss, z + step, labels)[0] - evaluate(loss, z - step, labels)[0]) / 2e-6
    torch.testing.assert_close(gradient[0], difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"alpha": -0.1}, "alpha must be at least 0, got -0.1"),
        ({"logit_scale": 0.0}, "logit_scale must be above 0, got 0.0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"tail_mass_cap": 1.0}, "tail_mass_cap must lie between 0 and 1"),
    ],
)
def test_hyper_parameters_are_checked(arguments: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        TS2Loss(**arguments)


def test_pickles() -> None:
    loss = pickle.loads(pickle.dumps(TS2Loss(alpha=0.7, top_k=4)))
    z, labels = torch.randn(3, 20, dtype=torch.float64), torch.arange(3)
    torch.testing.assert_close(evaluate(loss, z, labels)[0], ts2(0.7, top_k=4)(z, labels))


class Mean(ValueLoss):
    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits, labels)


class Detached(ValueLoss):
    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.detach().sum(-1)


class InPlace(ValueLoss):
    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        return logits.mul_(2).logsumexp(-1)


def test_value_losses_are_checked() -> None:
    z, labels = torch.randn(3, 20), torch.arange(3)
    with pytest.raises(ValueError, match=r"one loss per token, shape \[3\], but returned \[\]"):
        evaluate(Mean(), z, labels)
    with pytest.raises(ValueError, match="does not depend on the logits"):
        evaluate(Detached(), z, labels)


def test_value_loss_may_work_in_place() -> None:
    z, labels = torch.randn(3, 20), torch.arange(3)
    before = z.clone()
    value, gradient = evaluate(InPlace(), z.clone(), labels)
    torch.testing.assert_close(value, (before * 2).logsumexp(-1))
    torch.testing.assert_close(gradient, 2 * (before * 2).softmax(-1))
    rows = LogitRows(z, labels)
    InPlace().evaluate(rows)
    assert torch.equal(rows.logits, before)


def test_gradient_without_parts_is_zero() -> None:
    out = torch.randn(2, 3)
    Gradient().write_to(out)
    assert out.abs().sum() == 0


def test_result_has_parts_that_sum_to_the_objective() -> None:
    result: LossResult = TS2Loss(alpha=2).evaluate(LogitRows(torch.randn(5, 30), torch.arange(5)))
    torch.testing.assert_close(sum(result.parts.values()), result.term.value)
