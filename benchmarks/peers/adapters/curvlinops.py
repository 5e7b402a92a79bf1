"""curvlinops: linear operators in PyTorch, full batches, without the check of determinism."""

import functools

import numpy as np
import torch
from curvlinops import (
    EFLinearOperator,
    EKFACLinearOperator,
    FisherType,
    GGNLinearOperator,
    HessianLinearOperator,
    KFACLinearOperator,
)
from curvlinops.papyan2020traces.spectrum import fast_lanczos

from benchmarks.peers.adapters import torch_networks
from benchmarks.peers.protocol import NUM_STEPS, Job, Jobs, Workload, serve


def jobs(workload: Workload, variant: str) -> Jobs:
    model, (x, y) = torch_networks.network(workload), torch_networks.data(workload)
    params = list(model.parameters())
    loss = torch.nn.CrossEntropyLoss(reduction="sum")
    common = functools.partial(torch_networks.flat, workload)
    v = torch_networks.tensors(workload, workload.v)

    @functools.cache
    def operator(kind):
        return kind(model, loss, params, [(x, y)], check_deterministic=False, num_data=len(x))

    def kronecker(kind, separate=False):
        return kind(
            model,
            loss,
            params,
            [(x, y)],
            check_deterministic=False,
            fisher_type=FisherType.TYPE2,
            separate_weight_and_bias=separate,
            num_data=len(x),
        )

    def gradient():
        return torch.autograd.grad(loss(model(x), y), params)

    def product(kind):
        return Job(lambda: operator(kind) @ v, lambda found: {"product": common(found)})

    def together():
        return operator(GGNLinearOperator) @ vs

    def kfac():
        found = kronecker(KFACLinearOperator)
        found.compute_kronecker_factors()
        return found

    def ekfac():
        found = kronecker(EKFACLinearOperator)
        found.compute_kronecker_factors()
        found.compute_eigenvalue_correction()
        return found

    def kernel_product(found):
        # All flavours of K-FAC agree on the kernels, without the biases.
        return {"kernels": common(found @ kernels) * workload.kernels}

    def lanczos():
        torch.manual_seed(0)
        return fast_lanczos(operator(GGNLinearOperator), NUM_STEPS)

    kernels = torch_networks.tensors(workload, workload.v * workload.kernels)
    columns = [torch_networks.tensors(workload, row) for row in workload.vs]
    vs = [torch.stack(parts, dim=-1) for parts in zip(*columns, strict=True)]
    has_tables = workload.kind in ("transformer", "gpt")
    embeddings = "K-FAC knows no embeddings and no norms"
    structured = {
        "K-FAC": Job(kfac, kernel_product),
        "EKFAC": Job(ekfac, lambda found: {"product": common(found @ v)}),
    }
    return {
        "gradient": Job(gradient, lambda found: {"gradient": common(found)}),
        "GGN product": product(GGNLinearOperator),
        "Hessian product": product(HessianLinearOperator),
        "Fisher product": product(EFLinearOperator),
        "16 GGN products": Job(
            together,
            lambda found: {
                "products": np.stack(
                    [common([f[..., i] for f in found]) for i in range(len(columns))]
                )
            },
        ),
        # The recurrence is not reorthogonalised: its largest values come back as copies.
        "Lanczos": Job(lanczos, lambda found: {"largest": torch_networks.to_numpy(found[0]).max()}),
        "diagonal": "estimated from random probes, not exact",
        **(dict.fromkeys(structured, embeddings) if has_tables else structured),
    }


if __name__ == "__main__":
    serve(jobs, "curvlinops-for-pytorch", "torch", device=torch_networks.DEVICE)
