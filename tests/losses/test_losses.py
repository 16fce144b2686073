"""What the objectives promise beyond their formula: finiteness, early stopping, errors that teach."""

import pickle

import pytest
import torch
from entmax import sparsemax
from torch import Tensor

from tests.reference import OBJECTIVES, turn_positions
from tests.support.errors import refused
from ts2_lightning.losses import (
    CrossEntropyLoss,
    GEMLoss,
    Gradient,
    LambdaPRLoss,
    LossResult,
    TokenLoss,
    TS2Loss,
    ValueLoss,
)
from ts2_lightning.ops import LogitRows
from ts2_lightning.types import Targets


def evaluate(loss: TokenLoss, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Values [n] and dense gradient [n, K], of tokens in the turns of the reference."""
    term = loss.evaluate(LogitRows(z, Targets(labels, None, *turn_positions(len(labels))))).term
    out = torch.empty_like(z)
    term.gradient.write_to(out)
    return term.value, out


def tokens(n: int, k: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Random float64 logits [n, K] and labels [n]; the gold token leads in every third row."""
    generator = torch.Generator().manual_seed(n * k)
    z, labels = torch.randn(n, k, generator=generator).double() * spread, torch.randint(k, (n,), generator=generator)
    leading = torch.arange(n) % 3 == 0
    z[leading, labels[leading]] += 3
    return z, labels


EXTREME = {
    "gap_of_1e4": ([0.0, 1e4, -1e4, 5.0], 0),
    "gold_leads_by_1e4": ([1e4, 0.0, 0.0, 0.0], 0),
    "gold_is_last_by_1e4": ([0.0, -1.0, -1.5, -1e4], 3),
    "all_ties": ([2.0, 2.0, 2.0, 2.0], 3),
    "600_ties": ([-3.0] * 600, 599),
    "two_lead_by_1e4": ([1e4, 1e4, 0.0, -1e4], 1),
    "leads_by_exactly_1": ([1.0, 0.0, 0.0, 0.0], 0),
    "two_classes": ([0.3, -0.3], 1),
    "two_classes_far_apart": ([1e4, -1e4], 1),
    "two_classes_tie": ([-7.0, -7.0], 0),
    "gold_underflows": ([-200.0, 0.0, 0.0], 0),
    "gold_underflows_in_float64": ([-2000.0, 0.0, 1.0], 0),
    "gold_nearly_certain": ([40.0, 0.0, 0.0], 0),
}

FORMATS = {
    "float64": lambda z: z,
    "float32": lambda z: z.float(),
    "rounded_to_bfloat16": lambda z: z.bfloat16().float(),
}

# GEM's value is beta (CE at temperature beta - H(q)), below zero once the gold token leads (with h = log sigmoid
# the weights leave it there), and the entropy bonus is subtracted: these two have no lower bound of zero.
NEVER_NEGATIVE = [name for name in OBJECTIVES if not name.startswith(("gem", "entropy_bonus"))]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("case", EXTREME)
@pytest.mark.parametrize("form", FORMATS)
def test_extreme_logits(name: str, case: str, form: str) -> None:
    """Finite, as good as in float64, and every objective is invariant to a shift: its gradient sums to zero."""
    logits, label = EXTREME[case]
    z, labels = FORMATS[form](torch.tensor([logits], dtype=torch.float64)), torch.tensor([label])
    value, gradient = evaluate(OBJECTIVES[name][0], z, labels)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert gradient.sum().item() == pytest.approx(0, abs=1e-11 if form == "float64" else 1e-5)
    if name in NEVER_NEGATIVE:
        assert (value >= 0).all()
    exact, exact_gradient = evaluate(OBJECTIVES[name][0], z.double(), labels)
    torch.testing.assert_close(value.double(), exact, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_offset_costs_nothing(name: str) -> None:
    """Logits that all lie near 1e4, in float32: the maximum is taken away before anything else is done to them."""
    z, labels = tokens(20, 300)
    z = (z + 1e4).float()
    value, gradient = evaluate(OBJECTIVES[name][0], z, labels)
    exact, exact_gradient = evaluate(OBJECTIVES[name][0], z.double(), labels)
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-6, atol=1e-5)


def nearly_stopped() -> tuple[Tensor, Tensor]:
    """Gold tokens that lead by a hair less than the leads at which the objectives here stop: the values are tiny."""
    leads = torch.tensor([0.4, 1.0, 4 / 3, 1 / 0.7, 2.0, 4.0], dtype=torch.float64)
    leads = (leads[:, None] * (1 - torch.logspace(-6, -1, 40, dtype=torch.float64))).flatten()
    return torch.stack([leads, torch.zeros_like(leads), leads * 0 - 0.01], -1), torch.zeros(
        len(leads), dtype=torch.long
    )


@pytest.mark.parametrize("name", NEVER_NEGATIVE)
def test_is_never_negative(name: str) -> None:
    """Not even by rounding."""
    for z, labels in (nearly_stopped(), *(tokens(60, 37, spread) for spread in (0.01, 1.0, 20.0))):
        assert (evaluate(OBJECTIVES[name][0], z, labels)[0] >= 0).all()
        assert (evaluate(OBJECTIVES[name][0], z.float(), labels)[0] >= 0).all()


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in NEVER_NEGATIVE])
def test_can_be_negative(name: str) -> None:
    """Where the gold token leads by much: nothing to alarm about."""
    z = torch.zeros(1, 50, dtype=torch.float64)
    z[0, 7] = 16
    assert evaluate(OBJECTIVES[name][0], z, torch.tensor([7]))[0].item() < 0


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("k", [3, 40, 600])
def test_masked_vocabulary(name: str, k: int) -> None:
    """-inf logits, some of them alone and some hundreds in a row, change nothing and get no gradient."""
    z, labels = tokens(5, k)
    columns = torch.arange(k) * 2 + torch.arange(k).gt(k // 2) * 700
    masked = torch.full((5, 2 * k + 1000), -torch.inf, dtype=z.dtype)
    masked[:, columns] = z
    value, gradient = evaluate(OBJECTIVES[name][0], z, labels)
    value_masked, gradient_masked = evaluate(OBJECTIVES[name][0], masked, columns[labels])
    torch.testing.assert_close(value_masked, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_masked[:, columns], gradient, rtol=1e-12, atol=1e-12)
    gradient_masked[:, columns] = 0
    assert (gradient_masked == 0).all()


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


def test_suppression_lifts_the_plausible_in_proportion() -> None:
    """Its gradient inside the kept set is proportional to p."""
    z, labels = torch.tensor([[2.0, 1.5, 1.4, -1.0, -2.0]], dtype=torch.float64), torch.tensor([0])
    gradient = evaluate(TS2Loss(alpha=1), z, labels)[1] - evaluate(TS2Loss(alpha=0), z, labels)[1]
    ratio = gradient[0, :3] / z.softmax(-1)[0, :3]
    torch.testing.assert_close(ratio, ratio[:1].expand(3))
    assert (gradient[0, :3] < 0).all()
    assert (gradient[0, 3:] > 0).all()


# What a gradient holds constant a difference of values does not: GEM's q and weights, TOFU's G, lambda-PR's w, and the
# adaptive weight of suppression. (The support is constant near almost every z.)
DETACHED = ("gem", "tofu", "lambda_pr", "ts2_adaptive", "ts2_all", "entmax_plus_all", "sparsemax_plus")


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not name.startswith(DETACHED)])
def test_gradient_by_finite_differences(name: str) -> None:
    loss = OBJECTIVES[name][0]
    for z, label in zip(*tokens(6, 9), strict=True):
        _, gradient = evaluate(loss, z[None], label[None])
        step = 1e-6 * torch.eye(9, dtype=torch.float64)
        labels = label.expand(9)
        difference = (evaluate(loss, z + step, labels)[0] - evaluate(loss, z - step, labels)[0]) / 2e-6
        torch.testing.assert_close(gradient[0], difference, rtol=1e-6, atol=1e-6)


