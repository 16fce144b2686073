"""Packed rows do not see each other: loss and gradients are those of the rows alone, or the model is refused."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel, modeling_flash_attention_utils

from tests.modules.architectures import ARCHITECTURES, VOCABULARY, random_model
from tests.support.training import make_trainer
from ts2_lightning.data import SFTData
from ts2_lightning.data.collate import collate
from ts2_lightning.data.encoded_rows import EncodedRow
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import CrossEntropyLoss
from ts2_lightning.modules import LanguageModelConfig, SFTModule
from ts2_lightning.modules.isolation import check_isolation, keeps_rows_apart
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.types import Batch, UserError

LENGTHS = (7, 2, 9, 5, 4, 9, 3)
_COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
_FALCON = {k: v for k, v in _COMMON.items() if k not in ("intermediate_size", "num_key_value_heads")}
_ALTERNATING = {"head_dim": 8, "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}

LEAKY: dict[str, PreTrainedConfig] = {
    # has positions, but does not tell the mask of them
    "opt": ARCHITECTURES["opt"],
    "gpt_oss": transformers.GptOssConfig(
        **_COMMON, head_dim=8, num_local_experts=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    # distances instead of positions
    "bloom": transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mpt": transformers.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4),
    "falcon": transformers.FalconConfig(**_FALCON, alibi=True),
    # a state, or a convolution, that runs on
    "mamba": transformers.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8),
    "lfm2": transformers.Lfm2Config(**_COMMON, layer_types=["conv", "full_attention"]),
    "minimax": transformers.MiniMaxConfig(
        **_COMMON, num_local_experts=2, layer_types=["linear_attention", "full_attention"]
    ),
    "qwen3_next": transformers.Qwen3NextConfig(
        **_COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
    ),
}  # fmt: skip
ISOLATED: dict[str, PreTrainedConfig] = {
    **{name: config for name, config in ARCHITECTURES.items() if name not in LEAKY},
    "mistral, window of 3": transformers.MistralConfig(**_COMMON, head_dim=8, sliding_window=3),
    "gemma2, windows of 3": transformers.Gemma2Config(**_COMMON, **_ALTERNATING),
    "gemma3, windows of 3": transformers.Gemma3TextConfig(**_COMMON, **_ALTERNATING),
    "mixtral": transformers.MixtralConfig(**_COMMON, num_local_experts=4),
    "gpt2": transformers.GPT2Config(**_GPT2, n_positions=64, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0),
}
WITHOUT_SDPA = {"gemma2", "gemma2, windows of 3"}  # in transformers
CASES = [
    (name, attention)
    for name in ISOLATED
    for attention in ("eager", "sdpa")
    if attention == "eager" or name not in WITHOUT_SDPA
]


def rows(seed: int = 0) -> list[EncodedRow]:
    """Of 2 to 9 tokens, some supervised in one turn or two, of unequal weights."""
    generator = np.random.default_rng(seed)
    made = []
    for length in LENGTHS:
        ids = generator.integers(3, VOCABULARY, length).astype(np.int32)
        edges = [[1, 2], [3, length]] if length > 4 else [[1, length]]
        made.append(EncodedRow(ids, np.array(edges, dtype=np.int32), weight=float(generator.uniform(0.5, 2))))
    return made


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_by_one(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of cross-entropies and its gradients, from the model's own logits of each row by itself."""
    total = torch.zeros((), dtype=torch.float64)
    for row in rows():
        ids = torch.tensor(row.ids).long()
        losses = F.cross_entropy(model(input_ids=ids[None], use_cache=False).logits[0, :-1], ids[1:], reduction="none")
        for start, end in row.spans.tolist():
            total = total + row.weight * losses[start - 1 : end - 1].sum()
    total.backward()
    return total.detach(), gradients(model)


def network_of(model: PreTrainedModel) -> SFTNetwork:
    return SFTNetwork(model, CrossEntropyLoss(), ChunkedEngine(3))


