"""Operations against torch's own counter; times against sums written out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.losses import ReferenceAnchored, TokenLoss, TS2Loss
from ts2_lightning.modules import LanguageModelConfig
from ts2_lightning.modules.config import AdapterConfig
from ts2_lightning.planning import Job, Memory, MicroBatch, find_gpu, make_plan
from ts2_lightning.planning.duration import (
    COLLECTIVES,
    bandwidth,
    bandwidth_of_shards,
    communication,
    duration,
    operations,
    update,
)
from ts2_lightning.planning.estimate import _divided, _measured
from ts2_lightning.planning.layout import Layout, read_layout
from ts2_lightning.planning.model import Sizes, measure
from ts2_lightning.planning.state import state_of
from ts2_lightning.types import UserError

BATCH = MicroBatch(2, 24)
CONFIG = LlamaConfig(
    hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, intermediate_size=90,
    vocab_size=301, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("model")
    CONFIG.save_pretrained(directory)
    return str(directory)


def sizes(path: str, **options: Any) -> Sizes:
    return measure(LanguageModelConfig(path, **options), Layout("single", ""), BATCH, modes=(False,))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_operations_are_those_of_torchs_counter(path: str, checkpointing: bool) -> None:
    """With eager attention, whose products all are counted."""
    model = LlamaForCausalLM._from_config(CONFIG, attn_implementation="eager").train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(2, 24, dtype=torch.long)).logits.sum().backward()
    found = operations(sizes(path, attn_implementation="eager"), BATCH, checkpointing)
    # Checkpointing stops early: the last product of each layer is not needed for its gradients.
    spared = 2 * BATCH.tokens * 48 * 90 * 3 if checkpointing else 0
    assert found.executed - spared == counter.get_total_flops()
    assert found.needed == operations(sizes(path, attn_implementation="eager"), BATCH, False).executed


def test_frozen_weights_have_no_gradient(path: str) -> None:
    whole = operations(sizes(path), BATCH, False).executed
    adapted = operations(sizes(path, adapter=AdapterConfig(r=1)), BATCH, False).executed
    assert 0.6 < adapted / whole < 0.8


def test_what_is_sent(path: str) -> None:
    found = sizes(path)
    weights, n = list(found.weights), 4
    whole = 4 * sum(nn.Parameter(p).numel() for p in LlamaForCausalLM(CONFIG).parameters())
    sent = {stage: sum(communication(weights, Layout("zero", "", n, stage=stage), found, BATCH)) for stage in (1, 2, 3)}
    assert sent[1] == sent[2] == 2 * whole * 3 / 4
    assert sent[3] == 3 * whole * 3 / 4
    assert sum(communication(weights, Layout("ddp", "", n), found, BATCH)) == 2 * whole * 3 / 4


def test_fsdp2_gathers_linear_layers_in_bfloat16_where_autocast_rounds_them_anyway(path: str) -> None:
    def sent(layout: Layout) -> float:
        found = measure(LanguageModelConfig(path), layout, BATCH, modes=(False,))
        return communication(list(found.weights), layout, found, BATCH).overlapped

    named = LlamaForCausalLM(CONFIG).named_parameters()
    linear = sum(p.numel() for name, p in named if "_proj" in name)
    plain = sent(Layout("fsdp2", "", 4))
    mixed = sent(Layout("fsdp2", "", 4, autocast=torch.bfloat16))
    assert plain - mixed == 3 / 4 * 2 * 2 * linear  # two bytes of each are spared, in the forward and the backward pass


def test_a_step(path: str) -> None:
    """One GPU sends nothing; more micro-batches take longer; slow links are waited for."""
    gpu = find_gpu("h200")
    found = sizes(path)
    one = duration(found, state_of(found.weights, Layout("single", ""), 3), BATCH, gpu, 1, 1, False, 0.5)
    assert one.communication == 0
    assert one.compute == 3 * operations(found, BATCH, False).executed / (gpu.flops * 0.5)
    assert one.update == pytest.approx(28 * found.parameters / gpu.bandwidth, rel=1e-2)
    assert one.tokens_per_second == pytest.approx(3 * BATCH.tokens / one.step)
    sharded = state_of(found.weights, read_layout(FSDP2, "32-true", 16))
    here, there = (duration(found, sharded, BATCH, gpu, 16 // nodes, nodes, False) for nodes in (1, 16))
    assert there.communication > here.communication > 0


def test_a_ring_over_nodes_has_all_their_cards() -> None:
    gpu = find_gpu("h200")
    assert bandwidth(gpu, 8, 1) == COLLECTIVES * gpu.link
    assert bandwidth(gpu, 8, 4) == COLLECTIVES * 8 * gpu.network
    assert bandwidth(gpu, 1, 4) == COLLECTIVES * gpu.network


FSDP2 = {"class_path": "ts2_lightning.strategies.FSDP2", "init_args": {}}
OFFLOADED = {
    "class_path": "ts2_lightning.strategies.DeepSpeed",
    "init_args": {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
}
HYBRID = {"class_path": "ts2_lightning.strategies.FSDP2", "init_args": {"shard_size": "node"}}
PARALLEL = "lightning.pytorch.strategies.ModelParallelStrategy"


@pytest.mark.parametrize(
    ("strategy", "gpus", "expected"),
    [
        ("auto", 1, ("single", 1, 1, 0)),
        ("auto", 4, ("ddp", 4, 1, 0)),
        ("ddp_find_unused_parameters_true", 4, ("ddp", 4, 1, 0)),
        ("fsdp", 4, ("fsdp", 4, 1, 0)),
        (OFFLOADED, 4, ("zero", 4, 1, 3)),
        (FSDP2, 8, ("fsdp2", 8, 1, 0)),
        ({"class_path": PARALLEL, "init_args": {"tensor_parallel_size": 2}}, 8, ("fsdp2", 4, 2, 0)),
        ({"class_path": PARALLEL}, 8, ("fsdp2", 1, 8, 0)),
        (HYBRID, 8, ("fsdp2", 8, 1, 0)),
    ],
)
def test_layouts(strategy: Any, gpus: int, expected: tuple[Any, ...]) -> None:
    layout = read_layout(strategy, "bf16-mixed", gpus)
    assert (layout.kind, layout.data_parallel, layout.tensor_parallel, layout.stage) == expected
    assert layout.offload_parameters == (strategy is OFFLOADED)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"class_path": "lightning.pytorch.strategies.Strategy"}, "nothing is known of the memory of Strategy"),
        ("single_device", "uses one GPU, not 4"),
        ("deepspeed_stage_2", "Lightning's own DeepSpeedStrategy is refused"),
        (
            {"class_path": PARALLEL, "init_args": {"tensor_parallel_size": 3}},
            "tensor_parallel_size 3 does not divide 4",
        ),
        (
            {**HYBRID, "init_args": {"shard_size": 3}},
            r"^trainer\.strategy: FSDP2\(shard_size\): 4 ranks with rows of their own cannot be divided by 3$",
        ),
        ({**HYBRID, "init_args": {"shard_size": 0}}, r"^trainer\.strategy: shard_size must be"),
    ],
)
def test_layouts_that_are_none(strategy: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_layout(strategy, "32-true", 4)


def hybrid(**settings: Any) -> Layout:
    """Of 32 GPUs, 8 in each of four nodes."""
    strategy = {**HYBRID, "init_args": {"shard_size": "node", **settings}}
    return read_layout(strategy, "32-true", 32, 8)


def test_hybrid_layouts() -> None:
    layouts = [hybrid(), hybrid(tensor_parallel_size=2), hybrid(shard_size=16), hybrid(shard_size=None)]
    assert [(layout.data_parallel, layout.copies, layout.shards) for layout in layouts] == [
        (32, 4, 8), (16, 4, 4), (32, 2, 16), (32, 1, 32),
    ]  # fmt: skip
    assert [layout.name for layout in layouts] == [
        "FSDP2, 4 copies over 8 GPUs each",
        "FSDP2, tensor parallel 2, 4 copies over 8 GPUs each",
        "FSDP2, 2 copies over 16 GPUs each",
        "FSDP2",
    ]


def test_what_hybrid_sharding_sends_and_holds(path: str) -> None:
    """Weights and gradients inside a copy as FSDP2 does; each shard of the gradients once more, to the other copies."""
    found = sizes(path)
    weights, whole = list(found.weights), 4 * found.parameters
    inside, sent = (communication(weights, layout, found, BATCH) for layout in (Layout("fsdp2", "", 8), hybrid()))
    assert sent._replace(across=0) == inside
    assert sent.across == 2 * (4 - 1) / 4 * whole / 8
    copy, held = (state_of(found.weights, layout, 2, rank=7) for layout in (Layout("fsdp2", "", 8), hybrid()))
    for part in ("held_weights", "held_gradients", "held_optimizer", "gathered", "checkpoint", "copied"):
        assert getattr(held, part)() == getattr(copy, part)(), part
    assert update(held, find_gpu("h200")) == update(copy, find_gpu("h200"))


def test_how_fast_hybrid_sharding_sends() -> None:
    """Inside a node by its links; between nodes each shard's ring has its share of the cards."""
    gpu = find_gpu("h200")
    link, card = COLLECTIVES * gpu.link, COLLECTIVES * gpu.network
    assert bandwidth_of_shards(hybrid(), gpu, 8, 4) == (link, card)
    assert bandwidth_of_shards(hybrid(tensor_parallel_size=2), gpu, 8, 4) == (link, card)
    assert bandwidth_of_shards(hybrid(shard_size=2), gpu, 8, 4) == (link, 4 * card)
    assert bandwidth_of_shards(hybrid(shard_size=16), gpu, 8, 4) == (8 * card, card)
    assert bandwidth_of_shards(hybrid(shard_size=2), gpu, 32, 1) == (link, link)


