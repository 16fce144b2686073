r"""Numbers of answers to word problems, as exact fractions.

"1,234,567", "$18.00", "50%", "3 1/2", "\frac{1}{2}", "1.5 \times 10^6", "2 million" and "-4" are numbers. A unit, a
currency and a per cent sign change nothing: GSM8K's reference answers have none.
"""

import re
import unicodedata
from collections import deque
from collections.abc import Callable
from fractions import Fraction

from ts2_lightning.types import UserError

_SHOWN = 60  # characters of a text in a message
_STATEMENT = 400  # characters that are looked at behind "answer is"
_MARKERS = 100  # of them that are tried, from the last
_TAIL = 20_000  # characters in which the last number is looked for
_LARGEST_EXPONENT = 400
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}

# All repetitions are bounded, so that no text takes more than linear time.
_GROUPED = r"[0-9]{1,3}(?:,[0-9]{3}){1,30}|[0-9]{1,3}(?:,[0-9]{2}){1,30},[0-9]{3}|[0-9]{1,3}(?:'[0-9]{3}){1,30}"
_DECIMAL = rf"(?:(?:{_GROUPED}|[0-9]{{1,300}})(?:\.[0-9]{{1,300}})?|(?<![A-Za-z0-9])\.[0-9]{{1,300}})"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_])(?<![0-9][.,/:])"
    r"(?P<minus>(?<![A-Za-z0-9)}\]])-(?=[$€£¥₹.0-9])|^\s{0,4}-\s|(?i:\b(?:minus|negative)\s))?"
    r"(?:[$€£¥₹]\s?(?P<late_minus>-)?)?"
    r"(?:(?P<ten>10\s?\^\s?\(?(?P<ten_power>[+-]?[0-9]{1,9})\)?)|"
    rf"(?P<number>{_DECIMAL})"
    r"(?:\s?/\s?(?P<denominator>[0-9]{1,300}(?:\.[0-9]{1,300})?)|\s(?P<upper>[0-9]{1,30})/(?P<lower>[0-9]{1,30}))?"
    r"(?:\s?[eE](?P<e>[+-]?[0-9]{1,9})(?![0-9A-Za-z])|\s?[x×*·]\s?10\s?\^\s?\{?\(?(?P<power>[+-]?[0-9]{1,9})\)?\}?)?)"
    r"(?:\s(?P<scale>(?i:thousand|million|billion|trillion))\b)?"
)
# What cannot stand behind a number: digits that belong to it in some other notation (1.234.567, 2:30, 7/4/2024, 3,5).
_BROKEN_OFF = re.compile(r"[.,:/'-][0-9]|[0-9²³¹⁰⁴-⁹^]|\s[0-9]{3}(?![0-9])")
_OPERATOR = re.compile(
    r"[\s)%$]{0,4}(?:[+*×·÷/]|(?<=\s)[-x])[\s($]{0,4}[0-9.]"
    r"|\s{0,4}[A-Za-z$€£%]{1,15}\s{1,4}[-+*×·÷/x]\s{1,4}[($]{0,3}[0-9.]"
)
_SENTENCE = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bRs)(?<!\bSt)(?<!\bNo)[.!?]\s")
_EQUALS = re.compile(r"[=≈]")
_MARKER = re.compile(
    r"(?i:\banswer[*_]{0,4}(?:\s{0,4}[:=]|\s{1,4}is\b(?!\s{1,4}not\b)|[*_]{0,4}[ \t]{0,4}$))"
    r"|####|\\f?box(?:ed)?\s{0,4}\{",
    re.MULTILINE,
)


def read_number(text: str) -> Fraction | None:
    r"""The number that a response settles on.

    It stands behind the last "answer is", "answer:" or "####", or in the last `\boxed{}`, that a number follows in the
    same sentence or on the next line that says something. Of a calculation ("16 - 7 = 9") it is the result; a
    calculation without a result, a date, a time and a range are no numbers.

    Args:
        text: response of the model.

    Returns:
        The number, exactly; None if there is none.

    Example:
        >>> read_number("So the answer is: $1,234,567.00 per year.\n\nI hope this answer is helpful!")
        Fraction(1234567, 1)
        >>> read_number(r"**Answer:** $\boxed{\frac{1}{2}}$"), read_number("It is 12."), read_number("Answer: 1/0")
        (Fraction(1, 2), None, None)
    """
    for marker in reversed(deque(_MARKER.finditer(text), maxlen=_MARKERS)):
        statement = plain_number_text(_statement(text, marker.end(), marker[0].endswith("{")))
        if re.search("[0-9]", statement):
            return _first_number(statement)
    return None


