"""Means over tokens in uneven pieces (on several ranks: tests/callbacks)."""

import doctest

import pytest
import torch

from ts2_lightning.metrics import TokenMeans, token_means


def test_docstring() -> None:
    assert doctest.testmod(token_means).failed == 0


def test_uneven_pieces() -> None:
    pieces = [torch.rand(n) for n in (3, 0, 1, 17)]
    means = TokenMeans()
    for piece in pieces:
        means.update({"a": piece, "b": 2 * piece})
    values = [float(x) for piece in pieces for x in piece]
    result = means.compute()
    assert result["a"] == pytest.approx(sum(values) / 21, rel=1e-12)
    assert result["b"] == pytest.approx(2 * result["a"], rel=1e-12)
    assert means.count == 21


def test_reset_and_nothing() -> None:
    means = TokenMeans()
    assert means.compute() == {}
    means.update({"a": torch.ones(2)})
    means.reset()
    assert means.compute() == {}
    assert means.count == 0
    means.update({"a": torch.zeros(0)})
    assert means.compute() == {}


def test_names() -> None:
    means = TokenMeans()
    means.update({"a": torch.ones(2), "part": torch.ones(2)})
    means.update({"a": torch.ones(0)})  # no token, so its parts are not known
    means.update({"part": torch.ones(1), "a": torch.zeros(1)})
    assert means.compute() == {"a": 2 / 3, "part": 1.0}
    with pytest.raises(ValueError, match=r"came or went: \['part'\]"):
        means.update({"a": torch.ones(1)})