def test_hybrid_sharding_waits_less_for_the_network(path: str) -> None:
    """As its gradients cross once a step, and its weights never, the more so with more micro-batches."""
    gpu = replace(find_gpu("h200"), network=1e8)  # so slow that everything waits for it
    found = sizes(path)

    def waiting(layout: Layout, count: int) -> float:
        return duration(found, state_of(found.weights, layout, count), BATCH, gpu, 8, 4, False).communication

    over_all = [waiting(hybrid(shard_size=None), count) for count in (1, 8)]
    inside = [waiting(hybrid(), count) for count in (1, 8)]
    assert over_all[1] == pytest.approx(8 * over_all[0])
    assert inside[1] == pytest.approx(inside[0], rel=0.1)
    assert 0 < inside[0] < over_all[0]


def test_what_divides_more_is_named(path: str) -> None:
    """Over several nodes hybrid sharding is one of the ways, and beyond it is sharding over all."""

    def remedies(strategy: object, nodes: int) -> list[str]:
        lm = LanguageModelConfig(path, gradient_checkpointing=True)
        tight = replace(find_gpu("h100"), memory=1.0)
        job = Job(lm, TS2Loss(), ChunkedEngine(), strategy, "32-true", 64, 1, 24, "none", tight, 8, nodes)
        return [name.removeprefix("strategy ") for name, _ in _divided(job, _measured(job, (True,)))]

    assert remedies("ddp", 1) == ["zero2", "fsdp2", "zero3"]
    assert remedies("ddp", 4) == ["zero2", "fsdp2_hybrid", "fsdp2", "zero3"]
    assert remedies(HYBRID, 4) == ["fsdp2", "zero3"]
    assert remedies(HYBRID, 1) == remedies(FSDP2, 4) == []


