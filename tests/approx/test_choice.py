"""The structure that is fitted is the richest that fits the memory limit."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit import memory
from laplace_kit.approx.choice import (
    Choice,
    choose_structure,
    fit_chosen,
    has_candidate,
    operator_of,
    with_key,
)
from laplace_kit.approx.spec import Sizes, StructureSpec
from laplace_kit.curv.objective import restrict
from laplace_kit.curv.sides import Side
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.data import as_data

SIZES = Sizes(num_params=1000, itemsize=4, kronecker_entries=30_000, num_columns=1)
HESSIAN = dataclasses.replace(SIZES, num_columns=None)
SPECS = {
    "full": lk.Full("primal"),
    "ekfac": lk.Kronecker(),
    "kron": lk.Kronecker(corrected=False),
    "low_rank": lk.LowRank(10),
    "diagonal": lk.Diagonal(),
}
AUTO = lk.Auto(otherwise=(lk.LowRank(10), lk.Diagonal()))
NEEDED = {name: spec.bytes(SIZES) for name, spec in SPECS.items()}


def choose(spec: StructureSpec, limit: int, sizes: Sizes = SIZES) -> StructureSpec:
    kind = lk.Hessian() if sizes.num_columns is None else lk.GGN()
    return choose_structure(spec, kind, sizes, limit).spec


def test_estimates_are_ordered_and_scale_as_they_should():
    assert NEEDED["full"] > NEEDED["ekfac"] == NEEDED["kron"]
    assert NEEDED["kron"] > NEEDED["low_rank"] > NEEDED["diagonal"]
    larger = dataclasses.replace(SIZES, num_params=10_000, kronecker_entries=300_000)
    double = dataclasses.replace(SIZES, itemsize=8)
    for name, spec in SPECS.items():
        assert spec.bytes(larger) == 10 ** (2 if name == "full" else 1) * NEEDED[name]
        assert spec.bytes(double) == 2 * NEEDED[name]


@pytest.mark.parametrize("name", ["full", "ekfac", "low_rank", "diagonal"])
def test_auto_is_the_richest_that_fits(name):
    assert choose(AUTO, NEEDED[name]) == SPECS[name]
    assert has_candidate(AUTO, SIZES, NEEDED[name]) == (name in ("full", "ekfac"))
    if name != "diagonal":
        assert choose(AUTO, NEEDED[name] - 1) != SPECS[name]


@pytest.mark.parametrize("name", SPECS)
def test_what_is_asked_for_is_taken_where_it_fits(name):
    assert choose(SPECS[name], NEEDED[name]) == SPECS[name]
    with pytest.raises(ValueError, match=f"structure='{name}' for P=1000 parameters, which needs"):
        choose(SPECS[name], NEEDED[name] - 1)


@pytest.mark.parametrize("name", ["ekfac", "kron"])
def test_the_hessian_has_no_kronecker_factors(name):
    with pytest.raises(ValueError, match=f"structure='{name}' with curvature='hessian'") as error:
        choose(SPECS[name], NEEDED["full"], HESSIAN)
    assert "'empirical_fisher' or 'mc_fisher'" in str(error.value)
    assert "structure='full' or structure='low_rank' or structure='dia" in str(error.value)
    assert choose(AUTO, NEEDED["full"] - 1, HESSIAN) == SPECS["low_rank"]


def test_too_large_names_the_estimate_the_limit_and_what_would_fit():
    with pytest.raises(ValueError, match="Found structure='full' for P=1000 parameters") as error:
        choose(lk.Full(), lk.LowRank().bytes(SIZES))
    message = str(error.value)
    assert f"needs about {memory.readable(NEEDED['full'])}" in message
    assert f"memory limit of {memory.readable(lk.LowRank().bytes(SIZES))}" in message
    fitting = " or ".join(f"structure={name!r}" for name in ("ekfac", "low_rank", "diagonal"))
    assert f": {fitting}. Or raise" in message
    assert "memory_limit=" in message
    assert "subset=" in message


def test_too_large_names_the_largest_rank_that_fits():
    limit = NEEDED["low_rank"] + 3
    with pytest.raises(ValueError, match="structure='low_rank' for P=1000 para") as error:
        choose(lk.LowRank(), limit)
    assert "these would fit: rank=10 or structure='diagonal'. Or raise memory" in str(error.value)
    assert choose(lk.LowRank(10), limit) == lk.LowRank(10)
    with pytest.raises(ValueError, match="structure='low_rank'"):
        choose(lk.LowRank(11), limit)
    with pytest.raises(ValueError, match="structure='full'") as error:
        choose(lk.Full("primal"), limit)
    assert "these would fit: structure='low_rank' with rank=10 or structure=" in str(error.value)


def test_too_large_names_the_curvature_of_few_columns():
    few = dataclasses.replace(SIZES, count_data=lambda: 20, count_entries=lambda: 50)
    many = dataclasses.replace(few, num_columns=5000, for_columns=lambda num: few)
    with pytest.raises(ValueError, match="structure='full' for P=1000 parameters") as error:
        choose(lk.Full("dual"), NEEDED["full"], many)
    assert "curvature='mc_fisher', with 1 column in place of 5,000. Or raise" in str(error.value)


# --- wide sides -----------------------------------------------------------------------------------

# Two layers, of 600 inputs and 8 outputs and the other way round.
ADAPTERS = Sizes(
    num_params=9600,
    itemsize=4,
    kronecker_entries=2 * (600**2 + 8**2),
    num_columns=1,
    kronecker_sides=(Side(1, 600), Side(1, 8), Side(1, 8), Side(1, 600)),
)


def test_kronecker_sides_are_as_wide_as_the_memory_limit_allows():
    whole = lk.Kronecker().bytes(ADAPTERS)
    assert choose(lk.Kronecker(), whole, ADAPTERS) == lk.Kronecker()
    found = choose(lk.Kronecker(), whole - 1, ADAPTERS)
    assert found == lk.Kronecker(max_width=8)
    entries = 2 * (600 * (2 * 16 + 1) + 8**2)  # a sketch and the diagonal
    assert found.bytes(ADAPTERS) == (4 * entries + 6 * 9600) * 4
    diagonal = choose(lk.Kronecker(), found.bytes(ADAPTERS) - 1, ADAPTERS)
    assert diagonal == lk.Kronecker(max_width=8, wide="diagonal")
    entries = 2 * (600 + 8**2)
    assert diagonal.bytes(ADAPTERS) == (4 * entries + 6 * 9600) * 4
    narrowest = choose(lk.Kronecker(), diagonal.bytes(ADAPTERS) - 1, ADAPTERS)
    assert narrowest == lk.Kronecker(max_width=0, wide="diagonal")
    own = lk.Kronecker(wide="diagonal")
    assert choose(own, whole - 1, ADAPTERS) == lk.Kronecker(max_width=8, wide="diagonal")
    assert choose(lk.Kronecker(max_width=100), whole, ADAPTERS) == lk.Kronecker(max_width=100)
    with pytest.raises(ValueError, match="structure='ekfac' for P=9600 parameters, which needs"):
        choose(lk.Kronecker(max_width=600), whole - 1, ADAPTERS)


def test_the_reason_names_the_sides_that_are_wide():
    limit = lk.Kronecker().bytes(ADAPTERS) - 1
    asked = "it was asked for; 2 of 4 factors, of more than 8 rows, are "
    reason = because(lk.Kronecker(), ADAPTERS, limit)
    assert reason == asked + "of rank 16 plus a diagonal"
    reason = because(lk.Kronecker(wide="diagonal"), ADAPTERS, limit)
    assert reason == asked + "diagonal"


def test_auto_prefers_fewer_parameters_to_diagonal_sides():
    limit = lk.Kronecker().bytes(ADAPTERS) - 1
    assert not has_candidate(AUTO, ADAPTERS, limit)
    assert choose(AUTO, limit, ADAPTERS) == lk.LowRank(10)


@pytest.mark.parametrize("spec", [lk.Auto(), lk.Diagonal()])
def test_nothing_fits(spec):
    with pytest.raises(ValueError, match=r"P=1000 parameters, which needs about 23\.44 KiB") as e:
        choose(spec, 100)
    assert "what would fit" not in str(e.value)
    assert "raise memory_limit=" in str(e.value)


@pytest.mark.parametrize("num_data", [None, 20_000])
def test_auto_does_not_wait_for_large_matrices_but_who_names_full_does(num_data):
    sizes = Sizes(20_000, 4, 20_000, 1, (), lambda: num_data, lambda: 50)
    assert choose(lk.Auto(), 2**40, sizes) == lk.Kronecker()
    assert choose(lk.Full(), 2**40, sizes).form in ("primal", "dual")


def test_a_structure_of_ones_own_among_the_candidates():
    @dataclasses.dataclass(frozen=True)
    class Mine(StructureSpec):
        width: int

        def bytes(self, sizes):
            return self.width * sizes.num_params * sizes.itemsize

        def fit(self, operator, key=None):
            raise NotImplementedError

    auto = lk.Auto((lk.Full(), Mine(9)))
    assert choose(auto, NEEDED["full"] - 1) == Mine(9)
    assert choose(auto, 36_000 - 1) == lk.Diagonal()
    with pytest.raises(ValueError, match="structure='Mine' for P=1000 parameters, which needs abo"):
        choose(Mine(9), 36_000 - 1)


# --- the reason -----------------------------------------------------------------------------------


def because(spec: StructureSpec, sizes: Sizes, limit: int) -> str:
    return choose_structure(spec, lk.GGN(), sizes, limit).because


def test_auto_says_what_it_takes_and_what_there_is():
    limit = 2 * NEEDED["full"]
    needed, there = memory.readable(NEEDED["full"]), memory.readable(limit)
    expected = f"exact, by its primal matrix of 1,000 rows, at about {needed} of {there}"
    assert because(lk.Auto(), SIZES, limit) == expected
    dual = Sizes(500_000, 4, 20_000, 1, (), lambda: 200, lambda: 2000)
    assert because(lk.Auto(), dual, 2**30).startswith("exact, by its dual matrix of 200 rows, at")
    found, full = because(lk.Auto(), SIZES, NEEDED["ekfac"]), memory.readable(NEEDED["full"])
    needed = memory.readable(NEEDED["ekfac"])
    expected = f"the richest that fits, at about {needed} of {needed}; full would need about {full}"
    assert found == expected
    large = dataclasses.replace(SIZES, num_params=20_000)
    assert because(lk.Auto(), large, 2**40).endswith("; full would have more than 5,000 rows")


def test_who_asks_gets_what_was_asked_for():
    for name in ("ekfac", "kron", "low_rank", "diagonal"):
        assert because(SPECS[name], SIZES, 2**30) == "it was asked for"
    expected = "it was asked for; exact, by its primal matrix of 1,000 rows"
    assert because(lk.Full(), SIZES, 2**30) == expected


# --- what was chosen ------------------------------------------------------------------------------

CHOICE = Choice(lk.LowRank(3), lk.MonteCarloFisher(jax.random.key(0)), "all of them", 2, None,
                (2, 3), "it was asked for")  # fmt: skip


def test_a_choice_counts_the_outputs_of_an_example_and_knows_its_names():
    assert CHOICE.num_outputs == 6
    assert dataclasses.replace(CHOICE, event=()).num_outputs == 1
    assert (CHOICE.structure, CHOICE.form, CHOICE.curvature) == ("low_rank", None, "mc_fisher")
    assert dataclasses.replace(CHOICE, spec=lk.Full("dual")).form == "dual"
    assert CHOICE.limits == memory.Limits(2, None)


def test_the_key_of_a_choice_is_a_leaf_and_the_rest_is_structure():
    leaves, structure = jax.tree.flatten(CHOICE)
    assert leaves == [CHOICE.curvature_spec.key]
    other = lk.MonteCarloFisher(jax.random.key(1))
    assert jax.tree.structure(dataclasses.replace(CHOICE, curvature_spec=other)) == structure
    assert jax.tree.structure(dataclasses.replace(CHOICE, spec=lk.LowRank(4))) != structure
    assert not jax.tree.leaves(dataclasses.replace(CHOICE, curvature_spec=lk.GGN()))


def test_a_choice_is_fitted_again_with_its_own_key_or_another():
    problem = twins.problem("mlp")
    objective = restrict(problem.model_fn, problem.params, problem.likelihood)[0].planned(problem.x)
    data = as_data((problem.x, problem.y))
    kind = lk.MonteCarloFisher(jax.random.key(3), 2)
    choice = dataclasses.replace(CHOICE, spec=lk.Diagonal(), curvature_spec=kind)
    for key in (None, jax.random.key(4)):
        operator = lk.curv.MonteCarloFisherOperator(
            *problem.args, key=kind.key if key is None else key, num_samples=2
        )
        found = fit_chosen(with_key(choice, key), objective, data)
        np.testing.assert_array_equal(found.diagonal, operator.diagonal())


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Wrong(CurvatureSpec):
    """Makes an operator of another kind or of another shape than it promises."""

    columns: int | None
    operator_of: str

    def num_columns(self, event):
        return self.columns

    def operator(self, objective, data):
        if self.operator_of == "nothing":
            return np.eye(3)
        ggn = lk.GGN().operator(objective, data)
        return ggn + ggn if self.operator_of == "a sum" else lk.curv.submatrix(ggn, np.arange(2))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (Wrong(None, "nothing"), TypeError, "made a ndarray, expected a SelfAdjointOperator"),
        (Wrong(3, "a sum"), TypeError, "made a SumOperator, expected a GaussNewton.*num_columns"),
        (Wrong(None, "a part"), ValueError, r"made an .* shape \(2, 2\), expected \(31, 31\)"),
    ],
)
def test_curvatures_that_do_not_make_what_they_should(wrong, error, words):
    problem = twins.problem("mlp")
    objective = restrict(problem.model_fn, problem.params, problem.likelihood)[0].planned(problem.x)
    with pytest.raises(error, match=f"curvature='Wrong', which {words}"):
        operator_of(wrong, objective, as_data((problem.x, problem.y)))


def test_auto_fits_an_operator_by_itself():
    problem = twins.problem("mlp")
    operator = lk.curv.GGNOperator(*problem.args)
    np.testing.assert_array_equal(lk.Auto().fit(operator).matrix, operator.to_dense())
    limit = 4 * math.prod(operator.shape)  # less than the three matrices that it would take
    tight = lk.curv.GGNOperator(*problem.args, memory_limit=limit)
    assert lk.Auto().fit(tight).name == "EKFAC"
    with pytest.raises(ValueError, match=r"Found Full\(.* for a GGNOperator of shape \(31, 31\)"):
        lk.Full().fit(tight)
