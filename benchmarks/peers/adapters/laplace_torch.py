"""laplace-torch, with the back end that the variant names; full batches where they fit."""

import copy
import dataclasses
import functools
import tempfile
import warnings
from pathlib import Path

import torch
from laplace import Laplace
from laplace.curvature import AsdlGGN, BackPackGGN, CurvlinopsGGN
from torch.utils.data import TensorDataset

from benchmarks.peers.adapters import torch_networks
from benchmarks.peers.protocol import NUM_INPUTS, Job, Jobs, Workload, serve

BACKENDS = {"curvlinops": CurvlinopsGGN, "BackPACK": BackPackGGN, "ASDL": AsdlGGN}
SMALL, LARGE = 5000, 20_000  # parameters: of what takes P products, and of P x P
WIDE, WIDE_BATCH = 1000, 50  # classes, and examples at a time where there are more
STRUCTURES = {"full": "full", "kron": "kron", "diagonal": "diag"}


class Batches:
    """A loader without the cost of one: slices of tensors, and `dataset` to be counted."""

    def __init__(self, x, y, batch_size):
        self.dataset = TensorDataset(x, y)
        self.batches = list(zip(x.split(batch_size), y.split(batch_size), strict=True))

    def __iter__(self):
        return iter(self.batches)


def jobs(workload: Workload, variant: str) -> Jobs:
    warnings.simplefilter("ignore")
    backend = BACKENDS[variant]
    model, (x, y) = torch_networks.network(workload), torch_networks.data(workload)
    params = list(model.parameters())
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    num_params, num_classes = len(workload.v), workload.params[-1].size
    batches = Batches(x, y, WIDE_BATCH if num_classes > WIDE else len(x))
    head = dataclasses.replace(
        workload,
        kind="mlp",
        params=workload.params[-2:],
        v=workload.v[-sum(p.size for p in workload.params[-2:]) :],
    )
    parts = {"all": workload, "last_layer": head}

    def posterior(structure, subset="all"):
        return Laplace(
            copy.deepcopy(model),
            "classification",
            subset_of_weights=subset,
            hessian_structure=STRUCTURES[structure],
            backend=backend,
        )

    def fit(structure, subset="all"):
        la = posterior(structure, subset)
        la.fit(batches)
        return la

    fitted = functools.cache(fit)

    def kfac():
        found = backend(copy.deepcopy(model), "classification")
        return found.kron(x, y, N=len(x))[1]

    def kernel_product(kron):
        # Biases have blocks of their own here: only kernels compare.
        found = []
        for vector, factors in zip(
            torch_networks.tensors(workload, workload.v), kron.kfacs, strict=True
        ):
            if len(factors) == 2:
                rows = factors[0] @ vector.reshape(len(vector), -1) @ factors[1].T
                found.append(rows.reshape(vector.shape))
            else:
                found.append(torch.zeros_like(vector))
        return {"kernels": torch_networks.flat(workload, found)}

    def fit_job(structure, subset="all"):
        def values(la):
            if structure == "kron":
                return kernel_product(la.H_facs)
            part = parts[subset]
            v = torch_networks.to_vector(part, part.v)
            found = la.H @ v if structure == "full" else la.H * v
            return {"product": torch_networks.from_vector(part, found)}

        def run():
            la = fit(structure, subset)
            if structure == "full":
                la.posterior_scale  # noqa: B018 (factorised when it is first asked for)
            return la

        return Job(run, values)

    def predict_job(structure, subset="all", diagonal=False):
        def run():
            # What `la(x)` computes on its way to class probabilities.
            la = fitted(structure, subset)
            return la._glm_predictive_distribution(x[:NUM_INPUTS], diagonal_output=diagonal)[1]

        # Biases have blocks of their own here.
        name = "apart" if structure == "kron" else "covariance"
        return Job(
            run,
            lambda found: {name: torch_networks.to_numpy(found)},
            lambda: fitted(structure, subset),
        )

    def tune_job(structure):
        def run():
            la = fitted(structure)
            la.optimize_prior_precision(method="marglik")
            return la

        name = "apart" if structure == "kron" else "evidence"
        return Job(
            run,
            lambda la: {name: torch_networks.to_numpy(la.log_marginal_likelihood())},
            lambda: fitted(structure),
        )

    @functools.cache
    def folder():
        return tempfile.TemporaryDirectory()

    def save():
        torch.save(fitted("kron").state_dict(), Path(folder().name, "posterior.pt"))
        return fitted("kron")

    def load():
        la = posterior("kron")
        la.load_state_dict(torch.load(Path(folder().name, "posterior.pt")))
        return la

    def mean(la):
        return {"mean": torch_networks.from_vector(workload, la.mean)}

    found = {
        "gradient": Job(
            lambda: torch.autograd.grad(loss(model(x), y), params),
            lambda grads: {"gradient": torch_networks.flat(workload, grads)},
        ),
        "K-FAC": Job(kfac, kernel_product),
        **{f"fit {structure}": fit_job(structure) for structure in STRUCTURES},
        **{f"predict {structure}": predict_job(structure) for structure in STRUCTURES},
        **{f"tune {structure}": tune_job(structure) for structure in STRUCTURES},
        "fit last layer": fit_job("full", "last_layer"),
        "predict last layer": predict_job("full", "last_layer"),
        "fit last layer, diagonal": fit_job("diagonal", "last_layer"),
        "predict last layer, diagonal": predict_job("diagonal", "last_layer", diagonal=True),
        "save kron": Job(save, mean, lambda: fitted("kron")),
        "load kron": Job(load, mean, save),
    }
    return found | _missing(workload.kind, variant, num_params, num_classes)


def _missing(kind: str, variant: str, num_params: int, num_classes: int) -> dict[str, str]:
    """Return why some jobs are left out."""
    found = dict.fromkeys(("EKFAC", "fit ekfac", "predict ekfac"), "no EKFAC")
    found |= dict.fromkeys(("fit low_rank", "predict low_rank"), "needs an old release of ASDL")
    found["fit last layer, kron"] = "a product of matrices C x C for each of the C classes"
    if num_params > LARGE:
        found |= dict.fromkeys(("fit full", "predict full", "tune full"), "P x P does not fit")
    if variant == "curvlinops" and num_params > SMALL:
        names = ["fit diagonal", "predict diagonal", "tune diagonal"]
        if num_classes > WIDE:
            names += ["fit last layer, diagonal", "predict last layer, diagonal"]
        found |= dict.fromkeys(names, "one product for each of the P parameters")
    if variant == "ASDL" and num_classes > WIDE:
        names = ("fit last layer, diagonal", "predict last layer, diagonal")
        found |= dict.fromkeys(names, "one pass for each class: two minutes for 25 examples")
    if variant != "curvlinops":
        names = ("tune full", "tune kron", "save kron", "load kron")
        found |= dict.fromkeys(names, "as with curvlinops")
    if kind == "resnet" and variant == "BackPACK":
        names = [f"{verb} {structure}" for verb in ("fit", "predict") for structure in STRUCTURES]
        found |= dict.fromkeys((*names, "K-FAC"), "no sums of branches")
    if kind in ("transformer", "gpt"):
        names = [f"{verb} {structure}" for verb in ("fit", "predict") for structure in STRUCTURES]
        found |= dict.fromkeys((*names, "K-FAC"), "no attention, embeddings or norms")
    return found


if __name__ == "__main__":
    serve(jobs, "laplace-torch", "torch", device=torch_networks.DEVICE)
