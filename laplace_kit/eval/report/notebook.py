"""Reports in a notebook: the verdict, the table of metrics, and a link."""

from html import escape
from typing import TYPE_CHECKING

from laplace_kit.eval.report import table

if TYPE_CHECKING:
    from laplace_kit.eval.report.page import Report


def report_html(report: "Report") -> str:
    """Return the verdict, the table of metrics and a link to the page as HTML."""
    link = f'<p><a href="{escape(str(report.index))}">{escape(str(report.index))}</a></p>'
    said = "".join(f"<li>{escape(sentence)}</li>" for sentence in report.verdict)
    shown = escape(table.text_table(report.metrics))
    return f"<div><ul>{said}</ul><pre>{shown}</pre>{link}</div>"
