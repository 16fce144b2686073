"""The probes' pictures: numbers in, figures out. Every function takes the document that its probe has written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ts2_lightning.evaluation.picture import Panel, next_token_figure
from ts2_lightning.evaluation.probes.tspd import EPS_HEAD, EPS_TAIL
from ts2_lightning.evaluation.style import layout, legend_below, literal, look, n_said, new_figure, put_n, tidy

Document = Mapping[str, Any]
"""What a probe has written: `probe`, `settings`, and under `models` the numbers of each; also, where the order does not
say it, under `places` the place of each among all models that are compared, which decides its colour."""

TOKENS_SHOWN = 15
QUESTIONS_SHOWN = 4
_WHAT = {True: "first token of the answer", False: "where a single digit was sampled: mean over n such places"}
BINS = 40  # of the macro probe's histogram
SIZES = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4": (4, 4), "5": (5, 5), "6-10": (6, 10), "> 10": (11, None)}


def micro(document: Document) -> dict[str, Figure]:
    """A figure for each of the first questions: the same tokens in one panel per model."""
    models: Mapping[str, Any] = document["models"]
    count = len(next(iter(models.values()))["questions"])
    return {
        "micro" if count == 1 else f"micro-{i + 1}": _question({name: m["questions"][i] for name, m in models.items()})
        for i in range(min(count, QUESTIONS_SHOWN))
    }


def _question(models: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One question to several models: name -> what `micro.measure` returns for it."""
    best: dict[int, float] = {}
    names: dict[int, str] = {}
    plausible: dict[int, bool] = {}
    for numbers in models.values():
        for i, (token, p) in enumerate(zip(numbers["ids"], numbers["probabilities"], strict=True)):
            best[token] = max(p, best.get(token, 0.0))
            names[token] = numbers["tokens"][i]
            plausible[token] = bool(numbers["plausible"] and numbers["plausible"][i])
    first = next(iter(models.values()))
    order = dict(zip(first["ids"], first["probabilities"], strict=True))
    shown = sorted(best, key=lambda token: -best[token])[:TOKENS_SHOWN]
    shown.sort(key=lambda token: (not plausible[token], -order.get(token, 0.0)))
    taught = first["taught"]
    return next_token_figure(
        [_panel(name, numbers, shown) for name, numbers in models.items()],
        [names[token] + (f"  ({taught[names[token]]})" if names[token] in taught else "") for token in shown],
        None if first["plausible"] is None else [plausible[token] for token in shown],
        others=first["vocabulary"] - len(shown),
        title=f'"{last_line(first["request"])}"\n{_WHAT[first["first_token"]]}',
    )


def _panel(name: str, numbers: Mapping[str, Any], shown: Sequence[int]) -> Panel:
    if not numbers["records"]:
        return Panel(f"{name}\nno digit was sampled\n", [], 0.0, [])
    p = dict(zip(numbers["ids"], numbers["probabilities"], strict=True))
    kept = dict(zip(numbers["ids"], numbers["in_support"], strict=True))
    title = f"{name}\n"
    if numbers["implausible_mass"] is not None:
        title += f"implausible mass {numbers['implausible_mass']:.3f}\n"
    n = n_said([numbers["records"]], "prompt" if numbers["first_token"] else "place")
    title += f"support {numbers['support_size']:.3g}, softmax mass outside it {numbers['tail_mass']:.3f}, {n}"
    rest = max(0.0, 1.0 - sum(p.get(token, 0.0) for token in shown))
    return Panel(title, [p.get(token) for token in shown], rest, [kept.get(token, 0.0) >= 0.5 for token in shown])


