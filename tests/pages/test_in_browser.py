"""Pages in a real browser without a window: what they do by mouse and by keyboard, and what they never do."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pages.test_page import HOSTILE, READABLE, sections
from ts2_lightning.pages import Chart, Page, Section, SeenText, Series, Table, TextItem, Texts, Tokens, TokenView

pytestmark = pytest.mark.slow

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

MODELS = ("CE", "TS2", "a/model/with/a/long/name/that/goes/on/and/on/checkpoint-1000")
PIECES = ("the", " answer", " is", " two", " five", " three", "\n", "</script><img src=x onerror=alert(1)>")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        yield browser
        browser.close()


Show = Callable[..., Any]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Show]:
    """Opens a page from disk; whatever the browser complains of, asks for or is asked fails the test in the end."""
    told: list[str] = []
    contexts = []

    def show(*shown: Section, title: str = "Page", width: int = 1200, **context: Any) -> Any:
        file = Page(title, shown, [title]).write(tmp_path / "page.html")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (told.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: told.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        return page

    show.told = told  # type: ignore[attr-defined]
    yield show
    for context in contexts:
        context.close()
    assert told == []


def view(seed: int, tokens: list[int]) -> TokenView:
    """Numbers of a random distribution over the pieces."""
    z = np.random.default_rng(seed).normal(size=(len(tokens), len(PIECES))) * 2
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    order = np.argsort(-z, axis=-1)
    falling = -np.sort(-z, axis=-1)
    size = (1 + np.arange(1, len(PIECES) + 1) * falling > falling.cumsum(-1)).sum(-1)
    place = np.arange(len(tokens))
    gold = p[place, tokens]
    return TokenView(
        -(p * np.log(p)).sum(-1),
        size,
        np.array([p[i, order[i, size[i] :]].sum() for i in place]),
        gold,
        (p > gold[:, None]).sum(-1) + 1,
        order[:, :5],
        np.take_along_axis(p, order, -1)[:, :5],
    )


def explorer(models: int = 3, questions: int = 2, length: int = 40) -> Tokens:
    names = [*MODELS, *(f"model {i}" for i in range(20))][:models]
    texts = []
    for question in range(questions):
        for writer in range(models):
            tokens = np.random.default_rng(100 * question + writer).integers(0, len(PIECES), length).tolist()
            views = {model: view(7 * model + writer + 100 * question, tokens) for model in range(models)}
            texts.append(SeenText(question, f"response of {names[writer]}", tokens, views))
    return Tokens("Tokens", [f"question {i}" for i in range(questions)], names, PIECES, texts, ["note"])


def digits(value: float) -> str:
    """A number as the explorer shows it."""
    return f"{value:.1e}".replace("e-0", "e-") if 0 < value < 1e-3 else f"{value:.3f}"


def column(page: Any, number: int) -> list[str]:
    return page.locator(f"tbody tr:not([hidden]) > :nth-child({number})").all_inner_texts()


def test_all_kinds_of_sections_open_without_a_complaint(show: Show) -> None:
    page = show(*sections("text"), explorer(), Table("t", ["a"], []), Chart("c", [], "", ""), Texts("t", []))
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('.chart > .plot-container').length === 3")
    assert page.locator(".chart p").count() == 0
    assert page.locator("main > section").count() == 10
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    page.emulate_media(color_scheme="dark", media="print")
    page.emulate_media(color_scheme="light", media="screen")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_are_drawn_in_the_colours_of_the_page(show: Show, scheme: str) -> None:
    names = [*(f"m{i}" for i in range(7)), "black"]
    series = [Series(name, [1, 2], [i / 10, i / 5], [0, 0], [1, 1]) for i, name in enumerate(names)]
    page = show(Chart("c", series, "k", "y"), color_scheme=scheme)
    page.wait_for_selector(".chart .scatterlayer .js-line")
    strokes = page.locator(".chart .js-line").evaluate_all("all => all.map(one => one.style.stroke)")
    assert "rgb(0, 114, 178)" in strokes
    assert ("rgb(0, 0, 0)" in strokes) is False, (
        "black is the colour of the text, which a dark ground needs to be light"
    )
    page.get_by_role("button", name="m3", exact=True).press("Enter")
    page.wait_for_function("document.querySelector('.chart').data.filter(one => one.visible === false).length === 2")
    assert page.get_by_role("button", name="m3", exact=True).get_attribute("aria-pressed") == "false"
    page.hover(".chart .nsewdrag", position={"x": 5, "y": 5})


def test_tables_are_sorted_by_click_and_by_keyboard(show: Show) -> None:
    rows = [["b10", 10.0], ["b9", -2.5], ["", None], ["a", 1e3], ["c", float("nan")], ["B2", float("inf")], ["d", 9.0]]
    page = show(Table("t", ["name", "number"], rows, [[name, "shown"] for name, _ in rows]))
    name, number = page.locator("th[scope=col]").all()
    written = [row[0] for row in rows]
    number.locator("button").click()
    assert number.get_attribute("aria-sort") == "ascending"
    assert column(page, 1) == ["b9", "d", "b10", "a", "B2", "", "c"], "by value; what is no number comes last"
    number.locator("button").click()
    assert (number.get_attribute("aria-sort"), column(page, 1)) == (
        "descending",
        ["B2", "a", "b10", "d", "b9", "", "c"],
    )
    number.locator("button").click()
    assert (number.get_attribute("aria-sort"), column(page, 1)) == ("none", written)
    page.keyboard.press("Shift+Tab")  # back to the head before
    page.keyboard.press("Enter")
    assert (name.get_attribute("aria-sort"), number.get_attribute("aria-sort")) == ("ascending", "none")
    assert column(page, 1) == ["a", "B2", "b9", "b10", "c", "d", ""]
    page.keyboard.press("Space")
    assert column(page, 1) == ["d", "c", "b10", "b9", "B2", "a", ""]


def test_long_tables_show_some_rows_and_those_with_words(show: Show) -> None:
    page = show(Table("t", ["name", "n"], [[f"row {i}", (i * 7919) % 2000] for i in range(2000)]))
    assert len(column(page, 1)) == 300
    assert page.locator("output").inner_text() == "300 of 2,000 rows"
    page.get_by_role("button", name="n", exact=True).click()
    assert column(page, 2)[:3] == ["0", "1", "2"]
    page.get_by_label("Rows with these words").fill("ROW 199")
    assert set(column(page, 1)) == {f"row {i}" for i in (199, *range(1990, 2000))}
    page.get_by_label("Rows with these words").fill("")
    page.get_by_role("button", name="Show all").click()
    assert column(page, 2) == [f"{i:,}" for i in range(2000)]


def test_large_tables_are_shown_as_small_ones_are(show: Show) -> None:
    """Their rows are made by the script, from columns that lie in the page compressed."""
    numbers = [
        0.0,
        1 / 3,
        -2e-5,
        1.5e-4,
        9999.4,
        9999.6,
        12347.0,
        1e21,
        -1e-9,
        0.5,
        math.inf,
        -math.inf,
        math.nan,
        None,
    ]
    rows: list[list[Any]] = [[f"<b>{i}", number, i * 1000] for i, number in enumerate(numbers)]
    filling: list[list[Any]] = [["filling " * 20, 0.25, 7]] * 500
    small = show(Table("t", ["name", "x", "n"], rows))
    wanted = [column(small, number) for number in (1, 2, 3)]
    page = show(Table("t", ["name", "x", "n"], [*rows, *filling]))
    assert page.locator("script.packed").count() == 1
    page.get_by_role("button", name="Show all").click()
    assert [column(page, number)[: len(rows)] for number in (1, 2, 3)] == wanted
    page.get_by_label("Rows with these words").fill("<b>")
    for _ in range(2):
        small.get_by_role("button", name="x", exact=True).click()
        page.get_by_role("button", name="x", exact=True).click()
        assert column(page, 1) == column(small, 1)
    assert page.locator("tbody th[scope=row]").count() == len(rows) + 500


def test_large_charts_are_drawn(show: Show) -> None:
    series = [Series(f"m{i}", list(range(100)), [i / 7] * 100) for i in range(20)]
    page = show(Chart("c", series, "x", "y"))
    page.wait_for_selector(".chart .main-svg")
    assert page.evaluate("document.querySelector('.chart').data.length") == 20


def test_hostile_texts_run_nothing(show: Show) -> None:
    seen = TokenView([1.0], [1], [0.5], [0.5], [1], [[0]], [[0.5]])
    text = SeenText(0, HOSTILE, [0], {0: seen}, HOSTILE)
    hostile = Tokens(HOSTILE, [HOSTILE], [HOSTILE], [HOSTILE], [text], [HOSTILE])
    page = show(*sections(HOSTILE), hostile, title=HOSTILE)
    for details in page.locator("details").all():
        details.evaluate("one => { one.open = true }")
    for chart in page.locator(".chart").all():
        chart.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelectorAll('.chart > .plot-container').length === 3")
    page.locator(".tokens span").first.hover()
    for button in page.locator("th button").all():
        button.click()
    assert page.locator("main img, main a[href^=http], main iframe").count() == 0
    assert page.title() == " ".join(READABLE.split())
    assert page.locator("pre.said").first.text_content() == READABLE
    assert page.locator(".tokens span").first.text_content() == READABLE
    assert page.locator(".asked").text_content() == READABLE


def test_the_policy_lets_no_other_script_run_and_nothing_load(show: Show) -> None:
    page = show(Table("t", ["a"], [["b"]]))
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            const image = "<img src='https://x.example/p.png' onerror='window.ran = true'>";
            document.body.insertAdjacentHTML("beforeend", image);
        }"""
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None
    told = show.told  # type: ignore[attr-defined]
    assert len([one for one in told if "Content Security Policy" in one]) == 3
    assert len(told) == 4, "and the request, which the browser has refused"
    told.clear()


