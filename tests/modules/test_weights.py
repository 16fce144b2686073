"""Weights for sharded models: what lies on each of two ranks is that rank's part of the checkpoint's file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig

from tests.modules.architectures import ARCHITECTURES, random_model
from tests.modules.weights_on_two_ranks import RESIZED
from tests.support.ranks import launch
from ts2_lightning.modules import AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapters import adapted_layers, is_adapted
from ts2_lightning.modules.language_model import build_language_model, load_language_model, stored_dtype
from ts2_lightning.modules.weights import load_weights
from ts2_lightning.types import UserError

ROOT = Path(__file__).resolve().parents[2]
WAYS = ("meta", "fsdp2", "tensor parallel", "zero3")
SHARDED = ("fsdp2", "zero3")
IDS = torch.arange(12)[None]

Answers = list[dict[str, Any]]
"""For each rank, what `weights_on_two_ranks` found in each case."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in bfloat16, right ones and wrong ones; 97 tokens do not divide by two."""
    directory = tmp_path_factory.mktemp("models")
    random_model("llama").to(torch.bfloat16).save_pretrained(directory / "untied", max_shard_size="20KB")
    random_model("llama, tied").to(torch.bfloat16).save_pretrained(directory / "tied")
    assert len(list((directory / "untied").glob("*.safetensors"))) > 1
    for name in ("incomplete", "untied in fact"):
        (directory / name).mkdir()
        shutil.copy(directory / "untied" / "config.json", directory / name)
    weights = stored(directory / "untied")
    save_file(weights, directory / "untied in fact" / "model.safetensors", {"format": "pt"})
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, directory / "incomplete" / "model.safetensors", {"format": "pt"})
    file = directory / "untied in fact" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))
    return directory


