"""A loss called with logits and labels: the numbers of autograd through its plain formula, whatever the shapes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference import ANCHORED, OBJECTIVES, TURNS, reference_output, turn_positions
from tests.support.errors import refused
from ts2_lightning.losses import CrossEntropyLoss, ReferenceAnchored, TokenLoss, TS2Loss
from ts2_lightning.ops import supervised_tokens
from ts2_lightning.types import TOKEN_STATISTICS

ALL = OBJECTIVES | ANCHORED
K = 37
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 3e-2}


def turns(rows: int, seed: int = 0) -> Tensor:
    """Labels [rows, T] in whole turns of the reference, one prompt token before each; -100 elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    row = [place for length in TURNS for place in [-100, *range(length)]]
    labels = torch.tensor([row] * rows)
    return torch.where(labels < 0, labels, torch.randint(K, labels.shape, generator=generator))


def logits_of(labels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Some flat, some with a clear favourite."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(*labels.shape, K, generator=generator, dtype=torch.float64)
    return (logits * torch.linspace(0.1, 4, labels.shape[-1], dtype=torch.float64)[:, None]).to(dtype).requires_grad_()


def reference_of(loss: TokenLoss, labels: Tensor, like: Tensor) -> dict[str, Tensor]:
    """Logits of the reference of a loss that needs one: those of the tokens that the formula counts."""
    if not loss.needs_reference:
        return {}
    supervised = (labels != -100).reshape(-1)
    reference = reference_output(int(supervised.sum()), K)
    logits = torch.zeros(supervised.numel(), K, dtype=torch.float64)
    logits[supervised] = reference.head(reference.hidden_states)
    return {"reference_logits": logits.view(*labels.shape, K).to(like.dtype)}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("objective", ALL)
def test_value_and_gradient(objective: str, dtype: torch.dtype) -> None:
    loss, formula = ALL[objective]
    labels = turns(3)
    logits = logits_of(labels, dtype)
    supervised = labels != -100
    plain = logits.detach().double().requires_grad_()
    wanted = formula(plain[supervised], labels[supervised]).mean()
    wanted.backward()
    value = loss(logits, labels, **reference_of(loss, labels, logits))
    (value * 3).backward()
    scale = 3 * plain.grad.abs().max().clamp(min=1 / len(labels))
    assert abs(value.item() - wanted.item()) <= TOLERANCE[dtype] * max(1, abs(wanted.item()))
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), 3 * plain.grad, rtol=0, atol=(TOLERANCE[dtype] * scale).item())
    assert not logits.grad[~supervised].any()


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 4), (0,), (0, 3)], ids=str)
def test_any_shape(shape: tuple[int, ...]) -> None:
    labels = torch.arange(int(torch.tensor(shape).prod())).view(shape) % K
    logits = torch.randn(*shape, K, dtype=torch.float64, requires_grad=True)
    total = CrossEntropyLoss()(logits, labels, reduction="sum")
    wanted = torch.nn.functional.cross_entropy(logits.view(-1, K), labels.view(-1), reduction="sum")
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (total, wanted)))


def test_shifted_labels_are_those_of_transformers() -> None:
    labels = turns(2)
    logits = logits_of(labels)
    shifted = CrossEntropyLoss()(logits, labels, shift=True)
    from transformers.loss.loss_utils import ForCausalLMLoss

    torch.testing.assert_close(shifted.float(), ForCausalLMLoss(logits, labels, K))
    torch.testing.assert_close(shifted, CrossEntropyLoss()(logits[:, :-1], labels[:, 1:]))
    assert (shifted - CrossEntropyLoss()(logits, labels)).abs() > 0.1


def test_the_sum_is_the_mean_times_the_supervised_tokens() -> None:
    labels = turns(2)
    logits = logits_of(labels)
    mean, total = (TS2Loss()(logits, labels, reduction=reduction) for reduction in ("mean", "sum"))
    torch.testing.assert_close(total, mean * (labels != -100).sum())


