"""Letters in responses as chat models and base models write them."""

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts2_lightning.evaluation.answers import letters
from ts2_lightning.evaluation.answers.letters import read_letter, tofu_papers_code, ts2_papers_code
from ts2_lightning.types import UserError

RESPONSES = [
    # What was asked for, in the manner of several families.
    ("The answer is: B", "B"),
    ("The answer is: B.", "B"),
    ("Iron rusts when it meets water and oxygen.\n\nThe answer is: C", "C"),
    ("Let's think step by step. Plants make sugar from light.\n\n**The answer is: D**", "D"),
    ("**Answer:** B", "B"),
    ("**Answer: C**", "C"),
    ("Answer: (A)", "A"),
    ("Answer:\nB", "B"),
    ("Final Answer: **D) All of the above**", "D"),
    ("### Final Answer\n\n$\\boxed{C}$", "C"),
    ("The final answer is $\\boxed{\\text{B}}$.", "B"),
    ("Therefore, the correct answer is \\boxed{\\textbf{(D)}}", "D"),
    ("The correct answer is (C).", "C"),
    ('The correct answer is "B".', "B"),
    ("The correct answer is option A.", "A"),
    ("The correct answer is:\n\n**C. Condensation**", "C"),
    ("The best answer is A because the others are too small.", "A"),
    ("The answer is A.", "A"),
    ("the answer is B", "B"),
    ("THE ANSWER IS D", "D"),
    ("So the answer is\nC", "C"),
    ("The answer is: $B$", "B"),
    ("The answer is: \\(\\boxed{B}\\)", "B"),
    ("The answer is `C`.", "C"),
    ("The answer choice is: B", "B"),
    ("Correct answer: B — the moon reflects light.", "B"),
    # Only the letter.
    ("B", "B"),
    ("(B)", "B"),
    ("**B**", "B"),
    ("[C]", "C"),
    ("B.\n", "B"),
    ("Light bends in water.\n\nC\n", "C"),
    # The article, the pronoun, and words that begin with a letter.
    ("The answer is: B. This is a good choice.", "B"),
    ("The answer is: B\n\nA good way to remember this is a rhyme.", "B"),
    ("The answer is A good conductor, namely copper.", None),
    ("The answer is: Because of gravity", None),
    ("The answer is Carbon dioxide.", None),
    ("The answer is: I think it is gravity.", None),
    ("I believe a magnet attracts iron.", None),
    ("A", "A"),
    # The last statement counts.
    ("At first the answer is A. But water boils at 100 degrees, so the answer is: D", "D"),
    ("The answer is: A\n\nWait, let me recheck. The answer is: C", "C"),
    ("The answer is B, so the answer is not C.", "B"),
    ("The answer is: B\n\nI hope this answer is helpful!", "B"),
    ("\\boxed{A} is tempting, but the answer is: C", "C"),
    ("The answer is: A. C is wrong, since copper does not rust.", "A"),
    ("The answer is: C, A is wrong.", "C"),
    # No choice, or more than one.
    ("The answer is A or B.", None),
    ("The answer is: A and C", None),
    ("The answer is B/C.", None),
    ("The answer is: (A), (B)", None),
    ("The answer is: E", None),
    ("\\boxed{7}", None),
    ("The answer is: 2", None),
    ("None of the choices is right.", None),
    ("Question: What do plants need?\nA:", None),
    ("Compiled:\n\n* C\n* C++\n", None),  # entries of a list
    ("", None),
    ("Choices: A. gold B. iron C. tin D. lead", None),
    ("The answer is: b", None),  # capital letters: a lower-case one may be a word
]


@pytest.mark.parametrize(("response", "letter"), RESPONSES)
def test_letters_of_responses(response: str, letter: str | None) -> None:
    assert read_letter(response, 4) == letter