# The default lambda-PR has no weight at all on tokens as likely as these.
@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n.startswith(DETACHED) and n != "lambda_pr"])
def test_what_is_held_constant_is_no_part_of_the_gradient(name: str) -> None:
    """Of these objectives the gradient is not that of the value: were it so, something would not be held constant."""
    loss, (z, labels) = OBJECTIVES[name][0], tokens(60, 9)
    direction = 1e-6 * tokens(60, 9, spread=2.0)[0].roll(1, 0)
    gradient = (evaluate(loss, z, labels)[1] * direction).sum(-1)
    difference = (evaluate(loss, z + direction, labels)[0] - evaluate(loss, z - direction, labels)[0]) / 2
    assert (gradient - difference).abs().max() > 1e-8


def test_lambda_pr_teaches_what_is_rare_but_not_too_rare() -> None:
    """The paper's settings in a turn of 100 tokens: the limit is 4.2e-4, and below 1e-5 the weight falls with p."""
    p = torch.tensor([1e-9, 1e-5, 4e-4, 4.4e-4, 0.5], dtype=torch.float64)
    z, labels = torch.stack([p.log(), (1 - p).log()], -1), torch.zeros(5, dtype=torch.long)
    place = torch.full((5,), 51), torch.full((5,), 100)
    value = LambdaPRLoss().evaluate(LogitRows(z, Targets(labels, None, *place))).term.value
    weight = 0.1**0.5 * p / (1e-5 + (1 - 1e-5) * p) * torch.tensor([1, 1, 1, 0, 0])
    torch.testing.assert_close(value, -weight * p.log(), rtol=1e-9, atol=0)


