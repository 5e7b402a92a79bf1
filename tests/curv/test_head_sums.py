"""Sums over the rows of a head, for losses with very many outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit import curv
from laplace_kit.likelihood import loss
from laplace_kit.program import programs_in

RNG = np.random.default_rng(0)


def cross_entropy(f, y):
    return jax.scipy.special.logsumexp(f) - f[y]


def head(params, x):
    return x @ params["head"]


def hidden(params, x):
    return jnp.tanh(x @ params["in"]) @ params["head"]


def problem(model_fn=head, classes=7):
    shapes = {"head": (3, classes)} if model_fn is head else {
        "in": (3, 4), "head": (4, classes)
    }  # fmt: skip
    params = {name: twins.array(RNG.normal(size=shape)) for name, shape in shapes.items()}
    data = twins.array(RNG.normal(size=(5, 3))), twins.array(RNG.integers(0, classes, 5))
    return model_fn, params, data


@pytest.mark.parametrize("rank", [None, 2])
def test_a_loss_of_many_outputs_has_the_sums_of_the_likelihood_by_products(rank, x64, monkeypatch):
    args = problem()
    expected = curv.GGNOperator(*args, "categorical")
    monkeypatch.setattr("laplace_kit.curv.head_sums.MOST_OUTPUTS_OF_A_ROOT", 4)
    monkeypatch.setattr(loss, "MOST_OUTPUTS_OF_A_ROOT", 4)
    found = curv.GGNOperator(*args, lk.FromLoss(cross_entropy))
    twins.assert_close(found.diagonal(), expected.diagonal())
    options = {"max_width": 4, "rank": rank}
    pairs = zip(
        curv.kronecker_factors(found, **options),
        curv.kronecker_factors(expected, **options),
        strict=True,
    )
    for a, b in pairs:
        jax.tree.map(lambda left, right: twins.assert_close(left, right, rtol=1e-8), a, b)


def test_a_loss_of_many_outputs_that_is_not_convex_gives_nan(x64, monkeypatch):
    monkeypatch.setattr("laplace_kit.curv.head_sums.MOST_OUTPUTS_OF_A_ROOT", 4)
    concave = lk.FromLoss(lambda f, y: -jnp.sum(f**2))
    assert np.isnan(curv.GGNOperator(*problem(), concave).diagonal()).all()


def test_below_a_head_such_a_loss_is_refused_with_the_remedy(x64, monkeypatch):
    monkeypatch.setattr(loss, "MOST_OUTPUTS_OF_A_ROOT", 4)
    operator = curv.GGNOperator(*problem(hidden), lk.FromLoss(cross_entropy))
    with pytest.raises(ValueError, match="found 7 outputs, expected at most 4") as error:
        operator.diagonal()
    assert "curvature='mc_fisher' with FromLoss(loss, sampler=...)" in str(error.value)
    assert operator.mv(jnp.ones(operator.shape[0])).shape == (40,)
    sampled = curv.EmpiricalFisherOperator(*problem(hidden), lk.FromLoss(cross_entropy))
    assert np.isfinite(sampled.diagonal()).all()


def largest(program) -> int:
    """Return the number of entries of the largest value that a program computes."""
    own = [v.aval.size for e in program.eqns for v in e.outvars if hasattr(v.aval, "size")]
    inner = [largest(inner) for e in program.eqns for inner in programs_in(e.params)]
    return max([*own, *inner, 0])


def tokens(params, x):
    """Return a logit for each token of a vocabulary at each position."""
    return jnp.tanh(params["table"][x] @ params["in"]) @ params["head"]


@pytest.mark.parametrize("what", ["kron", "ekfac", "diagonal"])
def test_sampled_labels_of_a_vocabulary_take_no_more_than_the_logits_and_the_weights(what):
    vocabulary, width, positions, num = 3000, 8, 4, 2
    shapes = {"table": (50, width), "in": (width, width), "head": (width, vocabulary)}
    params = {name: jnp.ones(shape, jnp.float32) for name, shape in shapes.items()}
    data = jnp.zeros((num, positions), int), jnp.zeros((num, positions), int)
    operator = curv.MonteCarloFisherOperator(
        tokens, params, data, "categorical", key=jax.random.key(0), batch_size=num
    )

    def run(operator):
        if what == "diagonal":
            return operator.diagonal()
        spec = lk.Kronecker(corrected=what == "ekfac", max_width=64, rank=2)
        return spec.fit(operator)

    program = jax.make_jaxpr(run)(operator)
    assert largest(program.jaxpr) <= num * max(positions, width) * vocabulary
