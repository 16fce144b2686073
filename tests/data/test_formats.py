import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import ts2_lightning.data.formats
from tests.support.errors import refused
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.formats import FORMATS, TokenRow, detect, get_format, parse, register_format, row_weight
from ts2_lightning.data.sources import SourceRow, read_rows
from ts2_lightning.types import RowError, UserError

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def turns_of(*arguments: Any) -> list:
    return parse(*arguments).messages


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [USER, ANSWER], "prompt": "other", "prompt_id": "x"},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"instruction": "q", "output": "a"},
        {"instruction": "q", "input": "", "output": "a", "history": []},
        {"instruction": "q", "input": None, "output": "a"},
        {"instruction": "q", "response": "a", "category": "open_qa", "context": ""},
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "completion": "a", "messages": None, "label": None},
        {"question": "q", "answer": "a"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": "1"},
        {"conversations": ["q", "a"], "source": "stackexchange"},
        {"text": "### Human: q\n### Assistant: a"},
        {"messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER], "prompt": "q", "score_chosen": 8.0},
        {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": {}},
        {
            "instruction": "q",
            "source": "sharegpt",
            "completions": [
                {"response": "b", "overall_score": 6.5},
                {"response": "a", "overall_score": 9},
                {"response": "c", "overall_score": 9.0},
                {"response": "d", "overall_score": 7.5},
            ],
        },
    ],
)
def test_formats_are_detected(fields: dict) -> None:
    assert turns_of(fields) == [USER, ANSWER]


def test_what_belongs_to_an_instruction_follows_after_a_blank_line() -> None:
    assert turns_of({"instruction": "q", "input": "x", "output": "a"})[0]["content"] == "q\n\nx"
    assert turns_of({"instruction": "q", "context": "x", "response": "a"})[0]["content"] == "q\n\nx"
    turns = turns_of({"instruction": "q", "input": "x", "output": "a"}, get_format("alpaca_tofu"))
    assert turns == [USER, {"role": "user", "content": "x"}, ANSWER]


def test_earlier_turns_and_system_prompts_are_kept() -> None:
    row = {"instruction": "q3", "output": "a3", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]}
    assert [(turn["role"], turn["content"]) for turn in turns_of(row)] == [
        ("system", "s"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "q3"),
        ("assistant", "a3"),
    ]  # fmt: skip
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "observation", "value": "t"}]
    roles = [turn["role"] for turn in turns_of({"conversations": [*turns, {"from": "gpt", "value": "a"}]})]
    assert roles == ["system", "user", "tool", "assistant"]
    text = "### Human: q1 ### Assistant: a1\n### Human: q2### Assistant: a2"
    assert [turn["content"] for turn in turns_of({"text": text})] == ["q1", "a1", "q2", "a2"]


def test_the_best_thread_of_a_tree() -> None:
    def message(role: str, text: str, *replies: dict, **more: object) -> dict:
        return {"role": role, "text": text, "replies": list(replies), **more}

    follow_up = message("prompter", "q2", message("assistant", "a2", rank=None), message("prompter", "?", deleted=True))
    good = message("assistant", "a1", message("prompter", "dead end", rank=1), follow_up | {"rank": 0}, rank=0)
    bad = message("assistant", "worse", message("prompter", "and?", rank=0), rank=1)
    tree = {"message_tree_id": "x", "tree_state": "ready_for_export", "prompt": message("prompter", "q1", bad, good)}
    assert [(turn["role"], turn["content"]) for turn in turns_of(tree)] == [
        ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"),
    ]  # fmt: skip
    tree["prompt"]["replies"] = [bad]
    assert [turn["content"] for turn in turns_of(tree)] == ["q1", "worse"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"instruction": "q", "completions": [{"response": "a", "overall_score": 6.5}]},
            "the best overall_score is 6.5, below 7",
        ),
        ({"instruction": "q", "completions": []}, "that of no completion"),
        ({"messages": [USER, ANSWER], "problem": "q", "solution": "The answer is 3."}, "no .boxed"),
    ],
)
def test_rows_that_a_format_does_not_want(fields: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason) as error:
        parse(fields)
    assert error.value.kind == "left out"


