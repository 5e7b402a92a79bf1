"""Rules that choose the random parameters, for `subset=` of `fit`.

The others are frozen at the mode. A posterior over a subnetwork is smaller, so that a richer
structure fits, and often predicts as well as a coarser one over all parameters (Daxberger et al.,
2021).
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jaxtyping import ArrayLike, Float, Int, PyTree

from laplace_kit import tree
from laplace_kit.curv.capture.layers import KINDS, Layers
from laplace_kit.curv.capture.products import parts_of
from laplace_kit.curv.capture.uses import find_uses
from laplace_kit.curv.objective import restrict
from laplace_kit.host import fetch_array
from laplace_kit.program import Program
from laplace_kit.selection import Named, can_vary, select, varying


def last_layer(model_fn: Callable, params: PyTree, x: PyTree) -> PyTree:
    """Return a mask of the last layer: the one that no other layer of the program follows.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure.
    params
        A pytree of arrays.
    x
        Inputs with a leading axis, or their `jax.ShapeDtypeStruct`s: values are not read.

    Returns
    -------
    mask
        Like `params`, `True` for every leaf that reaches the outputs without passing through the
        product of another layer: the weight of the last matrix product, convolution or lookup, its
        bias, and scales and biases that follow, as in a normalisation of the outputs. Operations
        without parameters, such as activations, may come anywhere. Parallel output heads are all
        last; a layer that another one follows is not, even if a skip connection bypasses that other
        one. Cost: one trace of the model for one example.

    Raises
    ------
    ValueError
        If a parameter of the last layer enters in a way that layer capture does not support, or is
        also used in earlier layers (tied weights), or if the last layer has no product.

    References
    ----------
    Snoek et al. (2015), Scalable Bayesian optimization using deep neural networks. Kristiadi et al.
    (2020), Being Bayesian, even just a bit, fixes overconfidence in ReLU networks.
    """
    objective, _ = restrict(model_fn, params, subset=varying(params))
    last = _last_leaves(objective.planned(x).plan.layers)
    flags = iter(last)
    return jax.tree.map(lambda leaf: can_vary(leaf) and next(flags), params)


def _last_leaves(found: Layers) -> list[bool]:
    """Return a boolean for every free leaf: whether it belongs to the last layer."""
    program = found.program
    steps = {part.step for layer in found.layers for part in parts_of(layer.product)}
    live = _sources(program, [program.output])
    products = [step for i, step in enumerate(program.steps) if i in steps]
    before = _sources(
        program, [o for step in products if live & set(step.results) for o in step.operands]
    )
    last = []
    for leaf, uses in zip(found.leaves, find_uses(program), strict=True):
        results = set()
        for use in uses:
            at_end = use.step == len(program.steps)
            results.update([program.output] if at_end else program.steps[use.step].results)
        last.append(bool(results & live - before))
        if last[-1] and (leaf.kind in ("shared", "other") or results & before):
            earlier = "in earlier layers too" if results & before else KINDS[leaf.kind]
            raise _no_last_layer(
                f"the parameter {leaf.path!r} at the end of the model ({leaf.kind}: {earlier})",
                found,
            )
    ends = [leaf for leaf, is_last in zip(found.leaves, last, strict=True) if is_last]
    if not any(found.layers[leaf.layer].product for leaf in ends):
        raise _no_last_layer("no product with a parameter on the way to the outputs", found)
    return last


def _no_last_layer(what: str, found: Layers) -> ValueError:
    return ValueError(
        f"Found {what}, expected a last layer whose weight enters a matrix product, a convolution "
        "or a lookup, and only biases and scales after it; name the last layer yourself, as in "
        "subset=lambda path: 'head' in path. The parameters' leaves are "
        f"{', '.join(leaf.path for leaf in found.leaves)}."
    )


def _sources(program: Program, targets: Iterable[int | Literal]) -> frozenset[int]:
    """Return the numbers of the values on which any target depends, the targets included."""
    needed = {value for value in targets if not isinstance(value, Literal)}
    for step in reversed(program.steps):
        if needed.intersection(step.results):
            needed.update(o for o in step.operands if not isinstance(o, Literal))
    return frozenset(needed)


def layers(*names: str) -> Callable[[str], bool]:
    """Return a predicate for the layers of these names: leaves with one of them in their path.

    Parameters
    ----------
    names
        Such as `"head"` or, for several components in a row, `"layers/0"` or `"layers.0"`; or the
        names of adapters such as `"lora_a", "lora_b"`. `*` stands for any characters of a
        component: `"*_lora_a"` is `kernel_lora_a` and `w_lora_a`.

    Returns
    -------
    predicate
        A predicate on the leaf's path. Where it is used, a name that no path has raises a
        `ValueError` that lists the leaves.
    """
    return Named(names)


def largest_magnitude(params: PyTree, num: int | float) -> Int[np.ndarray, " K"]:
    r"""Return the indices of the parameters of largest $|\theta_i|$.

    Parameters
    ----------
    params
        A pytree of arrays.
    num
        How many, or which fraction of all if it lies between 0 and 1.

    Returns
    -------
    indices
        Ascending, in flat order. Cost: $O(P)$, on the host.

    Raises
    ------
    ValueError
        If `num` is neither.
    """
    return _largest(np.abs(_flat(params)), num)


def largest_variance(
    variance: Float[ArrayLike, " P"] | PyTree, params: PyTree, num: int | float
) -> Int[np.ndarray, " K"]:
    r"""Return the indices of the parameters of largest marginal variance, $\Sigma_{ii}$.

    Among all subnetworks of a size, this one has the posterior closest in Wasserstein distance to
    that over all parameters, if these are uncorrelated.

    Parameters
    ----------
    variance
        Flat `(P,)` or like the parameters, such as `la.posterior.variance()` of a diagonal
        posterior.
    params
        A pytree of arrays.
    num
        How many, or which fraction of all if it lies between 0 and 1.

    Returns
    -------
    indices
        Ascending, in flat order. Cost: $O(P)$, on the host.

    Raises
    ------
    ValueError
        If `num` is neither, or the variances are not one for each floating-point parameter, finite
        and not negative.

    References
    ----------
    Daxberger et al. (2021), Bayesian deep learning via subnetwork inference.
    """
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params) if can_vary(leaf))
    flat = _flat(variance)
    if flat.shape != (size,) or not (np.isfinite(flat) & (flat >= 0)).all():
        raise ValueError(
            f"Found variances of shape {flat.shape}, the smallest of which is "
            f"{flat.min(initial=np.inf):.4g}, expected ({size},) finite numbers that are not "
            "negative, one for each floating-point parameter; pass la.posterior.variance() of a "
            "posterior over all of them."
        )
    return _largest(flat, num)


def _flat(params: PyTree) -> Float[np.ndarray, " P"]:
    return fetch_array(tree.ravel(select(params, varying(params))[0]), np.float64)


def _largest(values: Float[np.ndarray, " P"], num: int | float) -> Int[np.ndarray, " K"]:
    size = len(values)
    fraction = not float(num).is_integer()
    if not (0 < num < 1 if fraction else 1 <= num <= size):
        raise ValueError(
            f"Found num={num}, expected a number of parameters from 1 to {size}, or a fraction "
            "between 0 and 1."
        )
    count = max(round(num * size), 1) if fraction else int(num)
    return np.sort(np.argpartition(values, size - count)[size - count :])
