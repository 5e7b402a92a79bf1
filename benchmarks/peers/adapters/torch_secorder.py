"""torch-secorder: products by double backpropagation in PyTorch."""

import functools

import torch
from torch_secorder import exact_hvp, gauss_newton_product

from benchmarks.peers.adapters import torch_networks
from benchmarks.peers.protocol import Job, Jobs, Workload, serve


def jobs(workload: Workload, variant: str) -> Jobs:
    model, (x, y) = torch_networks.network(workload), torch_networks.data(workload)
    params = list(model.parameters())
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    common = functools.partial(torch_networks.flat, workload)
    v = torch_networks.tensors(workload, workload.v)
    one_by_one = "a backward pass for each output of each example"

    def summed():
        return loss(model(x), y)

    return {
        "gradient": Job(
            lambda: torch.autograd.grad(summed(), params),
            lambda found: {"gradient": common(found)},
        ),
        "Hessian product": Job(
            lambda: exact_hvp(summed, params, v), lambda found: {"product": common(found)}
        ),
        "GGN product": Job(
            lambda: gauss_newton_product(model, loss, x, y, v),
            lambda found: {"product": common(found)},
        )
        if workload.name == "S"
        else one_by_one,
        "16 GGN products": one_by_one,
        "diagonal": "the square of the summed gradient, or of single Hessian entries",
    }


if __name__ == "__main__":
    serve(jobs, "torch-secorder", "torch")
