"""Digits, upright and rotated: a LeNet on 8,000 images, tested on 2,000.

The last 15 % of the training images are held out, for whatever is tuned on held-out data. Rotation
is a shift that a calibrated classifier should notice: an area under the ROC curve measures how well
one minus the largest class probability separates rotated images from upright ones.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array

from benchmarks.quality.classification import (
    CrossEntropies,
    Split,
    evaluate,
    ignore_bounds,
    predictions,
)
from benchmarks.quality.tables import Scores, data_folder, keep, show
from benchmarks.quality.training import Recipe, stack, train
from benchmarks.workloads import lenet
from laplace_kit.eval import metrics

NUM_TRAINING, NUM_HELD_OUT = 8000, 1200
RECIPE = Recipe(num_steps=1000, batch_size=128, learning_rate=3e-3)


@dataclasses.dataclass(frozen=True)
class Setting:
    """How many images of each part to take, how far they are rotated, and under which priors."""

    num_training: int = NUM_TRAINING - NUM_HELD_OUT
    num_validation: int = NUM_HELD_OUT
    num_test: int = 2000
    angles: tuple[int, ...] = (0, 45, 90)
    prior_precisions: tuple[float, ...] = (0.01, 1.0)
    structures: tuple[str, ...] = ("kron", "ekfac", "diagonal")
    recipe: Recipe = RECIPE


FULL = Setting()
QUICK = Setting(
    num_training=1000,
    num_validation=200,
    num_test=500,
    angles=(0, 90),
    prior_precisions=(0.01,),
    structures=("diagonal",),
    recipe=dataclasses.replace(RECIPE, num_steps=200),
)


def load(path: Path, setting: Setting) -> Split:
    """Return images `(N, 28, 28, 1)` from 0 to 1 with their labels; tests are the file's last."""
    with np.load(path) as arrays:
        x = jnp.asarray(arrays["x"][..., None] / 255, jnp.float32)
        y = jnp.asarray(arrays["y"], jnp.int32)
    held_out = slice(
        NUM_TRAINING - NUM_HELD_OUT, NUM_TRAINING - NUM_HELD_OUT + setting.num_validation
    )
    parts = (
        slice(setting.num_training),
        held_out,
        slice(NUM_TRAINING, NUM_TRAINING + setting.num_test),
    )
    return Split(*((x[rows], y[rows]) for rows in parts))


def rotated(x: Array, angle: int) -> Array:
    """Turn images about their centre by some degrees."""
    turned = scipy.ndimage.rotate(
        np.asarray(x), angle, axes=(1, 2), reshape=False, order=1, mode="grid-constant"
    )
    return jnp.asarray(turned)


def run(folder: Path, setting: Setting) -> list[Scores]:
    """Return the scores of every method; none if the data are not there."""
    path = folder / "mnist10k.npz"
    if not path.exists():
        return []
    parts = load(path, setting)
    tests = {angle: rotated(parts.test[0], angle) for angle in setting.angles}
    found = []
    for precision in setting.prior_precisions:
        network = lenet(1)
        start = jax.tree.map(lambda leaf: leaf[None], network.params)
        trained = train(
            CrossEntropies(network.model_fn),
            start,
            stack([parts.training]),
            jnp.full(1, precision),
            jax.random.key(0),
            setting.recipe,
        )
        params = jax.tree.map(lambda leaf: leaf[0], trained)
        for method, probabilities in predictions(
            network.model_fn, params, parts, setting.structures
        ):
            probs = {angle: np.asarray(probabilities(x)) for angle, x in tests.items()}
            uncertainty = {angle: 1 - p.max(axis=1) for angle, p in probs.items()}
            for angle in setting.angles:
                values = evaluate(probs[angle], parts.test[1])
                values["AUROC against upright"] = float(
                    metrics.auroc(uncertainty[0], uncertainty[angle])
                )
                found.append(
                    Scores(
                        data_set=f"MNIST rotated by {angle} degrees, prior precision {precision:g}",
                        method=method,
                        values={metric: (value,) for metric, value in values.items()},
                    )
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="the folder of the data, or LAPLACE_KIT_DATA")
    parser.add_argument("--quick", action="store_true", help="fewer images")
    args = parser.parse_args()
    ignore_bounds()
    setting = QUICK if args.quick else FULL
    scores = run(data_folder(args.data), setting)
    show(scores, setting)
    if not args.quick:
        keep("images", scores, setting)


if __name__ == "__main__":
    main()