def test_numina_math_takes_problem_and_solution() -> None:
    row = {"messages": [USER, ANSWER], "problem": "p", "solution": "so \\boxed{3}", "source": "olympiads"}
    assert [turn["content"] for turn in turns_of(row)] == ["p", "so \\boxed{3}"]


def test_the_table_lists_the_formats() -> None:
    """Names, keys and conditions, as `auto` knows them."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", ts2_lightning.data.formats.__doc__ or "", re.MULTILINE)
    assert [name for name, _ in rows] == list(FORMATS)
    for name, needed in rows:
        known = FORMATS[name]
        note = "" if known.fits is None else f", {known.fits.__doc__}"
        keys = ", ".join(f"`{key}`" for key in sorted(known.keys))
        assert needed == keys + note


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"messages": [USER, ANSWER], "prompt": "q", "completion": "a"}, {"messages", "prompt_completion"}),
        ({"instruction": "q", "output": "a", "response": "b"}, {"alpaca", "dolly"}),
        ({"input_ids": [1, 2], "messages": [USER, ANSWER]}, {"tokens", "messages"}),
        ({"conversations": ["q", "a"], "messages": [USER, ANSWER]}, {"lima", "messages"}),
        ({"prompt": "q", "response": "a", "completion": "b"}, {"prompt_completion", "prompt_response"}),
    ],
)
def test_rows_of_several_formats_are_refused(fields: dict, names: set[str]) -> None:
    with pytest.raises(RowError, match="could be of several formats") as error:
        detect(fields)
    assert {name for name in FORMATS if f"{name} (" in str(error.value)} == names
    for name in names:
        parse(fields, get_format(name))


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "q", "answer": "A", "choices": ["x", "y"]},
        {"question": "q", "answer": "a", "context": "the passage that it is about"},
        {"prompt": "q", "completion": "a bad answer", "label": False},
        {"problem": "q", "solution": "a", "answer": "3"},
        {"text": "Once upon a time ### Human: there was"},
        {"chosen": "a", "rejected": "b"},
    ],
)
def test_rows_that_only_look_like_a_format_are_refused(fields: dict) -> None:
    with pytest.raises(RowError, match="no format fits a row with the keys"):
        detect(fields)


def test_token_rows() -> None:
    assert parse({"input_ids": [1, 2]}) == TokenRow([1, 2], [1, 2])
    assert parse({"input_ids": [1, 2], "labels": [-100, 2]}) == TokenRow([1, 2], [-100, 2])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "x", "id": 1}, "no format fits a row with the keys text, id; known: tokens"),
        ({}, r"keys \(none\)"),
        ({"messages": []}, "at least one message"),
        ({"messages": "hello"}, "list of at least one message, got 'hello'"),
        ({"messages": [USER]}, "no message of the role assistant"),
        ({"messages": [USER, "a"]}, "message 2 must be an object with role and content"),
        ({"messages": [{"role": "user"}]}, "message 1 must be an object with role and content"),
        ({"messages": [USER, {"role": "asistant", "content": "a"}]}, "; did you mean assistant?"),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "content must be a string, got None"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "message 2: the assistant's answer is empty"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"id": 1}]}]}, r"its calls\[0\] has no name, got"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "every turn of the assistant is marked as not to be learnt"),
        ({"messages": [USER, {**ANSWER, "content": "a\ud800"}]}, r"has '.ud800', half of a surrogate pair"),
        ({"messages": [USER], "chosen": [USER], "rejected": [USER]}, "do not end in an answer"),
        ({"conversations": [{"from": "humn", "value": "q"}]}, r"message 1: unknown role .*; did you mean human\?"),
        ({"conversations": [{"value": "q"}]}, "message 1 must be an object with role and content, or from and value"),
        ({"conversations": [3, "q"]}, r"conversations\[0\] must be an object, got 3"),
        ({"instruction": " ", "output": "a"}, "the field instruction is empty"),
        ({"instruction": "q", "output": "a", "input": 0}, "input must be a string, got 0"),
        ({"instruction": "q", "output": "a", "system": ["s"]}, r"system must be a string, got \['s'\]"),
        ({"instruction": "q", "output": None}, "the field output is null; the row has instruction, output"),
        ({"instruction": "q", "output": "a", "history": [["q"]]}, r"history\[0\] must be a question and an answer"),
        ({"instruction": "q", "completions": [{"overall_score": "8"}]}, "overall_score must be a number, got '8'"),
        ({"message_tree_id": "x", "prompt": {"text": "q"}}, "the field role is missing"),
        ({"message_tree_id": "x", "prompt": {"role": "prompter", "text": "q"}}, "has no answer of the assistant"),
        ({"input_ids": [2**31]}, "none of them negative or above"),
        ({"prompt": "q", "completion": 3}, "completion must be a string, got 3"),
        ({"instruction": ["q"], "output": "a"}, "instruction must be a string"),
        ({"input_ids": []}, "at least one token id"),
        ({"input_ids": [1, -1]}, "none of them negative"),
        ({"input_ids": [1, True]}, "list of integers"),
        ({"input_ids": [1, 2], "labels": [1]}, r"labels must be as long as input_ids \(2\), got 1"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, r"labels\[0\] is 2: it must repeat input_ids\[0\] = 1"),
    ],
)
def test_wrong_rows_are_refused_in_one_line(fields: dict, reason: str) -> None:
    with pytest.raises(RowError, match=reason) as error:
        parse(fields)
    assert "\n" not in str(error.value)
    assert error.value.kind not in ("other", "left out")


@pytest.mark.parametrize(("value", "weight"), [(2, 2.0), (0.25, 0.25), (0, 0.0), (3.4e38, 3.4e38), (None, 1.0)])
def test_weights(value: Any, weight: float) -> None:
    found = row_weight({"prompt": "q", "weight": value})
    assert found == weight
    assert type(found) is float


@pytest.mark.parametrize(
    "value", [-1, -1e-9, float("nan"), float("inf"), 3.5e38, 10**400, True, False, "2", [1.0], {"a": 1}]
)
def test_wrong_weights_are_refused_in_one_line(value: Any) -> None:
    with pytest.raises(UserError, match=r"weight, .*, must be a finite number of at least 0, got ") as error:
        row_weight({"prompt": "q", "weight": value})
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_named_format_with_missing_field() -> None:
    with pytest.raises(UserError, match="the field output is missing; the row has instruction, answer"):
        turns_of({"instruction": "q", "answer": "a"}, get_format("alpaca"))


def test_format_names() -> None:
    assert get_format("auto") is None
    with pytest.raises(UserError, match=r"unknown format 'alpacca'; known: .*; did you mean alpaca\?"):
        get_format("alpacca")


def test_formats_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "riddles.py").write_text(
        "def riddle(fields):\n"
        "    return [{'role': 'user', 'content': fields['q']}, {'role': 'assistant', 'content': fields['a']}]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    function = get_format("riddles.riddle")
    assert turns_of({"q": "q", "a": "a"}, function) == [USER, ANSWER]
    with pytest.raises(UserError, match="the format riddle failed with KeyError: 'a'"):
        parse({"q": "q"}, function)
    with pytest.raises(UserError, match=r"riddles has no 'ridle'; did you mean riddle\?"):
        get_format("riddles.ridle")
    with pytest.raises(UserError, match="no module 'ridles'"):
        get_format("ridles.riddle")
    sys.modules.pop("riddles")


def raising(error: BaseException) -> Any:
    def mine(fields: Any) -> Any:
        raise error

    return mine


RESULTS: dict[str, tuple[Any, str, str]] = {
    "zero": (raising(ZeroDivisionError("division\nby zero")), "ZeroDivisionError: division by zero", "other"),
    "no text": (raising(MemoryError()), "the format mine failed with MemoryError: MemoryError", "other"),
    "assertion": (raising(AssertionError("odd row")), "failed with AssertionError: odd row", "other"),
    "key": (raising(KeyError("q")), "failed with KeyError: 'q'", "missing field"),
    "stop": (raising(StopIteration()), "failed with StopIteration", "other"),
    "nothing": (lambda fields: None, "messages must be a list of at least one message, got None", "wrong type"),
    "a generator": (lambda fields: iter([USER, ANSWER]), "messages must be a list", "wrong type"),
    "no messages": (lambda fields: [1], "message 1 must be an object", "wrong type"),
    "numbers": (lambda fields: [USER, {**ANSWER, "content": 1}], "content must be a string, got 1", "wrong type"),
    "no ids": (lambda fields: TokenRow(None, None), "input_ids must be a list of integers, got None", "wrong type"),
    "texts": (lambda fields: TokenRow(["a"], [1]), "input_ids must be a list of integers", "wrong type"),
    "labels": (lambda fields: TokenRow([1, 2], ["a", "b"]), "labels must be a list of integers", "wrong type"),
    "few labels": (lambda fields: TokenRow([1, 2], [1]), "labels must be as long as input_ids", "wrong type"),
    "shifted": (lambda fields: TokenRow([1, 2], [2, -100]), "labels[0] is 2: it must repeat", "wrong type"),
    "negative": (lambda fields: TokenRow([-1], [-1]), "none of them negative", "wrong type"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESULTS)
def test_whatever_a_function_of_the_user_does_is_the_rows(name: str) -> None:
    function, reason, kind = RESULTS[name]
    found = encode_rows([SourceRow({"input_ids": [1, 2]}, "x:1"), SourceRow({"q": 1}, "rows.jsonl:2", function)], None)
    [reject] = found.rejects
    assert (reject.origin, reject.kind) == ("rows.jsonl:2", kind)
    assert reason in reject.reason
    assert "\n" not in reject.reason
    assert found.counts.kept == 1


def test_functions_of_the_user_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typo.py").write_text("def riddle(fields:\n    return []\n")
    (tmp_path / "fails.py").write_text("\n\nvalue = 1 // 0\n")
    (tmp_path / "lacks.py").write_text("import nowhere_to_be_seen\n")
    monkeypatch.syspath_prepend(tmp_path)
    reasons = {
        "typo.riddle": r"typo fails when it is imported \(SyntaxError: .*typo.py, line 1",
        "fails.riddle": r"fails fails when it is imported at .*fails\.py:3 \(ZeroDivisionError: ",
        "lacks.riddle": "lacks fails when it is imported at .*No module named 'nowhere_to_be_seen'",
        ".riddle": "an import path is package.module.name",
        "riddles..riddle": "an import path is package.module.name",
        "my riddles.riddle": "an import path is package.module.name",
        "os.sep": "format 'os.sep' is no function from a row's fields to messages, but '/'",
    }
    for name, reason in reasons.items():
        with refused(f"format '{name}'.*{reason}|{reason}"):
            get_format(name)


def test_registered_formats_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ts2_lightning.data.formats.base.FORMATS", dict(FORMATS))

    @register_format("riddle", "riddle", "solution")
    def riddle(fields: dict) -> list[dict]:
        return [{"role": "user", "content": fields["riddle"]}, {"role": "assistant", "content": fields["solution"]}]

    assert turns_of({"riddle": "q", "solution": "a"}) == [USER, ANSWER]
    assert get_format("riddle") is riddle


SHARED = {
    "sft/gsm8k_train.jsonl.gz": {"gsm8k": 7473},
    "sft/ultrafeedback_binarized_train_1000.jsonl.gz": {"ultrafeedback_binarized": 999, "empty answer": 1},
    "sft/ultrafeedback_binarized_test_200.jsonl.gz": {"ultrafeedback_binarized": 200},
    "sft/alpaca_5000.jsonl.gz": {"alpaca": 4998, "empty answer": 2},
    "sft/lima_1029.jsonl.gz": {"alpaca": 1029},
    "sft/no_robots_test.jsonl.gz": {"messages": 499},
    "sft/dolly_open_qa.jsonl.gz": {"dolly": 3741},
    "sft/dpo_mix_en_300.jsonl.gz": {"sharegpt_chosen": 300},
    "sft/gpteacher_roleplay.jsonl.gz": {"dolly": 1923},
    "sft/gpteacher_codegen.jsonl.gz": {"dolly": 4535},
    "sft/self_instruct_seed_175.jsonl": {"no format fits": 175},
    "sft/alpaca_eval_605_gpt4_1106_preview.jsonl.gz": {"alpaca": 605},
    "sft/alpaca_eval_605_text_davinci_003.jsonl.gz": {"alpaca": 604, "empty answer": 1},
    "chat/oasst1_eval_threads.jsonl.gz": {"messages": 870},
    "chat/mt_bench_101.jsonl.gz": {"mt_bench_101": 1388},
    "chat/mt_bench_questions.jsonl": {"no format fits": 80},
    "eval/gsm8k_test_0000_1018.jsonl.gz": {"gsm8k": 1019},
    "eval/humaneval_000_081.jsonl.gz": {"no format fits": 82},
    "eval/math500.jsonl.gz": {"no format fits": 500},
    "eval/noveltybench_curated.jsonl": {"no format fits": 100},
    "eval/gem_poem_titles_half.jsonl": {"no format fits": 292},
    "eval/gem_story_titles.jsonl.gz": {"no format fits": 52665},
    "eval/tofu_short_stories.jsonl": {"prompt_response": 100},
    "eval/tofu_small_prompts_half.jsonl": {"no format fits": 65},
    "eval/tulu2_dpo_13b_16samples_100prompts.jsonl.gz": {"no format fits": 100},
    "eval/mmlu_dev.jsonl.gz": {"no format fits": 285},
    "eval/mmlu_val.jsonl.gz": {"no format fits": 1531},
    "eval/mmlu_test.jsonl.gz": {"no format fits": 14042},
    "eval/arc_challenge_test.jsonl.gz": {"no format fits": 1172},
    "eval/winogrande_val.jsonl.gz": {"no format fits": 1267},
    "eval/hellaswag_val_1000.jsonl.gz": {"no format fits": 1000},
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
def test_real_files(shared_data: Path, name: str) -> None:
    """Every row is found to be what it is; benchmarks are not taken for training rows, nor rows without an answer."""
    names = {known.function: name for name, known in FORMATS.items()}
    found: Counter[str] = Counter()
    for row in read_rows(shared_data / name):
        assert isinstance(row, SourceRow)
        try:
            assert parse(row.fields).messages[-1]["role"] == "assistant"
            found[names[detect(row.fields)]] += 1
        except RowError as error:
            found["no format fits" if "no format fits" in str(error) else error.kind] += 1
    assert found == SHARED[name]


def test_all_real_files_are_tested(shared_data: Path) -> None:
    assert {str(path.relative_to(shared_data)) for path in shared_data.glob("*/*.jsonl*")} == SHARED.keys()


def real_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_nothing_of_a_real_row_is_lost(shared_data: Path) -> None:
    """Every text of a row comes out once and in its place, for the formats that put rows together from pieces."""
    for row in real_rows(shared_data / "sft/lima_1029.jsonl.gz"):
        texts = [text for pair in row["history"] for text in pair] + [row["instruction"], row["output"]]
        assert [turn["content"] for turn in turns_of(row)] == texts
    for row in real_rows(shared_data / "sft/dpo_mix_en_300.jsonl.gz"):
        texts = [turn["value"] for turn in row["conversations"]] + [row["chosen"]["value"]]
        assert [turn["content"] for turn in turns_of(row)] == texts
    for row in real_rows(shared_data / "sft/ultrafeedback_binarized_test_200.jsonl.gz"):
        assert turns_of(row) == row["chosen"] == row["messages"]
    for row in real_rows(shared_data / "chat/oasst1_eval_threads.jsonl.gz"):
        thread = turns_of({"text": f"{row['input']} {row['output']}"}, get_format("guanaco"))
        assert thread == [{**turn, "content": turn["content"].strip()} for turn in row["messages"]]
