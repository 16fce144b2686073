"""Every objective on every engine: the numbers of float64 autograd through the plain formula."""

import copy
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import cast

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from tests.reference import ANCHORED, OBJECTIVES, Formula, divergence, reference_output, support_mask, turn_positions
from tests.support.errors import refused
from ts2_lightning.engines import ChunkedEngine, FullEngine, LossEngine, LossHead
from ts2_lightning.losses import (
    DensePart,
    Gradient,
    LossResult,
    ReferenceAnchored,
    Term,
    TokenLoss,
    TS2Loss,
    ValueLoss,
    cross_entropy,
    reference_divergence,
)
from ts2_lightning.modules.head import ScaledHead
from ts2_lightning.ops import LogitRows
from ts2_lightning.ops.rows import ELEMENTS_PER_BLOCK
from ts2_lightning.planning.counting import LiveBytes
from ts2_lightning.types import TOKEN_STATISTICS, LossOutput, ReferenceOutput, Targets

ALL = OBJECTIVES | ANCHORED
ENGINES = {
    "full": FullEngine(),
    "chunked": ChunkedEngine(),
    "chunks_of_1": ChunkedEngine(1),
    "chunks_of_7": ChunkedEngine(7),
}
SHAPES = [(1, 3, 2), (5, 4, 7), (20, 8, 256), (13, 6, 300), (23, 5, 1031)]
FEW_TOKENS = [(1, 3, 2), (5, 4, 7), (13, 6, 300)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 3e-2}


