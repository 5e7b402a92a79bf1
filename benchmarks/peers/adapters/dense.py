"""Dense definitions, from Jacobians: reference values where no other library has the job."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.peers.adapters.jax_networks import NETWORKS, cross_entropy
from benchmarks.peers.protocol import NUM_INPUTS, Job, Jobs, Workload, serve


def jobs(workload: Workload, variant: str) -> Jobs:
    network = NETWORKS[workload.kind]
    theta, unravel = ravel_pytree([jnp.asarray(p) for p in workload.params])
    x, y, v, vs = map(jnp.asarray, (workload.x, workload.y, workload.v, workload.vs))

    def outputs(theta, x):
        return network(unravel(theta), x)

    def loss(theta):
        return cross_entropy(outputs(theta, x), y)

    jacobian = jax.jit(jax.vmap(lambda x: jax.jacrev(outputs)(theta, x[None])[0]))

    @functools.cache
    def rows():
        """Return the rows of `L^(1/2) J` of all examples, `L = diag(p) - p p^T = S S^T`."""
        p = jax.nn.softmax(outputs(theta, x))
        root = jnp.sqrt(p)[:, :, None] * jnp.eye(p.shape[1]) - p[:, :, None] * jnp.sqrt(p)[:, None]
        return jnp.einsum("ncd,ncp->ndp", root, jacobian(x)).reshape(-1, theta.size)

    @functools.cache
    def matrix():
        return rows().T @ rows()

    @functools.cache
    def inverse():
        return np.linalg.inv(np.asarray(matrix(), np.float64) + np.eye(theta.size))

    def product(function, name="product"):
        return Job(function, lambda found: {name: np.asarray(found)})

    def covariance(inverse):
        jacobians = np.asarray(jacobian(x[:NUM_INPUTS]), np.float64)
        return np.einsum("ncp,pq,nkq->nck", jacobians, inverse, jacobians, optimize=True)

    def evidence():
        """Return the greatest evidence on a fine grid, by the eigenvalues of the matrix."""
        values = np.maximum(np.linalg.eigvalsh(np.asarray(matrix(), np.float64)), 0)
        found = [
            -float(loss(theta))
            - 0.5 * np.log1p(values / precision).sum()
            - 0.5 * precision * float(theta @ theta)
            for precision in np.logspace(-3, 3, 601)
        ]
        return max(found)

    return {
        "gradient": product(lambda: jax.grad(loss)(theta), "gradient"),
        "GGN product": product(lambda: matrix() @ v),
        "16 GGN products": product(lambda: vs @ matrix(), "products"),
        "Hessian product": product(lambda: jax.jvp(jax.grad(loss), (theta,), (v,))[1]),
        "diagonal": product(lambda: (rows() ** 2).sum(axis=0), "diagonal"),
        "fit full": product(lambda: matrix() @ v),
        "fit diagonal": product(lambda: (rows() ** 2).sum(axis=0) * v),
        "predict full": product(lambda: covariance(inverse()), "covariance"),
        "predict diagonal": product(
            lambda: covariance(np.diag(1 / (1 + np.diagonal(matrix())))), "covariance"
        ),
        "tune full": product(evidence, "evidence"),
    }


if __name__ == "__main__":
    serve(jobs, "jax")
