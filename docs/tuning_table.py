"""The table of digits in `tuning.md`: `python docs/tuning_table.py` measures it, in minutes.

The network, the data and their split are those of `examples/digits.py`.
"""

import runpy
from pathlib import Path

import numpy as np

import laplace_kit as lk
from laplace_kit.eval import evaluate

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tuning.md"
BEGIN, END = "<!-- digits -->\n", "<!-- /digits -->"
NUM_SPLITS = 3


def measured(seed: int, digits: dict) -> dict[str, tuple[float, ...]]:
    """Return prior precision, temperature and metrics on test data, for each way to tune."""
    data = digits["load_data"](seed)
    model_fn, params = lk.model.from_nnx(digits["train"](*data["train"], seed=seed))
    la = lk.fit(model_fn, params, data["train"], likelihood="categorical")
    x, y = data["test"]
    posteriors = {
        "untuned": la,
        "`tune(temperature=False)`: the evidence alone": la.tune(temperature=False),
        "`tune()`: the evidence, then the temperature": la.tune(),
        '`tune(method="cross_validation", ...)`: five folds of the training data': la.tune(
            method="cross_validation", data=data["train"]
        ),
        "`tune(data=...)`: 297 held-out digits": la.tune(data=data["validation"]),
    }
    at_mode = evaluate(la.likelihood, la.predict_at_mode(x), y)
    rows = {"the network itself": (np.nan, np.nan, *_metrics(at_mode))}
    for name, posterior in posteriors.items():
        found = (float(posterior.prior_precision), float(posterior.temperature))
        rows[name] = (*found, *_metrics(posterior.evaluate((x, y))))
    return rows


def _metrics(found: dict[str, float]) -> tuple[float, ...]:
    return tuple(found[name] for name in ("nll", "ece", "accuracy"))


def table() -> str:
    digits = runpy.run_path(str(ROOT / "examples" / "digits.py"))
    splits = [measured(seed, digits) for seed in range(NUM_SPLITS)]
    lines = [
        "| | prior precision | temperature | NLL | ECE | accuracy |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in splits[0]:
        values = np.array([split[name] for split in splits])
        # Precisions and temperatures differ by factors: their geometric means.
        scales = np.exp(np.log(values[:, :2]).mean(axis=0))
        shown = ["" if np.isnan(scale) else f"{scale:.2g}" for scale in scales]
        shown += [f"{metric:.3f}" for metric in values[:, 2:].mean(axis=0)]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    measurements = table()
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(
        before + BEGIN + "\n" + measurements + "\n" + END + rest.split(END)[1], encoding="utf-8"
    )