@pytest.fixture(scope="module")
def answers(directory: Path) -> Answers:
    """One launch of two processes for all cases."""
    launch("tests.modules.weights_on_two_ranks", directory, DS_ACCELERATOR="cpu")
    return [torch.load(directory / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def stored(directory: Path) -> dict[str, Tensor]:
    return {name: w for file in directory.glob("*.safetensors") for name, w in load_file(file).items()}


def share(way: str, name: str, whole: Tensor, rank: int) -> Tensor:
    """What a rank holds of a tensor, by the rule of each way."""
    if way == "zero3":  # of all numbers in a row, filled up with what nobody reads
        flat = whole.flatten()
        part = -(-flat.numel() // 2)
        return flat[rank * part : (rank + 1) * part]
    split = {"fsdp2": 0, "tensor parallel": {"up_proj": 0, "gate_proj": 0, "down_proj": 1}.get(name.split(".")[-2])}
    if split.get(way) is None:
        return whole
    parts = whole.chunk(2, dim=split[way])
    return parts[rank] if rank < len(parts) else whole[:0]


def assert_shares(answers: Answers, case: str, wanted: dict[str, Tensor]) -> None:
    way = case.split(",")[0]
    for rank, found in enumerate(answers):
        held = found[case]["parameters"]
        assert held.keys() == wanted.keys()
        for name, tensor in held.items():
            expected = share(way, name, wanted[name], rank)
            assert tensor.dtype == torch.float32
            filled = tensor[: expected.numel()] if way == "zero3" else tensor
            assert torch.equal(filled, expected.float()), (case, rank, name)
            assert tensor.numel() - expected.numel() in ((0, 1) if way == "zero3" else (0,))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_rank_holds_its_part_of_the_file(way: str, answers: Answers, directory: Path) -> None:
    assert_shares(answers, way, stored(directory / "untied"))
    assert all(found[way]["training"] for found in answers)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["meta", "fsdp2", "zero3"])
def test_what_is_tied_stays_one_parameter(way: str, answers: Answers, directory: Path) -> None:
    case = f"{way}, tied"
    assert_shares(answers, case, stored(directory / "tied"))
    prefix, head = ("", []) if way == "meta" else ("language_model.", ["loss_head.weight"])
    both = sorted([f"{prefix}lm_head.weight", f"{prefix}model.embed_tokens.weight", *head])
    untied = [sorted([f"{prefix}lm_head.weight", *head])] if head else []
    for found in answers:
        assert found[case]["ties"] == [both]
        assert found[way]["ties"] == untied
        assert found[case].get("ties after", [both]) == [both]  # after a forward and backward pass under FSDP2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("way", SHARDED)
def test_new_rows_are_the_mean_on_every_rank(way: str, kind: str, answers: Answers, directory: Path) -> None:
    wanted = stored(directory / kind)
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & wanted.keys():
        mean = wanted[name].double().mean(0).to(torch.bfloat16)
        wanted[name] = torch.cat([wanted[name], mean.expand(RESIZED - len(wanted[name]), -1)])
    assert_shares(answers, f"{way}, {kind}, resized", wanted)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_buffers_are_those_of_a_model_that_was_loaded(way: str, answers: Answers, directory: Path) -> None:
    wanted = dict(load_language_model(LanguageModelConfig(str(directory / "untied"))).named_buffers())
    assert wanted
    for found in answers:
        assert found[way]["buffers"].keys() == wanted.keys()
        for name, buffer in found[way]["buffers"].items():
            assert buffer.dtype == wanted[name].dtype
            assert torch.equal(buffer, wanted[name])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_random_weights_are_those_of_a_single_process(way: str, answers: Answers, directory: Path) -> None:
    torch.manual_seed(7)
    alone = load_language_model(LanguageModelConfig(str(directory / "untied"), init="random"))
    assert_shares(answers, f"{way}, random", {name: p.detach() for name, p in alone.named_parameters()})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("way", SHARDED)
def test_an_adapter_is_that_of_a_single_process(way: str, kind: str, answers: Answers, directory: Path) -> None:
    case = f"{way}, adapter" if kind == "untied" else f"{way}, tied, adapter"
    torch.manual_seed(7)
    alone = load_language_model(LanguageModelConfig(str(directory / kind), adapter=AdapterConfig(r=3, head=True)))
    assert_shares(answers, case, {name: p.detach() for name, p in alone.named_parameters()})
    trained = [name for name, p in alone.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 15  # seven layers in each of two blocks, and the head
    assert all(found[case]["trained"] == trained for found in answers)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_the_sharded_model_computes_what_the_whole_one_does(way: str, answers: Answers, directory: Path) -> None:
    model = load_language_model(LanguageModelConfig(str(directory / "untied"))).eval()
    with torch.no_grad():
        logits = model(input_ids=IDS, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], IDS[0, 1:], reduction="sum")
    for found in answers:
        if "logits" in found[way]:
            torch.testing.assert_close(found[way]["logits"], logits, rtol=1e-5, atol=1e-5)
        else:
            assert found[way]["loss"] == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_is_wrong_is_said_on_every_rank(way: str, answers: Answers) -> None:
    for case, said in (("a weight is missing", "1 are missing"), ("ties differ", "config.json ties")):
        first, second = (found[f"{way}, {case}"] for found in answers)
        assert first == second
        assert said in first
        assert "\n" not in first


@pytest.mark.slow
def test_what_is_made_after_it_is_sharded_again(answers: Answers) -> None:
    """Inside of `deepspeed.zero.Init`, which is left for the source's sake."""
    assert all(found["zero3"]["sharded after"] for found in answers)


@pytest.mark.slow
def test_whatever_breaks_rank_0_ends_the_others_too(answers: Answers) -> None:
    first, second = (found["broken"] for found in answers)
    assert first == "MemoryError('no more')"
    assert second == """RuntimeError("on rank 0: MemoryError('no more')")"""


# -- one process


MIXTRAL = transformers.MixtralConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=4, head_dim=8,
)  # fmt: skip
"""Its files have every expert by itself, the model has them in one tensor: transformers joins them."""


@pytest.mark.parametrize("adapter", [None, AdapterConfig(r=3, head=True)], ids=["plain", "adapter"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, MIXTRAL], ids=lambda it: getattr(it, "model_type", it))
def test_every_architecture_comes_out_as_it_is_loaded(
    architecture: str | PreTrainedConfig, adapter: AdapterConfig | None, tmp_path: Path
) -> None:
    random_model(architecture).to(torch.bfloat16).save_pretrained(tmp_path)
    config = LanguageModelConfig(str(tmp_path), adapter=adapter)
    torch.manual_seed(0)
    wanted = load_language_model(config)
    model = build_language_model(config)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    kept = list(model.parameters())
    load_weights(model, config)
    assert all(before is after for before, after in zip(kept, model.parameters(), strict=True))
    assert is_adapted(model) == (adapter is not None)
    assert bool(adapter) == bool(adapted_layers(model) if adapter else False)
    for mine, theirs in (
        (dict(model.named_parameters()), dict(wanted.named_parameters())),
        (dict(model.named_buffers()), dict(wanted.named_buffers())),
    ):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name


def test_the_widest_of_the_stored_dtypes_holds_them_all(tmp_path: Path) -> None:
    random_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    config = LanguageModelConfig(str(tmp_path), dtype="float64")
    assert stored_dtype(config) == torch.bfloat16
    weights = stored(tmp_path)
    weights["model.norm.weight"] = torch.full((32,), 1 + 2.0**-20)  # which bfloat16 would round to one
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    assert stored_dtype(config) == torch.float32
    model = build_language_model(config)
    load_weights(model, config)
    assert torch.equal(model.model.norm.weight, weights["model.norm.weight"].double())


def test_weights_in_four_bits_are_not_sharded(directory: Path) -> None:
    config = LanguageModelConfig(str(directory / "untied"), adapter=AdapterConfig(), quantization="nf4")
    with pytest.raises(UserError, match="nf4 weights cannot be sharded"):
        build_language_model(config)
