"""Numbers in responses as chat models and base models write them, and in the reference answers of GSM8K."""

import gzip
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts2_lightning.evaluation.answers.numbers import (
    gem_papers_code,
    gem_papers_code_gold,
    last_number,
    parse_number,
    read_gold,
    read_number,
    ts2_papers_code,
    ts2_papers_code_gold,
)
from ts2_lightning.types import UserError

RESPONSES = [
    # What was asked for, in the manner of several families.
    ("Janet sells 16 - 3 - 4 = 9 eggs a day.\nShe makes 9 * 2 = $18.\n\nThe answer is: 18", "18"),
    ("The answer is: $18.", "18"),
    ("The answer is: $18.00", "18"),
    ("The answer is: **$18** per day.", "18"),
    ("#### 18", "18"),
    ("She has 5 left.\n#### 5\n\nQuestion: ...", "5"),
    ("**Answer:** 18 dollars", "18"),
    ("**Final Answer:** The final answer is $\\boxed{18}$", "18"),
    ("### Final Answer\n\n18", "18"),
    ("So the answer is $\\boxed{\\$1,250}$.", "1250"),
    ("Thus \\(\\boxed{1{,}250}\\) is the total.", "1250"),
    ("Thus \\[\n\\boxed{12\\,500}\n\\]", "12500"),
    ("The answer is:\n\n$$\n42\n$$", "42"),
    ("The answer is:\n\n\\[\n42\n\\]", "42"),
    ("The answer is: 18 eggs, since 9 + 9 = 18.", "18"),
    ("The answer is: Janet makes $18 every day.", "18"),
    ("Therefore the answer is 1,234,567 people.", "1234567"),
    ("the answer is 12\u202f345", "12345"),
    ("The answer is: 1,00,000 rupees", "100000"),
    ("The answer is: 50%", "50"),
    ("The answer is: 12.5\\%", "25/2"),
    ("The answer is: 0.75", "3/4"),
    ("The answer is: .5", "1/2"),
    ("The answer is: 3/4 of the cake", "3/4"),
    ("The answer is: 3 1/2 hours", "7/2"),
    ("The answer is: 2½ cups", "5/2"),
    ("The answer is $\\frac{3}{4}$", "3/4"),
    ("The answer is \\frac12", "1/2"),
    ("The answer is: \\dfrac{7}{2}", "7/2"),
    ("The answer is: -5 degrees", "-5"),
    ("The answer is: −5", "-5"),
    ("The answer is: -$20", "-20"),
    ("The answer is: minus 20", "-20"),
    ("The answer is: 2 million dollars", "2000000"),
    ("The answer is: 1.5 × 10^6", "1500000"),
    ("The answer is: 1.5 \\times 10^{-2}", "3/200"),
    ("The answer is: 2e3", "2000"),
    ("The answer is: Rs. 500", "500"),
    ("The answer is: €20", "20"),
    ("The answer is: 60 km/h", "60"),
    ("The answer is: 5 cm^2", "5"),
    ("The answer is: １８", "18"),
    ("The answer is: ١٨", "18"),
    ("The answer is: <<9*2=18>>18", "18"),
    # Calculations.
    ("The answer is: 16 - 3 - 4 = 9", "9"),
    ("The answer is: 9 eggs * $2 = $18", "18"),
    ("The answer is: $20 + $30 = $50.", "50"),
    ("The answer is: 3 x 4 = 12", "12"),
    ("The answer is: 20/100 * 50 = 10", "10"),
    ("The answer is: 10 / 4 = 2.5", "5/2"),
    ("The answer is x = 5", "5"),
    ("The answer is: 16 - 7", None),
    # The last statement with a number counts.
    ("The answer is: 18\n\nI hope this answer is helpful!", "18"),
    ("The answer is: 18\n\nWait, 9 * 2 + 1 = 19. The answer is: 19", "19"),
    ("The answer is incorrect. He has 5 apples.", None),
    ("The answer is: Mr. Smith has 5 apples.", "5"),
    ("The answer is: $-\\frac{1}{2}$", "-1/2"),
    ("The answer is: \\frac{-1}{2}", "-1/2"),
    ("\\boxed{3\\frac{1}{2}}", "7/2"),
    ("\\boxed{10^{5}}", "100000"),
    ("The answer is: 5 apples x 3 = 15 apples", "15"),
    ("Answer:\n- 18 eggs", "18"),
    ("The answer is: 18. Let me know if the answer is clear.", "18"),
    ("The answer is: 18, the answer is not 19", "18"),
    ("The answer is 5. \\boxed{6", "6"),
    # No number that can be read.
    ("She makes $18 every day.", None),
    ("The answer is: eighteen", None),
    ("The answer is: 1/0", None),
    ("The answer is: 2:30 pm", None),
    ("The answer is: 7/4/2024", None),
    ("The answer is: 1.234.567", None),
    ("The answer is: 3,5", None),
    ("The answer is: 10-12", None),
    ("The answer is: 5^2", None),
    ("The answer is: 12 345", None),
    ("The answer is: 1e999999999", None),
    ("", None),
]


@pytest.mark.parametrize(("response", "number"), RESPONSES)
def test_numbers_of_responses(response: str, number: str | None) -> None:
    assert read_number(response) == (None if number is None else Fraction(number))


