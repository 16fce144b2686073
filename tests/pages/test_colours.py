"""Colours of models are told apart with any colour vision, or else by what is beside them: markers and lines."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from ts2_lightning.evaluation.style import colour_of, dash_of, marker_of

VISIONS = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
"""What linear RGB looks like to whom: Machado, Oliveira and Fernandes (2009), at full severity."""

TRAINED = 12


def seen(colour: str, vision: str) -> NDArray[np.float64]:
    """A colour in CIELAB, where distances are how far apart colours look."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(VISIONS[vision] @ linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISIONS)
def test_twelve_objectives_have_colours_of_their_own(vision: str) -> None:
    for one, other in itertools.combinations(range(TRAINED), 2):
        apart = np.linalg.norm(seen(colour_of(one), vision) - seen(colour_of(other), vision))
        assert apart > 12, (colour_of(one), colour_of(other))


def test_markers_and_lines_tell_apart_what_colours_do_not() -> None:
    places = range(4 * TRAINED)
    assert len({(colour_of(place), str(dash_of(place))) for place in places}) == len(places)
    assert len({(colour_of(place), marker_of(place)) for place in places}) == len(places)
    assert all(dash_of(place) != dash_of(place + 1) and marker_of(place) != marker_of(place + 1) for place in places)
