"""Chat templates that come to an end: jinja in the sandbox of transformers, with bounds of time and memory.

The sandbox keeps a template from Python's internals, but not from loops inside loops, macros that call themselves, or
texts that are multiplied until no memory is left. A template comes with a model from elsewhere, so here each rendering
has a budget. Every block of statements is a step, and whatever is made, a text or a list, is weighed before more can be
made of it; what multiplies is refused beforehand. That takes neither a clock of another thread nor a signal, so it
works in any thread and any process. An ordinary rendering is over before its processor time and memory are looked at.
"""

import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any, TypeVar

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame, find_undeclared
from jinja2.filters import make_attrgetter
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from transformers.utils.chat_template_utils import _compile_jinja_template

from ts2_lightning.data.files import reason_of

SECONDS = 5.0
"""Processor time that a rendering may take. An ordinary one takes 10 to 100 microseconds."""

LARGEST = 1 << 26
"""Characters of a text that a template makes, and of all that it writes. An item of a list counts as 64."""

MEMORY = 1 << 30
"""Bytes by which the process may grow in the course of a rendering."""

_STEP = 4  # characters that a block of statements costs
_GLANCE = 1024  # characters after which a rendering checks the clock
_MOMENT = 0.05  # seconds after which it also checks its processor time and memory
_SMALL = 1 << 16  # characters of a text that may be made without a look at the clock
_DEEPEST = 100  # lists in lists; Python has no bound for the hash of tuples in tuples
_LARGEST_NUMBER = 1 << 32  # of a range
_ITEM, _BIT = 64, 1024  # weight of an item of a list, and of a bit of a large number, whose arithmetic is quadratic

# Of no use in a chat, and slow beyond what the size of a text explains.
_LEFT_OUT = {"lipsum", "pprint", "striptags", "urlize", "wordwrap", "xmlattr"}

# Filters and methods that make a text or a list as often as their largest argument says, or search it as long; and
# those with a rule of their own. The results of all others are little larger than their arguments.
_MULTIPLYING = {
    "batch", "center", "expandtabs", "from_bytes", "indent", "join", "ljust", "rfind", "rindex", "rjust", "round",
    "rpartition", "rsplit", "slice", "to_bytes", "tojson", "translate", "zfill",
}  # fmt: skip
_GROWING = _MULTIPLYING | {"format", "format_map", "replace", "sum"}

