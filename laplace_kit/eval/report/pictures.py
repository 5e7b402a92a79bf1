"""Pictures of a report: figures rendered to PNG, with the words that can stand in for them."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
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
    """A figure as a PNG, with the name of its file and a caption that can stand in for it."""

    file: str
    caption: str
    png: bytes

    @property
    def data_uri(self) -> str:
        """The picture as an address that holds it."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """Pictures of one kind and how to read them."""

    title: str
    note: str
    pictures: tuple[Picture, ...]


def new_figure(height: float = 3.4) -> "matplotlib.figure.Figure":
    """Return an empty figure of a height in inches that no global state knows of."""
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def picture(file: str, caption: str, figure: "matplotlib.figure.Figure") -> Picture:
    """Render; without the name of the software in it, the same figure gives the same bytes."""
    buffer = io.BytesIO()
    fonts.apply(figure)
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return Picture(file, caption, buffer.getvalue())


def pixels(file: str, caption: str, values: ArrayLike) -> Picture:
    """Return an image `(H, W)` or `(H, W, 3)` as a picture of its own pixels.

    Grey values span from black at the smallest to white at the largest, colours are clipped to the
    range that they come in, 0 to 1 or 0 to 255.
    """
    from matplotlib import image

    values = np.asarray(values, float)
    buffer = io.BytesIO()
    if values.ndim == 3:
        values = np.clip(values / (255.0 if values.max() > 1.5 else 1.0), 0.0, 1.0)
        image.imsave(buffer, values, format="png", metadata={"Software": None})
    else:
        image.imsave(buffer, values, format="png", cmap="gray", metadata={"Software": None})
    return Picture(file, caption, buffer.getvalue())


def file_name(kind: str, name: str, where: str = TEST) -> str:
    """Name a picture; no predictor or set has an @ in its name."""
    return f"{kind}_{name}.png" if where == TEST else f"{kind}_{name}@{where}.png"


def caption(name: str, where: str, key: str, values: Values) -> str:
    """Say what a picture shows, with one measured value."""
    label = METRICS[key].label.split(",")[0]
    return f"{display_name(name)}, {where}: {label} {number(values[key])}"


def names(predictors) -> str:
    """Return the predictors' names as one phrase."""
    *most, last = map(display_name, predictors)
    return f"{', '.join(most)} and {last}" if most else last


def legend_names(predictors: Iterable[str]) -> dict[str, str]:
    """Return the predictors' names as a legend has them.

    One that no font of this system can draw is replaced by the predictor's number, which `in_words`
    explains.
    """
    return {
        name: legend_name(name) if fonts.drawable(name) else f"predictor {number}"
        for number, name in enumerate(predictors, 1)
    }


def in_words(caption: str, predictors: Iterable[str]) -> str:
    """Add to a caption which predictors the legend has by number alone, for want of a font."""
    predictors = list(predictors)
    labels = legend_names(predictors)
    missing = [f"{labels[name]} is {name}" for name in predictors if not fonts.drawable(name)]
    if not missing:
        return caption
    return f"{caption}. No font here has these letters: {', '.join(missing)}"


def legend_name(predictor: str) -> str:
    """Return a predictor's name, without its middle where it would outgrow a legend."""
    name, half = display_name(predictor), _LONGEST_LABEL // 2
    return name if len(name) <= _LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"