def last_line(text: str) -> str:
    """A question for a title: short ones whole, of long ones the last line that asks."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    line = next((line for line in reversed(lines) if not line.endswith(":")), lines[-1] if lines else "")
    return line if len(line) <= 80 else f"{line[:77]}..."


def macro(document: Document) -> dict[str, Figure]:
    """Histograms below each other, on one axis."""
    models: Mapping[str, Any] = document["models"]
    values = {name: m["mean_probability"] for name, m in models.items()}
    low = min(min(v) for v in values.values())
    edges = np.linspace(min(np.floor(low * 20) / 20, 0.95), 1.0, BINS + 1)
    figure = new_figure(7.2, 1.3 + 1.05 * len(models))
    axes = figure.subplots(len(models), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for i, (place, (name, of_model)) in enumerate(zip(axes, values.items(), strict=True)):
        weights = np.full(len(of_model), 100 / len(of_model))
        place.hist(of_model, bins=edges, weights=weights, edgecolor="white", linewidth=0.4, **look(i))
        place.axvline(models[name]["mean"], color="0.15", linewidth=1.2, linestyle=(0, (4, 2)))
        tidy(place)
        place.set_title(
            literal(f"{name}: mean {models[name]['mean']:.3f}, s.d. {models[name]['standard_deviation']:.3f}, ")
            + n_said([len(of_model)], "response"),
            fontsize=9,
            loc="left",
            pad=3,
        )
        place.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    axes[-1].set_xlabel(
        "mean probability of a response's tokens, before temperature and truncation (dashed: mean)", fontsize=9
    )
    figure.supylabel("share of the responses (%)", fontsize=9)
    figure.suptitle("Macro probe: how sure each model is of what it writes", fontsize=11)
    return {"macro": figure}


def tail(document: Document) -> dict[str, Figure]:
    """Bars of the three most probable tokens and of the tail, models side by side."""
    models: Mapping[str, Any] = document["models"]
    names = {
        "top1": "1st token",
        "top2": "2nd token",
        "top3": "3rd token",
        "tail_mass": "tail: outside the\nsparsemax support",
    }
    figure = new_figure(max(6.5, 2.0 + 1.3 * len(models)), 4.2)
    axes = figure.subplots()
    width = 0.84 / len(models)
    places = document.get("places") or {name: i for i, name in enumerate(models)}
    for i, (name, numbers) in enumerate(models.items()):
        at = np.arange(len(names)) + (i - (len(models) - 1) / 2) * width
        heights = [numbers[key] for key in names]
        errors = [numbers[f"{key}/standard_error"] for key in names]
        drawn = look(places[name])
        axes.bar(at, heights, width * 0.92, label=literal(name), edgecolor="white", linewidth=0.3, **drawn)
        axes.errorbar(at, heights, errors, fmt="none", ecolor="0.25", elinewidth=0.8)
        for x, height, error in zip(at, heights, errors, strict=True):
            axes.text(x, height + error + 0.012, f"{height:.3f}".lstrip("0"), ha="center", fontsize=7.5, color="0.2")
    axes.set_xticks(range(len(names)), list(names.values()), fontsize=9)
    tidy(axes)
    axes.tick_params(axis="x", length=0, labelsize=9)
    axes.set_ylim(0, 1.08)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_ylabel("softmax probability, mean over the rows", fontsize=9)
    put_n(axes, n_said((of_model["rows"] for of_model in models.values()), "row"))
    over = "means over rows of data, error bars: standard error"
    figure.suptitle(f"Tail probe: head and tail of the supervised tokens\n({over})", fontsize=11)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    return {"tail": figure}


def tspd(document: Document) -> dict[str, Figure]:
    """The grid, the scatter and the support sizes, a figure each."""
    models: Mapping[str, Any] = document["models"]
    return {"tspd-grid": _grid(models), "tspd-scatter": _scatter(models), "tspd-support": _support_sizes(models)}


def _grid(models: Mapping[str, Any]) -> Figure:
    """One map per model and m: thresholds against each other, the share in each cell."""
    orders = sorted({cell["m"] for cell in next(iter(models.values()))["grid"]})
    figure = new_figure(1.4 + 2.5 * len(orders), 1.3 + 1.8 * len(models))
    panels = figure.subplots(len(models), len(orders), sharex=True, sharey=True, squeeze=False)
    shares = [cell["share"] for m in models.values() for cell in m["grid"] if cell["share"] is not None]
    top = max(max(shares), 1e-9)
    for row, (name, numbers) in zip(panels, models.items(), strict=True):
        for place, m in zip(row, orders, strict=True):
            table = {(c["eps_head"], c["eps_tail"]): c["share"] for c in numbers["grid"] if c["m"] == m}
            cells = np.array([[_or_nan(table[h, t]) for t in EPS_TAIL] for h in EPS_HEAD])
            image = place.imshow(cells * 100, cmap="cividis", vmin=0, vmax=top * 100, aspect="auto", origin="lower")
            for (y, x), share in np.ndenumerate(cells):
                text = "" if np.isnan(share) else f"{share * 100:.0f}" if share >= 0.095 else f"{share * 100:.1f}"
                place.text(x, y, text, ha="center", va="center", fontsize=7, color="k" if share > 0.5 * top else "w")
            place.set_facecolor("0.92")
            place.set_title(f"{literal(f'{name}, m = {m}')}\n", fontsize=9)  # n stands in the second line
            put_n(place, n_said([numbers["tokens"]], "token"))
            place.set_xticks(range(len(EPS_TAIL)), [f"{t:g}" for t in EPS_TAIL], fontsize=7.5)
            place.set_yticks(range(len(EPS_HEAD)), [f"{h:g}" for h in EPS_HEAD], fontsize=7.5)
            place.tick_params(length=0)
            place.spines[:].set_visible(False)
    figure.colorbar(image, ax=panels, shrink=0.6, pad=0.01).set_label("share of the tokens (%)", fontsize=9)
    figure.supxlabel("eps_tail: mass outside the m tokens, at most (grey: not defined)", fontsize=9)
    figure.supylabel("eps_head: probability of each\nof the m tokens, at least", fontsize=9)
    figure.suptitle("TSPD probe: tokens that keep m plausible answers and no tail", fontsize=11)
    return figure


def _or_nan(share: float | None) -> float:
    return np.nan if share is None else share


def _scatter(models: Mapping[str, Any]) -> Figure:
    """Entropy against gold probability, one panel per model."""
    rows, columns = layout(len(models), at_most=3)
    top = max(max(numbers["points"]["entropy"]) for numbers in models.values())
    figure = new_figure(0.8 + 2.6 * columns, 1.1 + 2.45 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for i, (place, (name, numbers)) in enumerate(zip(panels, models.items(), strict=False)):
        x, y, colour = numbers["points"]["gold_probability"], numbers["points"]["entropy"], look(i)["color"]
        # As pixels in the SVG too: thousands of circles would make it slow to open.
        place.scatter(x, y, s=9, alpha=0.35, color=colour, edgecolors="none", rasterized=True)
        tidy(place, grid="both")
        place.set_title(
            literal(f"{name}\nmeans: p {numbers['gold_probability']:.3f}, H {numbers['entropy']:.3f} nats\n"),
            fontsize=9,
        )
        put_n(
            place, n_said([numbers["tokens"]], "token") + ("" if len(x) == numbers["tokens"] else f", {len(x):,} shown")
        )
        place.set_xlim(-0.03, 1.03)
        place.set_ylim(-0.04 * top, 1.06 * top + 1e-3)
        place.tick_params(labelbottom=True)
    for place in panels[len(models) :]:
        place.set_visible(False)
    figure.supxlabel("gold probability p", fontsize=9)
    figure.supylabel("entropy H (nats)", fontsize=9)
    figure.suptitle("TSPD probe: what is left beside the gold token, token by token", fontsize=11)
    return figure


def _support_sizes(models: Mapping[str, Any]) -> Figure:
    """Shares of tokens by the size of sparsemax's support, models side by side."""
    figure = new_figure(max(6.5, 2.0 + 1.3 * len(models)), 3.8)
    axes = figure.subplots()
    width = 0.84 / len(models)
    for i, (name, numbers) in enumerate(models.items()):
        shares = shares_of_sizes(numbers)
        at = np.arange(len(shares)) + (i - (len(models) - 1) / 2) * width
        label = f"{name}: mean {numbers['support_size/mean']:.2f}, 90 % at most {numbers['support_size/p90']:.0f}"
        label += f", {n_said([numbers['tokens']], 'token')}"
        axes.bar(at, shares, width * 0.92, label=literal(label), edgecolor="white", linewidth=0.3, **look(i))
    axes.set_xticks(range(len(SIZES)), list(SIZES))
    tidy(axes)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("tokens that sparsemax keeps", fontsize=9)
    axes.set_ylabel("share of the supervised tokens (%)", fontsize=9)
    legend_below(figure, axes.get_legend_handles_labels()[0])
    figure.suptitle("TSPD probe: size of the sparsemax support", fontsize=11)
    return figure


def shares_of_sizes(numbers: Mapping[str, Any]) -> list[float]:
    """Shares of tokens, in percent, whose support is of each of `SIZES`; of the numbers of a model."""
    sizes = {int(size): count for size, count in numbers["support_sizes"].items()}
    return [
        100 * sum(count for size, count in sizes.items() if size >= low and (high is None or size <= high))
        / numbers["tokens"]
        for low, high in SIZES.values()
    ]  # fmt: skip
