"""A curvature by name, and one of one's own that is written in this file."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jaxtyping import Array

import laplace_kit as lk
from laplace_kit.curv import CurvatureSpec
from laplace_kit.curv.objective import restrict
from laplace_kit.data import as_data
from laplace_kit.memory import Limits

KEY = jax.random.key(3)
LIMITS = Limits(2, 10**6)


def made(spec: CurvatureSpec, dtype: str = "float32"):
    problem = twins.problem("mlp", dtype)
    model = problem.model_fn, problem.params, problem.likelihood
    objective = restrict(*model, limits=LIMITS)[0].planned(problem.x)
    return spec.operator(objective, as_data((problem.x, problem.y)))


@pytest.mark.parametrize(
    ("spec", "kind", "definition", "columns"),
    [
        (lk.GGN(), lk.curv.GGNOperator, twins.ggn, 3),
        (lk.Hessian(), lk.curv.HessianOperator, twins.hessian, None),
        (lk.EmpiricalFisher(), lk.curv.EmpiricalFisherOperator, twins.empirical_fisher, 1),
    ],
)
def test_a_curvature_is_its_operator(spec, kind, definition, columns):
    operator = made(spec)
    assert type(operator) is kind
    assert operator.limits == LIMITS
    matrix = twins.dense(definition, "mlp")
    vector = np.random.default_rng(0).normal(size=31).astype(np.float32)
    twins.assert_close(operator @ vector, matrix @ vector, dtype="float32")
    assert spec.num_columns((3,)) == columns
    assert spec.noise_power == (2 if kind is lk.curv.EmpiricalFisherOperator else 1)
    assert jax.tree.leaves(spec) == []
    assert spec.with_key(KEY) == spec


def test_the_monte_carlo_fisher_has_its_key_and_number_of_samples():
    spec = lk.MonteCarloFisher(KEY, num_samples=3)
    operator = made(spec)
    by_hand = lk.curv.MonteCarloFisherOperator(
        *twins.problem("mlp").args, key=KEY, num_samples=3, batch_size=2, memory_limit=10**6
    )
    assert type(operator) is lk.curv.MonteCarloFisherOperator
    np.testing.assert_array_equal(operator.diagonal(), by_hand.diagonal())
    assert spec.num_columns((5,)) == 3
    assert jax.tree.leaves(spec) == [KEY]
    assert spec.with_key(jax.random.key(4)) == lk.MonteCarloFisher(jax.random.key(4), 3)
    with pytest.raises(ValueError, match="num_samples=0, expected a whole number of labels"):
        lk.MonteCarloFisher(KEY, 0)


# --- of one's own ---------------------------------------------------------------------------------


@lk.storable("tests.Blend")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Blend(CurvatureSpec):
    """A share of the Hessian and the rest of the GGN."""

    share: Array

    def operator(self, objective, data):
        parts = (spec.operator(objective, data) for spec in (lk.Hessian(), lk.GGN()))
        hessian, ggn = parts
        return self.share * hessian + (1 - self.share) * ggn


def fitted(share=0.2, **options) -> lk.Laplace:
    problem = twins.problem("mlp", "float64")
    options = {"structure": "full", "prior_precision": 50.0} | options
    return lk.fit(
        problem.model_fn,
        problem.params,
        (problem.x, problem.y),
        likelihood="categorical",
        curvature=Blend(jnp.asarray(share)),
        **options,
    )


def blended(share=0.2) -> np.ndarray:
    hessian, ggn = (twins.dense(definition, "mlp") for definition in (twins.hessian, twins.ggn))
    return share * hessian + (1 - share) * ggn


@pytest.mark.parametrize("structure", ["full", "diagonal", "low_rank"])
def test_every_structure_without_factors_fits_it(structure, x64):
    la, matrix = fitted(structure=structure), blended()
    if structure == "diagonal":
        matrix = np.diag(np.diag(matrix))
    if structure == "low_rank":
        values, vectors = np.linalg.eigh(matrix)
        matrix = (vectors * np.maximum(values, 0)) @ vectors.T
    covariance = np.linalg.inv(matrix + 50.0 * np.eye(31))
    twins.assert_close(la.posterior.variance(), np.diag(covariance), rtol=1e-8)
    assert la.choice.curvature == "Blend"


def test_it_has_no_kronecker_factors(x64):
    with pytest.raises(ValueError, match="structure='kron' with curvature='Blend', which has no"):
        fitted(structure="kron")


def test_a_subset_an_update_and_a_file(tmp_path, x64):
    last = fitted(subset="last_layer")
    twins.assert_close(last.structure.matrix, blended()[16:, 16:])
    la, problem = fitted(), twins.problem("mlp", "float64")
    twins.assert_close(la.update((problem.x, problem.y)).structure.matrix, 2 * blended())
    la.save(tmp_path / "la.npz")
    loaded = lk.load(tmp_path / "la.npz", problem.model_fn)
    assert loaded.choice.curvature_spec.share == la.choice.curvature_spec.share == 0.2
    np.testing.assert_array_equal(loaded.predict(problem.x).probs, la.predict(problem.x).probs)


def test_another_share_does_not_compile_anew(x64):
    fitted(0.2)
    share = jnp.asarray(0.3)
    with twins.compilations() as names:
        found = fitted(share)
    assert not names
    twins.assert_close(found.structure.matrix, blended(0.3))
