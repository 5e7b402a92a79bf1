"""A name stands for one operator and one structure: those that are made by hand."""

import jax
import numpy as np
import pytest
import twins

from laplace_kit import curv
from laplace_kit.approx.choice import STRUCTURES, Choice
from laplace_kit.approx.diagonal import fit_diagonal
from laplace_kit.approx.dual import fit_dual
from laplace_kit.approx.full import fit_full
from laplace_kit.approx.kronecker import fit_kronecker
from laplace_kit.approx.low_rank import fit_low_rank
from laplace_kit.approx.named import (
    CURVATURE_HINTS,
    CURVATURES,
    STRUCTURE_HINTS,
    named_operator,
    named_structure,
)
from laplace_kit.curv.objective import restrict
from laplace_kit.data import as_data
from laplace_kit.errors import check_option
from laplace_kit.memory import Limits
from laplace_kit.tree import replace

KEY = jax.random.key(3)
CHOICE = Choice(
    structure="full",
    form="primal",
    curvature="ggn",
    subset="all of them",
    rank=4,
    weight_sharing="reduce",
    num_samples=3,
    batch_size=2,
    memory_limit=10**6,
    event=(3,),
    because="it was asked for",
)


def bound(curvature: str):
    """Return the operator of a name and its model, in a choice's own limits."""
    problem = twins.problem("mlp")
    choice = replace(CHOICE, curvature=curvature)
    model = problem.model_fn, problem.params, problem.likelihood
    objective = restrict(*model, limits=choice.limits)[0].planned(problem.x)
    return named_operator(objective, as_data((problem.x, problem.y)), choice, KEY)


@pytest.mark.parametrize(
    ("name", "expected", "definition"),
    [
        ("ggn", curv.GGNOperator, twins.ggn),
        ("hessian", curv.HessianOperator, twins.hessian),
        ("empirical_fisher", curv.EmpiricalFisherOperator, twins.empirical_fisher),
    ],
)
def test_a_curvature_is_its_operator(name, expected, definition):
    operator = bound(name)
    assert type(operator) is expected
    assert operator.limits == Limits(2, 10**6)
    matrix = twins.dense(definition, "mlp")
    vector = np.random.default_rng(0).normal(size=31).astype(np.float32)
    twins.assert_close(operator @ vector, matrix @ vector, dtype="float32")


def test_the_monte_carlo_fisher_takes_the_key_and_the_number_of_samples():
    problem = twins.problem("mlp")
    by_hand = curv.MonteCarloFisherOperator(
        *problem.args, key=KEY, num_samples=3, batch_size=2, memory_limit=10**6
    )
    found = bound("mc_fisher")
    assert type(found) is curv.MonteCarloFisherOperator
    np.testing.assert_array_equal(found.diagonal(), by_hand.diagonal())


def test_every_curvature_has_a_name():
    assert all(type(bound(name)).__name__.endswith("Operator") for name in CURVATURES)


FITTED = {
    ("full", "primal"): fit_full,
    ("full", "dual"): fit_dual,
    ("diagonal", None): fit_diagonal,
    ("ekfac", None): lambda op: fit_kronecker(op, corrected=True, weight_sharing="reduce"),
    ("kron", None): lambda op: fit_kronecker(op, corrected=False, weight_sharing="reduce"),
    ("low_rank", None): lambda op: fit_low_rank(op, 4, key=KEY),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FITTED)
def test_a_structure_is_what_fits_it(name, form):
    """Of a sequence, so that the sharing of its weights shows."""
    problem = twins.problem("several_axes")
    operator = curv.GGNOperator(*problem.args)
    choice = replace(CHOICE, structure=name, form=form)
    found, expected = named_structure(operator, choice, KEY), FITTED[name, form](operator)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_every_structure_has_a_name():
    assert {name for name, _ in FITTED} == set(STRUCTURES)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("kfac", ["'kron'", "'ekfac'"]),
        ("K-FAC", ["'kron'", "'ekfac'"]),
        ("last_layer", ["subset='last_layer'"]),
        ("hessian", ["curvature="]),
        ("dense", ["'full'"]),
        ("diag", ["'diagonal'"]),
    ],
)
def test_other_words_for_structures(found, words):
    with pytest.raises(ValueError, match="expected one of") as error:
        check_option("structure", found, STRUCTURES, STRUCTURE_HINTS)
    hint = str(error.value).partition("'diagonal'. ")[2]
    assert all(word in hint for word in words)


@pytest.mark.parametrize(
    ("found", "words"),
    [("fisher", ["'mc_fisher'", "'ggn'"]), ("Gauss-Newton", ["'ggn'"]), ("kron", ["structure="])],
)
def test_other_words_for_curvatures(found, words):
    with pytest.raises(ValueError, match="expected one of") as error:
        check_option("curvature", found, CURVATURES, CURVATURE_HINTS)
    hint = str(error.value).partition("'mc_fisher'. ")[2]
    assert all(word in hint for word in words)


def test_no_hint_stands_for_a_name_that_is_known():
    assert not set(STRUCTURE_HINTS) & {"auto", *STRUCTURES}
    assert not set(CURVATURE_HINTS) & set(CURVATURES)
