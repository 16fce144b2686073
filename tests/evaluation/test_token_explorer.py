"""What the token explorer shows, against plain formulas in float64 on the prompts that were generated from."""

import json
from pathlib import Path

import entmax
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from ts2_lightning.engines import chunked
from ts2_lightning.evaluation import Model, token_explorer
from ts2_lightning.evaluation.token_explorer import TOP, Explorer, piece, read_tokens
from ts2_lightning.generation import Request
from ts2_lightning.ops import rows as ops_rows
from ts2_lightning.pages import Page, SeenText, Tokens
from ts2_lightning.types import UserError

K = 23
STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "models" / "stories260K"


def network(seed: int, vocabulary: int = K) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight.data *= 25  # some rows nearly certain, some not
    return model


def words(*names: str) -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(names)}, unk_token=names[-1]))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")


NAMES = ("<s>", "</s>", *(f"w{i}" for i in range(K - 2)))


def model(seed: int, out: Path, *names: str) -> Model:
    loaded = Model.in_memory(network(seed, len(names or NAMES)), words(*(names or NAMES)), f"m{seed}")
    loaded.identity, loaded.out = seed, out / str(seed)
    return loaded


def requests(of: Model, prompts: list[tuple[int, ...]], most: int = 12) -> list[Request]:
    return [Request(prompt, 0, of.generation_settings(most, seed=3)) for prompt in prompts]


