"""The row kernels in Triton's interpreter, against their twin in float64.

The interpreter is chosen when Triton is imported, so `test_interpreter.py` runs this file in a process of its own.
"""

import numpy
import pytest
import torch
import triton
from torch import Tensor, library

from tests.kernels import twin
from tests.kernels.cases import KINDS, REQUESTS, coefficients_of, rows_of
from ts2_lightning.ops import row_kernels
from ts2_lightning.ops.summary import FIELDS, SummaryRequest

assert triton.knobs.runtime.interpret, "run with TRITON_INTERPRET=1"

WIDTH = 1537
EXACT = {"maximum", "above", "size", "gold_in_support", "unmasked"}
HELD_LANES = 8
SMALLEST = 1e-36
"""Numbers below may be lost: exponentials of float32 are 0 from there."""

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # numpy's, where infinities become NaN


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layouts small enough for rows of 1,537 logits to take every way through the programs."""
    of_width = row_kernels.layout_for

    def layout_for(vocabulary: int, uniform: bool = False) -> row_kernels.RowLayout:
        depth = max(4, triton.next_power_of_2(triton.cdiv(vocabulary, 128)))
        narrow = {"lanes": 128, "strip": 4, "held_lanes": HELD_LANES, "depth": depth, "tile": 512}
        return of_width(vocabulary)._replace(**narrow)

    monkeypatch.setattr(row_kernels, "layout_for", layout_for)


def summarized(logits: Tensor, labels: Tensor, request: SummaryRequest) -> Tensor:
    """The fields, all of which have been compared with the twin's."""
    fields = row_kernels.summarize(logits, labels, request)
    expected = twin.summarize(logits.double(), labels, request)
    for name, mine, reference in zip(FIELDS, fields.double(), expected, strict=True):
        if name == "lanes":
            assert ((mine > 0) == (request.support_scale is not None)).all()
        elif name in ("second", "third"):
            mine = torch.where(mine < -1e29, -torch.inf, mine)
            torch.testing.assert_close(mine, reference, rtol=2e-7, atol=0, msg=lambda m, name=name: f"{name}: {m}")
        else:
            rtol = 0 if name in EXACT else 3e-6
            atol = {"threshold": 1e-7, "expected": 1e-6}.get(name, SMALLEST)
            torch.testing.assert_close(mine, reference, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")
    return fields


def compare_gradient(
    logits: Tensor,
    labels: Tensor,
    fields: Tensor,
    request: SummaryRequest,
    slope: bool,
    everywhere: bool,
) -> None:
    """Compares the gradient with the twin's in float32; everywhere: in bfloat16 too, and each over the logits."""
    coefficients = coefficients_of(fields)
    flags = (request.support_scale is not None, slope, request.uniform)

    def write(logits: Tensor, out: Tensor) -> Tensor:
        row_kernels.write_gradient(logits, labels, fields, coefficients, request, out, *flags)
        return out

    gradient = write(logits, torch.empty_like(logits))
    reference, size = reference_of(logits, labels, coefficients, request, *flags)
    assert (gradient[logits == -torch.inf] == 0).all()
    assert ((gradient - reference).abs() <= 1e-5 * size + SMALLEST).all(), ((gradient - reference).abs() / size).max()
    if not everywhere:
        return
    same = logits.clone()
    assert torch.equal(write(same, same), gradient)
    rounded = write(logits, torch.empty_like(logits, dtype=torch.bfloat16))
    # The interpreter cuts off what a device rounds.
    assert ((rounded.double() - gradient).abs() <= 2**-7 * gradient.abs() + SMALLEST).all()
    same = logits.clone()
    assert torch.equal(write(same, same.view(torch.bfloat16)[:, : logits.shape[1]]), rounded)


def reference_of(
    logits: Tensor,
    labels: Tensor,
    coefficients: Tensor,
    request: SummaryRequest,
    support: bool,
    slope: bool,
    uniform: bool,
) -> tuple[Tensor, Tensor]:
    """The twin's gradient, and the sum of the absolute values of its summands."""
    logits = logits.double()
    fields = twin.summarize(logits, labels, request)
    gradient, size = torch.empty_like(logits), torch.empty_like(logits)
    twin.write_gradient(logits, labels, fields, coefficients, request, gradient, support, slope, uniform)
    signs = torch.tensor([1, 1, -1, 1, -1, 1])[:, None]  # d is negative, and gold is subtracted
    twin.write_gradient(logits, labels, fields, coefficients.abs() * signs, request, size, support, slope, uniform)
    return gradient, size


def check(
    logits: Tensor, labels: Tensor, request: SummaryRequest, slope: bool = True, everywhere: bool = True
) -> Tensor:
    """Compares what the kernels give with the twin, the gradient in one place or everywhere; returns the fields."""
    fields = summarized(logits, labels, request)
    compare_gradient(logits, labels, fields, request, slope, everywhere)
    return fields


def cheap(kind: str, request: str) -> bool:
    """Whether a case belongs to the fast tests: every kind, and every request, but not all pairs."""
    return (KINDS.index(kind) + list(REQUESTS).index(request)) % 3 == 0


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("kind", "request_name"),
    [
        pytest.param(kind, name, marks=[] if cheap(kind, name) else [pytest.mark.slow])
        for kind in KINDS
        for name in REQUESTS
    ],
)
def test_equals_the_twin(kind: str, request_name: str) -> None:
    """Where a gradient goes has nothing to do with what the row is like, so the fast pairs suffice to show it."""
    everywhere = cheap(kind, request_name)
    check(*rows_of(kind, 3, WIDTH), REQUESTS[request_name], slope="entmax" in request_name, everywhere=everywhere)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 127, 128, 129, 511, 512, 513])
