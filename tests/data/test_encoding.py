from collections.abc import Iterator

import numpy as np
import pytest
from data_helpers import chat, token_rows
from transformers import PreTrainedTokenizerFast

from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.sources import Row
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.types import UserError


def rows(*fields: dict) -> Iterator[Row]:
    return (Row(row, f"x.jsonl:{number}") for number, row in enumerate(fields, start=1))


@pytest.fixture(scope="module")
def chatml(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return make_template("chatml", tokenizer)


def test_rows_come_back_as_they_were_encoded(chatml: ChatTemplate) -> None:
    conversations = [chat("a", "b" * number, "c", "d") for number in range(1, 600)]
    encoded = encode_rows(rows(*({"messages": messages} for messages in conversations)), chatml)
    assert encoded.counts == (599, 599, 0, 0)
    for index in (0, 255, 256, 598):
        [one] = chatml.encode([chatml.render(conversations[index])])
        assert encoded[index].ids.tolist() == one.ids
        assert [tuple(span) for span in encoded[index].spans.tolist()] == one.spans
        assert encoded.lengths[index] == len(one.ids)
        assert encoded.supervised[index] == sum(end - start for start, end in one.spans)


def test_token_rows_need_no_template() -> None:
    labels = [-100, 2, 3, -100, 5]
    encoded = encode_rows(rows({"input_ids": [1, 2, 3, 4, 5], "labels": labels}, *token_rows([3])), None)
    assert encoded[0].spans.tolist() == [[1, 3], [4, 5]]
    assert encoded[1].spans.tolist() == [[1, 3]], "nothing comes before the first token"
    assert encoded.supervised.tolist() == [3, 2]
    assert encoded.ids.dtype == np.int32


def test_truncation_cuts_turns() -> None:
    row = {"input_ids": list(range(10)), "labels": [-100, 1, 2, -100, -100, 5, 6, 7, -100, 9]}
    encoded = encode_rows(rows(row), None, max_length=7)
    assert encoded[0].ids.tolist() == list(range(7))
    assert encoded[0].spans.tolist() == [[1, 3], [5, 7]]
    assert encoded.counts == (1, 1, 0, 1)
    assert encode_rows(rows(row), None, max_length=10).counts == (1, 1, 0, 0)


def test_dropping_counts() -> None:
    encoded = encode_rows(rows(*token_rows([3, 9, 4, 8])), None, max_length=4, overlong="drop")
    assert encoded.lengths.tolist() == [3, 4]
    assert encoded.counts == (4, 2, 2, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": chat("a", "b")},
        {"prompt": "a", "completion": "b"},
        {"prompt": chat("a"), "completion": chat("", "b")[1:]},
        {"instruction": "a", "output": "b"},
        {"input_ids": [1, 2, 3]},
    ],
    ids=lambda fields: "+".join(fields),
)
def test_weights_of_every_format(fields: dict, chatml: ChatTemplate) -> None:
    weights = [0.5, None, 3, 0]
    given = [fields | {"weight": weight} for weight in weights]
    encoded = encode_rows(rows(fields, *given), chatml)
    assert encoded.weights.tolist() == [1.0, 0.5, 1.0, 3.0, 0.0]
    assert encoded.weights.dtype == np.float32
    assert encoded[1].weight == 0.5
    assert encoded.weighted == 3
    plain = encode_rows(rows(*[fields] * 5), chatml)
    assert encoded.ids.tolist() == plain.ids.tolist(), "nothing else changes"
    assert encoded.spans.tolist() == plain.spans.tolist()
    assert plain.weighted == 0


def test_weights_pass_by_a_format_of_the_user(chatml: ChatTemplate) -> None:
    def greedy(fields: dict) -> list:
        fields.pop("weight")
        return chat(fields["q"], fields["a"])

    encoded = encode_rows(rows(*({"q": "a", "a": "b", "weight": weight} for weight in (2.5, 7))), chatml, greedy)
    assert encoded.weights.tolist() == [2.5, 7.0]


def test_weights_stay_with_their_rows() -> None:
    given = [row | {"weight": number} for number, row in enumerate(token_rows([3, 9, 4, 8] * 100))]
    encoded = encode_rows(rows(*given), None, max_length=4, overlong="drop")
    assert encoded.weights.tolist() == list(range(0, 400, 2))
    assert [encoded[index].weight for index in (0, 128, 199)] == [0.0, 256.0, 398.0]


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        ({"input_ids": [1, 2], "weight": -1}, {}, "x.jsonl:2: weight, .* at least 0, got -1; rename the field"),
        (
            {"input_ids": [1, 2, 3]},
            {"max_length": 2, "overlong": "raise"},
            "x.jsonl:2: 3 tokens, more than max_length 2",
        ),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, {}, "x.jsonl:2: the row has no supervised token"),
        ({"input_ids": [1]}, {}, "x.jsonl:2: the row has no supervised token"),
        (
            {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]},
            {"max_length": 3},
            r"x.jsonl:2: truncation to max_length 3 removed all supervised tokens \(the row has 4 tokens, the "
            r"first supervised one is number 4\)",
        ),
        ({"messages": chat("a", "b")}, {}, "x.jsonl:2: to encode text data.tokenizer must name a tokenizer"),
        ({"messages": chat("a")}, {}, "x.jsonl:2: no message of the role assistant"),
    ],
)
def test_errors_name_file_and_line(row: dict, options: dict, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        encode_rows(rows({"input_ids": [1, 2]}, row), None, **options)
    assert "\n" not in str(error.value)


def test_errors_of_the_template_name_file_and_line(tokenizer: PreTrainedTokenizerFast) -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "<|im_start|>{{ m.role }} {{ m.content | replace('X', 'Y') }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    template = ChatTemplate("mine", source, tokenizer)
    for bad, reason in [
        (chat("a", "b", system="c"), r"refuses messages of the roles system, user, assistant \(no system here\)"),
        (chat("a", "X"), r"rewrites the content of message 2 \(assistant\)"),
    ]:
        with pytest.raises(UserError, match=f"x.jsonl:2: the chat template {reason}"):
            encode_rows(rows({"messages": chat("a", "b")}, {"messages": bad}), template)


def test_a_row_that_cannot_be_tokenised_is_found(chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ChatTemplate.encode

    def encode(self: ChatTemplate, renderings: list) -> list:
        if any("poison" in rendering.text for rendering in renderings):
            raise UserError("cannot be tokenised")
        return honest(self, renderings)

    monkeypatch.setattr(ChatTemplate, "encode", encode)
    contents = ["fine", "fine", "poison", "fine"]
    with pytest.raises(UserError, match=r"x\.jsonl:3: cannot be tokenised"):
        encode_rows(rows(*({"messages": chat("a", content)} for content in contents)), chatml)
