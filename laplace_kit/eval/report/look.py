"""What the caller decides about a page: heading, date, name of the data, pictures and costs."""

import datetime
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from laplace_kit.errors import check_option
from laplace_kit.eval.report.checks import check_title

PictureFormat = Literal["png", "svg"]
FORMATS = get_args(PictureFormat)


@dataclass(frozen=True)
class Look:
    """Options of a page that change neither predictions nor metrics.

    Parameters
    ----------
    title
        The heading.
    data_name
        What the test set is, in a few words; empty if not told.
    date
        The date to show, or any text in its place. By default there is none, so that every run
        writes the same bytes.
    picture_format
        `"png"` or `"svg"`.
    costs
        The costs of a false positive and of a false negative, for the thresholds of two classes.

    Raises
    ------
    ValueError
        If an option is unknown, or a cost is not positive and finite.
    """

    title: str = "Calibration report"
    data_name: str = ""
    date: datetime.date | str | None = None
    picture_format: PictureFormat = "png"
    costs: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self):
        check_title(self.title)
        check_option("picture_format", self.picture_format, FORMATS)
        costs = np.asarray(self.costs, float)
        if costs.shape != (2,) or not ((costs > 0) & np.isfinite(costs)).all():
            raise ValueError(
                f"Found costs={self.costs!r}, expected two positive, finite numbers: the costs of "
                "a false positive and of a false negative; pass, for example, costs=(1, 5)."
            )

    @property
    def shown_date(self) -> str:
        """The date as text; empty if there is none."""
        if isinstance(self.date, datetime.datetime):
            return self.date.date().isoformat()
        return self.date.isoformat() if isinstance(self.date, datetime.date) else self.date or ""


DEFAULT_LOOK = Look()