def last_number(text: str) -> Fraction | None:
    """The last number anywhere in a text, for models that never say which number is their answer.

    Example:
        >>> last_number("16 - 3 - 4 = 9 eggs at $2 make $18."), last_number("none")
        (Fraction(18, 1), None)
    """
    last = None
    for match in _NUMBER.finditer(plain_number_text(text[-_TAIL:])):
        last = match
    return None if last is None else _value(last)


def parse_number(text: str) -> Fraction | None:
    r"""The number that a short text is, whatever currency, unit or bold type stands around it.

    Example:
        >>> parse_number("-3 1/2 miles"), parse_number(r"1.5 \times 10^{-2}\text{ m}"), parse_number("2:30 pm")
        (Fraction(-7, 2), Fraction(3, 200), None)
    """
    return _first_number(plain_number_text(text[:_STATEMENT]))


def read_gold(answer: str) -> Fraction:
    """The reference answer of a row of GSM8K: the number behind "####", commas included.

    Args:
        answer: field `answer` of the row.

    Raises:
        UserError: there is no number.

    Example:
        >>> read_gold("She has 2,000 + 125 = <<2000+125=2125>>2,125. #### 2,125")
        Fraction(2125, 1)
    """
    _, mark, behind = answer.rpartition("####")
    number = parse_number(behind) if mark else None
    if number is None:
        raise UserError(f"answer {answer[-_SHOWN:]!r}: no number behind ####; an answer of GSM8K ends in '#### 18'")
    return number


_MINUS = "−﹣－‐‑⁃–"
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys(_MINUS, "-"),
        **dict.fromkeys(_SPACES, " "),
        "％": "%",
        "＄": "$",
        "，": ",",
        "．": ".",
        "⁄": "/",
        "∕": "/",
    }
)
_LATEX: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"<<[^<>\n]{0,200}>>"), ""),  # calculations as GSM8K annotates them
    (re.compile(r"(?<=[0-9])(?:\\[,;: !]|\{,\})(?=[0-9]{3}(?![0-9]))"), ","),
    (re.compile(r"(?<=[0-9])(?=\\[dt]?frac)"), " "),  # a mixed number
    (re.compile(r"\\[dt]?frac\s{0,2}\{([^{}]{1,40})\}\s{0,2}\{([^{}]{1,40})\}"), r"\1/\2 "),
    (re.compile(r"\\[dt]?frac\s{0,2}([0-9])\s{0,2}([0-9])"), r"\1/\2 "),
    (re.compile(r"\\(?:times|cdot)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\(?:approx|simeq)\b"), "≈"),
    (re.compile(r"\\(?:left|right|displaystyle|mathrm|mathbf|textbf|text|boxed|quad)\b"), " "),
    (re.compile(r"\^\{([+-]?[0-9]{1,9})\}"), r"^\1"),
    (re.compile(r"\\[$%,;:! ]"), lambda match: {"\\$": "$", "\\%": "%"}.get(match[0], " ")),
    (re.compile(r"\*\*|__|[{}`]"), ""),
    (re.compile(r"[ \t]{2,}"), " "),
]


def plain_number_text(text: str) -> str:
    r"""A text with its numbers in plain ASCII: digits of other scripts, minus signs, spaces, fractions of LaTeX.

    Example:
        >>> plain_number_text("−3½ and \\frac12 and ١٨ and 12\\,345")
        '-3 1/2 and 1/2 and 18 and 12,345'
    """
    if not text.isascii():
        text = re.sub(r"[½-¾⅐-⅞]", _vulgar, text)
        text = re.sub(r"(?<=[0-9])[\u2009\u202f\u00a0](?=[0-9]{3}(?![0-9]))", ",", text)
        text = "".join(_ascii(character) for character in text).translate(_CHARACTERS)
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text


def _ascii(character: str) -> str:
    return character if character.isascii() else str(unicodedata.decimal(character, character))


def _vulgar(match: re.Match[str]) -> str:
    return " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/")


