import re
import threading
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
from data_helpers import chat, token_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.support.errors import refused
from ts2_lightning.data import encoding
from ts2_lightning.data.counts import Counts
from ts2_lightning.data.encoding import EncodedRows, Overlong, encode_chunks, encode_rows
from ts2_lightning.data.rejects import Reject
from ts2_lightning.data.sources import SourceRow
from ts2_lightning.data.templates import ChatTemplate, make_template
from ts2_lightning.types import UserError


def rows(*fields: dict) -> Iterator[SourceRow]:
    return (SourceRow(row, f"x.jsonl:{number}") for number, row in enumerate(fields, start=1))


@pytest.fixture(scope="module")
def chatml(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    return make_template("chatml", tokenizer)


def test_rows_come_back_as_they_were_encoded(chatml: ChatTemplate) -> None:
    conversations = [chat("a", "b" * number, "c", "d") for number in range(1, 600)]
    encoded = encode_rows(rows(*({"messages": messages} for messages in conversations)), chatml)
    supervised = int(encoded.supervised.sum())
    assert encoded.counts == Counts(599, 599, tokens=len(encoded.ids), supervised_tokens=supervised)
    assert encoded.places.tolist() == list(range(599))
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
    assert encoded.counts == Counts(1, 1, truncated=1, turns_lost=1, tokens=7, supervised_tokens=4)
    whole = encode_rows(rows(row), None, max_length=10)
    assert whole.counts == Counts(1, 1, tokens=10, supervised_tokens=6)


def test_dropping_counts() -> None:
    encoded = encode_rows(rows(*token_rows([3, 9, 4, 8])), None, max_length=4, overlong="drop")
    assert encoded.lengths.tolist() == [3, 4]
    assert encoded.counts == Counts(4, 2, dropped=2, tokens=7, supervised_tokens=5)
    assert encoded.places.tolist() == [0, 2]


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
    assert encoded.counts.weighted == 3
    plain = encode_rows(rows(*[fields] * 5), chatml)
    assert encoded.ids.tolist() == plain.ids.tolist(), "nothing else changes"
    assert encoded.spans.tolist() == plain.spans.tolist()
    assert plain.counts.weighted == 0


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
    ("row", "options", "kind", "reason"),
    [
        ({"input_ids": [1, 2], "weight": -1}, {}, None, "weight, .* at least 0, got -1; rename the field"),
        ({"input_ids": [1, 2], "labels": [-100, -100]}, {}, "no supervised token", "the row has no supervised token"),
        ({"input_ids": [1]}, {}, "no supervised token", "the row has no supervised token"),
        (
            {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]},
            {"max_length": 3},
            "too long",
            r"truncation to max_length 3 removed all supervised tokens \(the row has 4 tokens, the "
            r"first supervised one is number 4\); raise max_length or set overlong to drop",
        ),
        (
            {"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, 4]},
            {"max_length": 3, "overlong": "truncate_left"},
            "too long",
            r"removed all supervised tokens \(the row has 4 tokens, the last supervised turn's first one is number 2\)",
        ),
        ({"messages": chat("a")}, {}, None, "no message of the role assistant"),
    ],
)
def test_a_bad_row_is_named_and_left_out(row: dict, options: dict, kind: str | None, reason: str) -> None:
    encoded = encode_rows(rows({"input_ids": [1, 2]}, row, {"input_ids": [3, 4]}), None, **options)
    assert encoded.ids.tolist() == [1, 2, 3, 4]
    assert encoded.places.tolist() == [0, 2]
    [reject] = encoded.rejects
    assert reject.origin == "x.jsonl:2"
    assert kind in (None, reject.kind)
    assert re.search(reason, reject.reason)
    assert "\n" not in reject.reason
    assert encoded.counts == Counts(3, 2, rejected={reject.kind: 1}, tokens=4, supervised_tokens=2)


