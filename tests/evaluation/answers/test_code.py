"""Code in responses: what is extracted runs, and is right or wrong as the response is."""

import gzip
import json
from pathlib import Path

import pytest

from ts2_lightning.evaluation.answers.code import (
    RULES,
    Problem,
    as_completion,
    extract,
    first_block,
    preamble,
    program,
)
from ts2_lightning.types import UserError

PROMPT = '''from typing import List


def half(number: int) -> int:
    return number // 2


def halves(numbers: List[int]) -> List[int]:
    """ Halve all numbers, rounding down.
    >>> halves([4, 7])
    [2, 3]
    """
'''
TEST = """
METADATA = {}


def check(candidate):
    assert candidate([4, 7]) == [2, 3]
    assert candidate([]) == []
"""
PROBLEM = Problem(PROMPT, "halves", TEST)
BODY = "    return [half(number) for number in numbers]\n"
WHOLE = f"def halves(numbers: List[int]) -> List[int]:\n{BODY}"


def passes(solution: str, problem: Problem = PROBLEM) -> bool:
    """Runs a program of this file, which is harmless."""
    try:
        exec(program(solution, problem), {"__name__": "candidate"})
    except Exception:
        return False
    return True


RESPONSES = [
    # A turn that was begun with the prompt in a block.
    ("prefilled", BODY + "```\n\nThis halves every number.", True),
    ("prefilled", "\n" + BODY + "```", True),
    ("prefilled", BODY, True),  # cut off before the fence
    ("prefilled", "    return numbers\n```", False),
    # Chat answers in the manner of several families.
    ("fenced", f"Here is the function:\n\n```python\n{WHOLE}```\n\nIt uses a list comprehension.", True),
    ("fenced", f"```python\n{PROMPT}{BODY}```", True),
    ("fenced", f"```py\n{WHOLE}```", True),
    ("fenced", f"```Python\n{WHOLE}```", True),
    ("fenced", f"```\n{WHOLE}```", True),
    ("fenced", f"Install nothing:\n```bash\npip list\n```\nthen\n```python\n{WHOLE}```", True),
    ("fenced", f"```python\n{WHOLE}```\n```python\nprint(undefined)\n```", True),
    (
        "fenced",
        f"1. The code:\n\n   ```python\n{''.join(f'   {line}' for line in WHOLE.splitlines(True))}   ```\n",
        True,
    ),
    ("fenced", f"```python\n{WHOLE}", True),  # cut off, but whole
    ("fenced", f"```python\n{BODY}```", True),  # the body alone
    ("fenced", "```python\nreturn [half(number) for number in numbers]\n```", True),  # ... at the margin
    ("fenced", "```python title=halves.py\n" + WHOLE + "```", True),
    ("fenced", "```python\r\n" + WHOLE.replace("\n", "\r\n") + "```", True),
    ("fenced", "~~~python\n" + WHOLE + "~~~", True),
    ("fenced", "```python\nhalves = lambda numbers: [number // 2 for number in numbers]\n```", True),
    ("fenced", WHOLE, True),  # without a block
    ("fenced", f"<think>\n```python\ndef halves(x):\n    pass\n```\n</think>\n```python\n{WHOLE}```", True),
    ("fenced", "```python\ndef half_all(numbers):\n    return [half(number) for number in numbers]\n```", False),
    ("fenced", "I cannot help with that.", False),
    ("fenced", "", False),
    # Base models go on for ever.
    ("completion", BODY + "\n\ndef other():\n    pass", True),
    ("completion", BODY + "\n# Test\nassert False", True),
    ("completion", BODY + '\nif __name__ == "__main__":\n    assert False', True),
    ("completion", BODY + "\nprint(undefined)", True),
    ("completion", BODY + "\nclass Broken(", True),
    ("completion", BODY, True),
    ("completion", "    # rounds down\n" + BODY, True),
    ("completion", "    return numbers\n", False),
]


@pytest.mark.parametrize(("rule", "response", "right"), RESPONSES)
def test_code_of_responses(rule: str, response: str, right: bool) -> None:
    solution = extract(response, PROBLEM, rule)  # type: ignore[arg-type]
    assert passes(solution) is right
    behind = as_completion(solution, PROBLEM)  # for tools that put the prompt before it
    assert passes(PROMPT + behind) is right


def test_what_stands_before_the_function_stays_with_it() -> None:
    assert preamble(PROBLEM) == PROMPT[: PROMPT.index("def halves")]
    assert preamble(Problem(PROMPT, "absent")) == ""
    assert "from typing import List" in extract(f"```python\n{WHOLE}```", PROBLEM, "fenced")


def test_blocks() -> None:
    assert first_block("no block") is None
    assert first_block("inline ```x``` only") is None
    assert first_block("```python\n```") == ""
    assert first_block("```json\n{}\n```\n```\nx\n```") == "{}\n"


def test_a_rule_that_there_is_not_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^rule 'magic': no such way to read code; take one of prefilled, fenced, comp"
    ):
        extract("", PROBLEM, "magic")  # type: ignore[arg-type]
    assert RULES == ("prefilled", "fenced", "completion")


def test_reference_solutions_are_extracted_as_they_are(shared_data: Path) -> None:
    with gzip.open(shared_data / "eval" / "humaneval_000_081.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 82
    for row in rows:
        problem = Problem(row["prompt"], row["entry_point"], row["test"])
        whole = row["prompt"] + row["canonical_solution"]
        assert extract(row["canonical_solution"] + "```\nDone.", problem, "prefilled") == whole
        assert extract(row["canonical_solution"], problem, "completion").rstrip() == whole.rstrip()
        fenced = extract(f"Sure.\n```python\n{whole}```", problem, "fenced")
        assert fenced.endswith(whole)
        compile(program(fenced, problem), row["task_id"], "exec")
        assert as_completion(whole, problem) == row["canonical_solution"]


@pytest.mark.parametrize("filler", ["```", "```\n", "```python\n", "\ndef", "    ```a\n", "~~~\n```\n", " "])
def test_a_megabyte_is_read(filler: str) -> None:
    text = filler * (1_000_000 // len(filler))
    for rule in RULES:
        extract(text, PROBLEM, rule)  # type: ignore[arg-type]
