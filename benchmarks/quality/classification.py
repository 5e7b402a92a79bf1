"""Classification on UCI data: test NLL, calibration error, Brier score and accuracy over splits.

Two tanh layers of 50 units, random splits of 70/15/15: the first part trains, the second tunes what
is tuned on held-out data (the temperature of temperature scaling, the prior precision of a Laplace
posterior), the third tests. Networks are trained twice, under a weak prior, as when it is left at a
default, and under a standard normal prior.
"""

import argparse
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

import laplace_kit as lk
from benchmarks.quality.tables import Scores, data_folder, keep, show
from benchmarks.quality.training import Recipe, Scale, init_mlp, stack, train
from benchmarks.workloads import mlp
from laplace_kit import tree
from laplace_kit.eval import metrics
from laplace_kit.tune.line_search import minimise

DATA_SETS = ("glass", "vehicle", "waveform", "ionosphere")
PRIOR_PRECISIONS = (0.01, 1.0)
STRUCTURES = ("full", "kron", "ekfac", "diagonal", "low_rank")
HIDDEN = (50, 50)
RECIPE = Recipe(num_steps=2000, batch_size=4096, learning_rate=1e-2)


class Split(NamedTuple):
    """Inputs and labels of the three parts."""

    training: tuple[Array, Array]
    validation: tuple[Array, Array]
    test: tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Which data sets and how many splits."""

    data_sets: tuple[str, ...] = DATA_SETS
    prior_precisions: tuple[float, ...] = PRIOR_PRECISIONS
    structures: tuple[str, ...] = STRUCTURES
    num_splits: int = 10
    recipe: Recipe = RECIPE


FULL = Setting()
QUICK = Setting(prior_precisions=(0.01,), structures=("ekfac", "diagonal"), num_splits=3)


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs `(N, D)` and labels `(N,)`."""
    with np.load(path) as arrays:
        return arrays["x"], arrays["y"].astype(np.int32)


def split(x: np.ndarray, y: np.ndarray, seed: int) -> Split:
    """Split at random, 70/15/15, and standardise by the training rows."""
    order = np.random.default_rng(seed).permutation(len(x))
    parts = np.split(order, [int(0.7 * len(x)), int(0.85 * len(x))])
    scale = Scale.of(x[parts[0]])
    return Split(*((scale(x[rows]), jnp.asarray(y[rows])) for rows in parts))


class CrossEntropies(NamedTuple):
    """The loss of every example under a model, `(params, x, y) -> (n,)`; hashable."""

    model_fn: Callable

    def __call__(self, params: PyTree, x: Array, y: Array) -> Float[Array, " n"]:
        return optax.softmax_cross_entropy_with_integer_labels(self.model_fn(params, x), y)


def networks(splits: list[Split], precision: float, recipe: Recipe) -> list[PyTree]:
    """Train one network for each split, all in one program."""
    num_classes = 1 + max(int(part.training[1].max()) for part in splits)
    widths = (splits[0].training[0].shape[1], *HIDDEN, num_classes)
    keys = jax.vmap(jax.random.key)(jnp.arange(len(splits)))
    start = jax.vmap(lambda key: init_mlp(key, widths))(keys)
    examples = stack([part.training for part in splits])
    each = jnp.full(len(splits), precision)
    trained = train(CrossEntropies(mlp), start, examples, each, jax.random.key(0), recipe)
    return [jax.tree.map(lambda leaf, s=s: leaf[s], trained) for s in range(len(splits))]


