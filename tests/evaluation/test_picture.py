"""The picture of next-token distributions."""

import itertools

import pytest
import torch
from matplotlib.image import imread

from ts2_lightning.evaluation.picture import Panel, draw_next_token, next_token_figure, shown_tokens

TOKENS = [f"token{i}" for i in range(40)]


@pytest.fixture
def distributions():
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 3
    return dict(zip(("base", "CE", "TS2"), logits.softmax(-1), strict=True))


def test_it_is_a_legible_png(distributions, tmp_path):
    plausible = [i % 3 == 0 for i in range(40)]
    path = draw_next_token(
        tmp_path / "new" / "a.png", distributions, TOKENS, plausible, "a prompt", marked={"token3": "x"}
    )
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    height, width, _ = imread(path).shape
    assert (width, height) == (1575, 933)  # 10.5 x 6.22 inches at 150 dots
    pixels = torch.from_numpy(imread(path)[..., :3]).reshape(-1, 3)
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        near = (pixels - torch.tensor(colour) / 255).abs().amax(-1) < 0.02
        assert near.sum() > 2000


def test_dots_stand_at_the_probabilities_and_rings_around_the_support():
    """A bar on a logarithmic axis has the length that its end is given."""
    names = ["a model whose name is longer than a panel is wide, so that it takes two lines", "CE", "GEM", "TS2"]
    panels = [Panel(f"{name}\nmass 0.1", [0.5, 1e-7, None, 0.125], 0.375, [True, False, False, True]) for name in names]
    figure = next_token_figure(panels, ["a", "b", "c", "d"], [True, True, False, False], 9, "a prompt")
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert not axes.patches
        dots = {tuple(line.get_data()[0]): line for line in axes.lines if line.get_marker() == "o"}
        assert {(0.5,), (0.125,), (0.375,)} <= set(dots), "what is below the floor, or not there, has none"
        rings = [line for line in axes.lines if line.get_markerfacecolor() == "none" and line.get_marker() == "o"]
        assert [list(map(float, line.get_xdata())) for line in rings] == [[0.5, 0.125]]
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(titles, 2))


def test_which_tokens_are_shown(distributions):
    plausible = torch.tensor([i % 3 == 0 for i in range(40)])
    shown = shown_tokens(distributions, plausible, 10)
    best = {name: int(p.argmax()) for name, p in distributions.items()}
    assert set(best.values()) <= set(shown)
    flags = [bool(plausible[i]) for i in shown]
    assert flags == sorted(flags, reverse=True)
    assert len(shown_tokens(distributions, plausible, 100)) == 40


def test_one_hot_and_zero_probabilities(tmp_path):
    one_hot = torch.eye(40)[3]
    path = draw_next_token(tmp_path / "a.png", {"one": one_hot}, TOKENS, one_hot > 0, "certain")
    assert path.stat().st_size > 1000


def test_mismatched_lengths(distributions, tmp_path):
    with pytest.raises(ValueError, match=r"distributions\['base'\]: expected one probability for each of 39 tokens"):
        draw_next_token(tmp_path / "a.png", distributions, TOKENS[:39], [True] * 40, "")
    with pytest.raises(ValueError, match="expected at least one"):
        draw_next_token(tmp_path / "a.png", {}, TOKENS, [True] * 40, "")