def problem(n: int, h: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head weight, labels, token weights; some rows peaked at the gold token, some flat."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(k, h, generator=generator, dtype=torch.float64)
    labels = torch.randint(k, (n,), generator=generator)
    sharpness = torch.tensor([0.0, 0.3, 1.0, 4.0], dtype=torch.float64)[torch.arange(n) % 4]
    hidden = torch.randn(n, h, generator=generator, dtype=torch.float64) * 0.3 + sharpness[:, None] * weight[labels] / h
    return hidden, weight, labels, torch.rand(n, generator=generator).double() * 2


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        if bias is not None:
            head.bias.copy_(bias)
    return head


def expected(formula: Formula, head: nn.Module, hidden: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
    """Total, then gradients of hidden states and of the head's trained parameters, by plain autograd."""
    hidden = hidden.clone().requires_grad_()
    trained = [p for p in head.parameters() if p.requires_grad]
    total = (formula(head(hidden), labels) * weights).sum()
    return [total.detach(), *torch.autograd.grad(total, [hidden, *trained])]


@cache
def wanted_of(objective: str, shape: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """The numbers of a problem whose inputs were rounded to a dtype, computed in float64 from there."""
    hidden, weight, labels, weights = problem(*shape)
    hidden, weight = hidden.to(dtype).double(), weight.to(dtype).double()
    return expected(ALL[objective][1], linear(weight), hidden, labels, weights)


def run(
    engine: LossEngine,
    loss: TokenLoss,
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    statistics: Collection[str] = TOKEN_STATISTICS,
) -> LossOutput:
    """The engine on tokens in the turns of the reference."""
    positions, lengths = turn_positions(len(labels))
    reference = None
    if loss.needs_reference:
        reference = reference_output(len(labels), cast(nn.Linear, head).out_features, hidden.dtype)
    return engine(loss, head, hidden, Targets(labels, weights, positions, lengths, reference), statistics)


def found(
    engine: LossEngine,
    loss: TokenLoss,
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    weights: Tensor,
    statistics: Collection[str] = TOKEN_STATISTICS,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Total, then gradients of hidden states and of the head's trained parameters; and what was measured."""
    hidden = hidden.clone().requires_grad_()
    trained = [p for p in head.parameters() if p.requires_grad]
    output = run(engine, loss, head, hidden, labels, weights, statistics)
    gradients = torch.autograd.grad(output.total * 3, [hidden, *trained])  # backward must scale them
    return [output.total.detach(), *(g / 3 for g in gradients)], output.tokens


def assert_close(actual: list[Tensor], wanted: list[Tensor], dtype: torch.dtype) -> None:
    assert len(actual) == len(wanted)
    for a, w in zip(actual, wanted, strict=True):
        scale = w.abs().max().clamp(min=1).item()
        torch.testing.assert_close(a.double(), w, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients(objective: str, engine: str, dtype: torch.dtype) -> None:
    loss = ALL[objective][0]
    for shape in FEW_TOKENS if engine == "chunks_of_1" else SHAPES:
        hidden, weight, labels, weights = problem(*shape)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        weights = weights.to(torch.promote_types(dtype, torch.float32))
        actual, _ = found(ENGINES[engine], loss, linear(weight), hidden, labels, weights)
        assert_close(actual, wanted_of(objective, shape, dtype), dtype)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("engine", ENGINES)
def test_without_statistics(objective: str, engine: str) -> None:
    """A step that nobody measures gives the same bits, and of the tokens only the objective and its parts."""
    loss, formula = ALL[objective]
    hidden, weight, labels, weights = problem(13, 6, 300)
    head = linear(weight)
    measured, all_tokens = found(ENGINES[engine], loss, head, hidden, labels, weights)
    unmeasured, tokens = found(ENGINES[engine], loss, head, hidden, labels, weights, statistics=())
    assert all(torch.equal(a, b) for a, b in zip(unmeasured, measured, strict=True))
    assert set(tokens) == set(all_tokens) - set(TOKEN_STATISTICS)
    assert all(name == "objective" or name.startswith("objective/") for name in tokens)
    assert all(torch.equal(value, all_tokens[name]) for name, value in tokens.items())
    torch.testing.assert_close(tokens["objective"], formula(head(hidden), labels).detach(), rtol=1e-10, atol=1e-10)
    if len(tokens) > 1:
        parts = sum(value for name, value in tokens.items() if name != "objective")
        torch.testing.assert_close(parts, tokens["objective"])


@pytest.mark.parametrize("objective", ALL)
def test_blocks_of_a_chunk(objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk that a loss works on in several blocks of rows: 3 blocks of 5 here, the last one short."""
    monkeypatch.setitem(ELEMENTS_PER_BLOCK, "cpu", 5 * 300)
    hidden, weight, labels, weights = problem(13, 6, 300)
    for engine in (FullEngine(), ChunkedEngine(13)):
        actual, _ = found(engine, ALL[objective][0], linear(weight), hidden, labels, weights)
        assert_close(actual, wanted_of(objective, (13, 6, 300), torch.float64), torch.float64)


@pytest.mark.parametrize("objective", ["lambda_pr_middle", "lambda_pr_wide"])
def test_positions_reach_the_loss(objective: str) -> None:
    """In the problems above some tokens have a weight and some have none, and another place gives another weight."""
    loss = OBJECTIVES[objective][0]
    tokens = {}
    for shape in SHAPES[1:]:
        hidden, weight, labels, _ = problem(*shape)
        tokens[shape] = run(ChunkedEngine(7), loss, linear(weight), hidden, labels).tokens["objective"]
    everything = torch.cat(list(tokens.values()))
    assert 0 < (everything > 0).double().mean() < 1
    positions, lengths = turn_positions(len(labels))
    later = ChunkedEngine(7)(loss, linear(weight), hidden, Targets(labels, None, positions + 1, lengths + 1))
    assert not torch.equal(later.tokens["objective"], tokens[shape])


@pytest.mark.parametrize("engine", ENGINES)
def test_statistics(engine: str) -> None:
    """Every statistic, against its definition computed row by row from the whole softmax."""
    loss, formula = OBJECTIVES["ts2_scaled"]
    hidden, weight, labels, _ = problem(37, 8, 700)
    head = linear(weight)
    tokens = run(ENGINES[engine], loss, head, hidden, labels).tokens
    z = head(hidden).detach()
    p = z.softmax(-1)
    gold = p.gather(-1, labels[:, None])[:, 0]
    with_gold = support_mask(z * 2.5, labels, None)
    inside = support_mask(z * 2.5, z.argmax(-1), None)  # the support alone: the argmax is always in it
    wanted = {
        "objective": formula(z, labels),
        "cross_entropy": -gold.log(),
        "entropy": -(p * p.log()).sum(-1),
        "gold_probability": gold,
        "gold_in_support": inside.gather(-1, labels[:, None])[:, 0].double(),
        "support_size": inside.sum(-1).double(),
        "tail_mass": (p * ~inside).sum(-1),
        "gold_rank": 1.0 + (p > gold[:, None]).sum(-1).double(),
        "top1": p.sort(descending=True).values[:, 0],
        "top2": p.sort(descending=True).values[:, 1],
        "top3": p.sort(descending=True).values[:, 2],
    }
    assert set(TOKEN_STATISTICS) < set(wanted)
    assert 0 < wanted["gold_in_support"].mean() < 1  # both cases are in the data
    assert (with_gold != inside).any()
    for name, value in wanted.items():
        torch.testing.assert_close(tokens[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    parts = tokens["objective/sparsemax"] + tokens["objective/tail_suppression"]
    torch.testing.assert_close(parts, tokens["objective"])


def lora_head(weight: Tensor) -> nn.Module:
    """A head with an adapter that is not zero; the base weight is frozen."""
    holder = nn.Sequential(linear(weight))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], init_lora_weights=False), holder)
    return holder[0].to(weight.dtype)


HEADS = {
    "bias": lambda w: linear(w, torch.linspace(-1, 1, len(w), dtype=w.dtype)),
    "frozen": lambda w: linear(w).requires_grad_(False),
    "soft_capped": lambda w: ScaledHead(linear(w), scale=0.5, softcap=3.0),
    "lora": lora_head,
    "hooked": lambda w: hooked(linear(w)),
    "replaced": lambda w: replaced(linear(w)),
}


def replaced(head: nn.Linear) -> nn.Linear:
    """As accelerate attaches its hooks."""
    head.forward = partial(doubled, head)
    return head


def doubled(head: nn.Linear, hidden_states: Tensor) -> Tensor:
    return nn.functional.linear(hidden_states, head.weight) * 2


def hooked(head: nn.Linear) -> nn.Linear:
    head.register_forward_hook(lambda module, inputs, output: output * 2)
    return head


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", HEADS)
def test_heads(engine: str, kind: str) -> None:
    """Heads that are more than a matrix are honoured: no bias, adapter, cap or hook is dropped."""
    loss, formula = OBJECTIVES["ts2"]
    hidden, weight, labels, weights = problem(20, 8, 300)
    head = HEADS[kind](weight)
    wanted = expected(formula, copy.deepcopy(head), hidden, labels, weights)
    actual, _ = found(ENGINES[engine], loss, head, hidden, labels, weights)
    assert_close(actual, wanted, torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
def test_tied_embeddings(engine: str) -> None:
    """A head that shares its weight with the embeddings gets the sum of both gradients."""
    loss, formula = OBJECTIVES["ts2"]
    _, weight, labels, _ = problem(20, 8, 300)
    ids = torch.arange(20)
    gradients = []
    for use_engine in (True, False):
        embedding, head = nn.Embedding(300, 8, dtype=torch.float64), linear(weight)
        embedding.weight = head.weight
        hidden = embedding(ids).tanh()
        total = (
            run(ENGINES[engine], loss, head, hidden, labels).total
            if use_engine
            else formula(head(hidden), labels).sum()
        )
        total.backward()
        gradients.append(head.weight.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("engine", ENGINES)
def test_no_tokens(objective: str, engine: str) -> None:
    """A micro-batch without supervised tokens gives a zero that is connected to the graph."""
    loss, _ = ALL[objective]
    head, hidden = nn.Linear(4, 300), torch.zeros(0, 4, requires_grad=True)
    some = run(ENGINES[engine], loss, head, torch.zeros(2, 4), torch.tensor([1, 2]))
    output = run(ENGINES[engine], loss, head, hidden, torch.zeros(0, dtype=torch.long))
    output.total.backward()
    assert output.total.item() == 0
    assert hidden.grad is not None
    assert head.weight.grad.abs().sum() == 0
    assert {name: len(value) for name, value in output.tokens.items()} == dict.fromkeys(some.tokens, 0)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("engine", ["full", "chunked"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(objective: str, engine: str, mode: Callable[[], AbstractContextManager[None]]) -> None:
    """Evaluation, which a trainer may run in inference mode, gives the same numbers and no graph."""
    loss, formula = ALL[objective]
    hidden, weight, labels, _ = problem(13, 8, 300)
    head = linear(weight)
    with mode():
        output = run(ENGINES[engine], loss, head, hidden, labels)
    assert not output.total.requires_grad
    torch.testing.assert_close(output.total.clone(), formula(head(hidden), labels).sum().detach())


@pytest.mark.parametrize("wrap", [lambda head: head, nn.Sequential], ids=["linear", "module"])
@pytest.mark.parametrize("engine", ENGINES)
def test_thresholds_are_float32_under_autocast(engine: str, wrap: Callable[[nn.Linear], nn.Module]) -> None:
    """bfloat16 logits would get the support of many of these tokens wrong."""
    loss, _ = OBJECTIVES["ts2"]
    hidden, weight, labels, _ = problem(200, 16, 2000)
    hidden, weight = hidden.float() * 3, weight.float()
    exact = run(ENGINES[engine], loss, wrap(linear(weight)), hidden, labels).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(ENGINES[engine], loss, wrap(linear(weight)), hidden, labels).tokens
    for name in ("support_size", "objective", "entropy"):
        torch.testing.assert_close(mixed[name], exact[name])
    rounded = support_mask(linear(weight)(hidden).bfloat16().float(), labels, None)
    assert (rounded != support_mask(linear(weight)(hidden), labels, None)).any(), "the case is too easy to tell"


def test_differentiating_twice_is_refused() -> None:
    """The gradients are scaled in place: a second backward pass would scale them again."""
    head, hidden = nn.Linear(4, 30), torch.randn(3, 4)
    total = run(ChunkedEngine(), OBJECTIVES["ts2"][0], head, hidden, torch.tensor([0, 1, 2])).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        total.backward()


def test_loss_head_shares_parameters_and_saves_none() -> None:
    """Its parameters are the head's own, listed once in a model that holds both."""
    head = nn.Linear(4, 30)
    loss_head = LossHead(head, *[OBJECTIVES["ts2"][0], ChunkedEngine()])
    both = nn.ModuleDict({"lm_head": head, "loss_head": loss_head})
    assert {id(p) for p in loss_head.parameters(recurse=False)} == {id(p) for p in head.parameters()}
    assert len(list(both.parameters())) == 2
    assert set(both.state_dict()) == {"lm_head.weight", "lm_head.bias"}
    both.load_state_dict(both.state_dict())
    output = loss_head(torch.randn(3, 4), torch.tensor([0, 1, 2]))
    output.total.backward()
    assert head.weight.grad is not None


class ExpectedLogit(ValueLoss):
    """Uses a product, which autocast would compute in bfloat16."""

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        return torch.einsum("nk,nk->n", logits.softmax(-1), logits)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_computes_in_float32_under_autocast(engine: str) -> None:
    hidden, weight, labels, _ = problem(20, 8, 300)
    head = linear(weight.float())
    exact = run(ENGINES[engine], ExpectedLogit(), head, hidden.float(), labels).tokens["objective"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(ENGINES[engine], ExpectedLogit(), head, hidden.float(), labels).tokens["objective"]
    torch.testing.assert_close(mixed, exact, rtol=1e-5, atol=1e-5)


class Penalty(TokenLoss):
    """Cross-entropy and half the squared logits; on request with the logits themselves as a basis, or averaged."""

    def __init__(self, copied: bool = True, mean: bool = False) -> None:
        self.copied = copied
        self.mean = mean

    def evaluate(self, rows: LogitRows) -> LossResult:
        basis = rows.buffer().copy_(rows.logits) if self.copied else rows.logits
        value = rows.logits.square().sum(-1) / 2
        penalty = Term(value.mean() if self.mean else value, Gradient((DensePart(torch.ones_like(value), basis),)))
        return LossResult(cross_entropy(rows) + penalty, {"penalty": penalty.value})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_of_ones_own(engine: str) -> None:
    """With a closed form whose basis is the logits: a copy is right, and what would go wrong silently is refused."""
    hidden, weight, labels, weights = problem(13, 6, 300)
    formula = lambda z, y: OBJECTIVES["cross_entropy"][1](z, y) + z.square().sum(-1) / 2  # noqa: E731
    wanted = expected(formula, linear(weight), hidden, labels, weights)
    assert_close(found(ENGINES[engine], Penalty(), linear(weight), hidden, labels, weights)[0], wanted, torch.float64)
    for loss, complaint in [
        (Penalty(copied=False), r"Penalty: rows.logits cannot be the basis of a gradient.*rows.buffer\(\).copy_"),
        (Penalty(mean=True), r"Penalty: penalty must have one number per token, shape \[\d+\], but has \[\]"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            ENGINES[engine](loss, linear(weight), hidden, labels)


class FirstLogit(TokenLoss):
    """A value that is a part of the rows, over which the gradient is written."""

    def evaluate(self, rows: LogitRows) -> LossResult:
        return LossResult(Term(rows.logits[:, 0], cross_entropy(rows).gradient), {})


@pytest.mark.parametrize("engine", ENGINES)
def test_a_value_that_is_a_part_of_the_rows_is_kept(engine: str) -> None:
    hidden, weight, labels, _ = problem(3, 4, 7)
    output = ENGINES[engine](FirstLogit(), linear(weight), hidden, labels)
    torch.testing.assert_close(output.tokens["objective"], (hidden @ weight[0]).detach().to(output.total.dtype))


def test_a_reference_that_is_missing_is_told() -> None:
    hidden, weight, labels, _ = problem(3, 4, 7)
    for loss, complaint in [
        (ANCHORED["anchored"][0], "ReferenceAnchored: it needs what a reference"),
        (Unasked(), "rows.reference"),
    ]:
        with refused(complaint):
            ChunkedEngine()(loss, linear(weight), hidden, labels)


class Unasked(TokenLoss):
    """Reads the reference without saying that it needs it."""

    def evaluate(self, rows: LogitRows) -> LossResult:
        return LossResult(reference_divergence(rows), {})


def test_the_references_logits_never_exist_at_once() -> None:
    """Neither they nor those of the model: the peak is that of some chunks, and of head and hidden states."""
    hidden, weight, labels, _ = problem(400, 4, 5000)
    targets = Targets(labels, reference=reference_output(400, 5000))
    head = linear(weight)
    with LiveBytes([hidden, head.weight, labels]) as live:
        ChunkedEngine(10)(ANCHORED["anchored"][0], head, hidden.requires_grad_(), targets)
    assert live.peak < hidden.element_size() * 400 * 5000 / 3
    with LiveBytes([hidden, head.weight, labels]) as live:
        FullEngine()(ANCHORED["anchored"][0], head, hidden, targets)
    assert live.peak > hidden.element_size() * 400 * 5000


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", HEADS)
def test_heads_of_the_reference(engine: str, kind: str) -> None:
    """Called as what they are too, and without a gradient."""
    loss, formula = ReferenceAnchored(TS2Loss(), 0.5), OBJECTIVES["ts2"][1]
    hidden, weight, labels, weights = problem(20, 8, 300)
    states, frozen = hidden.flip(0), HEADS[kind](weight.flip(0))
    said = frozen(states).detach()
    wanted = expected(lambda z, y: formula(z, y) + 0.5 * divergence(said, z), linear(weight), hidden, labels, weights)
    hidden, head = hidden.requires_grad_(), linear(weight)
    output = ENGINES[engine](loss, head, hidden, Targets(labels, weights, reference=ReferenceOutput(states, frozen)))
    gradients = torch.autograd.grad(output.total, [hidden, head.weight])
    assert_close([output.total.detach(), *gradients], wanted, torch.float64)
