"""Pictures of a report: figures rendered to PNG, with captions that double as alt text."""

import base64
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike

from laplace_kit.eval.report import fonts
from laplace_kit.eval.report.registry import METRICS
from laplace_kit.eval.report.table import Values, display_name, number

if TYPE_CHECKING:
    import matplotlib.figure

TEST = "test set"
_WIDTH, _DPI = 4.6, 192
_LONGEST_LABEL = 22


@dataclass(frozen=True)
class Picture:
    """A picture with its file name and words; a figure is rendered when its format is known.

    Parameters
    ----------
    file
        The file name, which ends in .png until another format is rendered.
    caption, alt
        The words below the picture, and those in its place, which name the trend; by default the
        caption.
    data
        The rendered picture, empty until then.
    figure
        What is to be rendered; `None` afterwards.
    """

    file: str
    caption: str
    alt: str = ""
    data: bytes = b""
    figure: "matplotlib.figure.Figure | None" = None

    def rendered(self, picture_format: str = "png") -> "Picture":
        """Return the picture in a format; pictures of pixels stay PNG."""
        if self.figure is None:
            return self
        file = f"{self.file.removesuffix('.png')}.{picture_format}"
        return replace(self, file=file, data=_rendered(self.figure, picture_format), figure=None)

    @property
    def png(self) -> bytes:
        """The picture as PNG."""
        return self.rendered("png").data

    @property
    def data_uri(self) -> str:
        """The rendered picture as a data URI."""
        kind = "svg+xml" if self.file.endswith(".svg") else "png"
        return f"data:image/{kind};base64," + base64.b64encode(self.data).decode("ascii")


def new_figure(height: float = 3.4) -> "matplotlib.figure.Figure":
    """Return an empty figure of a height in inches, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def with_same_axes(figures: Sequence["matplotlib.figure.Figure"]) -> None:
    """Set the limits of panels side by side to the union of theirs."""
    for panels in itertools.zip_longest(*(figure.axes for figure in figures)):
        there = [ax for ax in panels if ax is not None]
        for get, put in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
            ends = np.array([getattr(ax, get)() for ax in there])
            for ax in there:
                getattr(ax, put)(ends[:, 0].min(), ends[:, 1].max())


def picture(file: str, caption: str, figure: "matplotlib.figure.Figure", alt: str = "") -> Picture:
    """Return a figure as a picture, with a caption, and words in its place if they are others."""
    return Picture(file, caption, alt or caption, figure=figure)


def _rendered(figure: "matplotlib.figure.Figure", picture_format: str) -> bytes:
    """Return a rendered figure; without metadata, equal figures give equal bytes."""
    import matplotlib

    buffer = io.BytesIO()
    fonts.apply(figure)
    metadata = {"svg": {"Date": None, "Creator": None}}.get(picture_format, {"Software": None})
    with matplotlib.rc_context({"svg.hashsalt": "laplace_kit", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=picture_format, metadata=metadata)
    return buffer.getvalue()


def pixels(file: str, caption: str, values: ArrayLike) -> Picture:
    """Return an image `(H, W)` or `(H, W, 3)` as a picture of its own pixels.

    Grey values range from black for the smallest to white for the largest. Colours are clipped to
    their range, 0 to 1 or 0 to 255.
    """
    from matplotlib import image

    values = np.asarray(values, float)
    buffer = io.BytesIO()
    if values.ndim == 3:
        values = np.clip(values / (255.0 if values.max() > 1.5 else 1.0), 0.0, 1.0)
        image.imsave(buffer, values, format="png", metadata={"Software": None})
    else:
        image.imsave(buffer, values, format="png", cmap="gray", metadata={"Software": None})
    return Picture(file, caption, caption, buffer.getvalue())


def file_name(kind: str, name: str, where: str = TEST) -> str:
    """Return the file name of a picture; names of predictors and sets contain no @."""
    return f"{kind}_{name}.png" if where == TEST else f"{kind}_{name}@{where}.png"


def caption(name: str, where: str, key: str, values: Values) -> str:
    """Return a caption with one measured value."""
    label = METRICS[key].label.split(",")[0]
    return f"{display_name(name)}, {where}: {label} {number(values[key])}"


def names(predictors) -> str:
    """Return the predictors' names as one phrase."""
    *most, last = map(display_name, predictors)
    return f"{', '.join(most)} and {last}" if most else last


def legend_names(predictors: Iterable[str]) -> dict[str, str]:
    """Return the predictors' names for a legend.

    A name that no installed font can draw is replaced by the predictor's number, which
    `with_legend_key` explains.
    """
    return {
        name: legend_name(name) if fonts.drawable(name) else f"predictor {number}"
        for number, name in enumerate(predictors, 1)
    }


def with_legend_key(caption: str, predictors: Iterable[str]) -> str:
    """Return a caption that explains which predictors the legend shows by number only."""
    predictors = list(predictors)
    labels = legend_names(predictors)
    missing = [f"{labels[name]} is {name}" for name in predictors if not fonts.drawable(name)]
    if not missing:
        return caption
    return f"{caption}. No installed font has all the letters of these names: {', '.join(missing)}"


def legend_name(predictor: str) -> str:
    """Return a predictor's name, abbreviated in the middle if it is too long for a legend."""
    name, half = display_name(predictor), _LONGEST_LABEL // 2
    return name if len(name) <= _LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def drawn_name(name: str, otherwise: str) -> str:
    """Return a name for an axis or a legend, `otherwise` if no installed font can draw it."""
    if not fonts.drawable(name):
        return otherwise
    half = _LONGEST_LABEL // 2
    short = name if len(name) <= _LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")  # which would begin a formula