def assert_rows_alone(model: PreTrainedModel, batch: Batch, wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    model.zero_grad()
    total = network_of(model)(batch).total
    total.backward()
    torch.testing.assert_close(total.detach().double(), wanted[0], rtol=1e-6, atol=0)
    found = gradients(model)
    assert found.keys() == wanted[1].keys()
    for name, gradient in found.items():
        scale = wanted[1][name].abs().max().item()
        torch.testing.assert_close(gradient, wanted[1][name], rtol=0, atol=1e-6 * scale, msg=name)


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_loss_and_gradients_are_those_of_rows_alone(architecture: str, attention: str) -> None:
    model = random_model(ISOLATED[architecture], attention=attention)
    wanted = one_by_one(model)
    for capacity, shape in ((20, (2, 20)), (10, (5, 9)), (math.inf, (1, 39))):
        batch = collate(rows(), range(len(LENGTHS)), divisor=1, capacity=capacity)
        assert batch["input_ids"].shape == shape
        assert_rows_alone(model, batch, wanted)
    assert keeps_rows_apart(network_of(model))


def test_the_comparison_would_show_a_leak() -> None:
    """By far: the tolerance is 1e-6."""
    model = random_model("llama", attention="sdpa")
    wanted, _ = one_by_one(model)
    batch = collate(rows(), range(len(LENGTHS)), divisor=1, capacity=math.inf)
    places = torch.arange(39)[None]
    for told in ({}, {"position_ids": places}, {**batch, "attention_mask": torch.ones_like(places)}):
        joined: Any = {**{name: value for name, value in batch.items() if name != "position_ids"}, **told}
        assert (network_of(model)(joined).total - wanted).abs() > 1e-3 * wanted


@pytest.mark.parametrize("training", [True, False])
def test_the_probe_leaves_no_trace(training: bool) -> None:
    network = network_of(random_model("llama")).train(training)
    state = torch.get_rng_state()
    check_isolation(network, Votes())
    assert network.training == network.language_model.training == training
    assert not gradients(network)
    assert not network.loss_head._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), state)


class Votes:
    """A strategy of several ranks, of which this one is asked and the others have an opinion."""

    def __init__(self, *others: bool) -> None:
        self.others = others

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        assert all
        return decision and False not in self.others


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ISOLATED)
def test_freshly_drawn_models_pass(architecture: str, dtype: torch.dtype) -> None:
    """Their attention does little yet."""
    torch.manual_seed(0)
    for attention in ("eager",) if architecture in WITHOUT_SDPA else ("eager", "sdpa"):
        model = transformers.AutoModelForCausalLM.from_config(
            ISOLATED[architecture], dtype=dtype, attn_implementation=attention
        )
        assert keeps_rows_apart(network_of(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trained_model_passes(shared_data: Path, dtype: torch.dtype) -> None:
    for attention in ("eager", "sdpa"):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            shared_data / "models" / "stories260K", dtype=dtype, attn_implementation=attention
        )
        assert keeps_rows_apart(network_of(model))


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("architecture", LEAKY)
def test_leaky_models_are_refused(architecture: str, fresh: bool) -> None:
    torch.manual_seed(0)
    model = random_model(LEAKY[architecture])
    if fresh:
        model = transformers.AutoModelForCausalLM.from_config(
            LEAKY[architecture], dtype=torch.float32, attn_implementation="eager"
        )
    with pytest.raises(UserError) as error:
        check_isolation(network_of(model), Votes())
    assert str(error.value) == (
        f"data.packing: {type(model).__name__} with attn_implementation eager does not keep packed rows apart, they "
        "would be trained on each other's text; set data.packing to none"
    )


def test_one_rank_that_finds_a_leak_stops_all() -> None:
    network = network_of(random_model("llama"))
    check_isolation(network, Votes(True, True))
    with pytest.raises(UserError, match=r"does not keep packed rows apart"):
        check_isolation(network, Votes(True, False))


def test_a_model_that_takes_no_positions_is_refused() -> None:
    model = random_model("llama")
    forward = model.model.forward

    def without(input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool = False) -> Any:
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model.model.forward = without
    assert not keeps_rows_apart(network_of(model))


def test_another_fault_of_the_model_is_not_taken_for_a_leak() -> None:
    model = random_model("llama")

    def faulty(**inputs: Any) -> Any:
        raise TypeError("unsupported operand")

    model.model.forward = faulty
    with pytest.raises(TypeError, match="unsupported operand"):
        keeps_rows_apart(network_of(model))
    assert model.training


# --- flash attention: transformers' own way to it, with a kernel of a few lines in the place of the real one ---------


def plain_flash(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), deterministic: bool = False,
) -> Tensor:  # fmt: skip
    """Causal attention over [B, T, heads, D]."""
    assert causal
    assert window_size == (-1, -1)
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=True).transpose(1, 2)