_TEXT = (nodes.TemplateData, nodes.Const)
_FIELD = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%*]*\*?|\{[^{}]*[{}]")
_DIGITS = re.compile(r"\d+")

T = TypeVar("T")


class TemplateLimitError(TemplateError):
    """A template that would take too much time or memory."""


class _Budget(Context):
    """The variables of a template, and the budget that its rendering has used."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._used = 0.0
        self._next_glance = 0.0 + _GLANCE
        self._next_look = time.monotonic() + _MOMENT
        self._first_look: tuple[float, int] | None = None

    def derived(self, locals: dict[str, Any] | None = None) -> Context:
        """A context for a filter inside a loop, on the same budget."""
        context: Any = super().derived(locals)
        context.step = self.step
        return context

    def step(self, cost: float) -> None:
        """Pay for a block of statements.

        Raises:
            TemplateLimitError: if the budget is used up.
        """
        self._used += cost
        if self._used > self._next_glance:
            self._glance()

    def written(self, text: str) -> str:
        """Pay for a text that is written, and pass it on."""
        self._used += len(text)
        if self._used > self._next_glance:
            self._glance()
        return text

    def _glance(self) -> None:
        if self._used > LARGEST:
            raise TemplateLimitError(f"it writes more than {LARGEST:,} characters or blocks")
        self._next_glance = self._used + _GLANCE
        if time.monotonic() > self._next_look:
            self._look()

    def _look(self) -> None:
        seconds, memory = time.thread_time(), _peak_memory()
        self._first_look = self._first_look or (seconds, memory)
        if seconds - self._first_look[0] > SECONDS:
            raise TemplateLimitError(f"it takes more than {SECONDS:g} seconds")
        if memory - self._first_look[1] > MEMORY:
            raise TemplateLimitError(f"it takes more than {MEMORY / 1e9:.1f} GB of memory")
        self._next_look = time.monotonic() + _MOMENT

    def weighed(self, value: T) -> T:
        """A value that was made, if it is not too large; one that is not small costs a step."""
        if type(value) is bool or (isinstance(value, str) and len(value) <= _SMALL):
            return value
        size = weight(value)
        _expect(size)
        if size > _SMALL:
            self.step(_GLANCE)
        return value

    def joined(self, *parts: Any) -> str:
        """The operator `~`."""
        return self.weighed((markup_join if self.eval_ctx.autoescape else str_join)(self.weighed(parts)))

    def added(self, left: Any, right: Any) -> Any:
        """The operator `+`."""
        return self.weighed(left + right)


class _Counting(CodeGenerator):
    """Compiles a template so that it pays for its blocks and its output, and weighs what its syntax creates."""

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        """A block pays for itself and for the text that it always writes."""
        body = list(body)
        written = [child for node in body if isinstance(node, nodes.Output) for child in node.nodes]
        characters = sum(len(str(child.as_const())) for child in written if isinstance(child, _TEXT))
        self.writeline(f"context.step({_STEP + characters})")
        super().blockvisit(body, frame)

    def macro_body(self, node: nodes.Macro | nodes.CallBlock, frame: Frame) -> Any:
        """A macro that collects arguments is refused: what it collects would be weighed nowhere."""
        named = {argument.name for argument in node.args}
        if collected := find_undeclared(node.body, ("varargs", "kwargs")) - named:
            self.fail(f"a macro of a chat template has no {collected.pop()}", node.lineno)
        return super().macro_body(node, frame)

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, _TEXT):  # an expression is not computed here, where nobody pays for it
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def _output_child_pre(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        self.write("context.written(")
        super()._output_child_pre(node, frame, finalize)

    def _output_child_post(self, node: nodes.Expr, frame: Frame, finalize: Any) -> None:
        super()._output_child_post(node, frame, finalize)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        """`~` becomes `_Budget.joined`."""
        self._call("joined", node.nodes, frame)

    def visit_Add(self, node: nodes.BinExpr, frame: Frame) -> None:  # noqa: N802
        """`+` becomes `_Budget.added`."""
        self._call("added", [node.left, node.right], frame)

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:  # noqa: N802
        """What a filter makes is weighed."""
        self._weigh(super().visit_Filter, node, frame)

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: N802
        """What a function, a method or a macro makes is weighed."""
        self._weigh(super().visit_Call, node, frame, forward_caller=forward_caller)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:  # noqa: N802
        """A list is weighed, unless it is of constants."""
        self._weigh(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:  # noqa: N802
        """A mapping is weighed."""
        self._weigh(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:  # noqa: N802
        """A tuple is weighed as a list is."""
        if node.ctx == "load":
            self._weigh(super().visit_Tuple, node, frame)
        else:  # names that are assigned to
            super().visit_Tuple(node, frame)

    def _weigh(self, visit: Callable[..., None], node: nodes.Node, frame: Frame, **options: Any) -> None:
        children = list(node.iter_child_nodes())
        if isinstance(node, nodes.List | nodes.Tuple) and all(isinstance(child, nodes.Const) for child in children):
            visit(node, frame, **options)  # such as the right side of `in`
        else:
            self.write("context.weighed(")
            visit(node, frame, **options)
            self.write(")")

    def _call(self, method: str, arguments: Sequence[nodes.Node], frame: Frame) -> None:
        self.write(f"context.{method}(")
        for argument in arguments:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates, with a budget for each rendering."""

    code_generator_class = _Counting
    context_class = _Budget
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        self._theirs = theirs = _compile_jinja_template("").environment
        super().__init__(trim_blocks=theirs.trim_blocks, lstrip_blocks=theirs.lstrip_blocks, optimized=False)
        self.extensions = {name: extension.bind(self) for name, extension in theirs.extensions.items()}
        self.filters = {name: function for name, function in theirs.filters.items() if name not in _LEFT_OUT}
        self.filters |= {name: self._bounded_filter(name) for name in _GROWING & self.filters.keys()}
        self.tests = theirs.tests
        self.globals = {name: value for name, value in theirs.globals.items() if name not in _LEFT_OUT}
        self.globals["range"] = _range
        # As a text it would repeat all that it holds.
        opaque = {"__repr__": lambda namespace: "<namespace>"}
        self.globals["namespace"] = type("namespace", (theirs.globals["namespace"],), opaque)

    def _bounded_filter(self, name: str) -> Callable[..., Any]:
        """A filter that refuses to make what is too large."""

        @pass_context
        def bounded(context: _Budget, value: Any, /, *args: Any, **kwargs: Any) -> Any:
            if name == "join" and (attribute := kwargs.pop("attribute", None)) is not None:
                value = map(make_attrgetter(self, attribute), value)
            value = context.weighed([*value]) if isinstance(value, Iterator) else value
            _expect(_expected(name, value, args, kwargs))
            return self._theirs.call_filter(name, value, args, kwargs, context)

        return bounded

    def wrap_str_format(self, value: Any) -> Callable[..., Any] | None:
        """A bounded substitute for a method of a value; jinja looks every method up here."""
        name = getattr(value, "__name__", None)
        if name not in _GROWING or not isinstance(value, BuiltinMethodType):
            return None
        function = super().wrap_str_format(value) or value

        def bounded(*args: Any, **kwargs: Any) -> Any:
            _expect(_expected(name, value.__self__, args, kwargs))
            return function(*args, **kwargs)

        return bounded

    def call_filter(self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None,
                    eval_ctx: Any = None) -> Any:  # fmt: skip
        """Apply a filter for another one, such as `map`, to each item."""
        result = super().call_filter(name, value, args, kwargs, context, eval_ctx)
        context.step(_STEP + weight(result))
        return result

    def call_test(self, name: str, value: Any, args: Any = None, kwargs: Any = None, context: Any = None,
                  eval_ctx: Any = None) -> Any:  # fmt: skip
        """Apply a test for a filter, such as `select`, to each item."""
        context.step(_ITEM)
        return super().call_test(name, value, args, kwargs, context, eval_ctx)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute with an operator; see `SandboxedEnvironment.call_binop`."""
        _expect(_expected(operator, left, (right,), {}))
        return context.weighed(super().call_binop(context, operator, left, right))


@lru_cache(maxsize=1)
def _sandbox() -> _Sandbox:
    return _Sandbox()


def compiled(source: str) -> Template:
    """A chat template, as transformers compiles it, that keeps to the bounds.

    Args:
        source: source of the template, in jinja.

    Raises:
        Exception: any, if it is not valid jinja; so does its `render`, which also raises `TemplateLimitError`.

    Example:
        >>> compiled("{% for m in messages %}{{ m.content }}{% endfor %}").render(messages=[{"content": "Hello"}])
        'Hello'
        >>> compiled("{{ 'a' * 1000000000 }}").render()
        Traceback (most recent call last):
        ts2_lightning.data.sandbox.TemplateLimitError: it makes a text or a list that is larger than 67,108,864 \
characters
    """
    return _sandbox().from_string(source)


def names_taken(source: str) -> frozenset[str]:
    """The names of the variables that a chat template reads.

    >>> sorted(names_taken("{% for m in messages %}{{ m.content if enable_thinking }}{% endfor %}"))
    ['enable_thinking', 'messages']
    """
    return frozenset(find_undeclared_variables(_sandbox().parse(source)))


def reason_of_failure(error: Exception) -> str:
    """The reason why a template could not be compiled or rendered, in one short line.

    >>> reason_of_failure(ZeroDivisionError("division by zero")), reason_of_failure(TemplateError("no users here"))
    ('ZeroDivisionError: division by zero', 'no users here')
    """
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    return reason_of(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {reason_of(error)}"


def _range(*bounds: int) -> range:
    """A range of numbers small enough that none of them share a hash."""
    if max(map(abs, bounds), default=0) > _LARGEST_NUMBER:
        raise TemplateLimitError(f"a range goes beyond {_LARGEST_NUMBER:,}")
    return safe_range(*bounds)


def _peak_memory() -> int:
    """The most bytes that the process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# How large something is, or becomes ---------------------------------------------------------------------------------


def _expect(size: float) -> None:
    if size > LARGEST:
        raise TemplateLimitError(f"it makes a text or a list that is larger than {LARGEST:,} characters")


def weight(value: Any) -> float:
    """The size of a value with all that it holds, each as often as it is held; infinite if it is far too much.

    >>> weight("text"), weight(["text", "text"]), weight([["text"] * 10**6] * 10**6)
    (4, 136, inf)
    """
    if isinstance(value, str):
        return len(value)
    total, level = 0, [value]
    for _ in range(_DEEPEST):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, str | bytes):
                total += len(item)
            elif isinstance(item, int):
                total += _BIT * item.bit_length() if item.bit_length() > 64 else 0
            elif isinstance(item, Sized):
                total += _ITEM * len(item)
                if total > LARGEST:
                    return math.inf
                if isinstance(item, list | tuple | dict):
                    inside.extend(item)
                if isinstance(item, dict):
                    inside.extend(item.values())
        if not inside:
            return total
        level = inside
    return math.inf


