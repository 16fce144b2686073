"""Chat templates: what plain transformers makes of them, and an end to those that have none."""

import multiprocessing
import resource
import threading
import time
from typing import Any

import pytest
from data_helpers import byte_level_tokenizer, chat, write_jsonl
from jinja2 import TemplateError
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerFast

from tests.support.errors import refused
from ts2_lightning.data import SFTData, sandbox
from ts2_lightning.data.encoding import encode_rows
from ts2_lightning.data.rows import SourceRow
from ts2_lightning.data.sandbox import TemplateLimitError, compiled, weight
from ts2_lightning.data.templates import ChatTemplate
from ts2_lightning.types import RowError, UserError

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

ORDINARY = {
    "macro": "{% macro turn(m, end='|') %}{{ m.role }}: {{ m['content'] }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{{ turn(m, end='.') }}{% endfor %}",
    "namespace": "{% set ns = namespace(last=-1, text='') %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% set ns.text = ns.text + m.content[:3] ~ loop.length %}{% endif %}{% endfor %}"
    "{{ ns.last }} {{ ns.text }}",
    "controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}"
    "{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "filters": "{{ messages | map(attribute='content') | map('upper') | join(', ') }} {{ messages | tojson }} "
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'a,b'.split(',') }} "
    "{{ messages[0].content | trim | title | center(30) }} {{ 2.5 | round }} {{ [3, 1, 2] | sort | batch(2) | list }}",
    "text": "{{ '%s-%05.1f' % ('a', 3) }} {{ '{{}} {0:>4} {x}'.format(1, x='b') }} {{ 'abc'.replace('b', 'xx') }} "
    "{{ 'a' * 3 }} {{ 2 ** 10 }} {{ 7 % 4 }} {{ [1] + [2] }} {{ [0] * 3 }} {{ none }} {{ 1.5 }} {{ undefined_name }}",
    "blocks": "{% set x %}{{ messages[0].content }}!{% endset %}{{ x }}{% filter upper %}a{{ x }}{% endfilter %}",
    "caller": "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}{{ messages[1].content }}{% endcall %}",
    "recursive": "{% for item in [[1, [2]], 3] recursive %}{{ loop(item) if item is iterable else item }},{% endfor %}",
    "names": "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ tools is none }}{{ dict(a=1) }}",
    "escaped": "{% autoescape true %}{{ '<' ~ '&' }}{{ ['<', '>'] | join('&') }}{% endautoescape %}",
    "ranges": "{% for i in range(3, 0, -1) %}{{ i }}{{ loop.cycle('a', 'b') }}{% else %}none{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("prompt", [False, True])
def test_ordinary_templates_write_what_they_write_in_transformers(
    name: str, prompt: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    messages = chat("  hello\nthere ", "I am <fine> & well", "é☃", system="s")
    wanted = tokenizer.apply_chat_template(
        messages, chat_template=ORDINARY[name], tokenize=False, add_generation_prompt=prompt
    )
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": prompt}
    assert compiled(ORDINARY[name]).render(**given, **tokenizer.special_tokens_map) == wanted


def grown(start: str, step: str) -> str:
    """A value to which a step is applied over and over."""
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set ns.x = {step} %}}{{% endfor %}}"


