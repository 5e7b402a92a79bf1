"""Twins for tests: tiny models, and the dense matrices that every product must agree with.

The definitions are written down a second time, in terms of `jax.jacobian`, `jax.hessian` and
`jax.scipy.stats` alone, so that nothing of the library is compared with itself.
"""

import contextlib
import dataclasses
import functools
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats

from laplace_kit import curv
from laplace_kit.likelihood import (
    Bernoulli,
    Categorical,
    FromLoss,
    Gaussian,
    Likelihood,
    Poisson,
)

NOISE_STD = 0.7

# Relative to the largest entry of what is compared.
TOLERANCE = {"float32": 1e-4, "float64": 1e-10}


@dataclasses.dataclass(frozen=True)
class Problem:
    """A tiny model with data; `loss` is the negative log-likelihood of one example."""

    model_fn: Callable
    params: Any
    x: Any
    y: Any
    likelihood: Likelihood
    loss: Callable

    @property
    def num_examples(self) -> int:
        return len(self.y)

    @property
    def args(self) -> tuple:
        """The arguments of an operator, with the data in memory."""
        return self.model_fn, self.params, (self.x, self.y), self.likelihood

    def vectors(self, num: int) -> jax.Array:
        """Return `(num, P)` flat vectors."""
        leaves = [leaf for leaf in jax.tree.leaves(self.params) if is_floating(leaf)]
        size = sum(leaf.size for leaf in leaves)
        values = np.random.default_rng(1).normal(size=(num, size))
        return array(values, np.result_type(*(leaf.dtype for leaf in leaves)))


def array(values: Any, dtype: Any = None) -> jax.Array:
    """Return an array on the device, without the program that `jnp.asarray` compiles for it."""
    return jax.device_put(np.asarray(values, dtype))