def test_what_could_not_be_read_is_handed_on() -> None:
    """Rejects of the reader are counted; those that are meant to be left out are not even listed."""
    bad = Reject("x.jsonl:2", "malformed JSON", "it is")
    left_out = Reject("x.jsonl:3", "left out", "not wanted")
    good = SourceRow({"input_ids": [1, 2]}, "x.jsonl:1")
    encoded = encode_rows([good, bad, left_out, left_out] * 200, None)
    assert encoded.rejects == (bad,) * 200
    rejected = {"malformed JSON": 200, "left out": 400}
    assert encoded.counts == Counts(800, 200, rejected=rejected, tokens=400, supervised_tokens=200)
    assert encoded.places.tolist() == list(range(0, 800, 4))


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (
            {"input_ids": [1, 2, 3]},
            {"max_length": 2, "overlong": "raise"},
            "x.jsonl:2: 3 tokens, more than max_length 2; raise it, or set overlong to truncate, truncate_left or drop",
        ),
        ({"messages": chat("a", "b")}, {}, "x.jsonl:2: to encode text data.tokenizer must name a tokenizer"),
    ],
)
def test_errors_name_file_and_line(row: dict, options: dict, reason: str) -> None:
    with refused(reason):
        encode_rows(rows({"input_ids": [1, 2]}, row), None, **options)


def test_rejects_of_the_template(tokenizer: PreTrainedTokenizerFast) -> None:
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
        [reject] = encode_rows(rows({"messages": chat("a", "b")}, {"messages": bad}), template).rejects
        assert (reject.origin, reject.kind) == ("x.jsonl:2", "template")
        assert re.search(f"the chat template {reason}", reject.reason)


