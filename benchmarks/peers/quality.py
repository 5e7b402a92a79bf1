"""Class probabilities on UCI data, next to the defaults of laplace-torch at the same weights.

The networks, their splits and their scores are those of `benchmarks.quality.classification`.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.peers import page
from benchmarks.peers.protocol import Workload
from benchmarks.quality import classification
from benchmarks.quality.classification import Setting, Split
from benchmarks.quality.tables import Scores, data_folder, keep, show
from benchmarks.quality.targets import PEER
from benchmarks.workloads import mlp

# All others tune on held-out data, or are other structures.
LAST_OF_OURS = "auto, training data alone"


def run(folder: Path, setting: Setting, python: Path) -> list[Scores]:
    """Return the scores on the data sets that are there, under each prior of the training."""
    names = [name for name in setting.data_sets if (folder / f"uci_{name}.npz").exists()]
    found = []
    for name, precision in tqdm(
        list(itertools.product(names, setting.prior_precisions)), desc="data sets", leave=False
    ):
        data = classification.load(folder / f"uci_{name}.npz")
        splits = [classification.split(*data, seed) for seed in range(setting.num_splits)]
        title = f"{name}, prior precision {precision:g}"
        found += scores(title, splits, precision, setting, python)
    return found


def scores(
    title: str, splits: list[Split], precision: float, setting: Setting, python: Path
) -> list[Scores]:
    """Return the scores of the mode, of ours and of theirs over the splits of one data set."""
    networks = classification.networks(splits, precision, setting.recipe)
    theirs = defaults(networks, splits, python)
    each: dict[str, list[dict[str, float]]] = {}
    for params, parts, probs in zip(networks, splits, theirs, strict=True):
        x, y = parts.test
        for method, predict in classification.predictions(mlp, params, parts, ()):
            each.setdefault(method, []).append(classification.evaluate(predict(x), y))
            if method == LAST_OF_OURS:
                break
        each.setdefault(PEER, []).append(classification.evaluate(jnp.asarray(probs), y))
    return [
        Scores(title, method, {name: tuple(one[name] for one in found) for name in found[0]})
        for method, found in each.items()
    ]


def defaults(networks, splits: list[Split], python: Path) -> list[np.ndarray]:
    """Return the class probabilities of laplace-torch on each split's test inputs."""
    with tempfile.TemporaryDirectory() as folder:
        for i, (params, parts) in enumerate(zip(networks, splits, strict=True)):
            x, y = map(np.asarray, parts.training)
            arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
            nothing = np.zeros(0, np.float32)
            workload = Workload(str(i), "mlp", arrays, x, y.astype(np.int64), nothing, nothing)
            workload.save(Path(folder, f"{i:02}.npz"))
            np.save(Path(folder, f"{i:02}_test.npy"), parts.test[0])
        module = "benchmarks.peers.adapters.laplace_torch_defaults"
        subprocess.run([python, "-m", module, folder], check=True)
        return [np.load(Path(folder, f"{i:02}_probs.npy")) for i in range(len(splits))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--python", type=Path, required=True, help="as of `benchmarks.peers`")
    parser.add_argument("--data", type=Path, help="the folder of the data, or LAPLACE_KIT_DATA")
    parser.add_argument("--quick", action="store_true", help="few splits")
    options = parser.parse_args()
    if not options.python.exists():
        sys.exit(
            f"Found no {options.python}, expected an interpreter: `make bench-peers` makes it."
        )
    classification.ignore_bounds()
    setting = classification.QUICK if options.quick else classification.FULL
    scores = run(data_folder(options.data), setting, options.python)
    show(scores, setting)
    if not options.quick:
        keep("peers_classification", scores, setting)
        page.main()


if __name__ == "__main__":
    main()
