"""Regression on UCI data: test log-likelihood and RMSE, in the targets' own units, over splits.

One hidden layer of 50 rectified linear units, the 20 splits that come with the data, one protocol
for all data sets. Networks are trained under a standard normal prior, their noise with them, from
several starts; the first is the mode of the table. Posteriors around the modes are tuned by `tune`,
prior and noise together. Training by the evidence goes on from the first mode. The mixture is that
of the `"auto"` posteriors of all modes, with equal weights (Eschenhagen et al., 2021, Mixtures of
Laplace approximations for improved post-hoc uncertainty in deep learning).
"""

import argparse
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

import laplace_kit as lk
from benchmarks.quality.tables import Scores, data_folder, keep, show
from benchmarks.quality.training import Recipe, Scale, init_mlp, nth, stack, train
from laplace_kit.eval.metrics import gaussian_nll, rmse

# The name in the table, and what `fit` is asked for: structure and subset.
POST_HOC = {
    "full": ("full", None),
    "kron": ("kron", None),
    "ekfac": ("ekfac", None),
    "diagonal": ("diagonal", None),
    "low rank": ("low_rank", None),
    "last layer": ("full", "last_layer"),
}
RECIPE = Recipe(num_steps=10_000)


@dataclasses.dataclass(frozen=True)
class Setting:
    """The protocol, and how many splits; `data_sets` is `None` for all that the folder has.

    Training by the evidence adds `evidence_share` of the epochs that led to the mode, and refits
    about `num_refits` times.
    """

    data_sets: tuple[str, ...] | None = None
    num_splits: int = 20
    num_starts: int = 5
    num_units: int = 50
    recipe: Recipe = RECIPE
    prior_precision: float = 1.0
    evidence_share: float = 0.3
    num_refits: int = 4
    seed: int = 0


FULL = Setting()
QUICK = Setting(data_sets=("yacht", "concrete"), num_splits=3)


class Split(NamedTuple):
    """Standardised training and test examples, and the scale of their targets."""

    training: tuple[Array, Array]
    test: tuple[Array, Array]
    target_std: float

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, test_rows: np.ndarray) -> "Split":
        rows = np.setdiff1d(np.arange(len(x)), test_rows)
        scale_x, scale_y = Scale.of(x[rows]), Scale.of(y[rows])
        pairs = ((scale_x(x[part]), scale_y(y[part])) for part in (rows, test_rows))
        return cls(*pairs, float(scale_y.std[0]))


def read(folder: Path, num_splits: int) -> Iterator[tuple[str, list[Split]]]:
    """Yield the data sets of a folder by name: those that come with splits."""
    for path in sorted(folder.glob("uci_*.npz")):
        with np.load(path) as arrays:
            if "test_index" in arrays:
                x, y = (arrays[name].astype(np.float64) for name in ("x", "y"))
                splits = [Split.of(x, y, rows) for rows in arrays["test_index"][:num_splits]]
                yield path.stem.removeprefix("uci_"), splits


# --- the modes ------------------------------------------------------------------------------------


def network(params: PyTree, x: Float[Array, "N D"]) -> Float[Array, "N C"]:
    """Apply a network of rectified linear units, `[(kernel, bias), ...]`."""
    *hidden, (kernel, bias) = params
    for weights, offset in hidden:
        x = jax.nn.relu(x @ weights + offset)
    return x @ kernel + bias


def gaussian_loss(params: PyTree, x: Array, y: Array) -> Float[Array, " n"]:
    """Return minus log-likelihoods; `params` are the network's and the noise's log std."""
    of_network, log_std = params
    squares = (y - network(of_network, x)) ** 2
    return jnp.sum(0.5 * squares * jnp.exp(-2 * log_std) + log_std, axis=-1)


class Mode(NamedTuple):
    """Parameters, and the standard deviation of the noise under which they are likeliest."""

    params: PyTree
    noise_std: Float[Array, ""]


