"""Pages: what is in them, told without a browser."""

import base64
import gzip
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ts2_lightning.pages import Chart, Page, Section, Series, Table, Text, TextItem, Texts
from ts2_lightning.pages.charts import bundle, figure

HOSTILE = (
    '</script><script>alert(1)</script><img src="https://x.example/p.png" onerror=alert(2)> \0 \ud83d \u202e \x1b[31m '
    "<!-- ]]> {{ 7 * 7 }} ${1} &amp; ' \" </pre></title></style>"
)
READABLE = (
    HOSTILE.replace("\0", "\u2400").replace("\ud83d", "\\ud83d").replace("\u202e", "\\u202e").replace("\x1b", "\u241b")
)
WORDS = st.text(st.characters(exclude_characters="\r"), max_size=30)


class Read(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and texts by the element that they are in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open = [""]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "input"):
            self._open.append(tag)
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1], data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def said(self, tag: str) -> str:
        return "".join(text for name, text in self.texts if name == tag)

    @property
    def is_whole(self) -> bool:
        return self._open == [""]


def sections(text: str = "text") -> list[Section]:
    series = Series(text, [1, 2, 4], [0.5, 0.25, math.nan], [0.4, 0.2, 0.1], [0.6, math.inf, 0.3], [text] * 3)
    return [
        Text(text, [text, text]),
        Table(text, [text, "n"], [[text, 0.125], [None, math.nan]], hints=["", text], notes=[text]),
        Chart(text, [series], text, text, log_x=True),
        Chart(text, [Series(text, [text, "16"], [1.0, 2.0])], text, text, "bars"),
        Chart(text, [Series(text, [1.0], [2.0], [1.0], [3.0], (), [0.5], [1.5])], text, text, "points"),
        Texts(text, [TextItem(text, [(text, [(text, text), ("", "")]), (text, [])])], [text]),
    ]


def policy(read: Read) -> str:
    return next(one["content"] or "" for one in read.of("meta") if one.get("http-equiv") == "Content-Security-Policy")


def scripts(html: str) -> list[str]:
    return re.findall(r"<script>(.*?)</script>", html, re.S)


@pytest.mark.parametrize("text", ["text", HOSTILE, ""])
def test_a_page_is_whole_and_loads_nothing(text: str) -> None:
    read = Read(Page(text, sections(text), [text]).html())
    assert read.is_whole
    assert {tag for tag, _ in read.elements} & {"img", "link", "iframe", "object", "embed", "base", "form"} == set()
    for tag, attributes in read.elements:
        assert not any(name.startswith("on") or name in ("src", "srcset", "action", "style") for name in attributes), (
            tag
        )
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"url\(|@import", read.said("style"))


def test_hostile_texts_are_shown_as_they_are() -> None:
    read = Read(Page(HOSTILE, sections(HOSTILE), [HOSTILE]).html())
    assert read.said("title") == read.said("h1") == READABLE
    for tag, times in {"pre": 1, "figcaption": 1, "h3": 2, "h2": 6, "summary": 1, "dd": 1}.items():
        assert read.said(tag).count(READABLE) == times, tag
    assert any(attributes.get("title") == READABLE for attributes in read.of("th"))
    figures = [text for tag, text in read.texts if tag == "script" and text.startswith('{"data"')]
    assert len(figures) == 3
    assert [json.loads(text)["names"]["0"][:20] for text in figures] == [READABLE[:20]] * 3
    assert not [text for text in figures if re.search("[<>&]", text)]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(WORDS)
def test_any_text_is_in_the_page_and_ends_nothing(text: str) -> None:
    html = Page(text, [Text(text, [text]), Texts("t", [TextItem(text, [(text, [(text, text)])])])]).html()
    html.encode()
    read = Read(html)
    assert read.is_whole
    assert len(read.of("script")) == 1
    assert len(read.of("pre")) == len(read.of("figure")) == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", html)
    kept = [character for character in text if character.isalnum()]
    assert [character for character in read.said("pre") if character.isalnum()][: len(kept)] == kept or "\\" in html


