"""Suppression of what a reference finds implausible: autograd of the plain formula, extreme logits, what is kept."""

import math

import pytest
import torch
from torch import Tensor

from tests.gpu_way import as_on_a_gpu
from tests.losses.test_losses import EXTREME, tokens
from tests.reference import nucleus, support_mask, suppression
from ts2_lightning.losses import ReferenceAnchored, ReferenceSuppression, TS2Loss, suppression_outside, tail_suppression
from ts2_lightning.ops import LogitRows
from ts2_lightning.ops.sparse import entries_of
from ts2_lightning.types import UserError

SETS = {"support": {}, "top_p": {"top_p": 0.8}, "top_k": {"top_k": 4}}


@pytest.fixture(params=["cpu", "as on a gpu"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "cpu":
        as_on_a_gpu(monkeypatch)


def evaluate(z: Tensor, labels: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The term [n] of a set, given as a mask [n, K], and its dense gradient [n, K]."""
    term = suppression_outside(LogitRows(z, labels), entries_of(kept.scatter(-1, labels[:, None], True)))
    out = torch.empty_like(z)
    term.gradient.write_to(out)
    return term.value, out


def autograds(z: Tensor, labels: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    z = z.to(torch.float64, copy=True).requires_grad_()
    value = suppression(z, kept.scatter(-1, labels[:, None], True))
    (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def plain_set(name: str, reference: Tensor, labels: Tensor) -> Tensor:
    if name == "top_p":
        return nucleus(reference, 0.8)
    return support_mask(reference, labels, 4 if name == "top_k" else None)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", [(1, 2), (7, 600), (3, 1031)])
def test_the_set_is_the_references_and_the_gold_token(name: str, shape: tuple[int, int]) -> None:
    """And not the model's, which leads elsewhere."""
    n, k = shape
    (z, labels), reference = tokens(n, k, 2.0), tokens(n + 2, k, 3.0)[0][:n]
    loss = ReferenceSuppression(alpha=2, **SETS[name])
    result = loss.evaluate(LogitRows(z, labels, reference=reference))
    kept = plain_set(name, reference, labels)
    if k > 2:
        assert not torch.equal(kept, plain_set(name, z, labels))
    torch.testing.assert_close(result.parts["reference_suppression"], 2 * autograds(z, labels, kept)[0])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_value_and_gradient_are_autograds(spread: float) -> None:
    z, labels = tokens(9, 300, spread)
    kept = tokens(8, 300)[0].repeat(2, 1)[:9] > 1.5
    wanted, wanted_gradient = autograds(z, labels, kept)
    for offset in (0.0, 1e4):
        value, gradient = evaluate(z + offset, labels, kept)
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-12)
    value, gradient = evaluate(z.float(), labels, kept)
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("way")
def test_of_a_set_with_the_likeliest_token_it_is_tail_suppression() -> None:
    z, labels = tokens(6, 50)
    rows = LogitRows(z, labels)
    kept = rows.with_gold(rows.sparsemax.support)
    terms = suppression_outside(rows, kept), tail_suppression(rows, kept)
    dense = [torch.empty_like(z) for _ in terms]
    for term, out in zip(terms, dense, strict=True):
        term.gradient.write_to(out)
    torch.testing.assert_close(terms[0].value, terms[1].value)
    torch.testing.assert_close(*dense)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", EXTREME)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_extreme_logits(case: str, dtype: torch.dtype) -> None:
    """The gold token alone is kept, which may underflow: finite, and the gradient sums to zero."""
    logits, label = EXTREME[case]
    z, labels = torch.tensor([logits], dtype=dtype), torch.tensor([label])
    value, gradient = evaluate(z, labels, torch.zeros_like(z, dtype=torch.bool))
    wanted, wanted_gradient = autograds(z, labels, torch.zeros_like(z, dtype=torch.bool))
    torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted_gradient, rtol=1e-6, atol=1e-6)
    assert (value >= 0).all()


@pytest.mark.usefixtures("way")
def test_a_small_tail_keeps_its_digits() -> None:
    z = torch.tensor([[0.0, -1.0, -30.0]])
    value, gradient = evaluate(z, torch.tensor([0]), torch.tensor([[True, True, False]]))
    tail = math.exp(-30) / (1 + math.exp(-1) + math.exp(-30))
    assert 0 < tail < 1e-12
    assert value.item() == pytest.approx(tail, rel=1e-6)
    wanted = [-tail / (1 + math.exp(-1)), -tail / (1 + math.e), tail]
    assert gradient[0].tolist() == pytest.approx(wanted, rel=1e-6, abs=0)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", SETS)
def test_masked_vocabulary(name: str) -> None:
    """Masked in both it changes nothing; what the model alone masks has no probability, in the set or outside."""
    (z, labels), reference = tokens(5, 40, 2.0), tokens(6, 40, 3.0)[0][:5]
    columns = torch.arange(0, 1040, 26)
    masked, masked_reference = (torch.full((5, 1040), -torch.inf, dtype=z.dtype) for _ in range(2))
    masked[:, columns], masked_reference[:, columns] = z, reference
    loss = ReferenceSuppression(alpha=1, **SETS[name])

    def result(z: Tensor, labels: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        term = loss.evaluate(LogitRows(z, labels, reference=reference)).term
        out = torch.empty_like(z)
        term.gradient.write_to(out)
        return term.value, out

    value, gradient = result(masked, columns[labels], masked_reference)
    wanted, wanted_gradient = result(z, labels, reference)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(gradient[:, columns], wanted_gradient)
    likeliest = reference.argmax(-1)
    masked[torch.arange(5), columns[likeliest]] = torch.where(likeliest == labels, z[:, 0], -torch.inf)
    value, gradient = result(masked, columns[labels], masked_reference)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(5, dtype=z.dtype))


def test_once_the_reference_keeps_everything_nothing_is_added() -> None:
    z, labels = tokens(6, 30)
    result = ReferenceSuppression(top_k=30).evaluate(LogitRows(z, labels, reference=z.flip(1)))
    assert (result.parts["reference_suppression"] == 0).all()


def test_what_it_takes_from_the_wrapped_loss_and_refuses() -> None:
    assert ReferenceSuppression(TS2Loss(logit_scale=2.5)).logit_scale == 2.5
    assert ReferenceSuppression().needs_reference
    assert set(ReferenceAnchored(ReferenceSuppression(TS2Loss())).evaluate(
        LogitRows(torch.zeros(1, 3), torch.tensor([0]), reference=torch.zeros(1, 3))
    ).parts) == {"sparsemax", "tail_suppression", "reference_suppression", "reference_divergence"}  # fmt: skip
    with pytest.raises(
        UserError, match=r"^ReferenceSuppression: top_p and top_k are two sets .* top_p=0.9 and top_k=5"
    ):
        ReferenceSuppression(top_p=0.9, top_k=5)
    with pytest.raises(UserError, match=r"^ReferenceSuppression: loss has one already"):
        ReferenceSuppression(ReferenceSuppression())
