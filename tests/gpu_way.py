"""Runs the code of a GPU on the CPU: sets of tokens are masks, no shape depends on a value, and matrix products of
bfloat16 are asked for in float32 (which a CPU cannot do with real numbers).
"""

import pytest


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, products: bool = False) -> None:
    """From here to the end of the test. `products`: the matrix products too, for tensors without data."""
    monkeypatch.setattr("ts2_lightning.ops.sparse.sizes_may_depend_on_data", lambda device: False)
    if products:
        monkeypatch.setattr("ts2_lightning.engines.linear.sums_in_float32", lambda device: True)