def test_hover_and_arrow_keys_show_what_each_model_thinks(show: Show) -> None:
    tokens = explorer()
    page = show(tokens)
    text = tokens.texts[0]

    def shown(place: int) -> None:
        cards = page.locator(".card").all()
        assert len(cards) == 3
        assert page.locator(".chosen").inner_text().startswith(f"Token {place + 1} of 40")
        for model, card in enumerate(cards):
            seen = text.views[model]
            facts = dict(zip(card.locator("dt").all_inner_texts(), card.locator("dd").all_inner_texts(), strict=True))
            size = int(seen.support_size[place])
            assert facts == {
                "Entropy": f"{digits(seen.entropy[place])} nats",
                "Support size": f"{size} token" + ("" if size == 1 else "s"),
                "Tail mass": digits(seen.tail_mass[place]),
                "Probability": digits(seen.probability[place]),
                "Rank": str(seen.rank[place]),
            }
            lines = card.locator("li").all()
            names = [PIECES[i].replace(" ", "␣").replace("\n", "↵") for i in seen.top[place]]
            assert [line.locator("code").inner_text() for line in lines][:5] == names
            numbers = [float(line.locator(".p").inner_text()) for line in lines][:5]
            assert numbers == pytest.approx(list(seen.top_probabilities[place]), abs=6e-4)
            dots = [line.locator(".dot").inner_text() for line in lines][:5]
            assert dots == ["●" if rank < size else "○" for rank in range(5)]
            own = [line.locator("code").inner_text() for line in lines if "own" in line.get_attribute("class")]
            assert own == [PIECES[text.tokens[place]].replace(" ", "␣").replace("\n", "↵")]
            assert len(lines) == (5 if seen.rank[place] <= 5 else 6)

    panels = page.locator(".panel").all()
    assert [panel.locator("h3").inner_text() for panel in panels] == list(MODELS)
    shown(0)
    panels[1].locator(".tokens span").nth(7).hover()
    shown(7)
    assert page.locator(".here").count() == 3, "the same token in every panel"
    page.mouse.move(1, 1)
    shown(0)
    panels[2].locator(".tokens span").nth(4).click()
    for key, place in {"ArrowRight": 5, "ArrowLeft": 4, "End": 39, "Home": 0}.items():
        page.keyboard.press(key)
        page.mouse.move(1, 1)
        shown(place)
    focused = page.locator(":focus")
    assert focused.get_attribute("role") == "option"
    name = PIECES[text.tokens[0]].replace(" ", "␣").replace("\n", "↵")
    assert focused.get_attribute("aria-label").startswith(f"{name}, 1 of 40: Entropy ")
    page.keyboard.press("ArrowDown")
    tops = page.locator(":focus").evaluate("one => [one.parentElement.firstChild, one].map(span => span.offsetTop)")
    assert tops[1] > tops[0], "a line further down"
    page.keyboard.press("ArrowUp")
    assert page.locator(":focus").evaluate("one => one.offsetTop") == tops[0]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.locator(":focus").evaluate("one => one.closest('.panel') === document.querySelector('.panel')"), (
        "each panel is one stop of the tabulator"
    )


