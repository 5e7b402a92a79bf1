"""A likelihood defined by a loss, with derivatives by autodiff or given by the user."""

import inspect
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from laplace_kit.derivatives import linearize_gradient
from laplace_kit.likelihood.base import Likelihood
from laplace_kit.tree import pytree_dataclass

# A root of the Hessian in more outputs than this takes 64 MiB, and minutes, for each example.
MOST_OUTPUTS_OF_A_ROOT = 4096


@pytree_dataclass(static=("loss", "sampler", "gradient", "product"))
class FromLoss(Likelihood):
    r"""A likelihood defined by a loss of one example: $-\log p(y \mid f) = \mathrm{loss}(f, y)$.

    Derivatives in the outputs are computed by autodiff, or given by the user where autodiff does
    not help: at a kink, behind a callback, or for a Gauss-Newton surrogate of a non-convex loss.
    Given derivatives replace those of the loss everywhere: in gradients, all curvature matrices,
    the Hessian of the parameters, and derivatives of these.

    Parameters
    ----------
    loss
        `(f, y) -> scalar` for one example (vmapped over examples), assumed to be normalised. It
        must be convex in `f` where a square root of its Hessian is needed (diagonals, full and
        sampled curvature): the root of an indefinite Hessian is NaN, and is never clipped. There is
        none for more than 4,096 outputs, where products suffice for a last layer by itself, and
        for the low-rank structure.
    sampler
        `(key, f) -> y` for one example, used only by the Monte Carlo Fisher matrix.
    gradient
        `(f, y) -> g`, the gradient in `f`, of the shape of `f`.
    hessian_mv
        `(f, y, u) -> L u`, the product of the Hessian in `f` and a vector, of the shape of `f`;
        linear in `u` and symmetric. By default the derivative of the gradient.

    Raises
    ------
    TypeError
        If an argument is not a function with this signature, or if a loss with given derivatives is
        differentiated in the targets.
    ValueError
        If a result of `gradient` or `hessian_mv` does not have the shape of `f`, when first called.

    References
    ----------
    Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent.
    """

    loss: Callable
    sampler: Callable | None
    gradient: Callable | None
    product: Callable | None  # the argument `hessian_mv`, which is also the name of a method

    def __init__(
        self,
        loss: Callable,
        sampler: Callable | None = None,
        *,
        gradient: Callable | None = None,
        hessian_mv: Callable | None = None,
    ):
        _check_signature("loss", loss, "(f, y)")
        for name, fn, arguments in (
            ("sampler", sampler, "(key, f)"),
            ("gradient", gradient, "(f, y)"),
            ("hessian_mv", hessian_mv, "(f, y, u)"),
        ):
            if fn is not None:
                _check_signature(name, fn, arguments)
        put = object.__setattr__  # as the class is frozen
        put(self, "loss", loss)
        put(self, "sampler", sampler)
        put(self, "gradient", gradient)
        put(self, "product", hessian_mv)

    def negative_log_prob(self, f, y):
        if self.gradient is None and self.product is None:
            return jnp.asarray(self.loss(f, y))
        return _loss(self, f, y)

    def hessian_mv(self, f, y, u):
        return linearize_gradient(lambda z: self.output_gradient(z, y), f)(u)

    def hessian_sqrt_mv(self, f, y, w):
        flat, shape = jnp.ravel(f), f.shape
        if flat.size > MOST_OUTPUTS_OF_A_ROOT:
            raise ValueError(
                f"FromLoss: found {flat.size:,} outputs, expected at most "
                f"{MOST_OUTPUTS_OF_A_ROOT:,} where a root of the Hessian in the outputs is needed, "
                "as that of any loss has a matrix of all pairs of outputs; use "
                "curvature='mc_fisher' with FromLoss(loss, sampler=...), "
                "curvature='empirical_fisher', subset='last_layer', structure='low_rank', or a "
                "likelihood that knows its root, such as 'categorical'."
            )
        gradient = jax.grad(lambda z: self.negative_log_prob(z.reshape(shape), y))
        hessian = jax.vmap(linearize_gradient(gradient, flat))(jnp.eye(flat.size, dtype=f.dtype))
        values, vectors = jnp.linalg.eigh(hessian)
        # For confident predictions, curvature is a small difference of numbers near one.
        rounding = flat.size * jnp.finfo(f.dtype).eps * jnp.maximum(jnp.abs(values).max(), 1)
        roots = jnp.sqrt(jnp.where(values < -rounding, values, jnp.maximum(values, 0)))
        with jax.default_matmul_precision("highest"):
            return (vectors @ (roots * (vectors.T @ jnp.ravel(w)))).reshape(shape)

    def sample(self, key, f):
        if self.sampler is None:
            raise TypeError(
                "FromLoss: found no sampler, expected one for sampled labels; pass "
                "FromLoss(loss, sampler=lambda key, f: ...) or use curvature='ggn'."
            )
        return self.sampler(key, f)

    def check_shapes(self, outputs, targets):
        for leaf in jax.tree.leaves(targets):
            if leaf.shape[:1] != outputs[:1]:
                raise ValueError(
                    f"FromLoss: found targets of shape {leaf.shape} for outputs {outputs}, "
                    f"expected {outputs[0]} targets on the leading axis."
                )

    def is_valid(self, f, y):
        return jnp.isfinite(self.negative_log_prob(f, y))

    @property
    def support(self):
        return "targets for which the loss is finite"