def test_odd_widths(width: int) -> None:
    """Rows shorter than a lane is deep, and one column before, at and behind a strip and a tile."""
    for kind, name in (("peaked", "two_scales"), ("tied", "scaled_entmax"), ("masked", "scaled")):
        check(*rows_of(kind, 3, width), REQUESTS[name], everywhere=kind == "peaked")


@pytest.mark.usefixtures("narrow")
def test_a_small_row_holds_fewer_than_three_logits() -> None:
    logits = torch.full((3, 300), -torch.inf)
    logits[0, 7], logits[1, [5, 133]], logits[2, [1, 2, 129, 257]] = 1.0, 2.0, torch.tensor([3.0, 1.0, 3.0, 2.0])
    fields = check(logits, torch.tensor([7, 133, 2]), REQUESTS["two_scales"])
    second, third = fields[FIELDS.index("second")], fields[FIELDS.index("third")]
    assert second[0] < -1e29
    assert third[:2].max() < -1e29
    assert [second[1].item(), second[2].item(), third[2].item()] == [0, 0, -1]


@pytest.mark.usefixtures("narrow")
def test_both_ways_to_the_threshold_are_taken() -> None:
    """Those that hold the lanes with support in registers, and those that read them again."""
    lanes = {
        kind: row_kernels.summarize(*rows_of(kind, 3, WIDTH), REQUESTS["sparsemax"])[FIELDS.index("lanes")]
        for kind in ("peaked", "flat")
    }
    assert (lanes["peaked"] <= HELD_LANES).all()
    assert (lanes["flat"] > HELD_LANES).all()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("offset", [-3e4, 1e4])
def test_an_offset_costs_no_digits(offset: float) -> None:
    """Logits of one magnitude, where what is common to all of them is large; each is exact in float32."""
    logits, labels = rows_of("tied", 3, 700)
    check(logits + offset, labels, REQUESTS["two_scales"])


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("name", ["two_scales", "scaled_entmax"])
def test_extreme_logits(name: str) -> None:
    logits, labels = rows_of("spread", 3, 700)
    check(logits * 300, labels, REQUESTS[name])
    logits[:, ::7] = -1e9
    logits[range(3), labels] = 50.0
    check(logits, labels, REQUESTS[name])


@pytest.mark.usefixtures("narrow")
@numpy.errstate(all="ignore")
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("column", [3, 600])
def test_a_nan_stays_in_its_row_and_is_not_hidden(name: str, column: int) -> None:
    request, (logits, labels) = REQUESTS[name], rows_of("peaked", 3, 700)
    clean = row_kernels.summarize(logits, labels, request)
    logits[1, column] = torch.nan
    fields = row_kernels.summarize(logits, labels, request)
    assert torch.equal(fields[:, [0, 2]], clean[:, [0, 2]])
    assert fields[[FIELDS.index(field) for field in ("maximum", "normalizer", "gold_logit")], 1].isnan().all()
    gradient = torch.empty_like(logits)
    flags = (request.support_scale is not None, True, True)
    row_kernels.write_gradient(logits, labels, fields, coefficients_of(clean), request, gradient, *flags)
    assert gradient.isnan().all(-1).tolist() == [False, True, False]
    assert not gradient[[0, 2]].isnan().any()