def test_statistics_on_request() -> None:
    labels, loss = turns(2), TS2Loss()
    logits = logits_of(labels)
    value, measured = loss(logits, labels, statistics=TOKEN_STATISTICS)
    rows = logits[labels != -100]
    assert measured.keys() > {*TOKEN_STATISTICS, "objective"}
    assert all(values.shape == (len(rows),) and not values.requires_grad for values in measured.values())
    torch.testing.assert_close(measured["objective"].mean(), value)
    torch.testing.assert_close(measured["entropy"], torch.distributions.Categorical(logits=rows).entropy().detach())
    few = loss(logits, labels, statistics=["support_size"])[1]
    assert "entropy" not in few
    with pytest.raises(ValueError, match="unknown statistics: entropie"):
        loss(logits, labels, statistics=["entropie"])


def test_no_supervised_token_is_a_zero_that_is_connected() -> None:
    logits = torch.randn(2, 3, K, requires_grad=True)
    value = TS2Loss()(logits, torch.full((2, 3), -100))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()


def test_without_a_gradient() -> None:
    labels = turns(1)
    logits = logits_of(labels)
    with torch.no_grad():
        assert not TS2Loss()(logits, labels).requires_grad
    assert not TS2Loss()(logits.detach(), labels).requires_grad


def test_in_autocast_bfloat16_products_do_not_reach_the_loss() -> None:
    labels = turns(1)
    logits = logits_of(labels, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = TS2Loss()(logits, labels)
    assert inside.dtype == torch.float32
    assert inside.item() == TS2Loss()(logits, labels).item()


@pytest.mark.parametrize("shift", [False, True])
def test_positions_are_those_in_runs_of_supervised_labels(shift: bool) -> None:
    labels = turns(2)
    _, targets = supervised_tokens(labels, shift=shift)
    positions, lengths = turn_positions(sum(TURNS))
    assert targets.positions.tolist() == positions.tolist() * 2  # each row begins anew
    assert targets.lengths.tolist() == lengths.tolist() * 2
    whole = supervised_tokens(torch.ones(2, 4, dtype=torch.int32)).targets
    assert whole.positions.tolist() == [1, 2, 3, 4, 1, 2, 3, 4]
    assert whole.lengths.tolist() == [4] * 8
    assert whole.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": torch.zeros(2, 3, K, dtype=torch.long)}, r"logits: expected floats of shape \[\.\.\., K\], got"),
        ({"logits": [[0.0]]}, "logits: expected floats .* got list"),
        ({"labels": torch.zeros(3, 2, dtype=torch.long)}, r"labels: expected integers of shape \[2, 3\]"),
        ({"labels": torch.zeros(2, 3)}, "labels: expected integers .* got torch.float32"),
        ({"labels": torch.full((2, 3), K)}, f"labels: expected 0 to {K - 1}, or -100 .*, got {K}"),
        ({"labels": torch.full((2, 3), -1)}, "labels: expected 0 to .* got -1"),
        ({"reduction": "none"}, "reduction: expected mean or sum, got 'none'"),
        ({"reference_logits": torch.zeros(2, 3, K)}, "reference_logits: TS2Loss reads no reference, got a tensor"),
        ({"loss": ReferenceAnchored()}, "reference_logits: ReferenceAnchored needs a reference, got none"),
        (
            {"loss": ReferenceAnchored(), "reference_logits": torch.zeros(6, K)},
            rf"reference_logits: expected the shape of the logits, \[2, 3, {K}\], got \[6, {K}\]",
        ),
        ({"logits": torch.zeros(K), "labels": torch.tensor(0), "shift": True}, "shift: a single label has no next one"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], message: str) -> None:
    settings = {"logits": torch.zeros(2, 3, K), "labels": torch.zeros(2, 3, dtype=torch.long), **changed}
    loss = settings.pop("loss", TS2Loss())
    with refused(message):
        loss(settings.pop("logits"), settings.pop("labels"), **settings)