def find_modes(splits: Sequence[Split], setting: Setting) -> list[list[Mode]]:
    """Train the networks of all splits and starts together; return those of each split."""
    init_key, train_key = jax.random.split(jax.random.key(setting.seed))
    num_splits, num_starts = len(splits), setting.num_starts
    examples = stack([split.training for split in splits] * num_starts)
    num = len(examples.weight)
    widths = (examples.x.shape[-1], setting.num_units, examples.y.shape[-1])
    params = jax.vmap(lambda key: init_mlp(key, widths))(jax.random.split(init_key, num))
    precision = (jnp.full(num, setting.prior_precision), jnp.zeros(num))  # none for the noise
    start = (params, jnp.zeros(num))
    params, log_std = train(gaussian_loss, start, examples, precision, train_key, setting.recipe)
    modes = Mode(params, jnp.exp(log_std))
    return [[nth(modes, i) for i in range(s, num, num_splits)] for s in range(num_splits)]


# --- the methods ----------------------------------------------------------------------------------

# Mean and variance of the targets at test inputs, `(N, 1)` each.
Moments = tuple[Array, Array]


def predictions(
    split: Split, modes: Sequence[Mode], setting: Setting
) -> Iterator[tuple[str, Moments]]:
    """Yield every method's name and its prediction of a split's test targets."""
    mode, x = modes[0], split.test[0]
    mean = network(mode.params, x)
    yield "MAP", (mean, jnp.full_like(mean, mode.noise_std**2))
    for method, (structure, subset) in POST_HOC.items():
        key = jax.random.key(setting.seed)
        yield method, _moments(_posterior(mode, split, structure, subset, key), x)
    each = [_moments(_posterior(one, split), x) for one in modes]
    yield "auto", each[0]
    yield "auto, mixture", _mixture(each)
    yield "evidence-trained", _moments(train_by_evidence(mode, split, setting), x)


def _posterior(
    mode: Mode,
    split: Split,
    structure: str = "auto",
    subset: str | None = None,
    key: PRNGKeyArray | None = None,
) -> lk.Laplace:
    la = lk.fit(
        network,
        mode.params,
        split.training,
        likelihood=lk.Gaussian(mode.noise_std),
        structure=structure,
        subset=subset,
        key=key,
    )
    return la.tune(noise="evidence")


def train_by_evidence(mode: Mode, split: Split, setting: Setting) -> lk.Laplace:
    """Return the posterior of the largest evidence on the way from a mode."""
    num_epochs, _, size = setting.recipe.sizes(len(split.training[0]))
    num_epochs = math.ceil(setting.evidence_share * num_epochs)
    training = lk.train_with_evidence(
        network,
        mode.params,
        split.training,
        likelihood=lk.Gaussian(mode.noise_std),
        num_epochs=num_epochs,
        key=jax.random.key(setting.seed),
        train_batch_size=size,
        prior_precision=setting.prior_precision,
        noise="evidence",
        refit_every=math.ceil(num_epochs / setting.num_refits),
    )
    return training.la


def _moments(la: lk.Laplace, x: Array) -> Moments:
    predictive = la.predict(x)
    return predictive.mean, predictive.var


def _mixture(each: Sequence[Moments]) -> Moments:
    """Return the moments of a mixture with equal weights."""
    means, variances = map(jnp.stack, zip(*each, strict=True))
    return means.mean(axis=0), variances.mean(axis=0) + means.var(axis=0)


# --- their scores ---------------------------------------------------------------------------------


def evaluate(moments: Moments, split: Split) -> dict[str, float]:
    """Return the numbers of the table for one test set."""
    (mean, variance), y, scale = moments, split.test[1], split.target_std
    return {
        "log-likelihood": -float(gaussian_nll(mean, variance, y)) - math.log(scale),
        "RMSE": float(rmse(mean, y)) * scale,
    }


def run(folder: Path, setting: Setting) -> Iterator[Scores]:
    """Yield the scores of every method on the data sets that are there."""
    for name, splits in read(folder, setting.num_splits):
        if setting.data_sets is not None and name not in setting.data_sets:
            continue
        each: dict[str, list[dict[str, float]]] = {}
        for split, modes in zip(splits, find_modes(splits, setting), strict=True):
            for method, moments in predictions(split, modes, setting):
                each.setdefault(method, []).append(evaluate(moments, split))
        for method, rows in each.items():
            yield Scores(name, method, {key: tuple(row[key] for row in rows) for key in rows[0]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder, by default LAPLACE_KIT_DATA")
    parser.add_argument("--quick", action="store_true", help="two data sets, three splits")
    args = parser.parse_args()
    setting = QUICK if args.quick else FULL
    scores = list(run(data_folder(args.data), setting))
    show(scores, setting)
    if not args.quick:
        keep("regression", scores, setting)


if __name__ == "__main__":
    main()
