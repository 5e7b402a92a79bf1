"""Names are drawn by whatever font of the system has their letters, or not at all."""

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from laplace_kit.eval.report import ClassPredictions, classification_report, fonts, pictures

PICTURE = "\u56fe"  # a Chinese character, which DejaVu Sans does not have
ELSEWHERE = "\ua640"  # a Cyrillic letter that the made font does not have


@pytest.fixture
def made_font(tmp_path):
    """Add a font of one character to those of the system, as a filled square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(PICTURE): "square"})
    empty = TTGlyphPen(None).glyph()
    builder.setupGlyf({".notdef": empty, "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "One Square", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "square.ttf")
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.addfont(tmp_path / "square.ttf")
    yield "One Square"
    font_manager.fontManager.ttflist[:] = before
    font_manager.fontManager._findfont_cached.cache_clear()


@pytest.fixture
def no_other_font(monkeypatch):
    """Leave matplotlib's own font alone, whatever there is on this system."""
    own = font_manager.findfont(font_manager.FontProperties())
    entries = [entry for entry in font_manager.fontManager.ttflist if entry.fname == own]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)


def test_what_the_default_font_has_needs_no_other():
    assert fonts.fallbacks("map+laplace 1.5\n\u00fc \u03b1 \u0434") == ()
    assert fonts.drawable("")


@pytest.mark.usefixtures("no_other_font")
def test_letters_that_no_font_has_cannot_be_drawn():
    assert fonts.fallbacks(f"a{PICTURE}") is None
    assert not fonts.drawable(PICTURE)


@pytest.mark.usefixtures("no_other_font")
def test_another_font_of_the_system_is_taken(made_font):
    assert fonts.fallbacks(f"a{PICTURE}b") == (made_font,)
    assert fonts.fallbacks(PICTURE + chr(0x10FFFE)) is None

    def drawn(name):
        figure = pictures.new_figure()
        figure.subplots().plot([0, 1], [0, 1], label=name)
        figure.axes[0].legend()
        return pictures.picture("a.png", "a", figure).png  # a missing letter would be a warning

    assert drawn(PICTURE) != drawn("a")


@pytest.mark.usefixtures("no_other_font")
def test_a_page_says_who_is_meant_by_a_number(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet([1.0, 1.0], 30).astype(np.float32)
    found = classification_report(
        {"map": ClassPredictions(probs), PICTURE: ClassPredictions(probs[:, ::-1])},
        rng.integers(2, size=30),
        tmp_path,
    )
    page = found.index.read_text(encoding="utf-8")
    assert f"predictor 2 is {PICTURE}" in page
    assert pictures.legend_names(["map", PICTURE]) == {"map": "MAP", PICTURE: "predictor 2"}
    assert pictures.with_legend_key("AURC", ["map"]) == "AURC"
