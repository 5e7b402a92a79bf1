"""A first answer by laplace-torch: fit, tune and predict once.

`python -m ... WORKLOAD.npz STRUCTURE ANSWER.json` writes what `benchmarks.first_answer` reads. The
structures `"auto"` and `"last_layer"` are what laplace-torch does by default: Kronecker factors of
the last layer.
"""

import json
import sys
import time
import warnings
from pathlib import Path

from laplace import Laplace
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.adapters import torch_networks
from benchmarks.peers.protocol import NUM_INPUTS, Workload


def options(structure: str) -> dict:
    """Return what to ask for: the default back end, or BackPACK where that is far faster."""
    if structure in ("auto", "last_layer"):
        return {}
    if structure == "diagonal":
        from laplace.curvature import BackPackGGN

        return {"subset_of_weights": "all", "hessian_structure": "diag", "backend": BackPackGGN}
    return {"subset_of_weights": "all", "hessian_structure": structure}


def main() -> None:
    warnings.simplefilter("ignore")
    path, structure, answer = sys.argv[1:]
    workload = Workload.load(Path(path))
    model, (x, y) = torch_networks.network(workload), torch_networks.data(workload)
    stages, start = {}, time.perf_counter()

    def passed(name):
        nonlocal start
        stages[name], start = {"seconds": time.perf_counter() - start}, time.perf_counter()

    la = Laplace(model, "classification", **options(structure))
    la.fit(DataLoader(TensorDataset(x, y), batch_size=len(x)))
    passed("fit")
    la.optimize_prior_precision(method="marglik")
    passed("tune")
    probs = la(x[:NUM_INPUTS])
    passed("predict")
    found = {"stages": stages, "missed": 0, "probs": probs.detach().numpy().tolist()}
    Path(answer).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
