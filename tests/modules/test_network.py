"""What of a batch reaches the loss: its weights, and each token's place in its response."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.modules.test_normaliser import write_random_model
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import LambdaPRLoss, TokenLoss, TS2Loss
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.types import Batch


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    write_random_model(made)
    return made


def network(directory: Path, loss: TokenLoss) -> SFTNetwork:
    return SFTNetwork(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64), loss, ChunkedEngine(2))


def batch(**more: Tensor) -> Batch:
    """Two rows, of which the second has a response of two tokens and the first one of three."""
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
        "supervised": torch.tensor([1, 2, 3, 6, 7]),
        "labels": torch.tensor([7, 8, 9, 7, 6]),
        "positions": torch.tensor([1, 2, 3, 1, 2]),
        "lengths": torch.tensor([3, 3, 3, 2, 2]),
        **more,
    }


def test_weights_multiply_the_losses(directory: Path) -> None:
    weights = torch.tensor([2.0, 2.0, 2.0, 0.0, 0.0])
    plain, weighted = (network(directory, TS2Loss())(b) for b in (batch(), batch(weights=weights)))
    torch.testing.assert_close(weighted.tokens["objective"], plain.tokens["objective"])
    torch.testing.assert_close(weighted.total, 2 * plain.tokens["objective"][:3].sum())
    assert weighted.tokens["objective"][3:].sum() > 0


def test_places_reach_the_loss(directory: Path) -> None:
    """A weight of lambda^((t - 1) / L) and nothing else: alpha is 1, and no gold probability is above the limit."""
    output = network(directory, LambdaPRLoss(lambda_=0.5, alpha=1.0))(batch())
    tokens = output.tokens
    falling = 0.5 ** (torch.tensor([0, 1 / 3, 2 / 3, 0, 1 / 2]).double())
    expected = falling * tokens["gold_probability"] * tokens["cross_entropy"]
    limit = 0.5 ** (1 / torch.tensor([3.0, 3.0, 3.0, 2.0, 2.0]))
    assert (tokens["gold_probability"] < limit).all()
    torch.testing.assert_close(tokens["objective"], expected)