# --- derivatives given by the user ----------------------------------------------------------------


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _loss(likelihood: FromLoss, f, y):
    return jnp.asarray(likelihood.loss(f, y))


@partial(_loss.defjvp, symbolic_zeros=True)
def _loss_jvp(likelihood, primals, tangents):
    f, y = primals
    _refuse_targets(tangents[1])
    return _loss(likelihood, f, y), jnp.vdot(_gradient(likelihood, f, y), tangents[0])


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _gradient_with_product(likelihood: FromLoss, f, y):
    return _own_gradient(likelihood, f, y)


@partial(_gradient_with_product.defjvp, symbolic_zeros=True)
def _gradient_jvp(likelihood, primals, tangents):
    f, y = primals
    _refuse_targets(tangents[1])
    product = _shaped("hessian_mv", likelihood.product(f, y, tangents[0]), f)
    return _gradient_with_product(likelihood, f, y), product


def _gradient(likelihood: FromLoss, f, y):
    gradient = _own_gradient if likelihood.product is None else _gradient_with_product
    return gradient(likelihood, f, y)


def _own_gradient(likelihood: FromLoss, f, y):
    if likelihood.gradient is None:
        return jax.grad(likelihood.loss)(f, y)
    return _shaped("gradient", likelihood.gradient(f, y), f)


def _shaped(name: str, found, f):
    if jnp.shape(found) != f.shape:
        raise ValueError(
            f"FromLoss: found {name} of shape {jnp.shape(found)} for one example's outputs "
            f"{f.shape}, expected the same shape; {name} is called for one example at a time."
        )
    return jnp.asarray(found, f.dtype)


def _refuse_targets(tangents):
    leaves = jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    if not all(isinstance(leaf, SymbolicZero) for leaf in leaves):
        raise TypeError(
            "FromLoss: found a derivative in the targets, expected one only in the outputs if "
            "gradient or hessian_mv is given; leave both to autodiff."
        )


def _check_signature(name: str, fn: Callable, arguments: str):
    """Raise a `TypeError` unless `fn` takes these arguments; some builtins have no signature."""
    expected = f"expected a function {arguments} of one example"
    if not callable(fn):
        raise TypeError(f"FromLoss: found {name} of type {type(fn).__name__}, {expected}.")
    try:
        signature = inspect.signature(fn)
    except ValueError:
        return
    try:
        signature.bind(*arguments.strip("()").split(", "))
    except TypeError as error:
        raise TypeError(
            f"FromLoss: found {name}{signature}, {expected}; wrap it in one with these arguments."
        ) from error
