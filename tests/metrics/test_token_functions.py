"""The functional token metrics against plain formulas in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from plain import IGNORED, of_all, problem
from torch import Tensor

from tests.gpu_way import as_on_a_gpu
from ts2_lightning.metrics import functional as f
from ts2_lightning.ops.rows import ELEMENTS_PER_BLOCK
from ts2_lightning.types import TOKEN_STATISTICS, UserError

Measure = Callable[[Tensor, Tensor, float], Tensor]

MEASURES: dict[str, Measure] = {
    "support_size": lambda z, y, c: f.support_size(z, c, y),
    "tail_mass": lambda z, y, c: f.tail_mass(z, c, y),
    "entropy": lambda z, y, c: f.token_entropy(z, y),
    "gold_probability": lambda z, y, c: f.gold_probability(z, y),
    "gold_rank": lambda z, y, c: f.gold_rank(z, y),
    "gold_in_support": f.gold_in_support,
    "zero_gradient": f.zero_gradient,
    "top1": lambda z, y, c: f.top_probabilities(z, 3, y)[..., 0],
    "top2": lambda z, y, c: f.top_probabilities(z, 3, y)[..., 1],
    "top3": lambda z, y, c: f.top_probabilities(z, 3, y)[..., 2],
}

SHAPES = [((), 7), ((5,), 1), ((3, 4), 2), ((2, 3, 5), 300), ((11,), 1031)]


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual.double(), wanted, rtol=2e-5, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("gpu_way", [False, True])
@pytest.mark.parametrize("c", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(("shape", "K"), SHAPES)
def test_plain_formulas(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], K: int, c: float, gpu_way: bool
) -> None:
    """In blocks of two rows, the last of them shorter."""
    monkeypatch.setitem(ELEMENTS_PER_BLOCK, "cpu", 2 * K)
    if gpu_way:
        as_on_a_gpu(monkeypatch)
    logits, labels = problem(shape, K)
    wanted = of_all(logits, labels, c)
    for name, measure in MEASURES.items():
        actual = measure(logits, labels, c)
        assert actual.dtype == torch.float32
        assert actual.shape == shape
        close(actual, wanted[name])
    for name, actual in f.token_statistics(logits, labels, c).items():
        close(actual, wanted[name])
    assert list(f.token_statistics(logits, labels)) == list(TOKEN_STATISTICS)


def test_support_at_the_width_of_a_real_vocabulary() -> None:
    logits, labels = problem((3,), 128_256, ignored=0)
    wanted = of_all(logits, labels)
    close(f.support_size(logits), wanted["support_size"])
    close(f.gold_rank(logits, labels), wanted["gold_rank"])


def test_without_labels_every_token_is_measured() -> None:
    logits, labels = problem((4, 3), 50, ignored=0)
    wanted = of_all(logits, labels)
    close(f.support_size(logits), wanted["support_size"])
    close(f.tail_mass(logits), wanted["tail_mass"])
    close(f.token_entropy(logits), wanted["entropy"])
    close(f.top_probabilities(logits, 2)[..., 1], wanted["top2"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """Half-precision logits are taken for the numbers that they are, and widened before anything is computed."""
    logits, labels = problem((7, 3), 400)
    logits = logits.to(dtype)
    wanted = of_all(logits, labels)
    for name, measure in MEASURES.items():
        actual = measure(logits, labels, 1.0)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(actual, wanted[name])


def test_autocast_changes_nothing() -> None:
    logits, labels = problem((7,), 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = f.token_statistics(logits, labels)
    for name, value in f.token_statistics(logits, labels).items():
        assert torch.equal(actual[name].nan_to_num(-1), value.nan_to_num(-1))


def test_masked_vocabulary() -> None:
    """Tokens at -inf have no probability, also where fewer than three remain or the gold token is one of them."""
    logits, labels = problem((6,), 300, ignored=0)
    masked = logits.scatter(-1, labels[:, None], 50.0)  # so that the gold token is not masked away
    masked[:, 4:] = torch.where(masked[:, 4:] == 50.0, masked[:, 4:], -math.inf)
    masked[3, masked[3] < 50.0] = -math.inf  # the gold token alone
    wanted = of_all(masked, labels)
    for name, measure in MEASURES.items():
        close(measure(masked, labels, 1.0), wanted[name])
    z, y = torch.tensor([1.0, -math.inf, 0.0]), torch.tensor(1)
    assert f.gold_probability(z, y).item() == 0
    assert f.gold_rank(z, y).item() == 3
    assert f.gold_in_support(z, y).item() == 0


def test_extreme_logits() -> None:
    logits = torch.tensor([[1e30, 1e30, -1e30], [3e38, -3e38, 0.0], [1e6, 1e6 - 0.5, 0.0], [-1e30, -1e30, -1e30]])
    labels = torch.tensor([0, 0, 1, 2])
    wanted = of_all(logits, labels)
    for name, measure in MEASURES.items():
        close(measure(logits, labels, 1.0), wanted[name])


def test_small_tails_keep_their_digits() -> None:
    z = torch.tensor([30.0, 0.0, -1.0])
    assert f.tail_mass(z).item() == pytest.approx(math.exp(-30) + math.exp(-31), rel=1e-5)


def test_ties() -> None:
    """All tokens equal: every one is kept, and the gold token shares the first rank."""
    z, y = torch.zeros(600), torch.tensor(599)
    assert f.support_size(z).item() == 600
    assert f.gold_rank(z, y).item() == 1
    assert f.token_entropy(z).item() == pytest.approx(math.log(600), rel=1e-6)
    assert f.zero_gradient(torch.tensor([1.0, 1.0]), torch.tensor(0)).item() == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rows_that_are_no_distribution(bad: float) -> None:
    logits, labels = problem((4,), 30, ignored=0)
    clean = {name: measure(logits, labels, 1.0) for name, measure in MEASURES.items()}
    logits[2, 5] = bad
    logits[0] = -math.inf
    for name, measure in MEASURES.items():
        actual = measure(logits, labels, 1.0)
        assert actual.isnan().tolist() == [True, False, True, False], name
        assert torch.equal(actual[[1, 3]], clean[name][[1, 3]])


def test_nothing_to_measure() -> None:
    for logits, labels in [
        (torch.randn(2, 3, 9), torch.full((2, 3), IGNORED)),
        (torch.randn(0, 9), torch.zeros(0, dtype=torch.long)),
        (torch.randn(2, 0, 9), torch.zeros(2, 0, dtype=torch.int32)),
    ]:
        for measure in MEASURES.values():
            actual = measure(logits, labels, 1.0)
            assert actual.shape == labels.shape
            assert actual.isnan().all()
        assert f.top_probabilities(logits, 4, labels).shape == (*labels.shape, 4)


def test_inputs_are_left_alone_and_views_are_welcome() -> None:
    logits, labels = problem((5, 8), 70)
    before = logits.clone()
    shifted, transposed = logits[:, :-1], logits.transpose(0, 1)
    for name, measure in MEASURES.items():
        close(measure(shifted, labels[:, 1:], 1.0), of_all(shifted, labels[:, 1:])[name])
        close(measure(transposed, labels.T, 1.0), of_all(transposed, labels.T)[name])
    every_second = torch.randn(70, 6).T  # the vocabulary is not the last dimension in memory
    close(f.support_size(every_second), of_all(every_second, torch.zeros(6, dtype=torch.long))["support_size"])
    assert torch.equal(logits, before)


def test_no_second_copy_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that is made holds more than a block of rows, also from the view that the shift by one is."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    logits, labels = problem((4, 20), 256)
    shifted, own = logits[:, :-1], logits.untyped_storage().data_ptr()
    monkeypatch.setitem(ELEMENTS_PER_BLOCK, "cpu", 3 * 256)
    largest, scratch = 0, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest, scratch
            made = function(*args, **(kwargs or {}))
            scratch += function is torch.ops.aten.empty_like.default
            for leaf in tree_leaves(made):
                if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() != own:
                    largest = max(largest, leaf.numel())
            return made

    with Watch():
        f.token_statistics(shifted, labels[:, 1:])
        assert 1 <= scratch <= 5  # memory that all of the many blocks compute in
        f.tspd(shifted, labels[:, 1:], 3, 0.1, 0.1)
        f.zero_gradient(shifted, labels[:, 1:])
    assert 3 * 256 <= largest < 6 * 256


def test_mean_selected_probability() -> None:
    logits, labels = problem((3, 2, 9), 20)
    labels[1, 0] = IGNORED
    p = of_all(logits, labels)["gold_probability"]
    actual = f.mean_selected_probability(logits, labels)
    assert actual.shape == (3, 2)
    assert actual[1, 0].isnan()
    close(actual, p.nanmean(-1))
    logits[0, 0, labels[0, 0] != IGNORED] = math.nan
    assert f.mean_selected_probability(logits, labels)[0, 0].isnan()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: f.support_size(torch.zeros(3, dtype=torch.long)), r"logits: expected floats .* got torch.int64"),
        (lambda: f.support_size(torch.tensor(1.0)), r"logits: expected floats of shape \[\.\.\., K\]"),
        (lambda: f.support_size(torch.zeros(3, 0)), r"logits: .* shape \[3, 0\]"),
        (lambda: f.support_size(torch.zeros(3), logit_scale=0.0), r"logit_scale must be .* above 0, got 0.0"),
        (lambda: f.tail_mass(torch.zeros(3), math.nan), r"logit_scale must be .* got nan"),
        (lambda: f.gold_rank(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)), r"labels: .*\[2\].* got .*\[3\]"),
        (lambda: f.gold_rank(torch.zeros(2, 3), torch.zeros(2)), r"labels: expected integers .* got torch.float32"),
        (lambda: f.gold_rank(torch.zeros(2, 3), None), r"labels: expected integers .* got NoneType"),  # type: ignore[arg-type]
        (lambda: f.gold_rank(torch.zeros(2, 3), torch.tensor([0, 3])), r"labels: expected 0 to 2, or -100 .* got 3"),
        (lambda: f.gold_rank(torch.zeros(2, 3), torch.tensor([-1, 0])), r"labels: expected 0 to 2, or -100 .* got -1"),
    ],
)
def test_bad_input(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