def predictions(
    model_fn: Callable, params: PyTree, parts: Split, structures: tuple[str, ...]
) -> Iterator[tuple[str, Callable[[Array], Float[Array, "N C"]]]]:
    """Yield every method's name and its class probabilities as a function of inputs."""
    logits = jax.jit(model_fn)

    def scaled(temperature: float, x: Array) -> Float[Array, "N C"]:
        return jax.nn.softmax(logits(params, x) / temperature)

    def held_out(temperature: float) -> float:
        x, y = parts.validation
        return float(metrics.negative_log_likelihood(scaled(temperature, x), y))

    def fitted(structure: str, subset: str | None = None) -> lk.Laplace:
        return lk.fit(
            model_fn,
            params,
            parts.training,
            likelihood="categorical",
            structure=structure,
            subset=subset,
        )

    yield "MAP", partial(scaled, 1.0)
    yield "temperature scaling", partial(scaled, minimise(held_out, 1e-2, 1e2)[0])
    auto = fitted("auto")
    tuned = auto.tune(data=parts.validation)
    yield "auto", _probabilities(tuned)
    yield "auto, training data alone", _probabilities(auto.tune())
    for structure in structures:
        # What `auto` chose for all parameters need not be tuned again.
        is_auto = structure == auto.choice.structure and tree.size(auto.mode) == tree.size(params)
        la = tuned if is_auto else fitted(structure).tune(data=parts.validation)
        yield structure, _probabilities(la)
    yield "last layer", _probabilities(fitted("auto", "last_layer").tune(data=parts.validation))


def _probabilities(la: lk.Laplace) -> Callable[[Array], Float[Array, "N C"]]:
    return lambda x: la.predict(x).probs


def evaluate(probs: Float[ArrayLike, "N C"], y: Int[ArrayLike, " N"]) -> dict[str, float]:
    """Return the numbers of the table for one test set."""
    of_name = {
        "NLL": metrics.negative_log_likelihood,
        "ECE": metrics.expected_calibration_error,
        "Brier": metrics.brier_score,
        "accuracy": metrics.accuracy,
    }
    probs, y = jnp.asarray(probs), jnp.asarray(y)
    return {name: float(metric(probs, y)) for name, metric in of_name.items()}


def run(folder: Path, setting: Setting) -> list[Scores]:
    """Return the scores of every method on the data sets that are there."""
    found = []
    for name in setting.data_sets:
        path = folder / f"uci_{name}.npz"
        if not path.exists():
            continue
        splits = [split(*load(path), seed) for seed in range(setting.num_splits)]
        for precision in setting.prior_precisions:
            title = f"{name}, prior precision {precision:g}"
            found += scores(title, splits, precision, setting)
    return found


def scores(title: str, splits: list[Split], precision: float, setting: Setting) -> list[Scores]:
    """Return the scores of every method over the splits of one data set."""
    each: dict[str, list[dict[str, float]]] = {}
    pooled: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for parts, params in zip(splits, networks(splits, precision, setting.recipe), strict=True):
        x, y = parts.test
        for method, probabilities in predictions(mlp, params, parts, setting.structures):
            probs = np.asarray(probabilities(x))
            each.setdefault(method, []).append(evaluate(probs, y))
            pooled.setdefault(method, []).append((probs, np.asarray(y)))
    return [
        Scores(
            data_set=title,
            method=method,
            values={metric: tuple(one[metric] for one in values) for metric in values[0]}
            | {"pooled ECE": (_pooled_error(pooled[method]),)},
        )
        for method, values in each.items()
    ]


def _pooled_error(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the ECE of the test sets of all splits together: in each alone the bins are noisy."""
    probs, y = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    return evaluate(probs, y)["ECE"]


def ignore_bounds() -> None:
    """Ignore warnings of precisions at a bound: held-out data prefer the MAP there."""
    warnings.filterwarnings("ignore", "The held-out loss is smallest at a bound", UserWarning)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder of the data, or LAPLACE_KIT_DATA")
    parser.add_argument(
        "--quick", action="store_true", help="few splits, only under the weak prior"
    )
    args = parser.parse_args()
    ignore_bounds()
    setting = QUICK if args.quick else FULL
    scores = run(data_folder(args.data), setting)
    show(scores, setting)
    if not args.quick:
        keep("classification", scores, setting)


if __name__ == "__main__":
    main()