def check(seen: dict[str, np.ndarray], of: LlamaForCausalLM, prompt: list[int], response: list[int]) -> None:
    """Every number against the plain formula, from the model's own logits in float64."""
    with torch.no_grad():
        whole = of.double()(torch.tensor([prompt + response])).logits[0]
    of.float()
    z = whole[len(prompt) - 1 : -1]
    p, gold = z.softmax(-1), torch.tensor(response)
    support = entmax.sparsemax(z) > 0
    rows = torch.arange(len(gold))
    expected = {
        "entropy": -(p * p.log()).sum(-1),
        "support_size": support.sum(-1),
        "tail_mass": (p * ~support).sum(-1),
        "probability": p[rows, gold],
        "rank": (z > z[rows, gold][:, None]).sum(-1) + 1,
        "top": p.sort(-1, descending=True).indices[:, :TOP],
        "top_probabilities": p.sort(-1, descending=True).values[:, :TOP],
    }
    assert seen.keys() == expected.keys()
    for name, values in expected.items():
        assert seen[name].dtype == (np.int32 if name in ("support_size", "rank", "top") else np.float32)
        np.testing.assert_allclose(seen[name], values.numpy(), rtol=2e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("chunk", [3, 64])
def test_numbers_are_those_of_the_plain_formulas(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Whatever the chunks of logits, and the blocks of rows within them."""
    monkeypatch.setitem(chunked.CHUNK_SIZE, "cpu", chunk)
    monkeypatch.setitem(chunked.CHUNK_ELEMENTS, "cpu", 1)
    monkeypatch.setitem(ops_rows.ELEMENTS_PER_BLOCK, "cpu", 2 * K)
    of = network(0)
    prompt, response = [0, 5, 7], [*range(2, 19), 4, 4, 1]
    check(read_tokens(of, prompt, response), of, prompt, response)
    assert len(read_tokens(of, prompt, [])["entropy"]) == 0


def test_few_words_have_few_top_tokens() -> None:
    seen = read_tokens(network(0, 5), [0], [1, 2])
    assert seen["top"].shape == seen["top_probabilities"].shape == (2, 5)
    np.testing.assert_allclose(seen["top_probabilities"].sum(-1), 1, rtol=1e-6)


def test_every_model_reads_every_response_after_its_own_prompt(tmp_path: Path) -> None:
    models = [model(seed, tmp_path) for seed in (0, 1)]
    prompts = {0: [(0, 5, 7), (0, 9)], 1: [(0, 6, 7, 8), (0, 3)]}  # other templates
    explorer = Explorer(["first", "second"])
    for seed, of in enumerate(models):
        explorer.listen(of, requests(of, prompts[seed]))
    section = explorer.section("Tokens")
    assert (section.models, section.questions) == (["m0", "m1"], ["first", "second"])
    assert [(text.question, text.name) for text in section.texts] == [
        (question, f"response of m{seed}") for question in (0, 1) for seed in (0, 1)
    ]
    for text in section.texts:
        writer = int(text.name[-1])
        [made] = models[writer].make_backend(1).complete(requests(models[writer], prompts[writer])[text.question :][:1])
        ids = [NAMES.index(section.pieces[place].strip()) for place in text.tokens]
        assert tuple(ids) == made.ids, "the tokens that were generated, not those of their text"
        assert list(text.views) == [0, 1]
        for reader, view in text.views.items():
            kept = {name: np.asarray(getattr(view, name)) for name in vars(view)}
            kept["top"] = np.array(
                [[NAMES.index(section.pieces[place].strip()) for place in row] for row in view.top], dtype=np.int32
            )
            check(kept, models[reader].network, list(prompts[reader][text.question]), ids)
    Page("t", [section]).html()


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    def made() -> tuple[Tokens, Model]:
        of = model(0, tmp_path)
        explorer = Explorer(["first"])
        explorer.listen(of, requests(of, [(0, 5, 7)]))
        return explorer.section("Tokens", forget=True), of

    first, of = made()
    files = sorted((tmp_path / "0" / "tokens").iterdir())
    assert [file.suffix for file in files] == [".json", ".npz"]
    assert "network" not in vars(of)
    before = {file: file.stat().st_mtime_ns for file in files}
    again, of = made()
    assert Page("t", [again]).html() == Page("t", [first]).html()
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert Explorer.has_heard(of := model(0, tmp_path), requests(of, [(0, 5, 7)]))
    assert not Explorer.has_heard(of, requests(of, [(0, 5, 8)]))

    of = model(0, tmp_path)
    asked = requests(of, [(0, 5, 7)])
    del of.__dict__["network"]  # no model is needed for what is there
    explorer = Explorer(["first"])
    explorer.listen(of, asked)
    assert explorer.section("Tokens").texts

    for file in files:  # what is not whole is made again
        file.write_bytes(file.read_bytes()[:-20])
    mended, _ = made()
    assert Page("t", [mended]).html() == Page("t", [first]).html()
    json.loads(files[0].read_text())


def test_models_with_other_tokens_see_their_own_responses_only(tmp_path: Path) -> None:
    explorer = Explorer(["question"])
    other = model(2, tmp_path, "<s>", "</s>", *(f"v{i}" for i in range(9)))
    for of in (model(0, tmp_path), other, model(1, tmp_path)):
        explorer.listen(of, requests(of, [(0, 5)]))
    section = explorer.section("Tokens")
    assert [sorted(text.views) for text in section.texts] == [[0, 2], [1], [0, 2]]
    assert any("different tokenizers" in note for note in section.notes)
    for place in section.texts[1].tokens:
        assert section.pieces[place].strip() in ("<s>", "</s>", *(f"v{i}" for i in range(9)))


def test_a_response_that_a_model_cannot_read_is_told_and_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    explorer = Explorer(["question"])
    first, second = model(0, tmp_path), model(1, tmp_path)
    first.network.lm_head.weight.data[1] = 0  # it hardly ever ends
    sizes = {"n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}  # a table of positions, behind which is nothing
    tables = GPT2LMHeadModel(GPT2Config(vocab_size=K, bos_token_id=0, eos_token_id=1, **sizes)).eval()
    second.__dict__["network"] = tables
    explorer.listen(first, requests(first, [(0, 5)], most=20))
    explorer.listen(second, requests(second, [(0, 5)], most=4))
    section = explorer.section("Tokens", said.append)
    assert [sorted(text.views) for text in section.texts] == [[0], [0, 1]]
    assert len(said) == 1
    assert said[0].startswith("m1 cannot read the response of m0: ")
    with pytest.raises(UserError, match="tokens"):
        explorer.listen(second, requests(second, [(0, *range(2, 12))]))
    with pytest.raises(ValueError, match="1 questions, 2 requests"):
        explorer.listen(first, requests(first, [(0, 5), (0, 6)]))


def test_long_responses_are_cut_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_explorer, "AT_MOST", 3)
    of = model(0, tmp_path)
    of.network.lm_head.weight.data[1] = 0  # it hardly ever ends
    explorer = Explorer(["question"])
    explorer.listen(of, requests(of, [(0, 5)], most=9))
    [text] = explorer.section("Tokens").texts
    assert isinstance(text, SeenText)
    assert len(text.tokens) == len(text.views[0].entropy) == 3
    assert text.remark == "The first 3 of 9 tokens. Cut off at the token limit."


def test_pieces_make_up_the_text() -> None:
    if not STORIES.is_dir():
        pytest.skip(f"no model at {STORIES}")
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    text = "Once upon a time,\nthere was a little girl named Zoë."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [piece(tokenizer, token) for token in ids]
    assert "".join(pieces).strip().startswith("Once upon a time,")
    assert any(one.startswith("<0x") for one in pieces), "bytes of a character are shown as the tokenizer calls them"
    assert piece(tokenizer, 10**6) == "<1000000>"