TOO_LONG = {
    "loops": LOOP,
    "loops that write": LOOP.replace("{% endfor %}", "x{% endfor %}", 1),
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "callers": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call f() %}"
    + "{% call f() %}" * 40 + "{% endcall %}" * 41,
    "filters": "{% for i in range(999) %}{{ range(99999) | map('upper') | select('in', ['a']) | list }}{% endfor %}",
    "filters of filters": "{{ range(99999) | map('center', 60000) | list | length }}",
}  # fmt: skip
TOO_LARGE = {
    "before it is rendered": "{{ 'a'" + " | list | string" * 40 + " }}{% set x = 'a'" + " | list | string" * 40 + " %}",
    "times": "{{ 'a' * 10000000000 }}",
    "times, the other way": "{{ 10000000000 * 'a' }}",
    "times a list": "{{ [1] * 10000000000 }}",
    "times a list of lists": "{{ [[1] * 99999] * 99999 }}",
    "power": "{{ 9 ** 999999999 }}",
    "squares": grown("3", "ns.x * ns.x"),
    "tilde": grown("'a'", "ns.x ~ ns.x"),
    "plus": grown("'a'", "ns.x + ns.x"),
    "plus of lists": grown("[1]", "ns.x + ns.x"),
    "without a loop": "{% set x = 'a' %}" + "{% set x = x ~ x %}" * 60,
    "blocks": "{% set x = 'a' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "macros": "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}" + grown("'a'", "twice(ns.x)"),
    "filter blocks": "{% filter replace('a', 'aa') %}" * 60 + "a" + "{% endfilter %}" * 60,
    "lists in lists": grown("[1]", "[ns.x, ns.x]") + "{{ ns.x }}",
    "tuples in tuples": grown("(1, 2)", "(ns.x, ns.x)") + "{{ {ns.x: 1} }}",
    "mappings in mappings": grown("{}", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x == ns.x }}",
    "dict": grown("{}", "dict(a=ns.x, b=ns.x)") + "{{ ns.x | tojson }}",
    "too deep": grown("(1,)", "(ns.x,)").replace("99", "99999") + "{{ {ns.x: 1} }}",
    "quotes": "{{ '\"'" + " | tojson" * 60 + " }}",
    "texts of lists": grown(r"'\\'", "[ns.x] | string"),
    "center": "{{ 'a' | center(10000000000) }}",
    "a method": "{{ 'a'.center(10000000000) }}",
    "a method by another name": "{% set f = 'a'.ljust %}{{ f(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "tabs": "{{ '\t'.expandtabs(2000000000) }}",
    "bytes": "{{ (1).to_bytes(2000000000, 'big') }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "percent of a name": "{{ '%(a)10000000000d' % {'a': 1} }}",
    "percent of a width": "{{ '%*d' % (10000000000, 1) }}",
    "percents": "{{ ('%(a)s' * 1000000) % {'a': 'x' * 1000000} }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "format of a width": "{{ '{:{}}'.format(1, 10000000000) }}",
    "format by filter": "{{ '%10000000000d' | format(1) }}",
    "format of a map": "{{ '{a:10000000000}'.format_map({'a': 1}) }}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "join": "{{ range(99999) | join('x' * 1000000) }}",
    "join by method": "{{ ('x' * 1000000).join(['a'] * 99999) }}",
    "join an attribute": "{{ ([namespace(a='x' * 1000000)] * 9999) | join(attribute='a') }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(1000000000) | list }}",
    "round": "{{ 1 | round(1000000000) }}",
    "sum": "{{ ([[1, 2]] * 99999) | sum(start=[]) }}",
    "indent": "{{ ('\n' * 100000) | indent(100000) }}",
    "tojson": "{{ ([1] * 10000) | tojson(indent=1000000) }}",
    "translate": "{{ ('a' * 1000000).translate({97: 'x' * 1000000}) }}",
    "search": "{{ ('a' * 60000000).rfind('b' + 'a' * 30000000) }}",
    "equal hashes": "{{ range(0, 99999 * (2 ** 61 - 1), 2 ** 61 - 1) | unique | list }}",
    "lists that are kept": grown("[]", "ns.x + [range(99999) | list]"),
    "one text, often": "{% set x = 'x' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "its own text, often": "{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}",
}  # fmt: skip


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounds, but reached sooner."""
    monkeypatch.setattr(sandbox, "LARGEST", 1 << 23)
    monkeypatch.setattr(sandbox, "SECONDS", 1.0)


@pytest.mark.parametrize("source", [*TOO_LONG.values(), *TOO_LARGE.values()], ids=[*TOO_LONG, *TOO_LARGE])
def test_what_has_no_end_is_ended(source: str, small_bounds: None) -> None:
    before = time.process_time()
    with pytest.raises(TemplateLimitError) as error:
        compiled(source).render(messages=[])
    assert time.process_time() - before < 10
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["times", "tilde", "texts of lists", "macros", "replace", "one text, often"])
def test_the_real_bounds_keep_the_memory_bounded(name: str) -> None:
    """In a process of its own, whose peak is its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        grown_by = pool.apply(peak_of, (TOO_LARGE[name],))
    assert grown_by < 1.5e9


def peak_of(source: str) -> int:
    """Bytes by which this process grew."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateLimitError):
        compiled(source).render(messages=[])
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def test_a_clock_ends_what_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, each of which takes long."""
    monkeypatch.setattr(sandbox, "SECONDS", 0.3)
    slow = "{% set x = 'a' * 30000000 %}{% for i in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}"
    before = time.process_time()
    with pytest.raises(TemplateLimitError, match=r"it takes more than 0\.3 seconds"):
        compiled(slow).render()
    assert time.process_time() - before < 10


