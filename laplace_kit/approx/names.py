"""Structures and curvatures by their names, and the flat options of `fit` that belong to them."""

import dataclasses
import inspect
from typing import Any, Literal, TypeVar, get_args

import jax
from jaxtyping import PRNGKeyArray

from laplace_kit.approx.choice import Auto
from laplace_kit.approx.diagonal import Diagonal
from laplace_kit.approx.full import Full
from laplace_kit.approx.kronecker import Kronecker
from laplace_kit.approx.low_rank import LowRank
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.curv.fisher import EmpiricalFisher, MonteCarloFisher, check_has_key
from laplace_kit.curv.ggn import GGN
from laplace_kit.curv.hessian import Hessian
from laplace_kit.curv.kronecker import WEIGHT_SHARING
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.errors import check_count, check_option

StructureName = Literal["auto", "full", "ekfac", "kron", "low_rank", "diagonal"]
CurvatureName = Literal["ggn", "hessian", "empirical_fisher", "mc_fisher"]
STRUCTURES, CURVATURES = get_args(StructureName), get_args(CurvatureName)
_Spec = TypeVar("_Spec", StructureSpec, CurvatureSpec)

_KRONECKER = "K-FAC is 'kron', and 'ekfac' the same with a diagonal that is exact in its basis."
_SUBSET = "The random parameters are chosen separately: pass subset='last_layer', for example."
_CURVATURE = "That is a curvature: pass it as curvature=, with any structure."
_FISHER = (
    "For most likelihoods the Fisher matrix equals the GGN, 'ggn'; 'mc_fisher' draws its labels, "
    "'empirical_fisher' takes the labels of the data."
)
# Names in other libraries and papers; see `laplace_kit.errors.check_option`.
STRUCTURE_HINTS = {
    **dict.fromkeys(("kfac", "k_fac", "kronecker", "kronecker_factored", "kflr"), _KRONECKER),
    **dict.fromkeys(("last_layer", "lastlayer", "ll", "subnetwork", "subnet", "all"), _SUBSET),
    **dict.fromkeys((*CURVATURES, "fisher"), _CURVATURE),
    **dict.fromkeys(("dense", "exact", "gp", "functional"), "Did you mean 'full'?"),
    **dict.fromkeys(("lowrank", "lanczos", "eigen"), "Did you mean 'low_rank'?"),
}
CURVATURE_HINTS = {
    **dict.fromkeys(("gauss_newton", "generalized_gauss_newton", "gn"), "Did you mean 'ggn'?"),
    **dict.fromkeys(("fisher", "ef", "natural"), _FISHER),
    **dict.fromkeys(
        ("kfac", "kron", "ekfac", "full", "diagonal", "diag", "low_rank"),
        "That is a structure: pass it as structure=, with any curvature.",
    ),
}


def as_structure(
    structure: str | StructureSpec,
    *,
    rank: int | None = None,
    weight_sharing: str | None = None,
) -> StructureSpec:
    """Return the structure for `fit` as an object, from a name or an object.

    Parameters
    ----------
    structure
        A name, or an object of a `StructureSpec`.
    rank, weight_sharing
        Options of the structures that have them. With a name, and with `Auto`, they apply to the
        structures that have the option; with any other object they must agree with its options.

    Raises
    ------
    TypeError, ValueError
        If there is no such structure, it cannot be hashed, or an option contradicts it.
    """
    if rank is not None:
        check_count("rank", rank, "eigenpairs")
    if weight_sharing is not None:
        check_option("weight_sharing", weight_sharing, WEIGHT_SHARING)
    options = {"rank": rank, "weight_sharing": weight_sharing}
    if isinstance(structure, StructureSpec):
        _check_hashable(structure)
        if not isinstance(structure, Auto):
            return _checked("structure", structure, options)
        return _with_options(structure, options)
    if not isinstance(structure, str):
        _refuse_kind("structure", structure, "lk.Kronecker()", "StructureSpec")
    named = {
        "auto": Auto(),
        "full": Full(),
        "ekfac": Kronecker(),
        "kron": Kronecker(corrected=False),
        "low_rank": LowRank(),
        "diagonal": Diagonal(),
    }
    return _with_options(
        named[check_option("structure", structure, STRUCTURES, STRUCTURE_HINTS)], options
    )


