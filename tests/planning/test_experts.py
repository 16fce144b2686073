"""Mixtures of experts in a plan: every token meets a few experts, and what cannot be counted is refused."""

from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from tests.modules.architectures import ARCHITECTURES, MIXTURES
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.planning.counting import MicroBatch
from ts2_lightning.planning.duration import operations
from ts2_lightning.planning.layout import read_layout
from ts2_lightning.planning.model import Sizes, measure
from ts2_lightning.types import UserError

BATCH = MicroBatch(2, 16)


def measured(config: PreTrainedConfig, directory: Path, factor: float | None = None) -> Sizes:
    config.save_pretrained(directory)
    return measure(
        LanguageModelConfig(str(directory), router_aux_loss_coef=factor), read_layout("auto", None, 1), BATCH
    )


@pytest.mark.parametrize("architecture", [name for name in MIXTURES if name != "jetmoe"])
def test_a_token_is_multiplied_with_the_experts_that_it_goes_to(architecture: str, tmp_path: Path) -> None:
    """Operations by hand: 6 for each weight of a layer's matrices and token, two experts' worth of the fused ones."""
    sizes = measured(MIXTURES[architecture], tmp_path)
    fused = [w for w in sizes.weights if len(w.shape) == 3]
    assert len(fused) == 2 * sizes.layers
    assert {w.used for w in fused} == {2 / fused[0].shape[0]}
    assert {w.used for w in sizes.weights if len(w.shape) != 3} == {1.0}
    others = [w for w in sizes.weights if len(w.shape) == 2 and w.layer >= 0]
    by_hand = 6 * (sum(w.elements for w in others) + sum(2 * w.elements // w.shape[0] for w in fused))
    attention = 3 * 4 * BATCH.length * sizes.heads_width * sizes.layers * (0.5 if not sizes.masked else 1.0)
    head = 6 * sizes.head.vocabulary * sizes.head.width
    needed = operations(sizes, BATCH, False).needed
    assert needed == pytest.approx((by_hand + attention + head) * BATCH.tokens)


def test_the_routers_loss_takes_memory(tmp_path: Path) -> None:
    """A softmax of each layer's logits at least, in float32."""
    without, added = (measured(MIXTURES["qwen3_moe"], tmp_path, factor) for factor in (0.0, 0.5))
    experts, layers = 5, 2
    for mode in (False, True):
        assert added.activations[mode].kept - without.activations[mode].kept >= 4 * layers * BATCH.tokens * experts


def test_what_is_not_a_mixture(tmp_path: Path) -> None:
    assert {w.used for w in measured(ARCHITECTURES["llama"], tmp_path).weights} == {1.0}
    with pytest.raises(UserError, match="no loss of the routers of LlamaForCausalLM"):
        measured(ARCHITECTURES["llama"], tmp_path, 0.5)


def test_sizes_that_follow_from_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        measured(MIXTURES["jetmoe"], tmp_path)
    assert str(caught.value) == (
        "model.lm.path: JetMoeForCausalLM computes sizes from values, so its memory cannot be counted before it runs "
        "(aten._local_scalar_dense.default)"
    )
