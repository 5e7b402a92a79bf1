"""Moments of the linearised outputs, in chunks of inputs and of outputs."""

from functools import partial

import exact
import numpy as np
import pytest
import twins
from exact import KINDS

from laplace_kit import memory
from laplace_kit.curv.cost import plan, projections, rows_cost
from laplace_kit.eval.moments import linearized_moments


def one_direction(la, x) -> int:
    """Return the bytes of one input with one direction."""
    objective = la.objective
    unit = memory.activation_bytes(objective.model_fn, objective.params, x)
    work = partial(projections, num_vectors=la.posterior.num_projections)
    cost = rows_cost(objective, x, unit, work)
    assert plan(cost, 3, 2, 2 * (cost.once + cost.direction)).num_directions == 1
    return cost.once + cost.direction


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("full", [True, False])
def test_chunks_of_inputs_and_outputs_give_the_dense_moments(kind, full, x64):
    la, x = exact.fitted(kind, "float64"), twins.problem("mlp", "float64").x
    cov = exact.covariance(kind, np.ones(31))
    jac = twins.dense(twins.jacobian, "mlp")
    expected = np.einsum("ncp,pq,ndq->ncd", jac, cov, jac)
    limit = 10**9 if full else 2 * one_direction(la, x)
    f, f_var, f_cov = linearized_moments(
        la.objective, la.posterior, x, full=full, batch_size=2, memory_limit=limit
    )
    np.testing.assert_allclose(f, twins.mlp(la.params, x))
    twins.assert_close(f_var, np.einsum("ncc->nc", expected), rtol=1e-9)
    if full:
        twins.assert_close(f_cov, expected, rtol=1e-9)
    else:
        assert f_cov is None


def test_covariances_that_do_not_fit_name_the_remedy(x64):
    la, x = exact.fitted("diagonal", "float64"), twins.problem("mlp", "float64").x
    with pytest.raises(ValueError, match=r"in 3 direction.*'hidden/0/kernel'") as error:
        linearized_moments(la.objective, la.posterior, x, full=True, memory_limit=1_000)
    assert 'covariance="diagonal"' in str(error.value)
