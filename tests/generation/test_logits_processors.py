"""The decoding twins against the `entmax` package in float64, and through transformers' own `generate`."""

import math
import pickle

import entmax
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper

from tests.callbacks.tiny_llama import WORDS, write_base
from ts2_lightning.generation import EntmaxLogitsProcessor, SparsemaxLogitsProcessor
from ts2_lightning.generation.logits_processors import log_entmax
from ts2_lightning.types import UserError

NO_IDS = torch.zeros(0, 0, dtype=torch.int64)
PROCESSORS = {2.0: SparsemaxLogitsProcessor(), 1.5: EntmaxLogitsProcessor(), 1.2: EntmaxLogitsProcessor(1.2)}


def by_bisection(logits: Tensor, alpha: float) -> Tensor:
    """[..., K] alpha-entmax of the reference package, in float64. At 1.5 and 2 it is exact."""
    z = logits.double()
    if alpha == 2:
        return entmax.sparsemax(z, -1)
    return entmax.entmax15(z, -1) if alpha == 1.5 else entmax.entmax_bisect(z, alpha, -1, n_iter=100)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("alpha", PROCESSORS)
@pytest.mark.parametrize("shape", [(1, 3), (5, 14), (2, 3, 300), (4, 5000), (7, 1), (11,)])
def test_softmax_of_the_result_is_the_projection(alpha: float, shape: tuple[int, ...]) -> None:
    z = draw(*shape)
    result = PROCESSORS[alpha](NO_IDS, z)
    expected = by_bisection(z, alpha)
    assert result.shape == z.shape
    assert result.dtype == torch.float64
    torch.testing.assert_close(result.softmax(-1), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(result.exp(), expected, rtol=0, atol=1e-10)
    outside = expected == 0
    assert (result[outside] == -torch.inf).all()


@pytest.mark.parametrize("alpha", PROCESSORS)
def test_an_offset_costs_nothing(alpha: float) -> None:
    """Scores that all lie near 1e4, in float32."""
    scores = draw(5, 40).float() + 1e4
    found = log_entmax(scores, alpha, logit_scale=0.7).exp()
    exact = log_entmax(scores.double(), alpha, logit_scale=0.7).exp()
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", PROCESSORS)
def test_no_rows(alpha: float) -> None:
    assert PROCESSORS[alpha](NO_IDS, torch.zeros(0, 14)).shape == (0, 14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", PROCESSORS)
def test_narrow_scores_are_computed_in_float32(alpha: float, dtype: torch.dtype) -> None:
    z = draw(6, 700).to(dtype)
    result = PROCESSORS[alpha](NO_IDS, z)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.softmax(-1).double(), by_bisection(z, alpha), rtol=0, atol=2e-6)


@pytest.mark.parametrize("alpha", PROCESSORS)
def test_tokens_ruled_out_before_are_not_there(alpha: float) -> None:
    z = draw(4, 50)
    allowed = torch.arange(0, 50, 3)
    masked = torch.full_like(z, -torch.inf).index_copy(-1, allowed, z[:, allowed])
    before = masked.clone()
    result = PROCESSORS[alpha](NO_IDS, masked)
    expected = torch.zeros_like(z).index_copy(-1, allowed, by_bisection(z[:, allowed], alpha))
    torch.testing.assert_close(result.exp(), expected, rtol=0, atol=1e-10)
    assert torch.equal(masked, before), "the scores of the caller stay as they were"


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("alpha", [2.0, 1.5])
def test_temperature_before_and_after(alpha: float, temperature: float) -> None:
    z = draw(8, 40)
    scaled = SparsemaxLogitsProcessor(1 / temperature) if alpha == 2 else EntmaxLogitsProcessor(alpha, 1 / temperature)
    warper = TemperatureLogitsWarper(temperature)
    before = by_bisection(z / temperature, alpha)
    torch.testing.assert_close(scaled(NO_IDS, z).exp(), before, rtol=0, atol=1e-10)
    in_a_list = LogitsProcessorList([warper, PROCESSORS[alpha]])(NO_IDS, z)
    torch.testing.assert_close(in_a_list.exp(), before, rtol=0, atol=1e-10)

    after = by_bisection(z, alpha) ** (1 / temperature)
    after = after / after.sum(-1, keepdim=True)
    torch.testing.assert_close(warper(NO_IDS, PROCESSORS[alpha](NO_IDS, z)).softmax(-1), after, rtol=0, atol=1e-8)


@pytest.mark.parametrize("alpha", PROCESSORS)
def test_log_probabilities_as_of_beam_search(alpha: float) -> None:
    z = draw(4, 50)
    torch.testing.assert_close(
        PROCESSORS[alpha](NO_IDS, z.log_softmax(-1)).exp(), PROCESSORS[alpha](NO_IDS, z).exp(), rtol=0, atol=1e-10
    )


def test_pickling() -> None:
    z = draw(3, 20)
    for processor in PROCESSORS.values():
        assert torch.equal(pickle.loads(pickle.dumps(processor))(NO_IDS, z), processor(NO_IDS, z))


@pytest.mark.parametrize("alpha", [1, 1.0001, 0.5, 2.01, math.nan])
def test_wrong_alphas(alpha: float) -> None:
    with pytest.raises(
        UserError, match=r"^EntmaxLogitsProcessor: alpha must be .* at least 1\.001 and at most 2, got [^\n]*$"
    ):
        EntmaxLogitsProcessor(alpha)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("kind", [SparsemaxLogitsProcessor, EntmaxLogitsProcessor])
def test_wrong_scales(kind: type, scale: float) -> None:
    with pytest.raises(UserError, match=rf"^{kind.__name__}: logit_scale must be a finite number above 0, got [^\n]*$"):
        kind(logit_scale=scale)


# Through `generate` ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaForCausalLM:
    """Random, with logits spread enough for supports of a few of the 14 words; it never stops by itself."""
    model = LlamaForCausalLM.from_pretrained(write_base(tmp_path_factory.mktemp("base")))
    with torch.no_grad():
        model.lm_head.weight *= 30
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.no_grad()
def supports(model: LlamaForCausalLM, sequences: Tensor, alpha: float, scale: float = 1.0) -> Tensor:
    """[B, T, K] whether a word may follow, at every place; from one pass over the whole sequences."""
    return by_bisection(model(sequences).logits.double() * scale, alpha) > 0


def sample(model: LlamaForCausalLM, processors: list[LogitsProcessor], count: int, length: int, **options) -> Tensor:
    """[count, 2 + length] samples that go on after a prompt of two words."""
    torch.manual_seed(0)
    settings = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    return model.generate(
        torch.tensor([[0, 3]]).expand(count, 2),
        attention_mask=torch.ones(count, 2, dtype=torch.int64),
        logits_processor=LogitsProcessorList(processors),
        max_new_tokens=length,
        **settings,
    )


def inside(supported: Tensor, sequences: Tensor) -> Tensor:
    """[B, new words] whether each generated word was supported at its place."""
    return supported[:, 1:-1].gather(-1, sequences[:, 2:, None])[..., 0]


@pytest.mark.parametrize("alpha", PROCESSORS)
@pytest.mark.parametrize("after", [{}, {"temperature": 3.0}, {"top_k": 50}])
def test_samples_never_leave_the_support(model: LlamaForCausalLM, alpha: float, after: dict) -> None:
    """Neither a temperature afterwards nor transformers' own top-k of 50 changes that."""
    sequences = sample(model, [PROCESSORS[alpha]], 64, 12, **after)
    supported = supports(model, sequences, alpha)
    assert 1 < supported.double().sum(-1).mean() < len(WORDS) - 3, "supports between one word and all"
    assert inside(supported, sequences).all()
    plain = sample(model, [], 64, 12, **after)
    assert not inside(supports(model, plain, alpha), plain).all(), "softmax does leave it"


def test_a_temperature_before_widens_the_support(model: LlamaForCausalLM) -> None:
    sequences = sample(model, [SparsemaxLogitsProcessor(logit_scale=1 / 3)], 64, 12)
    assert inside(supports(model, sequences, 2.0, scale=1 / 3), sequences).all()
    assert not inside(supports(model, sequences, 2.0), sequences).all()


@pytest.mark.parametrize("alpha", PROCESSORS)
def test_samples_have_the_projections_frequencies(model: LlamaForCausalLM, alpha: float) -> None:
    n = 4000
    first = sample(model, [PROCESSORS[alpha]], n, 1)[:, 2]
    with torch.no_grad():
        expected = by_bisection(model(torch.tensor([[0, 3]])).logits[0, -1], alpha)
    frequencies = torch.bincount(first, minlength=len(WORDS)).double() / n
    assert (expected > 0.02).sum() > 1, "a choice"
    assert ((frequencies - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt()).all()


def test_the_configs_own_processors_come_before(model: LlamaForCausalLM) -> None:
    """The likeliest word suppressed, the projection is that of the others."""
    with torch.no_grad():
        logits = model(torch.tensor([[0, 3]])).logits[0, -1].double()
    best = int(logits.argmax())
    first = sample(model, [SparsemaxLogitsProcessor()], 500, 1, suppress_tokens=[best])[:, 2]
    left = by_bisection(logits.index_fill(0, torch.tensor([best]), -1e9), 2.0)
    assert set(first.tolist()) == set(left.nonzero().flatten().tolist())


def test_beam_search_stays_in_the_support(model: LlamaForCausalLM) -> None:
    sequences = sample(model, [SparsemaxLogitsProcessor()], 1, 6, do_sample=False, num_beams=2)
    assert inside(supports(model, sequences, 2.0), sequences).all()