@pytest.mark.usefixtures("narrow")
def test_rows_in_a_wider_matrix() -> None:
    request, (logits, labels) = REQUESTS["two_scales"], rows_of("peaked", 5, 700)
    wide = torch.full((5, 712), 99.0)
    wide[:, :700] = logits
    fields = row_kernels.summarize(wide[:, :700], labels, request)
    assert torch.equal(fields, summarized(logits, labels, request))
    expected = torch.empty_like(logits)
    arguments = (labels, fields, coefficients_of(fields), request)
    row_kernels.write_gradient(logits, *arguments, expected, True, True, True)
    row_kernels.write_gradient(wide[:, :700], *arguments, wide[:, :700], True, True, True)
    assert torch.equal(wide[:, :700], expected)
    assert (wide[:, 700:] == 99).all()


@pytest.mark.usefixtures("narrow")
def test_vectors_may_have_gaps() -> None:
    request, (logits, labels) = REQUESTS["sparsemax"], rows_of("randn", 3, 300)
    with_gaps = torch.stack([labels, labels * 0], 1)[:, 0]
    fields = row_kernels.summarize(logits, with_gaps, request)
    assert torch.equal(fields, row_kernels.summarize(logits, labels, request))
    coefficients, gradients = coefficients_of(fields), (torch.empty_like(logits), torch.empty_like(logits))
    flags = (True, False, False)
    row_kernels.write_gradient(logits, labels, fields, coefficients, request, gradients[0], *flags)
    gaps = [vectors.T.contiguous().T for vectors in (fields, coefficients)]
    row_kernels.write_gradient(logits, with_gaps, *gaps, request, gradients[1], *flags)
    assert torch.equal(*gradients)


@pytest.mark.usefixtures("narrow")
def test_a_row_depends_on_itself_alone() -> None:
    request, (logits, labels) = REQUESTS["scaled_entmax"], rows_of("peaked", 3, 700)
    together = row_kernels.summarize(logits, labels, request)
    alone = [row_kernels.summarize(logits[i : i + 1], labels[i : i + 1], request) for i in range(3)]
    assert torch.equal(together, torch.cat(alone, 1))


@pytest.mark.parametrize("name", REQUESTS)
def test_no_rows(name: str) -> None:
    request, logits, labels = REQUESTS[name], torch.empty(0, 50), torch.empty(0, dtype=torch.long)
    fields = row_kernels.summarize(logits, labels, request)
    assert fields.shape == (len(FIELDS), 0)
    row_kernels.write_gradient(logits, labels, fields, torch.empty(6, 0), request, logits, False, False, False)


@pytest.mark.usefixtures("narrow")
def test_programs_start_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the current one."""
    logits, labels = rows_of("randn", 2, 40)
    entered: list[int | None] = []

    class Recorded(torch.accelerator.device_index):
        def __init__(self, device: int | None) -> None:
            super().__init__(device)
            entered.append(device)

    monkeypatch.setattr(torch.accelerator, "device_index", Recorded)
    fields = row_kernels.summarize(logits, labels, SummaryRequest())
    row_kernels.write_gradient(logits, labels, fields, coefficients_of(fields), SummaryRequest(), logits, *[False] * 3)
    assert entered == [logits.device.index] * 2


@pytest.mark.usefixtures("narrow")
def test_operators_are_what_they_say() -> None:
    """Nothing is written but what the schema names, and tensors without data get the same shapes."""
    request, (logits, labels) = REQUESTS["two_scales"], rows_of("randn", 2, 40)
    fields = row_kernels.summarize(logits, labels, request)
    checks = ("test_schema", "test_faketensor")
    operators = torch.ops.ts2_lightning
    library.opcheck(operators.row_summary.default, (logits, labels, *request), test_utils=checks)
    arguments = (logits, labels, fields, coefficients_of(fields), torch.empty_like(logits), *request[:3], *[True] * 3)
    library.opcheck(operators.row_gradient.default, arguments, test_utils=checks)


@pytest.mark.slow
@pytest.mark.parametrize("width", [50_257, 128_256, 151_936, 262_144])
@pytest.mark.parametrize("kind", KINDS)
def test_vocabularies(kind: str, width: int) -> None:
    """In the layouts that a GPU gets; the gold token is the largest, the smallest or the second largest."""
    logits, labels = rows_of(kind, 3, width)
    row = KINDS.index(kind) % 3
    check(logits[row : row + 1], labels[row : row + 1], REQUESTS["two_scales"], everywhere=kind == "peaked")
    check(logits[:1], labels[:1], REQUESTS["scaled_entmax"], everywhere=False)