def test_tensor_parallel_gpus_have_a_part_of_each_layer(path: str) -> None:
    whole = sizes(path)
    half = measure(LanguageModelConfig(path), Layout("fsdp2", "", 1, 2), BATCH, modes=(False,))
    vectors = sum(w.elements for w in whole.weights if len(w.shape) == 1)
    ends = sum(w.elements for w in whole.weights if w.layer < 0 and len(w.shape) > 1)
    assert half.parameters == (whole.parameters - vectors - ends) // 2 + vectors + ends
    with pytest.raises(UserError, match="tensor_parallel_size 4 does not divide num_attention_heads 6"):
        measure(LanguageModelConfig(path), Layout("fsdp2", "", 1, 4), BATCH)


def test_a_reference_is_one_forward_pass_more(path: str) -> None:
    """By torch's own counter too: of the layers, the attention and the head."""
    model = LlamaForCausalLM._from_config(CONFIG, attn_implementation="eager").train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(2, 24, dtype=torch.long))
    eager = sizes(path, attn_implementation="eager")
    with_one, without = operations(eager, BATCH, False, reference=True), operations(eager, BATCH, False)
    assert with_one.executed - without.executed == counter.get_total_flops()
    assert with_one.needed - without.needed == counter.get_total_flops()


def test_the_plan_of_a_job_with_a_reference(path: str) -> None:
    """A copy takes the weights once more, whole or a share; below an adapter it takes nothing but time."""

    def plan(loss: TokenLoss, strategy: object = "auto", gpus: int = 1, **options: Any) -> tuple[Memory, float]:
        lm = LanguageModelConfig(path, **options)
        job = Job(lm, loss, ChunkedEngine(), strategy, "32-true", 8, 2, 24, "none", find_gpu("h100"), gpus)
        made = make_plan(job)
        return made.memory[False], made.duration[False].compute

    fsdp2 = {"class_path": "ts2_lightning.strategies.FSDP2", "init_args": {}}
    zero2 = {"class_path": "ts2_lightning.strategies.DeepSpeed", "init_args": {"stage": 2}}
    for strategy, gpus in (("auto", 1), ("ddp", 2), (zero2, 2), (fsdp2, 2)):
        plain, seconds = plan(TS2Loss(), strategy, gpus)
        anchored, longer = plan(ReferenceAnchored(TS2Loss()), strategy, gpus)
        assert plain.reference == 0
        assert anchored.reference == pytest.approx(anchored.weights, rel=1e-3)
        assert anchored.weights == plain.weights
        assert (anchored.gradients, anchored.optimizer) == (plain.gradients, plain.optimizer)
        assert anchored.tensors - plain.tensors >= anchored.reference
        assert longer > 1.2 * seconds
    plain, seconds = plan(TS2Loss(), adapter=AdapterConfig(r=1))
    anchored, longer = plan(ReferenceAnchored(TS2Loss()), adapter=AdapterConfig(r=1))
    assert anchored.reference == 0
    assert longer > 1.2 * seconds


