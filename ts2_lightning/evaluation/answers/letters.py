"""Letters of multiple-choice answers."""

import re
from collections.abc import Sequence

from ts2_lightning.ranges import Range, check_number

_CHOICES = Range(least=2, most=26, whole=True)
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# All repetitions are bounded, so that no text takes more than linear time.
_STATED = (
    r"(?i:\banswer(?:\s{1,4}(?:choice|option|letter))?[*_\"'”’]{0,4}(?:\s{0,4}:|\s{1,4}is\b))"
    r"[\s*_:\"'“”‘’`$]{0,12}"
    r"(?i:(?:the\s{1,4})?(?:option|choice|letter)\s{1,4})?"
    r"(?:\\\(\s?)?(?:\\(?:text|textbf|mathbf|mathrm|boxed)\s?\{\s?){0,3}[(\[*_\"'“‘`]{0,4}"
    r"(?P<stated>[A-Z])(?![A-Za-z0-9'’])"
)
_BOXED = (
    r"\\f?box(?:ed)?\s{0,4}\{\s{0,4}(?:\\(?:text|textbf|mathbf|mathrm)\s{0,4}\{)?[\s(]{0,4}"
    r"(?P<boxed>[A-Z])(?=\s{0,4}[).:}])"
)
_ALONE = r"^[ \t>]{0,8}[*_(\[]{0,6}(?P<alone>[A-Z])[).\]*_ \t\r]{0,8}$"  # "* C" is an entry of a list
_STATEMENT = re.compile(rf"{_STATED}|{_BOXED}|{_ALONE}", re.MULTILINE)

# What may follow a letter that is also a word: "A because ..." is choice A, "A good answer" is not.
_A_WORD = re.compile(r"[*_\"'”’`]{0,4}[ \t]{1,4}(?!(?:because|since|as|for|which|with|due|based|and|or|is)\b)[a-z]")
_ANOTHER = re.compile(
    r"[)\].*_\"'”’`$}]{0,6}\s{0,4}(?:,|/|&|\band\b|\bor\b)\s{0,4}(?:or\s{1,4}|and\s{1,4})?[(\[*_\"'“‘`]{0,4}[A-Z]"
    r"(?![A-Za-z0-9'’])(?!\s{1,4}(?:is|was|are|were|would|can|cannot|does|has)\b)"
)


def read_letter(text: str, choices: int) -> str | None:
    r"""The letter that a response settles on.

    The last of these counts: a capital letter behind "answer is" or "answer:", one in `\boxed{}`, a line that has
    nothing but a letter. Brackets, bold type and quotation marks may stand around it. There is no answer where that
    letter is none of the choices, or where a second letter stands beside it ("A or B").

    Args:
        text: response of the model.
        choices: number of choices, 2 to 26; permitted are the first letters of the alphabet.

    Returns:
        The capital letter, or None.

    Raises:
        UserError: a number of choices that there are no letters for.

    Example:
        >>> read_letter("The answer is: B. This is a good choice.", 4), read_letter("**(C)**", 4)
        ('B', 'C')
        >>> read_letter("A good question!", 4), read_letter("The answer is A or B.", 4), read_letter("Answer: E", 4)
        (None, None, None)
    """
    check_number("choices", choices, _CHOICES)
    last: re.Match[str] | None = None
    for statement in _STATEMENT.finditer(text):
        if statement["stated"] in ("A", "I") and _A_WORD.match(text, statement.end()):
            continue
        last = statement
    if last is None or (last["stated"] and _ANOTHER.match(text, last.end())):
        return None
    letter = last["stated"] or last["boxed"] or last["alone"]
    return letter if letter in _ALPHABET[:choices] else None


_TS2_CODE = re.compile(r"the\s+answer\s+is\s*[:\-]?\s*([a-e])\b|\b([a-e])\b(?=[\s.):,$])", re.IGNORECASE)


def ts2_papers_code(text: str, choices: Sequence[str]) -> str | None:
    """The letter by the rule of TS2's public code for its six OpenLLM sets, mistakes included.

    It ignores case and takes the last match, so that the article "a" is choice A, and it knows A to E whatever the
    number of choices. Without a letter it takes the first choice whose text occurs in the response.

    Source: TS2's repository, `openllm_evaluation.py`.

    Args:
        text: response of the model.
        choices: texts of the choices, at most five.

    Returns:
        The capital letter, or None.

    Example:
        >>> ts2_papers_code("The answer is: B. This is a good choice.", ["3", "4"])
        'A'
        >>> ts2_papers_code("It has to be iron", ["gold", "iron"])
        'B'
    """
    letter = None
    for match in _TS2_CODE.finditer(text):
        letter = (match[1] or match[2]).upper()
    if letter is not None:
        return letter
    lowered = text.lower()
    return next((_ALPHABET[place] for place, choice in enumerate(choices[:5]) if choice.lower() in lowered), None)


_TOFU_CODE = re.compile(r"Answer:\s*([A-Z]|\d+)")


def tofu_papers_code(text: str) -> str | None:
    """The label by the rule that TOFU's ARC and MMLU are read with: the first letter or number behind "Answer:".

    Args:
        text: response of the model.

    Returns:
        A capital letter, the digits of a number (ARC has labels 1 to 4), or None.

    Example:
        >>> tofu_papers_code("Answer: B) iron. Answer: C"), tofu_papers_code("Answer: 3"), tofu_papers_code("B")
        ('B', '3', None)
    """
    match = _TOFU_CODE.search(text)
    return match[1] if match else None
