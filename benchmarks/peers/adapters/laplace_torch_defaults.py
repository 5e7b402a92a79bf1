"""laplace-torch with its default settings: class probabilities for every network.

`python -m ... FOLDER` reads `<split>.npz` and `<split>_test.npy`, and writes `<split>_probs.npy`.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from laplace import Laplace
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.adapters import torch_networks
from benchmarks.peers.protocol import Workload


def probabilities(workload: Workload, inputs: np.ndarray) -> np.ndarray:
    x, y = torch_networks.data(workload)
    la = Laplace(torch_networks.network(workload), "classification")
    la.fit(DataLoader(TensorDataset(x, y), batch_size=512))
    la.optimize_prior_precision()
    return la(torch.from_numpy(inputs)).detach().numpy()


def main() -> None:
    warnings.simplefilter("ignore")
    for path in sorted(Path(sys.argv[1]).glob("*.npz")):
        inputs = np.load(path.with_name(f"{path.stem}_test.npy"))
        found = probabilities(Workload.load(path), inputs)
        np.save(path.with_name(f"{path.stem}_probs.npy"), found)


if __name__ == "__main__":
    main()