def plain_flash_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int, max_seqlen_k: int,
    **options: Any,
) -> Tensor:  # fmt: skip
    """The same over [sum of T, heads, D], in the pieces that are named."""
    edges = cu_seqlens_q.tolist()
    assert edges == cu_seqlens_k.tolist()
    pieces = [slice(start, end) for start, end in itertools.pairwise(edges)]
    return torch.cat([plain_flash(q[None, piece], k[None, piece], v[None, piece], **options)[0] for piece in pieces])


Flash = Callable[[], PreTrainedModel]


@pytest.fixture
def flash_model(monkeypatch: pytest.MonkeyPatch) -> Flash:
    utilities: Any = modeling_flash_attention_utils
    functions = plain_flash, plain_flash_varlen, None, utilities._pad_input, utilities._unpad_input
    monkeypatch.setattr(utilities, "_lazy_imports", lambda *args, **options: functions)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_process_flash_kwargs_fn"):
        monkeypatch.setattr(utilities, name, None)

    def make() -> PreTrainedModel:
        model = random_model("llama", attention="sdpa")
        model.config._attn_implementation_internal = "flash_attention_2"
        return model

    return make


def test_flash_attention(flash_model: Flash) -> None:
    """Transformers finds rows by their positions in a batch of one sequence only."""
    wanted = one_by_one(random_model("llama", attention="sdpa"))
    model = flash_model()
    for capacity in (None, 20, 10, math.inf):
        assert_rows_alone(model, collate(rows(), range(len(LENGTHS)), divisor=1, capacity=capacity), wanted)


def test_the_probe_judges_flash_attention_by_what_it_does(flash_model: Flash, monkeypatch: pytest.MonkeyPatch) -> None:
    assert keeps_rows_apart(network_of(flash_model()))
    monkeypatch.setattr(SFTNetwork, "uses_flash_attention", False)  # several sequences are left as they are, and leak
    assert not keeps_rows_apart(network_of(flash_model()))


# --- through the trainer ----------------------------------------------------------------------------------------------


def test_training_stops_before_it_starts(tmp_path: Path) -> None:
    random_model("opt").save_pretrained(tmp_path / "model")
    file = write_token_rows(tmp_path / "rows.jsonl")
    for packing in ("packed", "padding_free"):
        for validation in (None, file):
            data = SFTData(file, validation, format="tokens", batch_size=4, micro_batch_size=2, packing=packing)
            module = SFTModule(LanguageModelConfig(str(tmp_path / "model")), CrossEntropyLoss())
            trainer = quiet_trainer(tmp_path)
            with pytest.raises(
                UserError, match=r"data\.packing: OPTForCausalLM with attn_implementation sdpa does not"
            ):
                trainer.fit(module, data)
            assert trainer.global_step == 0
    for run in ("validate", "predict"):
        data = SFTData(validation=file, predict=file, format="tokens", packing="packed")
        with pytest.raises(UserError, match=r"data\.packing: OPTForCausalLM"):
            getattr(quiet_trainer(tmp_path), run)(module, data)


def test_evaluation_and_predictions_are_those_of_unpacked_rows(tmp_path: Path) -> None:
    random_model("qwen2").save_pretrained(tmp_path / "model")
    file = write_token_rows(tmp_path / "rows.jsonl")
    module = SFTModule(LanguageModelConfig(str(tmp_path / "model"), dtype="float64"), CrossEntropyLoss())
    measured, predicted = {}, {}
    for packing in ("none", "packed", "padding_free"):
        data = SFTData(
            validation=file, predict=file, format="tokens", packing=packing, eval_batch_size=4, max_length=10
        )
        trainer = quiet_trainer(tmp_path)
        measured[packing] = trainer.validate(module, data, verbose=False)[0]
        batches: Any = trainer.predict(module, data)
        predicted[packing] = [row for batch in batches for row in batch]
    for packing in ("packed", "padding_free"):
        assert measured[packing] == pytest.approx(measured["none"], rel=1e-6)
        assert [row["row"] for row in predicted[packing]] == list(range(len(LENGTHS)))
        for found, wanted in zip(predicted[packing], predicted["none"], strict=True):
            assert found["token"] == wanted["token"]
            for name, values in wanted.items():
                assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name


def write_token_rows(path: Path) -> str:
    """The rows above, every token but the first supervised."""
    path.write_text("".join(json.dumps({"input_ids": row.ids.tolist()}) + "\n" for row in rows()))
    return str(path)


def quiet_trainer(directory: Path) -> Trainer:
    return make_trainer(directory)
