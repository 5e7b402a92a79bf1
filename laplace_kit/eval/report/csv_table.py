"""Predictions as CSV tables: a header, and one line for each example."""

import csv
import re
from pathlib import Path

import numpy as np

from laplace_kit.eval.report.contents import Contents, refused

_PLAIN = ("y", "p", "mean", "std", "epistemic", "aleatoric", "epistemic_std", "weights")
_NUMBER = re.compile(r"0|[1-9]\d{0,5}")
_TRUTHS = {"true": 1.0, "false": 0.0}  # as pandas, NumPy and spreadsheets write them
_COLUMNS = "y and p_0 ... p_{C-1}, or y and p, or y, mean and std"


def read_csv(path: Path) -> Contents:
    """Return the columns of a table as arrays; `p_0` ... `p_{C-1}`, or `p`, become `probs`.

    The file is UTF-8 text with commas between the columns; empty lines are skipped. An `OSError` is
    raised if it cannot be opened, a `ValueError` that names the first faulty line if it is not
    valid.
    """
    header, rows, lines = _parse(path)
    named = _class_names(header)
    values = np.array(
        [_numbers(path, header, row, n, named) for row, n in zip(rows, lines, strict=True)]
    )
    columns = dict(zip(header, values.T, strict=True))
    classes = [name for name in header if name.startswith("p_")]
    if not named:
        classes.sort(key=_class)
    arrays = {name: column for name, column in columns.items() if name in _PLAIN and name != "p"}
    if classes:
        arrays["probs"] = np.stack([columns[name] for name in classes], axis=1)
    if "p" in columns:
        arrays["probs"] = columns["p"]
    if named:
        arrays["class_names"] = np.array(named)
    return Contents(path, arrays, tuple(lines))


def _parse(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header, the rows and their line numbers."""
    numbered = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file, strict=True, skipinitialspace=True)
        try:
            numbered = [(row, rows.line_num) for row in rows if row]
        except (csv.Error, UnicodeDecodeError) as error:
            raise refused(
                path,
                f"text that is not valid CSV, after line {rows.line_num} ({error})",
                "UTF-8 with commas between the columns",
                "save it again as CSV",
            ) from error
    if len(numbered) < 2:
        raise refused(
            path,
            "an empty file" if not numbered else "a single line",
            f"a header, with the columns {_COLUMNS}, and one line for each example",
            "save the predictions again",
        )
    (header, _), *body = numbered
    header = [name.strip() for name in header]
    # Check the header before the row lengths: with semicolons and decimal commas, rows look uneven.
    _check_header(path, header)
    for row, line in body:
        if len(row) != len(header):
            raise refused(
                path,
                f"{len(row)} values in line {line}",
                f"{len(header)}, as the header has",
                "the file may be truncated, or have an extra comma: save it again",
            )
    return header, [row for row, _ in body], [line for _, line in body]


def _class_names(header: list[str]) -> list[str]:
    """Return the names in columns such as `p_cat` and `p_dog`, none where classes are numbered."""
    classes = [name.removeprefix("p_") for name in header if name.startswith("p_")]
    return [] if all(map(_NUMBER.fullmatch, classes)) else classes


def _class(name: str) -> int:
    return int(name.removeprefix("p_"))


def _check_header(path: Path, header: list[str]) -> None:
    named = _class_names(header)
    known = [name for name in header if name in _PLAIN or re.fullmatch(r"p_.*\S", name)]
    if known != header or len(set(header)) != len(header):
        odd = next(name for k, name in enumerate(header) if name not in known or name in header[:k])
        raise refused(
            path,
            f"the column {odd[:80]!r}" + (" twice" if odd in known else ""),
            f"{_COLUMNS}, and epistemic, epistemic_std or weights if known",
            "rename or drop it (in pandas, write with index=False), and put commas between columns",
        )
    all_classes = [name for name in header if name.startswith("p_")]
    numbers = [] if named else sorted(map(_class, all_classes))
    is_odd = numbers != list(range(len(numbers))) or any(map(_NUMBER.fullmatch, named))
    if is_odd or len(all_classes) == 1 or (all_classes and "p" in header):
        raise refused(
            path,
            f"the columns {', '.join(name for name in header if name[0] == 'p')}",
            "p_0, p_1 and so on, or p_<name>, one for each class, or only p for p(y = 1)",
            "rename the columns",
        )


def _numbers(
    path: Path, header: list[str], row: list[str], line: int, classes: list[str]
) -> list[float]:
    known = _TRUTHS if not classes else {name: float(k) for k, name in enumerate(classes)}
    values = []
    for name, cell in zip(header, row, strict=True):
        is_label = name == "y" and "mean" not in header
        label = cell.strip() if classes else cell.strip().lower()
        truth = known.get(label) if is_label else None
        try:
            values.append(float(cell) if truth is None else truth)
        except ValueError as error:
            expected = (
                "a number",
                "write 50% as 0.5, number the classes from 0, and drop incomplete examples",
            )
            if is_label and cell.strip():
                expected = (
                    f"one of the classes {', '.join(classes)[:200]}"
                    if classes
                    else "a class number, from 0 on, or True or False",
                    "write labels as in the names of the columns, p_<name>, and drop examples "
                    "without a label"
                    if classes
                    else "number the classes in the order of the columns p_0, p_1 and so on, and "
                    "drop examples without a label",
                )
            raise refused(
                path,
                f"{cell[:80]!r} as {name} in line {line}" if cell else f"no {name} in line {line}",
                *expected,
            ) from error
    return values