def test_lambda_pr_falls_along_the_turn() -> None:
    """By lambda^(1/L) from token to token, from 1 at the first: position t counts from 1, and L is the turn's own."""
    z, labels = (
        torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(8, 2).contiguous(),
        torch.ones(8, dtype=torch.long),
    )
    place = torch.arange(1, 9), torch.full((8,), 8)
    value = LambdaPRLoss(lambda_=0.05, alpha=0.5).evaluate(LogitRows(z, Targets(labels, None, *place))).term.value
    p = z.softmax(-1)[:, 1]
    first = p / (0.5 + 0.5 * p) * -p.log()
    torch.testing.assert_close(value, first * 0.05 ** (torch.arange(8) / 8))


def test_lambda_pr_needs_positions() -> None:
    z, labels = tokens(3, 5)
    for place in ((None, None), (None, torch.ones(3)), (torch.ones(3), None)):
        with refused(r"positions.*lengths"):
            LambdaPRLoss().evaluate(LogitRows(z, Targets(labels, None, *place)))


@pytest.mark.parametrize("value", ["sigmoid", None])
def test_a_function_that_gem_does_not_have(value: object) -> None:
    """Numbers are tried in `tests/test_ranges.py`."""
    with refused(f"^GEMLoss: h must .*, got {value!r}"):
        GEMLoss(h=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pickles(name: str) -> None:
    loss = OBJECTIVES[name][0]
    again = pickle.loads(pickle.dumps(loss))
    z, labels = tokens(4, 20)
    assert again.logit_scale == loss.logit_scale
    assert all(torch.equal(a, b) for a, b in zip(evaluate(again, z, labels), evaluate(loss, z, labels), strict=True))


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


@pytest.mark.parametrize("alpha", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_the_tail_gets_alpha_times_the_gradient_of_cross_entropy(alpha: float, spread: float) -> None:
    """So alpha 1 is as hard on the tail as cross-entropy, token by token, and the head is lifted as much in all."""
    z, labels = tokens(12, 17, spread)
    head = sparsemax(z) > 0
    head[torch.arange(12), labels] = True
    assert (~head).any(1).all(), "no row without a tail"
    ours, likelihood = evaluate(TS2Loss(alpha=alpha), z, labels)[1], evaluate(CrossEntropyLoss(), z, labels)[1]
    torch.testing.assert_close(
        ours.masked_fill(head, 0), alpha * likelihood.masked_fill(head, 0), rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        ours.masked_fill(~head, 0).sum(1), alpha * likelihood.masked_fill(~head, 0).sum(1), rtol=1e-9, atol=1e-12
    )