def test_model_question_and_quantity_are_chosen(show: Show) -> None:
    tokens = explorer()
    page = show(tokens)
    first = page.locator(".panel").first
    page.get_by_label("Question").select_option(index=1)
    page.get_by_label("Text").select_option(index=2)
    text = tokens.texts[5]
    assert [one.rstrip("\n") for one in first.locator(".tokens span").all_inner_texts()] == [
        PIECES[i].replace("\n", "↵") for i in text.tokens
    ]
    page.get_by_label("Question").select_option(index=0)
    assert page.get_by_label("Text").evaluate("one => one.selectedOptions[0].textContent") == text.name
    page.get_by_label("Question").select_option(index=1)
    bounds = {
        "entropy": [0.05, 0.2, 0.5, 1, 2, 3],
        "support_size": [2, 3, 5, 9, 17, 65],
        "tail_mass": [0.01, 0.05, 0.1, 0.2, 0.35, 0.5],
    }
    for quantity, begins in bounds.items():
        page.locator(f"input[value={quantity}]").check()
        levels = [int(name.split()[0][1]) for name in _classes(first)]
        assert levels == np.digitize(getattr(text.views[0], quantity), begins).tolist(), quantity
        assert page.locator(".scale [class^=q]").count() == 7
    page.locator("input[value=probability]").check()
    levels = [int(name.split()[0][1]) for name in _classes(first)]
    falls = np.array([0.9, 0.7, 0.5, 0.25, 0.1, 0.01])
    assert levels == [int((np.float32(p) < falls.astype(np.float32)).sum()) for p in text.views[0].probability]
    page.get_by_role("checkbox", name="TS2").uncheck()
    assert page.locator(".panel h3").all_inner_texts() == [MODELS[0], MODELS[2]]
    page.get_by_label("Text").select_option(index=0)
    assert page.locator(".panel h3").all_inner_texts() == [MODELS[0], MODELS[2]], "what was chosen stays"


