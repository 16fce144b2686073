"""Adapters: what is trained and what is not, right gradients through every engine, and merging as it should be."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.e2e.command_line import CONFIGS, QUICKSTART, CommandLine, column, empty_working_directory
from tests.modules.architectures import ARCHITECTURES, random_model, uneven_batch
from tests.modules.test_head import ENGINES, gradients, plain_cross_entropy
from tests.support.errors import refused
from ts2_lightning.engines import ChunkedEngine
from ts2_lightning.engines.linear import is_plain_linear
from ts2_lightning.losses import CrossEntropyLoss, TS2Loss
from ts2_lightning.modules import AdamWConfig, AdapterConfig, LanguageModelConfig
from ts2_lightning.modules.adapters import (
    adapted_layers,
    add_adapter,
    check_trained_state,
    is_adapted,
    merged_weights,
    trained_state,
)
from ts2_lightning.modules.buffers import initialize_buffers
from ts2_lightning.modules.head import check_head, output_head
from ts2_lightning.modules.language_model import load_language_model
from ts2_lightning.modules.network import SFTNetwork
from ts2_lightning.modules.optimization import make_optimizer
from ts2_lightning.toyworld import write_blank_model
from ts2_lightning.types import UserError

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
IDS = torch.arange(3, 15)[None]
HEADS = ["llama", "llama, tied", "gemma2", "cohere", "gpt_neox"]
"""Plain, tied, soft-capped, tied and scaled, and with biases."""


def adapted(architecture: str, **settings: Any) -> PreTrainedModel:
    """A float64 model with an adapter that says something: B is not zero."""
    model = random_model(architecture)
    add_adapter(model, AdapterConfig(r=3, alpha=6, **settings))
    speak(model)
    return model.train()


@torch.no_grad()
def speak(model: nn.Module, std: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))


def logits(model: PreTrainedModel) -> Tensor:
    model.eval()
    with torch.no_grad():
        output: Tensor = model(input_ids=IDS, use_cache=False).logits
    return output


# -- what is adapted


def test_every_linear_layer_but_the_head() -> None:
    names = adapted_layers(adapted("llama"))
    assert {name.rpartition(".")[2] for name in names} == PROJECTIONS
    assert len(names) == 2 * len(PROJECTIONS)


@pytest.mark.parametrize("architecture", HEADS)
def test_the_head_too_if_asked(architecture: str) -> None:
    without, with_head = (adapted_layers(adapted(architecture, head=wanted)) for wanted in (False, True))
    assert with_head.keys() - without.keys() == {"lm_head"}
    assert without.keys() < with_head.keys()


def test_the_layers_that_are_named() -> None:
    assert {*adapted_layers(adapted("llama", target_modules=["q_proj", "layers.1.mlp.up_proj"]))} == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }


def test_a_name_that_matches_nothing() -> None:
    with pytest.raises(UserError) as caught:
        adapted("llama", target_modules=["q_proj", "query"])
    assert str(caught.value) == (
        "model.lm.adapter.target_modules: no linear layer of LlamaForCausalLM is called 'query'; it has down_proj, "
        "gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: AdapterConfig(target_modules=[]), r"model\.lm\.adapter.*got an empty list"),
        (lambda: LanguageModelConfig("x", quantization="nf4"), "4-bit weights cannot be trained; set model"),
        (lambda: LanguageModelConfig("x", init="random", quantization="nf4", adapter=AdapterConfig()), "to pretrained"),
        (
            lambda: LanguageModelConfig("x", init="random", adapter=AdapterConfig()),
            "kept nowhere, .* adapter alone; set",
        ),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], Any], said: str) -> None:
    with refused(said):
        make()


def test_libraries_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts2_lightning.modules.adapters.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"PEFT is not installed; pip install 'ts2-lightning\[peft\]'"):
        adapted("llama")
    monkeypatch.setattr("ts2_lightning.modules.language_model.find_spec", lambda name: None)
    config = LanguageModelConfig("somewhere", quantization="nf4", adapter=AdapterConfig())
    with pytest.raises(UserError, match=r"bitsandbytes is not installed; pip install 'ts2-lightning\[qlora\]'"):
        load_language_model(config)


# -- how it begins


def test_at_first_the_model_is_what_it_was() -> None:
    plain = random_model("llama")
    model = copy.deepcopy(plain)
    add_adapter(model, AdapterConfig(r=3, head=True))
    assert torch.equal(logits(model), logits(plain))


def test_its_weights_depend_on_the_seed_alone() -> None:
    drawn = []
    for seed, before in ((0, 0), (0, 5), (1, 0)):
        torch.manual_seed(seed)
        torch.rand(before)
        model = copy.deepcopy(random_model("llama"))
        torch.manual_seed(seed)
        torch.rand(before)
        add_adapter(model.to(torch.bfloat16 if before else torch.float32), AdapterConfig(r=3))
        drawn.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    first, again, other = drawn
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {weight.dtype for weight in again.values()} == {torch.float32}  # whatever the base has
    name = "model.layers.0.mlp.down_proj.lora_A.default.weight"
    assert not torch.equal(first[name], other[name])
    bound = 1 / math.sqrt(48)  # of the inputs
    assert 0.9 * bound < first[name].abs().max() <= bound


# -- gradients


@pytest.mark.parametrize("head", [False, True], ids=["body", "head too"])
@pytest.mark.parametrize("architecture", HEADS)
def test_gradients_are_those_of_the_models_own_logits(architecture: str, head: bool) -> None:
    model = adapted(architecture, head=head)
    wanted, wanted_gradients = plain_cross_entropy(copy.deepcopy(model))
    layers = adapted_layers(model)
    assert wanted_gradients.keys() == {
        f"{name}.lora_{which}.default.weight" for name in layers for which in ("A", "B")
    }  # and nothing else
    if head:
        assert not is_plain_linear(output_head(model))
    for engine in ENGINES.values():
        network = SFTNetwork(copy.deepcopy(model), CrossEntropyLoss(), engine)
        output = network(uneven_batch()[0])
        output.total.backward()
        torch.testing.assert_close(output.total.detach(), wanted, rtol=1e-9, atol=0)
        found = gradients(network.language_model)
        assert found.keys() == wanted_gradients.keys()
        for name, gradient in found.items():
            scale = wanted_gradients[name].abs().max().item()
            assert scale > 0
            torch.testing.assert_close(gradient, wanted_gradients[name], rtol=0, atol=1e-9 * scale, msg=name)


@pytest.mark.parametrize("architecture", HEADS)
def test_an_adapted_model_passes_the_check_of_its_head(architecture: str) -> None:
    check_head(adapted(architecture, head=True))


def test_gradient_checkpointing_changes_nothing_and_is_quiet(tmp_path: Path) -> None:
    random_model("llama").save_pretrained(tmp_path)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for checkpointing in (False, True):
            torch.manual_seed(0)
            config = LanguageModelConfig(
                str(tmp_path), adapter=AdapterConfig(r=3), gradient_checkpointing=checkpointing, dtype="float64"
            )
            model = load_language_model(config)
            assert model.is_activation_checkpointing == checkpointing
            speak(model)
            SFTNetwork(model, CrossEntropyLoss(), ChunkedEngine(3))(uneven_batch()[0]).total.backward()
            found.append(gradients(model))
    plain, checkpointed = found
    assert len(plain) == 2 * 14
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name])


def test_the_optimizer_takes_what_is_trained() -> None:
    network = SFTNetwork(adapted("llama, tied", head=True), CrossEntropyLoss(), ChunkedEngine())
    optimizer = make_optimizer(network, AdamWConfig(fused=False))
    taken = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert len(taken) == 2 * 15
    assert all("lora_" in names[id(parameter)] for parameter in taken)


# -- merging


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with the weights of `merged_weights`, in the dtypes in which they are held.

    A head that was tied to the embeddings, and has an adapter, is tied no more.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if model.get_output_embeddings() in adapted_layers(model).values():
        config.tie_word_embeddings = False
    weights = {weight.name: weight.value.to(weight.held) for weight in merged_weights(model)}
    floating = next(weight.dtype for weight in weights.values() if weight.is_floating_point())
    with torch.device("meta"):
        plain: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=floating)
    plain.load_state_dict(weights, assign=True)
    plain.tie_weights()
    initialize_buffers(plain, model.device)
    return plain.train(model.training)


@pytest.mark.parametrize("head", [False, True], ids=["body", "head too"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_merged_model_says_the_same_without_an_adapter(architecture: str, head: bool) -> None:
    model = adapted(architecture, head=head)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    plain = merged(model)
    torch.testing.assert_close(logits(plain), logits(model), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(logits(plain), logits(random_model(architecture)), atol=1e-3)
    assert not is_adapted(plain)
    assert plain.state_dict().keys() == random_model(architecture).state_dict().keys()
    tied = bool(random_model(architecture).config.tie_word_embeddings)
    is_tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert plain.config.tie_word_embeddings == is_tied == (tied and not head)
    # And the adapted model is as it was.
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trained
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_merged_model_is_saved_and_loaded_again(tmp_path: Path) -> None:
    model = adapted("llama, tied", head=True)
    merged(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    # Transformers computes the frequencies of rotary positions otherwise there, in float32.
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-6)


def test_what_is_in_bfloat16_is_summed_in_float32(tmp_path: Path) -> None:
    random_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_language_model(LanguageModelConfig(str(tmp_path), dtype="bfloat16", adapter=AdapterConfig(r=3)))
    speak(model)
    layer = model.model.layers[1].mlp.up_proj
    a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    exact = layer.base_layer.weight.double() + 16 / 3 * b.double() @ a.double()
    weights = {weight.name: weight for weight in merged_weights(model)}
    found = weights["model.layers.1.mlp.up_proj.weight"]
    assert (found.value.dtype, found.held) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(found.value.double(), exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(found.base, layer.base_layer.weight)
    assert weights["model.norm.weight"].value.dtype == torch.bfloat16


# -- checkpoints


def test_a_checkpoint_has_what_is_trained_and_gives_it_back() -> None:
    network = SFTNetwork(adapted("llama, tied", head=True), CrossEntropyLoss(), ChunkedEngine())
    state = trained_state(network.state_dict(), network)
    assert len(state) == 2 * 15
    assert all("lora_" in name for name in state)
    other = SFTNetwork(adapted("llama, tied", head=True), CrossEntropyLoss(), ChunkedEngine())
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    check_trained_state(state, other)
    other.load_state_dict(state, strict=False)
    assert torch.equal(logits(other.language_model), logits(network.language_model))


def test_a_model_that_is_trained_whole_is_kept_whole() -> None:
    model = random_model("llama, tied")
    state = model.state_dict()
    assert trained_state(state, model) == state
    check_trained_state(state, model)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"r": 4}, "has in another shape model.layers.0.mlp.down_proj.lora_A.default.weight (28 such weights)"),
        ({"r": 3, "head": True}, "has, and this model has not, lm_head.lora_A.default.weight (2 such weights)"),
        ({"r": 3, "target_modules": ["q_proj"]}, "lacks model.layers.0.mlp.down_proj.lora_A.default.weight (24 such"),
    ],
)
def test_a_checkpoint_of_another_adapter(other: dict[str, Any], said: str) -> None:
    theirs = random_model("llama")
    add_adapter(theirs, AdapterConfig(**other))
    mine = adapted("llama")
    with pytest.raises(UserError) as caught:
        check_trained_state(trained_state(theirs.state_dict(), theirs), mine)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


# -- 4 bits


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of width 128 with the toy world's tokenizer, in bfloat16."""
    directory = write_blank_model(tmp_path_factory.mktemp("models") / "llama")
    config = AutoConfig.from_pretrained(directory)
    config.update({"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2})
    config.head_dim = 32
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture
def in_four_bits(model_directory: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    adapter = AdapterConfig(r=8, head=True)
    config = LanguageModelConfig(str(model_directory), quantization="nf4", adapter=adapter, gradient_checkpointing=True)
    return load_language_model(config)


def test_the_linear_layers_but_the_head_are_in_four_bits(in_four_bits: PreTrainedModel) -> None:
    import bitsandbytes

    quantised = {n for n, m in in_four_bits.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert len(quantised) == 14
    for name in quantised:
        layer = in_four_bits.get_submodule(name)
        assert (layer.weight.quant_type, layer.compute_dtype) == ("nf4", torch.bfloat16)
        assert layer.weight.quant_state.nested  # the scales are quantised too
    assert {p.dtype for p in in_four_bits.parameters()} == {torch.uint8, torch.float32}


def test_it_learns_in_four_bits_which_stay_as_they_are(in_four_bits: PreTrainedModel) -> None:
    """Also after an evaluation, which bitsandbytes answers on some CPUs by repacking the weights."""
    network = SFTNetwork(in_four_bits, TS2Loss(), ChunkedEngine(5))
    frozen = {name: p.detach().clone() for name, p in network.named_parameters() if not p.requires_grad}
    optimizer = make_optimizer(network, AdamWConfig(lr=1e-2))
    batch, _ = uneven_batch()
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        output = network(batch)
        output.total.backward()
        losses.append(output.total.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)
        optimizer.step()
        with torch.no_grad():
            network.eval()(batch)
        network.train()
    assert losses[-1] < 0.2 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in network.named_parameters() if name in frozen)
    assert set(trained_state(network.state_dict(), network)) == {
        f"language_model.{name}" for name, p in in_four_bits.named_parameters() if p.requires_grad
    }  # no scales either


def test_gradients_in_four_bits_are_those_of_the_dequantised_model(in_four_bits: PreTrainedModel) -> None:
    import bitsandbytes

    speak(in_four_bits, 0.05)
    plain = copy.deepcopy(in_four_bits)
    for layer in adapted_layers(plain).values():
        weight = layer.base_layer.weight
        if hasattr(weight, "quant_state"):
            whole = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            layer.base_layer = nn.Linear(*whole.T.shape, bias=False)
            layer.base_layer.weight = nn.Parameter(whole.float(), requires_grad=False)
    wanted, wanted_gradients = plain_cross_entropy(plain)
    output = SFTNetwork(in_four_bits, CrossEntropyLoss(), ChunkedEngine(3))(uneven_batch()[0])
    output.total.backward()
    assert output.total.item() == pytest.approx(wanted.item(), rel=5e-3)  # products in bfloat16
    found = gradients(in_four_bits)
    assert found.keys() == wanted_gradients.keys()
    for name, gradient in found.items():
        distance = (gradient - wanted_gradients[name]).norm() / wanted_gradients[name].norm()
        assert distance < 0.05, name


def test_merging_dequantises_first(in_four_bits: PreTrainedModel) -> None:
    import bitsandbytes

    speak(in_four_bits, 0.05)
    plain = merged(in_four_bits)
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert not hasattr(plain.config, "quantization_config")
    assert {type(m).__name__ for m in plain.modules() if isinstance(m, nn.Linear)} == {"Linear"}
    layer = in_four_bits.model.layers[1].self_attn.v_proj
    a, b = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    base = bitsandbytes.functional.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    wanted = base.double() + 16 / 8 * b @ a
    torch.testing.assert_close(plain.model.layers[1].self_attn.v_proj.weight.double(), wanted, rtol=2**-8, atol=1e-6)
    said, theirs = logits(in_four_bits), logits(plain).float()
    assert (said - theirs).norm() < 0.02 * said.norm()
    assert is_adapted(in_four_bits)
    assert not is_adapted(plain)


# -- the command line


@pytest.fixture
def ts2(tmp_path: Path, model_directory: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[CommandLine]:
    with empty_working_directory(tmp_path, tmp_path / "cache"):
        yield CommandLine(capfd, model_directory)


@pytest.mark.parametrize("name", ["lora", "qlora"])
def test_a_fit_with_the_fragment_after_an_experiment(name: str, ts2: CommandLine, tmp_path: Path) -> None:
    fragment = CONFIGS / "model" / "adapter" / f"{name}.yaml"
    files = ("-c", str(QUICKSTART), "-c", str(fragment))
    options = (
        *("--model.lm.path", str(ts2.blank), "--trainer.enable_progress_bar", "false", "--model.optimizer.lr=5e-3"),
        *("--model.schedule.name=constant", "--model.schedule.warmup_steps=2"),  # does not depend on the last step
    )
    answer = ts2("fit", *files, *options, "--trainer.max_steps", "8").done()
    assert "Warning" not in answer.err
    run = tmp_path / "runs" / name / "1"
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]["lm"]
    assert config["adapter"] == {
        "r": 16, "alpha": 16, "dropout": 0.0, "target_modules": "all-linear", "head": False,
        "target_parameters": None, "path": None,
    }  # fmt: skip
    assert config["quantization"] == ("nf4" if name == "qlora" else None)
    objective = column(run, "train/objective")
    assert len(objective) == 8
    assert objective[8] < objective[1]

    # A checkpoint holds nothing of the base, which a run that is resumed has from where it had it.
    for steps, resume in (("3", ()), ("8", ("--ckpt_path", "last"))):
        ts2("fit", *files, *options, "--name", "broken", "--trainer.max_steps", steps, *resume).done()
    broken = tmp_path / "runs" / "broken" / "1"
    state = torch.load(broken / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len(state) == 2 * 14
    assert all("lora_" in key for key in state)
    assert column(broken, "train/objective") == objective
    resumed, unbroken = (load_file(place / "export" / "model.safetensors") for place in (broken, run))
    assert all(torch.equal(resumed[key], weight) for key, weight in unbroken.items())