def is_floating(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


# --- models ---------------------------------------------------------------------------------------


def mlp(params, x):
    for layer in params["hidden"]:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x @ params["out"]["kernel"] + params["out"]["bias"]


def convnet(params, x):
    x = jax.lax.conv_general_dilated(
        x, params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(x).mean(axis=(1, 2)) @ params["out"]


def two_inputs(params, x):
    return jnp.tanh(x["left"] @ params[0] + x["right"] @ params[1]) @ params[2]


def several_axes(params, x):
    return jnp.tanh(jnp.einsum("ni,ipc->npc", x, params["kernel"])) * params["gain"]


def with_integers(params, x):
    return jnp.tanh(x[:, params["columns"]] @ params["kernel"]) * params["power"] ** 2


def bare(params, x):
    return jnp.tanh(x @ params)


# --- losses of one example, from their definitions ------------------------------------------------


def gaussian_loss(f, y):
    return -stats.norm.logpdf(y, f, NOISE_STD).sum()


def categorical_loss(f, y):
    labels = jax.nn.one_hot(y, f.shape[-1], dtype=f.dtype)
    return jnp.sum(jax.scipy.special.logsumexp(f, axis=-1) - jnp.sum(labels * f, axis=-1))


def bernoulli_loss(f, y):
    return -jnp.sum(y * jnp.log(jax.nn.sigmoid(f)) + (1 - y) * jnp.log(1 - jax.nn.sigmoid(f)))


def poisson_loss(f, y):
    return -stats.poisson.logpmf(y, jnp.exp(f)).sum()


def log_cosh_loss(f, y):
    return jnp.sum(jnp.log(jnp.cosh(f - y))) + 0.1 * jnp.sum(f) ** 2


# --- problems -------------------------------------------------------------------------------------


def problem(name: str, dtype: str = "float32") -> Problem:
    """Return one of `NAMES`; call it inside `jax.enable_x64` for float64."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        # Of float32 precision, so that both dtypes mean the same matrices.
        return array(rng.normal(size=shape).astype(np.float32), dtype)

    def labels(high, *shape):
        return array(rng.integers(0, high, shape))

    if name == "mlp":
        params = {
            "hidden": [{"kernel": normal(3, 4), "bias": normal(4)}],
            "out": {"kernel": normal(4, 3), "bias": normal(3)},
        }
        return Problem(mlp, params, normal(7, 3), labels(3, 7), Categorical(), categorical_loss)
    if name == "convnet":
        params = {"conv": normal(2, 2, 2, 3), "out": normal(3, 2)}
        likelihood = Gaussian(noise_std=NOISE_STD)
        return Problem(convnet, params, normal(5, 4, 4, 2), normal(5, 2), likelihood, gaussian_loss)
    if name == "two_inputs":
        x = {"left": normal(6, 2), "right": normal(6, 3)}
        params = (normal(2, 3), normal(3, 3), normal(3, 2))
        y = array(labels(2, 6, 2), dtype)
        return Problem(two_inputs, params, x, y, Bernoulli(), bernoulli_loss)
    if name == "several_axes":
        params = {"kernel": normal(3, 2, 3), "gain": normal(2, 3)}
        y = labels(3, 5, 2)
        return Problem(several_axes, params, normal(5, 3), y, Categorical(), categorical_loss)
    if name == "with_integers":
        params = {
            "columns": array([2, 0]),
            "kernel": normal(2, 3),
            "power": array(1.5, dtype),
            "step": array(7),
        }
        y = labels(5, 6, 3)
        return Problem(with_integers, params, normal(6, 3), y, Poisson(), poisson_loss)
    if name == "bare":
        likelihood = FromLoss(log_cosh_loss, sampler=_normal_labels)
        return Problem(bare, normal(3, 2), normal(6, 3), normal(6, 2), likelihood, log_cosh_loss)
    raise KeyError(name)


NAMES = ("mlp", "convnet", "two_inputs", "several_axes", "with_integers", "bare")

# Every operator is to equal its definition on these: an MLP, a convnet, dict inputs, several axes.
MAIN = NAMES[:4]

# Every model in float64; in float32 the two whose sums are the longest.
CASES = [*((name, "float64") for name in NAMES), ("mlp", "float32"), ("convnet", "float32")]


def _normal_labels(key, f):
    return f + jax.random.normal(key, f.shape, f.dtype)


def precision(dtype: str):
    """Return the context in which arrays of this dtype can be made."""
    return jax.enable_x64(dtype == "float64")


# --- dense definitions ----------------------------------------------------------------------------


def flat(problem: Problem) -> tuple[jax.Array, Callable]:
    """Return the floating-point parameters as a vector, and the outputs as a function of it."""
    leaves, structure = jax.tree.flatten(problem.params)
    floating = [is_floating(leaf) for leaf in leaves]
    free = [leaf for leaf, ok in zip(leaves, floating, strict=True) if ok]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in free):
        theta = jnp.concatenate([leaf.ravel() for leaf in free])
    else:
        theta = array(np.concatenate([np.ravel(leaf) for leaf in free]))
    stops = np.cumsum([leaf.size for leaf in free])

    def outputs(theta):
        parts = iter(jnp.split(theta, stops[:-1]))
        whole = [
            next(parts).reshape(leaf.shape) if ok else leaf
            for leaf, ok in zip(leaves, floating, strict=True)
        ]
        return problem.model_fn(jax.tree.unflatten(structure, whole), problem.x)

    return theta, outputs


def total_loss(problem: Problem) -> Callable:
    """Return the summed negative log-likelihood as a function of the flat parameters."""
    _, outputs = flat(problem)
    return lambda theta: jax.vmap(problem.loss)(outputs(theta), problem.y).sum()


def jacobian(problem: Problem) -> jax.Array:
    """Return the Jacobian of all outputs, `(N, *event, P)`."""
    theta, outputs = flat(problem)
    return jax.jacobian(outputs)(theta)


def gauss_newton(jac: jax.Array, factors: jax.Array) -> jax.Array:
    """Return the sum of J_n^T s_nr s_nr^T J_n for factors `(N, R, *event)`."""
    jac = jac.reshape(len(jac), -1, jac.shape[-1])
    rows = jnp.einsum("ncp,nrc->nrp", jac, factors.reshape(*factors.shape[:2], -1))
    return jnp.einsum("nrp,nrq->pq", rows, rows)


def hessian(problem: Problem) -> jax.Array:
    return jax.hessian(total_loss(problem))(flat(problem)[0])


def ggn(problem: Problem) -> jax.Array:
    theta, outputs = flat(problem)
    jac = jacobian(problem)
    jac = jac.reshape(len(jac), -1, len(theta))
    inner = jax.vmap(jax.hessian(problem.loss))(outputs(theta), problem.y)
    inner = inner.reshape(len(jac), jac.shape[1], jac.shape[1])
    return jnp.einsum("ncp,ncd,ndq->pq", jac, inner, jac)


def empirical_fisher(problem: Problem) -> jax.Array:
    theta, outputs = flat(problem)
    per_example = jax.jacobian(lambda t: jax.vmap(problem.loss)(outputs(t), problem.y))(theta)
    return per_example.T @ per_example


@functools.cache
def dense(definition: Callable, name: str) -> np.ndarray:
    """Return one of the matrices above for the problem `name`, computed in float64."""
    with precision("float64"):
        defined = problem(name, "float64")
        return np.asarray(jax.jit(lambda: definition(defined))())


# --- operators ------------------------------------------------------------------------------------

_DEFINITIONS = {"ggn": ggn, "hessian": hessian, "empirical_fisher": empirical_fisher}


def operators(problem: Problem, **options) -> dict[str, curv.SelfAdjointOperator]:
    """Return the four curvature operators of a problem by name."""
    return {
        "ggn": curv.GGNOperator(*problem.args, **options),
        "hessian": curv.HessianOperator(*problem.args, **options),
        "empirical_fisher": curv.EmpiricalFisherOperator(*problem.args, **options),
        "mc_fisher": curv.MonteCarloFisherOperator(
            *problem.args, key=jax.random.key(0), num_samples=2, **options
        ),
    }


def matrices(operators: dict, name: str) -> dict[str, np.ndarray]:
    """Return the dense matrices that they claim to be; the labels drawn are the operator's own."""
    defined = {kind: dense(definition, name) for kind, definition in _DEFINITIONS.items()}
    return defined | {"mc_fisher": np.asarray(operators["mc_fisher"].to_dense())}


# --- comparisons ----------------------------------------------------------------------------------


def assert_close(found, expected, *, dtype: str = "float64", rtol: float | None = None) -> None:
    """Compare arrays, relative to the largest expected entry; NaN is never close."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    bound = (TOLERANCE[dtype] if rtol is None else rtol) * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)


def forms(operator, v, vs) -> tuple:
    """Return all that an operator can do as a matrix."""
    return operator.to_dense(), operator.diagonal(), operator.mv(v), operator.matmat(vs)


def assert_is(operator, matrix: np.ndarray, dtype: str, *, transform: Callable = jax.jit) -> None:
    """Check every form of an operator against the dense matrix it claims to be.

    By default in one compiled program; a stream of batches needs `transform=lambda fn: fn`.
    """
    num = len(matrix)
    vs = np.random.default_rng(2).normal(size=(3, num)).astype(dtype)
    assert operator.shape == (num, num)
    assert operator.dtype == dtype
    found = transform(forms)(operator, vs[0], vs)
    assert all(array.dtype == dtype for array in found)
    assert_close(found[0], matrix, dtype=dtype)
    assert_close(found[1], np.diag(matrix), dtype=dtype)
    assert_close(found[2], matrix @ vs[0], dtype=dtype)
    assert_close(found[3], vs @ matrix, dtype=dtype)


# --- loaders, compilations, programs --------------------------------------------------------------


class Loader:
    """Like a torch `DataLoader`: iterated again and again, it gives lists of NumPy arrays."""

    def __init__(self, x, y, batch_size: int):
        self.x, self.y = jax.tree.map(np.asarray, (x, y))
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.y) / self.batch_size)

    def __iter__(self) -> Iterator[list]:
        for low in range(0, len(self.y), self.batch_size):
            rows = slice(low, low + self.batch_size)
            yield [jax.tree.map(lambda leaf: leaf[rows], self.x), self.y[rows]]  # noqa: B023


def batches(x, y, *sizes: int) -> list[tuple]:
    """Cut data into a list of batches of the given sizes."""
    stops = np.cumsum(sizes)
    assert stops[-1] == len(y)
    return [
        jax.tree.map(lambda leaf: leaf[stop - size : stop], (x, y))  # noqa: B023
        for size, stop in zip(sizes, stops, strict=True)
    ]


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collect the names of the programs that are compiled inside the context."""
    names = []

    def listen(event: str, duration: float, **metadata) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(metadata.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def constants(program: str, *, larger_than: int = 4) -> list[str]:
    """Return the types of the array constants, other than one value repeated, in StableHLO text."""
    found = []
    for value, kind in re.findall(r"stablehlo\.constant (.*?) : tensor<([^>]*)>", program):
        size = math.prod(int(part) for part in re.findall(r"(\d+)x", kind))
        is_repeated = re.fullmatch(r"dense<[\w.+-]+>", value)
        if size > larger_than and not is_repeated:
            found.append(kind)
    return found


# --- several devices ------------------------------------------------------------------------------


def run_on_eight_devices(code: str) -> None:
    """Run code in a process whose CPU counts as eight devices; a failure there is one here."""
    environment = os.environ | {
        "XLA_FLAGS": " ".join(
            [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
        ),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path]),
    }
    code = textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr.decode()