def test_scripts_are_those_of_the_policy_and_no_others() -> None:
    html = Page("t", sections()).html()
    read = Read(html)
    allowed = re.findall(r"'sha256-([^']+)'", policy(read))
    known = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in [*scripts(html), bundle().source]
    ]
    assert allowed == known
    assert policy(read).startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy(read)
    assert re.findall(r"script-src[^;]*unsafe-inline|https?:|connect-src|\*", policy(read)) == []
    assert read.elements.index(("meta", next(one for one in read.of("meta") if "http-equiv" in one))) < next(
        place for place, (tag, _) in enumerate(read.elements) if tag in ("script", "style", "title")
    )


def test_the_script_of_charts_is_there_once_and_only_for_charts() -> None:
    with_charts, without = (
        Page("t", sections()).html(),
        Page("t", [Table("t", ["a"], [["b"]]), Chart("c", [], "", "")]).html(),
    )
    assert with_charts.count('id="plotly"') == 1
    assert 'id="plotly"' not in without
    assert len(without) < 30_000
    assert "There is nothing to draw" in without


def test_equal_pages_are_equal_bytes(tmp_path: Path) -> None:
    first, second = (Page("t", sections(HOSTILE)).write(tmp_path / name) for name in ("deep/a.html", "deep/b.html"))
    assert first == tmp_path / "deep" / "a.html"
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in first.parent.iterdir()) == ["a.html", "b.html"]


def test_numbers_are_kept_to_the_last_digit() -> None:
    third = 1 / 3
    table = Table(
        "t",
        ["name", "value", "n"],
        [["a", third, 12345], ["b", -math.inf, None]],
        [["a", "0.333 [0, 1]", "x"], ["b", "-", "y"]],
    )
    cells = Read(Page("t", [table]).html()).of("td")
    assert [cell.get("data-n") for cell in cells] == [repr(third), "12345", "-inf", "nan"]
    plain = Read(Page("t", [Table("t", ["name", "value"], [["a", third], ["b", 1234567], [None, 1e-9]])]).html())
    assert [text for tag, text in plain.texts if tag in ("td", "th") and text.strip()][2:] == [
        "a", "0.3333", "b", "1,234,567", "-", "1e-09",
    ]  # fmt: skip