def _classes(panel: Any) -> list[str]:
    return panel.locator(".tokens span").evaluate_all("all => all.map(one => one.className)")


def test_models_that_see_nothing_are_not_offered(show: Show) -> None:
    texts = [SeenText(0, "a", [0, 1], {0: view(0, [0, 1])}), SeenText(0, "b", [2], {}), SeenText(1, "c", [], {})]
    page = show(Tokens("t", ["q0", "q1", "q2"], ["A", "B"], PIECES, texts))
    assert page.locator(".choices input[type=checkbox]").count() == 1
    page.get_by_label("Text").select_option(index=1)
    assert page.locator(".choices input[type=checkbox], .panel").count() == 0
    for question in (1, 2):
        page.get_by_label("Question").select_option(index=question)
    assert "no text" in page.locator(".explorer").inner_text()


def _luminance(colour: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_levels_are_told_apart_without_colours(show: Show, scheme: str) -> None:
    page = show(explorer(), color_scheme=scheme)
    swatches = page.locator(".scale [class^=q]").evaluate_all(
        """all => all.map(one => {
            const style = getComputedStyle(one), page = getComputedStyle(document.body).backgroundColor;
            const ground = style.backgroundColor === "rgba(0, 0, 0, 0)" ? page : style.backgroundColor;
            return [ground, style.color].map(colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number))
                .concat(parseFloat(style.borderBottomWidth));
        })"""
    )
    grounds = [_luminance(ground) for ground, _, _ in swatches]
    steps = np.diff(grounds) * (-1 if scheme == "light" else 1)
    assert (steps > 0).all(), "as greys each level is stronger than the one before"
    for ground, (_, text, _) in zip(grounds, swatches, strict=True):
        high, low = sorted([ground, _luminance(text)], reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert (np.diff([width for _, _, width in swatches]) > 0).all(), "and has a thicker line below it"


def test_lines_below_tokens_stay_where_the_system_chooses_colours(show: Show) -> None:
    page = show(explorer(), forced_colors="active")
    levels = [int(name.split()[0][1]) for name in _classes(page.locator(".panel").first)]
    widths = (
        page.locator(".panel")
        .first.locator(".tokens span")
        .evaluate_all("all => all.map(one => parseFloat(getComputedStyle(one).borderBottomWidth))")
    )
    by_level = {
        level: {width for other, width in zip(levels, widths, strict=True) if other == level} for level in levels
    }
    assert len(by_level) > 2
    assert all(len(of_level) == 1 for of_level in by_level.values())
    assert sorted(by_level, key=lambda level: min(by_level[level])) == sorted(by_level)


def test_a_narrow_window_needs_no_scrolling_sideways(show: Show) -> None:
    rows = [["a" * 80, *[0.5] * 12], ["b", *[0.25] * 12]]
    item = TextItem("q" * 300, [("m" * 90, [("word" * 200, "remark")])] * 3)
    chart = Chart("c", [Series("n" * 90, [1, 2], [1, 2])], "x", "y")
    page = show(Table("t" * 90, ["n", *map(str, range(12))], rows), chart, Texts("t", [item]), explorer(), width=360)
    page.locator("details.item summary").click()
    page.wait_for_selector(".chart .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_ten_megabytes_open_and_react(show: Show) -> None:
    long = [("a", [("word " * 100_000, "")]), ("b", [("\u4f60" * 100_000, "")])]
    words = Texts("t", [TextItem(f"q{i}", long) for i in range(8)])
    table = Table("t", ["n", "x", "y"], [[i, i / 7, f"text {i}"] for i in range(20_000)])
    page = show(explorer(12, 2, 800), table, words)
    assert Path(page.url.removeprefix("file://")).stat().st_size > 10_000_000
    page.locator(".tokens span").nth(500).hover()
    assert page.locator(".chosen").inner_text().startswith("Token 501 of 800")
    page.get_by_label("Text").select_option(index=11)
    assert page.locator(".panel").count() == 3
    page.get_by_role("button", name="n", exact=True).click()
    page.get_by_role("button", name="n", exact=True).click()
    assert column(page, 1)[0] == "19,999"
    page.locator("details.item summary").first.click()
    assert page.locator("pre.said").first.is_visible()