def _statement(text: str, start: int, in_box: bool) -> str:
    """What a marker announces: the inside of its box, or the first sentence of its line or of the next one with any."""
    announced = text[start : start + _STATEMENT]
    if in_box:
        depth = 1
        for place, character in enumerate(announced):
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return announced[:place]
    for number, line in enumerate(announced.splitlines()[:6]):
        if any(character.isalnum() for character in line):
            sentence = _SENTENCE.split(line, maxsplit=1)[0]
            return re.sub(r"^\s*[-•*]\s+", "", sentence) if number else sentence  # the mark of a list is no minus sign
    return ""


def _first_number(statement: str) -> Fraction | None:
    """The first number of a statement, or the result of the calculation that begins with it."""
    start = 0
    while match := _NUMBER.search(statement, start):
        if not _OPERATOR.match(statement, match.end()):
            return None if _BROKEN_OFF.match(statement, match.end()) else _value(match)
        equals = _EQUALS.search(statement, match.end())
        if equals is None:
            return None
        start = equals.end()
    return None


def _value(match: re.Match[str]) -> Fraction | None:
    number = Fraction(1) if match["ten"] else _plain(match["number"])
    if match["denominator"]:
        denominator = _plain(match["denominator"])
        if denominator == 0:
            return None
        number /= denominator
    elif match["upper"]:
        lower = int(match["lower"])
        if lower == 0:
            return None
        number += Fraction(int(match["upper"]), lower)
    exponent = int(match["e"] or match["power"] or match["ten_power"] or 0) + _SCALES.get(
        (match["scale"] or "").lower(), 0
    )
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    number *= Fraction(10) ** exponent
    return -number if match["minus"] or match["late_minus"] else number


def _plain(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace("'", ""))


# The papers' public code ----------------------------------------------------------------------------------------

_PAPERS_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")


def gem_papers_code(text: str) -> int | None:
    """The number by the rule of GEM's public code for GSM8K, which rounds to an integer, mistakes included.

    Behind the last "The answer is" (or "the answer is") it takes digits with one mark between them: of "1,234,567"
    that is 1234. A half is rounded to the even neighbour, and "5/0" is 5. Where that code raises an error, the answer
    is None, as its vote has it.

    Source: GEM's repository, `evaluation/utils/gsm8k.py` and `evaluation_gsm8k_voting.py`.

    Args:
        text: response of the model.

    Example:
        >>> gem_papers_code("the answer is: $1,234,567"), gem_papers_code("The answer is: 2.5"), gem_papers_code("18")
        (1234, 2, None)
    """
    number = _papers_number(text)
    if number is None:
        return None
    number = number.replace(",", "")
    numerator, slash, denominator = number.partition("/")
    try:
        if not slash:
            return round(float(number))
        if numerator in ("", "+", "-"):
            return None
        return round(float(numerator) if denominator == "0" else float(Fraction(number)))
    except (ValueError, OverflowError, ZeroDivisionError):
        return None


def gem_papers_code_gold(answer: str) -> int | None:
    """The reference answer by the rule of GEM's public code: right for integers below 1,000,000.

    Example:
        >>> gem_papers_code_gold("#### 2,125"), gem_papers_code_gold("#### 1,234,567")
        (2125, 1234)
    """
    return gem_papers_code(answer.replace("####", "The answer is:"))


def ts2_papers_code(text: str) -> str | None:
    """The number by the rule of TS2's public code for GSM8K, as a text that is compared with the reference's.

    Source: TS2's repository, `openllm_evaluation.py`.

    Example:
        >>> ts2_papers_code("The answer is: 18.00"), ts2_papers_code("The answer is: 1,234,567")
        ('18.00', '1234')
    """
    number = _papers_number(text)
    return None if number is None else number.replace(",", "")


def ts2_papers_code_gold(answer: str) -> str | None:
    """The reference answer by the rule of TS2's public code, which stops at a comma; a row with None is left out there.

    Example:
        >>> ts2_papers_code_gold("... #### 2,125")
        '2'
    """
    match = re.search(r"####\s*([0-9.\-]+)", answer)
    return match[1] if match else None


def _papers_number(text: str) -> str | None:
    _, mark, behind = text.replace("the answer is", "The answer is").rpartition("The answer is")
    match = _PAPERS_NUMBER.search(behind.strip()) if mark else None
    return match[0] if match else None