def test_the_number_of_choices_limits_the_letters() -> None:
    assert [read_letter("The answer is: C", choices) for choices in (2, 3, 26)] == [None, "C", "C"]
    with pytest.raises(UserError, match=r"^choices must be a whole number of at least 2 and at most 26, got 1$"):
        read_letter("A", 1)


harmless = st.text(alphabet="abcdefghij .,\n", max_size=80)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    harmless,
    st.sampled_from("ABCDE"),
    st.sampled_from(["The answer is: {}", "Answer: **{}**", "the answer is ({}).", "\\boxed{{{}}}", "{}", "**({})**"]),
    harmless,
)
def test_a_statement_is_read_whatever_stands_around_it(before: str, letter: str, form: str, behind: str) -> None:
    text = f"{before}\n{form.format(letter)}\n{behind}"
    assert read_letter(text, 5) == letter
    assert read_letter(text, ord(letter) - ord("A")) is None if letter > "B" else True


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.text(alphabet="ABCDI answer is:.()*\n\\boxed{}or,/", max_size=60), st.integers(2, 26))
def test_no_text_gives_a_letter_beyond_the_choices(text: str, choices: int) -> None:
    letter = read_letter(text, choices)
    assert letter is None or letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:choices]


def test_answers_to_open_questions_have_no_letters(shared_data: Path) -> None:
    """Real ones of a chat model. The few that ours reads answer questions with choices; TS2's reads the article."""
    file = shared_data / "eval" / "tulu2_dpo_13b_16samples_100prompts.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        texts = [text for line in lines for text in json.loads(line)["outputs"]]
    letters_read = [read_letter(text, 5) for text in texts]
    assert len(texts) == 1_600
    assert sum(letter is not None for letter in letters_read) == 7
    assert sum(ts2_papers_code(text, []) is not None for text in texts) == 1_477


@pytest.mark.parametrize(
    ("response", "choices", "letter"),
    [
        ("The answer is: B. This is a good choice.", ["tin", "iron"], "A"),  # the article
        ("The answer is: B", ["tin", "iron"], "B"),
        ("the answer is -c", ["tin", "iron"], "C"),
        ("The answer is: E", ["tin", "iron"], "E"),  # a letter that is no choice
        ("(B)", ["tin", "iron"], "B"),
        ("B", ["tin", "iron"], None),  # nothing behind it
        ("B$ 5", ["tin", "iron"], "B"),
        ("It must be IRON", ["tin", "iron"], "B"),
        ("Distinct metals", ["tin", "iron"], "A"),  # the choice's text inside a word
        ("no idea", ["tin", "iron"], None),
    ],
)
def test_ts2s_code_is_followed_with_its_mistakes(response: str, choices: list[str], letter: str | None) -> None:
    assert ts2_papers_code(response, choices) == letter


def test_tofus_code_is_followed_with_its_mistakes() -> None:
    responses = [
        "Answer: B",
        "answer: B",
        "Answer:\n C) tin",
        "Answer: 12",
        "Answer: Because",
        "Answer: A. Answer: B",
        "",
    ]
    assert [tofu_papers_code(response) for response in responses] == ["B", None, "C", "12", "B", "A", None]


@pytest.mark.parametrize(
    "filler", ["answer is ", "A\n", "\\boxed{", "answer" + " " * 9, "*" * 50, "(A or ", "answer:\n"]
)
def test_a_megabyte_is_read_in_linear_time(filler: str) -> None:
    """Within the limit of every test: a pattern of quadratic time would take hours."""
    text = filler * (1_000_000 // len(filler))
    read_letter(text, 4)
    assert read_letter(f"{text}\nThe answer is: D", 4) == "D"


def test_repetitions_are_bounded() -> None:
    """An unbounded repetition beside another one is what makes a pattern take quadratic time."""
    without_classes = re.sub(r"\[(?:\\.|[^\]\\])*\]|\\.", "x", letters._STATEMENT.pattern)
    assert not set("*+") & set(without_classes)
