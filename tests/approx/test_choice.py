"""The structure that is fitted is the richest that fits the memory limit."""

import pytest

from laplace_kit import memory
from laplace_kit.approx.choice import (
    KRONECKER,
    STRUCTURES,
    Sizes,
    choose_structure,
    structure_bytes,
)

SIZES = Sizes(num_params=1000, rank=10, kronecker_entries=20_000, itemsize=4)
NEEDED = {name: structure_bytes(name, SIZES) for name in STRUCTURES}


def choose(structure: str, limit: int, curvature: str = "ggn") -> str:
    return choose_structure(structure, curvature, SIZES, limit)


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
    assert choose("auto", NEEDED[name]) == name
    assert choose("auto", NEEDED[name] - 1) != name if name != "diagonal" else True


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_named_structure_is_taken_where_it_fits(name):
    assert choose(name, NEEDED[name]) == name


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