def gsm8k(shared_data: Path) -> list[str]:
    with gzip.open(shared_data / "eval" / "gsm8k_test_0000_1018.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in lines]


def test_every_reference_answer_of_gsm8k_is_read(shared_data: Path) -> None:
    answers = gsm8k(shared_data)
    assert len(answers) == 1_019
    for answer in answers:
        gold = Fraction(answer.split("####")[1].strip().replace(",", ""))
        assert read_gold(answer) == gold
        assert read_number(answer) == gold  # a model that was trained on such answers writes them
        assert last_number(answer) == gold


def test_the_papers_codes_read_some_reference_answers_wrongly(shared_data: Path) -> None:
    """TS2's rule stops at the first comma, GEM's at the second one."""
    answers = gsm8k(shared_data)
    golds = [str(read_gold(answer)) for answer in answers]
    ts2 = [ts2_papers_code_gold(answer) for answer in answers]
    gem = [str(gem_papers_code_gold(answer)) for answer in answers]
    assert sum(ours != theirs for ours, theirs in zip(golds, ts2, strict=True)) == 13
    assert [(ours, theirs) for ours, theirs in zip(golds, gem, strict=True) if ours != theirs] == [("1450000", "1450")]


@pytest.mark.parametrize("answer", ["no mark 5", "#### none", "####", "####\n"])
def test_a_reference_answer_without_a_number_is_refused(answer: str) -> None:
    with pytest.raises(UserError, match="no number behind ####; an answer of GSM8K ends in '#### 18'"):
        read_gold(answer)


FORMS = [
    "{}",
    "${}",
    "**{}**",
    "\\boxed{{{}}}",
    "{}.",
    "{} dollars",
    "$ {}$",
    "{}%",
    "\\text{{{}}} miles",
    "`{}`",
]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(-(10**15), 10**15), st.integers(0, 4), st.sampled_from(FORMS), st.booleans())
def test_a_number_is_read_in_any_dress(whole: int, places: int, form: str, grouped: bool) -> None:
    number = Fraction(whole, 10**places)
    digits = f"{abs(whole) // 10**places:{',' if grouped else ''}}"
    decimals = f".{abs(whole) % 10**places:0{places}}" if places else ""
    text = form.format(f"{'-' if whole < 0 else ''}{digits}{decimals}")
    assert read_number(f"I think.\nThe answer is: {text}\n\nThat is all.") == number
    assert parse_number(text) == number


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 999), st.integers(0, 99), st.integers(1, 99))
def test_fractions_are_exact(whole: int, upper: int, lower: int) -> None:
    expected = Fraction(upper, lower)
    for form in ("{}/{}", "\\frac{{{}}}{{{}}}", "\\dfrac{{{}}}{{{}}}", "{} / {}"):
        assert parse_number(form.format(upper, lower)) == expected
    assert parse_number(f"{whole} {upper}/{lower}") == whole + expected
    assert parse_number(f"-{whole} {upper}/{lower}") == -(whole + expected)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.text(alphabet="0123456789.,-/$%^=+* \n\\{}answer is:####eE½²１٣\u2009−", max_size=60))
def test_no_text_raises(text: str) -> None:
    for text_of_one in (text, f"The answer is: {text}", f"\\boxed{{{text}"):
        read_number(text_of_one)
        parse_number(text_of_one)
        last_number(text_of_one)
        gem_papers_code(text_of_one)
        ts2_papers_code(text_of_one)


@pytest.mark.parametrize(
    ("response", "gem", "ts2"),
    [
        ("The answer is: 18", 18, "18"),
        ("the answer is 18", 18, "18"),
        ("THE ANSWER IS 18", None, None),
        ("The answer is: $1,234,567", 1234, "1234"),
        ("The answer is: 18.00", 18, "18.00"),
        ("The answer is: 2.5", 2, "2.5"),  # a half is rounded to the even neighbour
        ("The answer is: 3.5", 4, "3.5"),
        ("The answer is: 3/4", 1, "3/4"),
        ("The answer is: -1/2", 0, "-1/2"),
        ("The answer is: 5/0", 5, "5/0"),
        ("The answer is: 5/00", None, "5/00"),  # an error there, which the vote counts as no answer
        ("The answer is: x/5", None, "/5"),
        ("The answer is: +7", 7, "+7"),
        ("The answer is: .5", 0, ".5"),
        ("The answer is: 1.2.3", 1, "1.2"),
        ("The answer is: " + "9" * 400, None, "9" * 400),  # infinite as a float
        ("The answer is: 4. The answer is unclear", None, None),  # nothing behind the last one
        ("18", None, None),
        ("The answer is: none", None, None),
    ],
)
def test_the_papers_codes_are_followed_with_their_mistakes(response: str, gem: int | None, ts2: str | None) -> None:
    assert gem_papers_code(response) == gem
    assert ts2_papers_code(response) == ts2


@pytest.mark.parametrize(
    "filler",
    ["answer is ", "1", "1,", "1 ", "\\frac{", "<<", "$", "-", "{", "1/", "\\boxed{", "####", "1e", "x 10^", "½"],
)
def test_a_megabyte_is_read(filler: str) -> None:
    """Within the limit of every test: a pattern of quadratic time would take hours."""
    text = filler * (1_000_000 // len(filler))
    for read in (read_number, last_number, gem_papers_code, ts2_papers_code):
        read(text)
    assert read_number(f"{text}\nThe answer is: 18") == 18
    assert last_number(f"{text}\n so 18") == 18