def _expected(name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """The size of the result of an operator, filter or method, estimated from above; 0 if it cannot be large."""
    others = [*args, *kwargs.values()]
    if name == "*":
        numbers = isinstance(value, int) and isinstance(others[0], int)
        return 0 if numbers else max(_extent(value), 1) * max(_extent(others[0]), 1)
    if name == "**":
        return _BIT * value.bit_length() * _extent(others[0]) if isinstance(value, int) else 0
    if name == "replace":
        old, new = (str(other) for other in [*others, "", ""][:2])
        return str(value).count(old) * len(new)
    if name == "sum":  # lists are copied once for each, if it begins with a list
        start = args[1] if len(args) > 1 else kwargs.get("start", 0)
        return 0 if isinstance(start, int | float) else math.inf
    if name in ("%", "format", "format_map"):
        return _expected_format(value, others) if isinstance(value, str) else 0
    return max(weight(value), 1) * max(map(_extent, others), default=1) if name in _MULTIPLYING else 0


def _expected_format(form: str, values: Sequence[Any]) -> float:
    fields = _FIELD.findall(form.replace("{{", "").replace("}}", ""))
    if any(field.endswith(("*", "{")) for field in fields):  # a width that is a value
        return math.inf
    widths = sum(int(digits[:10]) for field in fields for digits in _DIGITS.findall(field))
    return widths + len(fields) * max((weight(value) for value in values), default=0)


def _extent(value: Any) -> float:
    """The factor that a number is, or the size of any other value."""
    return abs(value) if isinstance(value, int) else weight(value)
