"""A name stands for one object, and an option of `fit` for one of that object."""

import dataclasses

import exact
import jax
import pytest

import laplace_kit as lk
from laplace_kit.approx.names import (
    CURVATURE_HINTS,
    CURVATURES,
    STRUCTURE_HINTS,
    STRUCTURES,
    as_curvature,
    as_structure,
)
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.errors import check_option

KEY = jax.random.key(3)

OBJECTS = {
    "auto": lk.Auto(),
    "full": lk.Full(),
    "ekfac": lk.Kronecker(),
    "kron": lk.Kronecker(corrected=False),
    "low_rank": lk.LowRank(),
    "diagonal": lk.Diagonal(),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_structure_by_name_is_its_object(name):
    assert as_structure(name) == OBJECTS[name] == as_structure(OBJECTS[name])
    assert OBJECTS[name].name == name
    assert hash(as_structure(name)) == hash(OBJECTS[name])


def test_a_curvature_by_name_is_its_object():
    objects = {
        "ggn": lk.GGN(),
        "hessian": lk.Hessian(),
        "empirical_fisher": lk.EmpiricalFisher(),
        "mc_fisher": lk.MonteCarloFisher(KEY, 3),
    }
    assert tuple(objects) == CURVATURES
    for name, expected in objects.items():
        found = as_curvature(name, key=KEY, num_samples=3 if name == "mc_fisher" else None)
        assert found == expected
        assert found.name == name
        assert as_curvature(expected) is expected
    assert as_curvature("mc_fisher", key=KEY).num_samples == 1


def test_flat_options_belong_to_the_structures_that_have_them():
    options = {"rank": 7, "weight_sharing": "reduce"}
    assert as_structure("low_rank", **options) == lk.LowRank(7)
    assert as_structure("ekfac", **options) == lk.Kronecker(True, "reduce")
    assert as_structure("full", **options) == lk.Full()
    tried = as_structure("auto", **options)
    assert tried == as_structure(lk.Auto(), **options)
    assert tried.candidates == (lk.Full(max_rows=5000), lk.Kronecker(weight_sharing="reduce"))
    assert tried.otherwise == (lk.LowRank(7), lk.Diagonal())


@pytest.mark.parametrize(
    ("structure", "options", "words"),
    [
        (lk.LowRank(5), {"rank": 2}, r"rank=2 with structure=LowRank\(rank=5\), expected rank=5"),
        (lk.LowRank(), {"rank": 20}, r"rank=20 with structure=LowRank\(rank=None\)"),
        (lk.Full(), {"rank": 20}, r"rank=20 with structure=Full\(.*expected no rank="),
        (lk.Kronecker(), {"weight_sharing": "reduce"}, r"expected weight_sharing='expand'"),
        (lk.Diagonal(), {"weight_sharing": "expand"}, r"Diagonal\(\), expected no weight_sharing="),
        (lk.Auto((lk.LowRank(3),)), {"rank": 4}, r"rank=4 with structure=LowRank\(rank=3\)"),
        ("low_rank", {"rank": 0}, "rank=0, expected a whole number of eigenpairs, at least 1"),
        ("full", {"weight_sharing": "shrink"}, "weight_sharing='shrink', expected one of"),
    ],
)  # fmt: skip
def test_what_contradicts_an_object_is_refused(structure, options, words):
    with exact.as_users_call(), pytest.raises(ValueError, match=words):
        as_structure(structure, **options)


def test_what_agrees_with_an_object_is_not():
    assert as_structure(lk.LowRank(20), rank=20) == lk.LowRank(20)
    assert as_structure(lk.Kronecker(), weight_sharing="expand") == lk.Kronecker()
    assert as_curvature(lk.MonteCarloFisher(KEY, 2), num_samples=2).num_samples == 2


def test_curvatures_that_contradict_themselves():
    with pytest.raises(ValueError, match=r"num_samples=3 with curvature=.*expected num_samples=2"):
        as_curvature(lk.MonteCarloFisher(KEY, 2), num_samples=3)
    with pytest.raises(ValueError, match=r"num_samples=3 with curvature=GGN\(\), expected no num_"):
        as_curvature(lk.GGN(), num_samples=3)
    for curvature in ("mc_fisher", lk.MonteCarloFisher(None)):
        with pytest.raises(ValueError, match="no key, expected one for curvature='mc_fisher'"):
            as_curvature(curvature)
    with pytest.raises(ValueError, match="num_samples=0, expected a whole number of labels"):
        as_curvature("mc_fisher", key=KEY, num_samples=0)


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        (lk.LowRank, "structure=the class LowRank, expected a name or an object such as lk.Kron"),
        (None, "structure=NoneType, expected a name or an object"),
        (lk.GGN(), "structure=GGN, .* subclass of StructureSpec; .* pass it as curvature="),
    ],
)
def test_what_is_no_structure(structure, words):
    with exact.as_users_call(), pytest.raises(TypeError, match=words):
        as_structure(structure)


def test_what_is_no_curvature():
    words = "curvature=the class GGN, expected .* such as lk.GGN.*subclass of CurvatureSpec"
    with exact.as_users_call(), pytest.raises(TypeError, match=words):
        as_curvature(lk.GGN)


def test_a_structure_that_cannot_be_hashed_and_a_curvature_that_is_no_pytree():
    @dataclasses.dataclass(frozen=True)
    class Mine(StructureSpec):
        widths: list

        def bytes(self, sizes):
            return 0

        def fit(self, operator, key=None):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"structure='Mine', which cannot be hashed .*frozen"):
        as_structure(Mine([1, 2]))

    @dataclasses.dataclass(frozen=True)
    class Own(CurvatureSpec):
        def operator(self, objective, data):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"curvature='Own'.*register_static"):
        as_curvature(Own())


# --- other words ----------------------------------------------------------------------------------


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
        as_structure(found)
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
    assert not set(STRUCTURE_HINTS) & set(STRUCTURES)
    assert not set(CURVATURE_HINTS) & set(CURVATURES)