def test_a_row_that_cannot_be_tokenised_is_found(chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = ChatTemplate.encode

    def encode(self: ChatTemplate, renderings: list) -> list:
        if any("poison" in rendering.text for rendering in renderings):
            raise UserError("cannot be tokenised")
        return honest(self, renderings)

    monkeypatch.setattr(ChatTemplate, "encode", encode)
    contents = ["fine", "fine", "poison", "fine"]
    encoded = encode_rows(rows(*({"messages": chat("a", content)} for content in contents)), chatml)
    assert encoded.rejects == (Reject("x.jsonl:3", "template", "cannot be tokenised"),)
    assert encoded.places.tolist() == [0, 1, 3]


@st.composite
def supervised_rows(draw: st.DrawFn) -> dict:
    learnt = draw(st.lists(st.booleans(), min_size=1, max_size=30))
    return {"input_ids": list(range(len(learnt))), "labels": [i if on else -100 for i, on in enumerate(learnt)]}


@settings(deadline=None)
@given(supervised_rows(), st.integers(1, 31), st.sampled_from(get_args(Overlong)[:2]))
def test_cutting_against_a_reference_per_token(row: dict, max_length: int, overlong: Overlong) -> None:
    """Which tokens are supervised after a cut, said token by token rather than by spans."""
    labels, length = row["labels"], len(row["labels"])
    first = max(0, length - max_length) if overlong == "truncate_left" else 0
    window = range(first, min(length, first + max_length))

    def begin(token: int) -> int:
        """The first token of the turn."""
        while token and labels[token - 1] != -100:
            token -= 1
        return token

    # Its turn is whole at its beginning and follows something; an uncut row's first token alone is not predicted.
    wanted = [t for t in window if labels[t] != -100 and t > first and (first == 0 or begin(t) > first)]
    encoded = encode_rows(rows(row), None, max_length=max_length, overlong=overlong)
    if not wanted:
        anything = any(label != -100 for label in labels[1:])
        assert [reject.kind for reject in encoded.rejects] == ["too long" if anything else "no supervised token"]
        return
    assert encoded[0].ids.tolist() == list(window)
    assert [first + t for start, end in encoded[0].spans.tolist() for t in range(start, end)] == wanted
    turns = {begin(t) for t in range(1, length) if labels[t] != -100}
    lost = turns - {begin(t) for t in wanted}
    cut = int(length > max_length)
    sizes = {"tokens": len(window), "supervised_tokens": len(wanted)}
    assert encoded.counts == Counts(1, 1, truncated=cut, turns_lost=len(lost), **sizes)


@pytest.mark.parametrize("overlong", get_args(Overlong)[:2])
def test_cut_conversations(chatml: ChatTemplate, overlong: Overlong) -> None:
    """At every length, what is supervised is whole answers (at their beginning) of what the whole row supervises."""
    conversation = {"messages": chat("Hello there", "I am fine", "Tell me", "a story about the sea")}
    whole = encode_rows(rows(conversation), chatml)[0]
    answers = [whole.ids[start:end].tolist() for start, end in whole.spans]
    for max_length in range(1, len(whole.ids)):
        encoded = encode_rows(rows(conversation), chatml, max_length=max_length, overlong=overlong)
        if not len(encoded):
            continue
        row = encoded[0]
        assert len(row.ids) == max_length
        found = [row.ids[start:end].tolist() for start, end in row.spans]
        if overlong == "truncate_left":
            assert found == answers[-len(found) :]
            assert row.spans[0][0] > 0
        else:
            assert [answer[: len(part)] for answer, part in zip(answers, found, strict=False)] == found
            assert found[:-1] == answers[: len(found) - 1]
        assert encoded.counts.turns_lost == 2 - len(found)


def same_rows(one: EncodedRows, other: EncodedRows) -> bool:
    """Whether all is equal, types included."""
    arrays = ("ids", "row_edges", "spans", "span_edges", "weights", "places")
    pairs = [(getattr(one, name), getattr(other, name)) for name in arrays]
    equal = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    return equal and (one.counts, one.rejects) == (other.counts, other.rejects)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_batches_do_not_matter(batch: int, chatml: ChatTemplate, monkeypatch: pytest.MonkeyPatch) -> None:
    """However rows are batched, and whether they are tokenised in a thread or not, the result is the same."""
    given = [{"messages": chat("a", "b" * (number % 9))} for number in range(40)]
    wanted = encode_rows(rows(*given), chatml, max_length=12)
    assert wanted.counts.rejected
    assert wanted.counts.truncated
    monkeypatch.setattr(encoding, "_BATCH", batch)
    assert same_rows(encode_rows(rows(*given), chatml, max_length=12), wanted)
    monkeypatch.setattr(encoding, "_overlapped", map)
    assert same_rows(encode_rows(rows(*given), chatml, max_length=12), wanted)


def test_rows_are_read_a_few_at_a_time() -> None:
    """So memory does not grow with the number of rows: when a chunk comes out, only the next few were read."""
    read = 0

    def many() -> Iterator[SourceRow]:
        nonlocal read
        while True:
            read += 1
            yield SourceRow({"input_ids": [1, 2]}, "x.jsonl:1")

    chunks = encode_chunks(many(), None)
    done = sum(len(next(chunks)) for _ in range(10))
    assert 0 < done <= read <= done + 2 * 256
    chunks.close()


@pytest.mark.parametrize("interrupted", ["reading", "encoding"])
def test_an_interrupt_ends_it(interrupted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, in the thread that reads; and whatever goes wrong in the other. No thread is left behind."""

    def many() -> Iterator[SourceRow]:
        for number in range(5000):
            if number == 3000 and interrupted == "reading":
                raise KeyboardInterrupt
            yield SourceRow({"input_ids": [number, 2]}, "x.jsonl:1")

    def cut(origin: str, encoded: object, *options: object) -> None:
        if encoded.ids[0] == 3000:
            raise KeyboardInterrupt

    before = threading.active_count()
    if interrupted == "encoding":
        monkeypatch.setattr(encoding, "_cut", cut)
    with pytest.raises(KeyboardInterrupt):
        encode_rows(many(), None)
    assert threading.active_count() == before


def test_results_may_be_given_up_in_any_thread() -> None:
    """As the collector of garbage does it: here in the very thread that makes the next one."""
    first_is_there, given_up = threading.Event(), threading.Event()
    raised: list[Exception] = []

    def double(item: int) -> int:
        if item == 1:
            first_is_there.wait()
            try:
                results.close()
            except Exception as error:
                raised.append(error)
            given_up.set()
        return 2 * item

    results = encoding._overlapped(double, range(3))
    assert next(results) == 0
    first_is_there.set()
    given_up.wait()
    assert raised == []
