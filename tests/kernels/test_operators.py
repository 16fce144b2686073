"""The kernels on tensors without data, which the engine's tests and the counter of traffic use."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="the kernels need Triton, which this platform lacks")

from ts2_lightning.ops.row_kernels import summarize, write_gradient
from ts2_lightning.ops.summary import FIELDS, SummaryRequest


class Recorded(TorchDispatchMode):
    """The names of the package's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ts2_lightning":
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_without_data(dtype: torch.dtype) -> None:
    request = SummaryRequest(1.5, 1.0, 2.0, True)
    with FakeTensorMode(), Recorded() as recorded:
        logits, labels = torch.empty(5, 300), torch.empty(5, dtype=torch.long)
        fields = summarize(logits, labels, request)
        out = logits.view(dtype)[:, :300]
        write_gradient(logits, labels, fields, torch.empty(6, 5), request, out, True, True, True)
    assert (fields.shape, fields.dtype, fields.device) == ((len(FIELDS), 5), torch.float32, logits.device)
    assert recorded.names == ["ts2_lightning::row_summary", "ts2_lightning::row_gradient"]


def test_operators_say_what_they_write() -> None:
    operators = torch.ops.ts2_lightning
    for operator, written in ((operators.row_summary, []), (operators.row_gradient, ["out"])):
        arguments = operator.default._schema.arguments
        assert [argument.name for argument in arguments if argument.is_write] == written
