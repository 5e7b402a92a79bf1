"""Pictures have the same bytes every time, and images their own pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from laplace_kit.eval.report import pictures


def test_the_same_figure_gives_the_same_bytes():
    def drawn():
        figure = pictures.new_figure()
        figure.subplots().plot([0, 1], [0, 1], label="one")
        return pictures.picture("a.png", "a", figure)

    for kind, mime in (("png", "png"), ("svg", "svg+xml")):
        first, second = (drawn().rendered(kind) for _ in range(2))
        assert first == second
        assert first.file == f"a.{kind}"
        assert first.data_uri.startswith(f"data:image/{mime};base64,")
        assert first.rendered("png") is first
    assert b"<svg" in first.data


def test_grey_images_span_black_to_white():
    picture = pictures.pixels("a.png", "a", np.array([[0.0, 2.0], [4.0, 1.0]]))
    with Image.open(io.BytesIO(picture.png)) as image:
        np.testing.assert_allclose(np.asarray(image.convert("L")), [[0, 128], [255, 64]], atol=1)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_colours_keep_their_range(scale):
    values = np.array([[[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]]]) * scale
    picture = pictures.pixels("a.png", "a", values)
    with Image.open(io.BytesIO(picture.png)) as image:
        found = np.asarray(image.convert("RGB"))
    np.testing.assert_allclose(found, np.rint(values / scale * 255), atol=1)


def test_names_are_cut_in_legends_alone():
    assert pictures.legend_name("map") == "MAP"
    first, second = (pictures.legend_name("x" * 80 + end) for end in "12")
    assert len(first) == len(second) == 22
    assert first != second, "names that begin alike are told apart by their ends"
    assert pictures.names(["map", "laplace", "other"]) == "MAP, Laplace and other"
    assert pictures.file_name("ood", "map", "noise") == "ood_map@noise.png"


def test_panels_side_by_side_have_the_union_of_their_limits():
    figures = [pictures.new_figure() for _ in range(2)]
    for figure, (limits, panels) in zip(figures, (((0, 2), 2), ((-1, 1), 1)), strict=True):
        for ax in np.atleast_1d(figure.subplots(panels, 1)):
            ax.set(xlim=limits, ylim=(0, limits[1]))
    pictures.with_same_axes(figures)
    first, second = figures[0].axes
    (other,) = figures[1].axes
    assert first.get_xlim() == other.get_xlim() == (-1, 2)
    assert first.get_ylim() == other.get_ylim() == (0, 2)
    assert second.get_xlim() == (0, 2), "no panel stands beside it"
