"""The numbers of `docs/benchmarks.md`: `python -m benchmarks.peers.page` renews them from files."""

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks import first_answer
from benchmarks.gpu import tables as gpu
from benchmarks.peers import tables
from benchmarks.quality.tables import RESULTS, Scores, described, markdown
from benchmarks.quality.targets import targets

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def side_by_side(path: Path) -> str:
    """Return what was measured next to other libraries."""
    return "\n\n".join(tables.page(tables.Results.read(path)))


def quality(path: Path) -> str:
    """Return the scores of predictions on data sets."""
    content = json.loads(path.read_text(encoding="utf-8"))
    scores = [Scores(**row) for row in content["scores"]]
    origin = f"{described(content['machine'])}.\n\n`{content['setting']}`"
    return f"{origin}\n\n{targets(scores)}\n\n{markdown(scores)}"


def whole_processes(path: Path) -> str:
    """Return what first answers take."""
    return first_answer.page(json.loads(path.read_text(encoding="utf-8")))


def on_a_gpu(path: Path) -> str:
    """Return what was measured on a GPU."""
    return "\n\n".join(gpu.page(gpu.Findings.read(path)))


# What each file of results becomes; its section on the page lies between markers of its name.
SECTIONS: dict[str, Callable[[Path], str]] = {
    "first_answer": whole_processes,
    "peers": side_by_side,
    "gpu": on_a_gpu,
    "peers_classification": quality,
    "classification": quality,
    "images": quality,
    "regression": quality,
}


def renewed(text: str, results: Path = RESULTS) -> str:
    """Return the page with the results that are there between their markers."""
    for name, section in SECTIONS.items():
        path = results / f"{name}.json"
        if path.exists():
            text = replaced(text, name, section(path))
    return text


def replaced(text: str, name: str, content: str) -> str:
    """Return a text with other content between the markers of a name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n\n{end}{rest.split(end)[1]}"


def main() -> None:
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
