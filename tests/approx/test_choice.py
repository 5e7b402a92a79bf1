"""The structure that is fitted is the richest that fits the memory limit."""

import dataclasses

import pytest

from laplace_kit import memory
from laplace_kit.approx.choice import (
    KRONECKER,
    STRUCTURES,
    Choice,
    Sizes,
    choose_structure,
    structure_bytes,
)

SIZES = Sizes(num_params=1000, rank=10, kronecker_entries=20_000, itemsize=4)
NEEDED = {name: structure_bytes(name, SIZES) for name in STRUCTURES}


def choose(structure: str, limit: int, curvature: str = "ggn", sizes: Sizes = SIZES) -> str:
    """Return the name of what is chosen, or the form of the full structure."""
    chosen = choose_structure(structure, curvature, sizes, limit)
    assert (chosen.structure == "full") == (chosen.form is not None)
    return chosen.form or chosen.structure


def test_estimates_are_ordered_and_scale_as_they_should():
    assert NEEDED["full"] > NEEDED["ekfac"] == NEEDED["kron"]
    assert NEEDED["kron"] > NEEDED["low_rank"] > NEEDED["diagonal"]
    larger = SIZES._replace(num_params=10_000, kronecker_entries=200_000)
    for name in STRUCTURES:
        power = 2 if name == "full" else 1
        assert structure_bytes(name, larger) == 10**power * NEEDED[name]
        assert structure_bytes(name, SIZES._replace(itemsize=8)) == 2 * NEEDED[name]


@pytest.mark.parametrize("name", ["full", "ekfac", "low_rank", "diagonal"])
def test_auto_is_the_richest_that_fits(name):
    expected = "primal" if name == "full" else name
    assert choose("auto", NEEDED[name]) == expected
    if name != "diagonal":
        assert choose("auto", NEEDED[name] - 1) != expected


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_named_structure_is_taken_where_it_fits(name):
    assert choose(name, NEEDED[name]) == ("primal" if name == "full" else name)


@pytest.mark.parametrize("name", KRONECKER)
def test_the_hessian_has_no_kronecker_factors(name):
    with pytest.raises(ValueError, match=f"structure='{name}' with curvature='hessian'") as error:
        choose(name, NEEDED["full"], "hessian")
    assert "'empirical_fisher' or 'mc_fisher'" in str(error.value)
    assert choose("auto", NEEDED["full"] - 1, "hessian") == "low_rank"


def test_too_large_names_the_estimate_the_limit_and_what_would_fit():
    with pytest.raises(ValueError, match="Found structure='full' for P=1000 parameters") as error:
        choose("full", NEEDED["low_rank"])
    message = str(error.value)
    assert f"needs about {memory.readable(NEEDED['full'])}" in message
    assert f"memory limit of {memory.readable(NEEDED['low_rank'])}" in message
    assert "what would fit: structure='low_rank' or structure='diagonal'" in message
    assert "memory_limit=" in message
    assert "subset=" in message


@pytest.mark.parametrize("structure", ["auto", "diagonal"])
def test_nothing_fits(structure):
    with pytest.raises(ValueError, match=r"P=1000 parameters, which needs about 23\.44 KiB") as e:
        choose(structure, 100)
    assert "what would fit" not in str(e.value)
    assert "raise memory_limit=" in str(e.value)


# --- the two forms of full ------------------------------------------------------------------------

DUAL = SIZES._replace(num_params=1_000_000, num_rows=200, design_entries=400_000)


@pytest.mark.parametrize("structure", ["full", "auto"])
def test_full_is_dual_where_the_matrix_would_not_fit(structure):
    needed = structure_bytes("dual", DUAL)
    assert needed < structure_bytes("full", DUAL) / 1000
    assert choose(structure, needed, sizes=DUAL) == "dual"
    if structure == "full":
        with pytest.raises(ValueError, match=r"needs about 26\.55 MiB"):
            choose(structure, needed - 1, sizes=DUAL)


@pytest.mark.parametrize("structure", ["full", "auto"])
def test_the_form_of_less_work_is_taken_where_both_fit(structure):
    for num_rows, form in ((100, "dual"), (10_000, "primal")):
        sizes = SIZES._replace(num_params=4000, num_rows=num_rows, design_entries=100 * num_rows)
        assert choose(structure, 2**34, sizes=sizes) == form


def test_a_matrix_of_few_parameters_is_always_the_primal_one():
    """It costs next to nothing, and rounding harms it less."""
    for num_params, form in ((2000, "primal"), (2001, "dual")):
        sizes = SIZES._replace(num_params=num_params, num_rows=10, design_entries=1000)
        assert choose("full", 2**34, sizes=sizes) == form


def test_the_hessian_has_no_dual_form():
    sizes = SIZES._replace(num_params=4000, num_rows=2, design_entries=10)
    assert choose("full", 2**30, "hessian", sizes) == "primal"
    assert choose("full", 2**30, "mc_fisher", sizes) == "dual"


@pytest.mark.parametrize("num_rows", [None, 20_000])
def test_auto_does_not_wait_for_large_matrices_but_who_names_full_does(num_rows):
    sizes = SIZES._replace(num_params=20_000, num_rows=num_rows, design_entries=10**6)
    assert choose("auto", 2**40, sizes=sizes) == "ekfac"
    assert choose("full", 2**40, sizes=sizes) in ("primal", "dual")


# --- the reason -----------------------------------------------------------------------------------


def test_auto_says_what_it_takes_and_what_there_is():
    limit = 2 * NEEDED["full"]
    found = choose_structure("auto", "ggn", SIZES, limit).because
    needed, there = memory.readable(NEEDED["full"]), memory.readable(limit)
    assert found == f"exact, and its primal matrix of 1,000 rows takes about {needed} of {there}"
    sizes = DUAL._replace(num_params=500_000)
    found = choose_structure("auto", "ggn", sizes, 2**30).because
    assert found.startswith("exact, and its dual matrix of 200 rows takes about")
    found = choose_structure("auto", "ggn", SIZES, NEEDED["ekfac"]).because
    needed = memory.readable(NEEDED["ekfac"])
    assert found == (
        f"the richest that takes about {needed} of {needed}, a full matrix having 1,000 rows"
    )


def test_who_asks_gets_what_was_asked_for():
    for name in ("ekfac", "kron", "low_rank", "diagonal"):
        assert choose_structure(name, "ggn", SIZES, 2**30).because == "it was asked for"
    found = choose_structure("full", "ggn", SIZES, 2**30).because
    assert found == "it was asked for; its primal form takes 1,000 rows"
    found = choose_structure("full", "ggn", DUAL, 2**30).because
    assert found == "it was asked for; its dual form takes 200 rows"


def test_a_choice_counts_the_outputs_of_an_example():
    bound = {"rank": 3, "weight_sharing": "expand", "num_samples": 1, "batch_size": None}
    choice = Choice(
        "full", "dual", "ggn", "all of them", memory_limit=None, event=(2, 3), because="", **bound
    )
    assert choice.num_outputs == 6
    assert dataclasses.replace(choice, event=()).num_outputs == 1
    assert hash(choice) == hash(dataclasses.replace(choice))