def unpacked(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_large_tables_lie_in_the_page_compressed() -> None:
    rows = [[HOSTILE, i / 7, i] for i in range(1000)] + [[None, math.inf, None], ["", math.nan, 3], ["a", None, 10**6]]
    small, large = (Page("t", [Table("t", ["name", "x", "n"], some)]).html() for some in (rows[1000:], rows))
    assert 'class="packed"' not in small
    read = Read(large)
    assert read.is_whole
    assert len(read.of("tr")) == 1
    (text,) = [text for tag, text in read.texts if tag == "script" and re.fullmatch("[A-Za-z0-9+/=]+", text)]
    names, x, n = unpacked(text)["columns"]
    assert (names["numbers"], names["texts"]) == (None, [READABLE] * 1000 + ["-", "", "a"])
    assert (x["numbers"], x["texts"]) == ([float(f"{i / 7:.6g}") for i in range(1000)] + ["inf", "nan", None], None)
    assert (n["numbers"][-4:], n["texts"][-4:]) == ([999, None, 3, 10**6], ["999", "-", "3", "1,000,000"])
    assert read.said("p").startswith("The 1003 rows of this table are shown by a script")


def test_large_charts_lie_in_the_page_compressed() -> None:
    chart = Chart("c", [Series(f"m{i}", list(range(100)), [i / 7] * 100) for i in range(20)], "x", "y")
    read = Read(Page("t", [chart]).html())
    assert not [text for _, text in read.texts if text.startswith('{"data"')]
    packed = [text for tag, text in read.texts if tag == "script" and re.fullmatch("[A-Za-z0-9+/=]+", text)]
    assert unpacked(packed[0]) == json.loads(json.dumps(figure(chart)))


def test_charts_have_their_numbers_in_a_table() -> None:
    series = Series("CE", [1, 2], [0.5, 0.75], [0.4, 0.7], [0.6, 0.8])
    read = Read(Page("t", [Chart("pass", [series, Series("TS2", [1], [0.25])], "k", "share")]).html())
    cells = [cell.get("data-n") for cell in read.of("td")]
    assert cells == ["1", "0.5", "0.4", "0.6", "2", "0.75", "0.7", "0.8", "1", "0.25", "nan", "nan"]


def test_figures_hold_what_they_draw() -> None:
    series = [
        Series(f"m{place}", [1, 2, 4], [0.1, 0.2, math.nan], [0.0, 0.1, 0.1], [0.2, math.nan, 0.3])
        for place in range(12)
    ]
    text = next(
        text
        for tag, text in Read(Page("t", [Chart("c", series, "k", "y", log_x=True)]).html()).texts
        if text.startswith('{"data"')
    )
    figure = json.loads(text)
    lines, bands = ([one for one in figure["data"] if ("fill" in one) is banded] for banded in (False, True))
    assert [one["y"] for one in lines] == [[0.1, 0.2, None]] * 12
    assert [(one["x"], one["y"]) for one in bands] == [([1, 4, 4, 1], [0.0, 0.1, 0.3, 0.2])] * 12
    looks = {(one["line"]["color"], one["line"]["dash"]) for one in lines}
    assert len(looks) == 12
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["layout"]["xaxis"]["ticktext"] == ["1", "2", "4"]
    assert "m3<br>k: 2<br>y: 0.2 [0.1, nan]" in lines[3]["text"]


def test_names_of_bars_are_no_numbers_or_dates_and_whiskers_have_lengths() -> None:
    bars = Chart(
        "c",
        [Series("a", ["16", "2024-01-01", "<b>"], [1.0, 2.0, 3.0], [0.5, 2.5, 3.0], [1.5, 2.0, 4.0])],
        "",
        "",
        "bars",
    )
    text = next(text for tag, text in Read(Page("t", [bars]).html()).texts if text.startswith('{"data"'))
    figure = json.loads(text)
    assert figure["layout"]["xaxis"]["type"] == "category"
    assert figure["data"][0]["x"] == ["16", "2024-01-01", "&lt;b&gt;"]
    assert (figure["data"][0]["error_y"]["array"], figure["data"][0]["error_y"]["arrayminus"]) == (
        [0.5, 0.0, 1.0],
        [0.5, 0.0, 0.0],
    )


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (Table("t", ["a", "b"], [["x", 1.0], ["y"]]), "row 1: 2 columns, 1 cells"),
        (Table("t", ["a"], [["x"]], [["x"], ["y"]]), "1 rows, 2 rows of shown cells"),
        (Table("t", ["a"], [["x"]], [["x", "y"]]), "1 columns, 1 cells, 2 shown"),
        (Table("t", ["a"], [["x"]], hints=["x", "y"]), "1 columns, 2 hints"),
        (Chart("t", [Series("s", [1, 2], [1.0])], "", ""), "series 's': its lists differ"),
        (Chart("t", [Series("s", [1], [1.0], low=[0.0, 1.0])], "", ""), "series 's': its lists differ"),
    ],
)
def test_lists_of_different_lengths_are_refused(section: Section, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Page("t", [section]).html()


def test_a_megabyte_of_text_is_kept() -> None:
    text = "\u4f60\u597d <b> " * 150_000
    read = Read(Page("t", [Texts("t", [TextItem("q", [("m", [(text, "")])])])]).html())
    assert read.said("pre").strip("\n") == text