def test_memory_is_looked_at_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many values, none of which is too large."""
    monkeypatch.setattr(sandbox, "MEMORY", 100_000_000)
    many = "".join(f"{{% set x{number} = 'a' * 60000000 %}}" for number in range(200))
    with pytest.raises(TemplateLimitError, match="GB of memory"):
        compiled(many).render()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ 'a' | striptags }}", "No filter named 'striptags'"),
        ("{% macro f() %}{{ varargs }}{% endmacro %}{{ f(1) }}", "a macro of a chat template has no varargs"),
    ],
)
def test_what_is_left_out(source: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        compiled(source).render()


def test_weights_count_what_is_held_as_often_as_it_is() -> None:
    inner: Any = ["abc"] * 10
    assert weight("abc") == 3
    assert weight({"a": "bc"}) == 64 + 3
    assert weight(inner) == 10 * (64 + 3)
    assert weight([inner, inner]) == 2 * (64 + weight(inner))
    for _ in range(200):
        inner = [inner]
    assert weight(inner) == float("inf"), "too deep"


def row(text: str) -> SourceRow:
    return SourceRow({"prompt": text, "completion": "yes"}, f"x.jsonl:{text}")


FAILING = {
    "1 // 0": "ZeroDivisionError: integer division or modulo by zero",
    "m.content + 1": 'TypeError: can only concatenate str \\(not "int"\\) to str',
    "range(10 ** 9)": "OverflowError: Range too big",
    "f(0)": "RecursionError: maximum recursion depth exceeded",
    "[1].x.y": "has no attribute 'x'",
    "m.content.encode('ascii')": "UnicodeEncodeError: 'ascii' codec",
    "'a' * 10 ** 10": "it makes a text or a list that is larger than",
    "raise_exception('not\nthis')": "not this",
}


@pytest.mark.filterwarnings("ignore:template 'mine'")
@pytest.mark.parametrize("expression", FAILING)
def test_whatever_a_template_raises_is_the_rows(expression: str, tokenizer: PreTrainedTokenizerFast) -> None:
    source = (
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{% for m in messages %}{% if 'é' in m.content %}{{ "
        + expression.replace("\n", "\\n")
        + " }}{% endif %}{% endfor %}"
        + CHATML
    )
    template = ChatTemplate("mine", source, tokenizer)
    rows = encode_rows([row("a"), row("é"), row("b")], template)
    assert rows.counts.kept == 2
    [reject] = rows.rejects
    assert reject.origin == "x.jsonl:é"
    assert reject.kind == "template"
    with pytest.raises(RowError, match=f"the chat template .* of the roles user, assistant .*{FAILING[expression]}"):
        template.render(chat("é", "yes"))
    assert "\n" not in reject.reason


@pytest.mark.filterwarnings("ignore:template ")
def test_a_row_on_which_a_template_does_not_end_is_the_bad_row(
    tmp_path: Any, tokenizer_directory: str, small_bounds: None
) -> None:
    """It is counted, listed and tolerated as any other."""
    source = tmp_path / "mine.jinja"
    source.write_text(
        CHATML.replace("{{ m.role }}", f"{{% if 'seven' in m.content %}}{LOOP}{{% endif %}}{{{{ m.role }}}}")
    )
    rows = [{"prompt": word, "completion": "yes"} for word in ("six", "seven", "eight", "nine")]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    options: dict[str, Any] = {"tokenizer": tokenizer_directory, "template": str(source)}
    with pytest.raises(UserError, match=r"rows\.jsonl:2: the chat template fails on .*; 1 of 4 rows is bad"):
        SFTData(file, **options).setup("fit")
    data = SFTData(file, **options, max_rejects=0.25)
    with pytest.warns(UserWarning, match="left out 1 bad of 4 rows"):
        data.setup("fit")
    assert data.rows("train").places.tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (LOOP + CHATML, "cannot be used with this tokenizer: the chat template fails on .*it writes more than"),
        ("{{ 1 // 0 }}", r"cannot be used .*fails on messages of the roles user, assistant \(ZeroDivisionError"),
        ("{% for m in messages %}\n{{ m.content }\n{% endfor %}", r"is not valid jinja \(line 2: unexpected '}'\)"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "is not valid jinja .RecursionError"),
        ("{% include 'other' %}", "TypeError: no loader"),
    ],
)
def test_templates_that_cannot_be_made(
    source: str, reason: str, tokenizer: PreTrainedTokenizerFast, small_bounds: None
) -> None:
    with refused(f"template 'mine' .*{reason}"):
        ChatTemplate("mine", source, tokenizer)


def test_another_thread(small_bounds: None) -> None:
    raised = []

    def render() -> None:
        try:
            compiled(LOOP).render()
        except TemplateLimitError as error:
            raised.append(error)

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(raised) == 2


class Rendering(Dataset[str]):
    """Renders in whichever process it is asked."""

    def __getitem__(self, index: int) -> str:
        try:
            return compiled(LOOP).render()
        except TemplateLimitError as error:
            return str(error)

    def __len__(self) -> int:
        return 2


def test_a_worker_of_a_data_loader(small_bounds: None) -> None:
    found = list(DataLoader(Rendering(), batch_size=None, num_workers=1, multiprocessing_context="fork"))
    assert len(found) == 2
    assert all("it writes more than" in reason for reason in found)


@pytest.mark.filterwarnings("ignore:template 'mine'")
def test_contents_are_plain_text_to_a_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """A class of the user's might have methods that a template of somebody else's could call."""

    class Loud(str):
        def shout(self) -> str:
            return "loud"

    template = ChatTemplate("mine", CHATML.replace("m.content", "m.content ~ m.content.shout"), tokenizer)
    rows = encode_rows([SourceRow({"prompt": Loud("a"), "completion": Loud("b")}, "x:1")], template)
    assert rows.counts.kept == 1
    assert "loud" not in byte_level_tokenizer().decode(rows[0].ids)