def test_the_plan_of_a_job_with_another_reference(path: str, tmp_path: Path) -> None:
    """Its own weights, also below an adapter; one of another vocabulary is refused."""
    larger = LlamaConfig(**{**CONFIG.to_dict(), "num_hidden_layers": 5})
    larger.save_pretrained(tmp_path / "larger")

    def reference_bytes(lm: LanguageModelConfig, other: str | None) -> int:
        settings = (ChunkedEngine(), "auto", "32-true", 8, 2, 24, "none", find_gpu("h100"))
        job = Job(lm, ReferenceAnchored(), *settings, reference=other)
        return make_plan(job).memory[False].reference

    alone = measure(LanguageModelConfig(str(tmp_path / "larger")), Layout("single", ""), BATCH, modes=())
    for adapter in (None, AdapterConfig(r=1)):
        found = reference_bytes(LanguageModelConfig(path, adapter=adapter), str(tmp_path / "larger"))
        assert found == 4 * alone.parameters + alone.buffers
        assert found > reference_bytes(LanguageModelConfig(path), None)
    with pytest.raises(UserError, match=r"^model.reference: '.*' has .* tokens in its vocabulary"):
        reference_bytes(LanguageModelConfig(path, resize_embeddings=5000), str(tmp_path / "larger"))