def as_curvature(
    curvature: str | CurvatureSpec,
    *,
    key: PRNGKeyArray | None = None,
    num_samples: int | None = None,
) -> CurvatureSpec:
    """Return the curvature for `fit` as an object, from a name or an object.

    Parameters
    ----------
    curvature
        A name, or an object of a `CurvatureSpec`.
    key, num_samples
        For the name `"mc_fisher"`.

    Raises
    ------
    TypeError, ValueError
        If there is no such curvature, it is not a pytree, it lacks a key that it needs, or
        `num_samples` contradicts it.
    """
    if num_samples is not None:
        check_count("num_samples", num_samples, "labels to draw for each example")
    if isinstance(curvature, CurvatureSpec):
        _check_pytree(curvature)
        if isinstance(curvature, MonteCarloFisher):
            check_has_key(curvature.key)
        return _checked("curvature", curvature, {"num_samples": num_samples})
    if not isinstance(curvature, str):
        _refuse_kind("curvature", curvature, "lk.GGN()", "CurvatureSpec")
    name = check_option("curvature", curvature, CURVATURES, CURVATURE_HINTS)
    if name == "mc_fisher":
        check_has_key(key)
        return MonteCarloFisher(key, num_samples or 1)
    return {"ggn": GGN(), "hessian": Hessian(), "empirical_fisher": EmpiricalFisher()}[name]


def _with_options(spec: StructureSpec, options: dict[str, Any]) -> StructureSpec:
    """Return a structure, or all structures that `Auto` tries, with these options set."""
    if isinstance(spec, Auto):
        tried = (spec.candidates, spec.otherwise)
        return Auto(*(tuple(_with_options(part, options) for part in parts) for parts in tried))
    defaults = {field.name: field.default for field in dataclasses.fields(spec)}
    given = {
        name: value
        for name, value in options.items()
        if value is not None and name in defaults and (name != "rank" or isinstance(spec, LowRank))
    }
    is_open = {name: getattr(spec, name) == defaults[name] for name in given}
    changed = {name: value for name, value in given.items() if is_open[name]}
    return _checked("structure", dataclasses.replace(spec, **changed), given)


def _checked(argument: str, spec: _Spec, options: dict[str, Any]) -> _Spec:
    """Return the object, or raise a `ValueError` if an option contradicts it."""
    for name, value in options.items():
        if value is not None and getattr(spec, name, None) != value:
            has = hasattr(spec, name)
            raise ValueError(
                f"Found {name}={value!r} with {argument}={spec}, expected "
                + (
                    f"{name}={getattr(spec, name)!r}"
                    if has
                    else f"no {name}=, which it does not have"
                )
                + "; an object has its options on itself: leave the argument out."
            )
    return spec


def _check_hashable(spec: StructureSpec) -> None:
    try:
        hash(spec)
    except TypeError as error:
        raise TypeError(
            f"Found structure={spec.name!r}, which cannot be hashed ({error}), expected a frozen "
            "dataclass whose fields are numbers, strings and tuples, as compiled programs depend "
            "on it; keep arrays in the structure that it makes."
        ) from None


def _check_pytree(spec: CurvatureSpec) -> None:
    if jax.tree_util.all_leaves([spec]):
        raise TypeError(
            f"Found curvature={spec.name!r}, whose class is not a pytree, expected one, as the "
            "posterior holds it; decorate it with jax.tree_util.register_static, or with "
            "jax.tree_util.register_dataclass where it has arrays."
        )


def _refuse_kind(argument: str, found: object, example: str, base: str) -> None:
    what = f"the class {found.__name__}" if inspect.isclass(found) else type(found).__name__
    kind = found if inspect.isclass(found) else type(found)
    remedy = "call a class to get an object"
    if issubclass(kind, StructureSpec | CurvatureSpec) and kind is not found:
        right = "structure" if issubclass(kind, StructureSpec) else "curvature"
        remedy = f"that is a {right}: pass it as {right}="
    raise TypeError(
        f"Found {argument}={what}, expected a name or an object such as {example}, of a subclass "
        f"of {base}; {remedy}."
    )
