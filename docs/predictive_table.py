"""The tables in `predictives.md`: `python docs/predictive_table.py` measures them, in minutes.

The network, the data and their split are those of `examples/digits.py`.
"""

import runpy
import time
from pathlib import Path

import jax
import numpy as np

import laplace_kit as lk
from laplace_kit.eval import evaluate, recalibrate
from laplace_kit.eval.link import LINKS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "predictives.md"
NUM_SPLITS = 3
KEY = jax.random.key(0)
METRICS = ("nll", "ece", "brier")

# What goes between which markers: the heads of the columns, and which measurements they are.
TABLES = {
    "links": (
        ("`tune()`: NLL", "ECE", "Brier", "`tune(data=...)`: NLL", "ECE", "Brier"),
        slice(0, 6),
    ),
    "recalibrated": (("NLL", "ECE", "Brier", "time"), slice(6, 10)),
}


def configured(la: lk.Laplace) -> dict[str, lk.Laplace]:
    """Return the posterior with every way to predict as its own, by name."""
    ways = {f"`{link}`": la.with_prediction(link=link) for link in LINKS}
    return ways | {"`sampled`, 100 draws": la.with_prediction(method="sampled")}


def measured(seed: int, digits: dict) -> dict[str, tuple[float, ...]]:
    """Return what every way to predict makes of the test data, tuned in two ways."""
    data = digits["load_data"](seed)
    model_fn, params = lk.model.from_nnx(digits["train"](*data["train"], seed=seed))
    la = lk.fit(model_fn, params, data["train"], likelihood="categorical", structure="kron")
    by_evidence = la.tune()
    at_mode = [la.predict_at_mode(data[part][0]) for part in ("validation", "test")]
    nothing = (np.nan,) * 3
    rows = {
        "the network itself": (
            *_metrics(at_mode[1], data["test"][1]),
            *nothing,
            *_recalibrated(*at_mode, data),
            np.nan,
        )
    }
    for (name, evident), untuned in zip(
        configured(by_evidence).items(), configured(la).values(), strict=True
    ):
        held_out = untuned.tune(data=data["validation"], key=KEY)
        found = [evident.predict(data[part][0], key=KEY) for part in ("validation", "test")]
        rows[name] = (
            *_metrics(found[1], data["test"][1]),
            *_metrics(held_out.predict(data["test"][0], key=KEY), data["test"][1]),
            *_recalibrated(*found, data),
            _seconds(evident, data["test"][0]),
        )
    return rows


def _metrics(predictive, y) -> tuple[float, ...]:
    found = evaluate(predictive.likelihood, predictive, y)
    return tuple(found[name] for name in METRICS)


def _recalibrated(held_out, test, data) -> tuple[float, ...]:
    recalibration = recalibrate(held_out, data["validation"][1])
    return _metrics(recalibration(test), data["test"][1])


def _seconds(la: lk.Laplace, x: np.ndarray) -> float:
    """Return the shortest of several calls, after one that compiles."""
    jax.block_until_ready(la.predict(x, key=KEY))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(la.predict(x, key=KEY))
        times.append(time.perf_counter() - start)
    return min(times)


def tables() -> dict[str, str]:
    """Return the tables by their markers: means over the splits, the shortest times as ratios."""
    digits = runpy.run_path(str(ROOT / "examples" / "digits.py"))
    splits = [measured(seed, digits) for seed in range(NUM_SPLITS)]
    means = {name: np.mean([split[name] for split in splits], axis=0) for name in splits[0]}
    times = {name: min(split[name][-1] for split in splits) for name in splits[0]}
    unit = times["`probit`"]
    found = {}
    for marker, (heads, columns) in TABLES.items():
        lines = [f"| | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
        for name, values in means.items():
            shown = [f"{v:.3f}" for v in values[:9]] + [f"{times[name] / unit:.3g}"]
            shown = ["" if "nan" in text else text for text in shown][columns]
            lines.append(f"| {name} | {' | '.join(shown)} |")
        found[marker] = "\n".join(lines) + "\n"
    return found


def renewed(page: str, found: dict[str, str]) -> str:
    """Return the page with these tables between their markers."""
    for marker, table in found.items():
        begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->"
        before, rest = page.split(begin)
        page = before + begin + "\n" + table + "\n" + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    measurements = tables()
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), measurements), encoding="utf-8")
