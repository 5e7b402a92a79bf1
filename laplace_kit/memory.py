"""Memory limits of operations, and the number of examples that fit in them."""

import dataclasses
import functools
import math
import os
import socket
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.tree_util import Partial
from jaxtyping import PyTree

from laplace_kit.host import agree, spans_processes
from laplace_kit.placement import shapes
from laplace_kit.program import programs_in
from laplace_kit.tree import as_pytree_function
from laplace_kit.xla_cpu import is_meant_for_cpu

_MEBIBYTE = 1024**2
_SHARE = 4  # an operation may take this fraction, 1 / _SHARE, of the device's memory
# On a CPU, arrays that leave the caches cost more to read than to compute.
_CACHED = 12 * _MEBIBYTE
# An allocator returns larger blocks to the system, which clears every page of them for the next
# call. glibc keeps blocks of up to 32 MiB; XLA holds a third of all intermediate values, as they
# are counted here, at a time. Chunks that are cut from the data also hold a slice of them, and are
# as fast with half the examples.
_RECYCLED = 80 * _MEBIBYTE
# A chunk with this many times the bytes of the sum spends little of its time on adding.
_CHUNK_TO_SUM = 8
# If each example uses a weight once, adding two gradients takes as long as about ten examples.
_EXAMPLES_WORTH_A_SUM = 512
# The best number of examples in a chunk whose values fill the caches in any case. With K vectors
# every example takes K times the cache, while the fixed cost of a chunk stays: the optimum falls as
# the square root of K. It is not a power of two, as arrays of such sizes compete for the same sets
# of a cache.
_EXAMPLES_WORTH_A_CHUNK = 25


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of the memory of every operation on a model.

    `batch_size` is the number of examples held at a time, at most; `None` chooses it. `memory` is
    in bytes; `None` takes a quarter of the first device's (of the host's, if the device does not
    report its own). It is a share of the total and not of the free memory, so that two runs choose
    the same shapes and compile the same programs. `device` is one of those that programs will run
    on, where these are of another platform than JAX's default; see `shared_by`.

    Raises
    ------
    ValueError
        If one of them is neither `None` nor positive, or `batch_size` is not whole.
    """

    batch_size: int | None = None
    memory: int | None = None
    device: jax.Device | None = None

    def __post_init__(self):
        size = self.batch_size
        if size is not None and (size < 1 or size != int(size)):
            raise ValueError(
                f"Found batch_size={size}, expected a positive number of whole examples, or None "
                "to choose it from the memory limit."
            )
        if self.memory is not None and self.memory <= 0:
            raise ValueError(
                f"Found memory_limit={self.memory}, expected a positive number of bytes, for "
                "example 2 * 1024**3; or pass None for a share of the device's memory."
            )

    @property
    def reused(self) -> int:
        """The bytes of a step's values whose buffers successive calls can reuse."""
        return min(self.budget, _RECYCLED) if self._is_for_cpu else self.budget

    @property
    def _is_for_cpu(self) -> bool:
        return is_meant_for_cpu() if self.device is None else self.device.platform == "cpu"

    @property
    def budget(self) -> int:
        """The memory in bytes that one operation may take."""
        if self.memory is not None:
            return int(self.memory)
        of_host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return (_device_memory(self.device) or of_host) // _SHARE

    def shared_by(self, *trees: PyTree, shared: bool = False) -> "Limits":
        """Return limits for these arrays, and that processes agree on if any array spans these.

        Chunks, and the structure that `lk.Auto` chooses, follow from the memory; they must be the
        same in every process. It is the smallest share of any process, where those on one machine
        divide its memory among themselves. Every process must call this then. `shared` says that
        they pass over a stream together.
        """
        device = self.device or _other_device(trees)
        limits = self if device is self.device else dataclasses.replace(self, device=device)
        if self.memory is not None or not (shared or spans_processes(trees)):
            return limits
        return dataclasses.replace(limits, memory=_agreed_budget(limits.device))

    def working_set(self, sum_bytes: int = 0) -> int:
        """Return the bytes of a chunk if small chunks cost little: on a CPU, what fits the caches.

        Parameters
        ----------
        sum_bytes
            The size of the sum to which each chunk is added.
        """
        limit = self.budget
        return min(limit, max(_CACHED, _CHUNK_TO_SUM * sum_bytes)) if self._is_for_cpu else limit

    def chunk_size(self, bytes_per_example: int) -> int:
        """Return the number of examples that fit in memory, at least one."""
        return self.batch_size or max(self.budget // max(bytes_per_example, 1), 1)

    def summed_chunk(
        self,
        num_examples: int,
        bytes_per_example: int,
        sum_bytes: int = 0,
        num_vectors: int = 1,
    ) -> int:
        """Return the number of examples to hold at a time in a sum over data, at least one.

        On a CPU, enough that the allocator can reuse their buffers: all of them if they fit in 80
        MiB, otherwise half as many as fit; elsewhere as many as the budget allows. Chunks are as
        even as possible.

        Parameters
        ----------
        num_examples
            The number of all examples.
        bytes_per_example
            All intermediate values of one example, as `activation_bytes` counts them.
        sum_bytes
            The size of the sum to which each chunk is added.
        num_vectors
            The number of vectors that share a pass through the model.
        """
        if self.batch_size:
            return self.batch_size
        unit, size = max(bytes_per_example, 1), self.chunk_size(bytes_per_example)
        if self._is_for_cpu:
            whole = _RECYCLED // unit
            recycled = whole if num_examples <= whole else whole // 2
            for_sums = min(_CHUNK_TO_SUM * sum_bytes // unit, _EXAMPLES_WORTH_A_SUM)
            for_pass = round(_EXAMPLES_WORTH_A_CHUNK / math.sqrt(max(num_vectors, 1)))
            size = min(max(recycled, for_sums, for_pass), size)
        return evenly(num_examples, size)


DEFAULT_LIMITS = Limits()


def _other_device(trees: PyTree) -> jax.Device | None:
    """Return the device of the first committed array, if it is of another platform than usual."""
    for leaf in jax.tree.leaves(trees):
        is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        if is_array and leaf.committed:
            own = leaf.sharding.addressable_devices
            device = min(own, key=lambda device: device.id, default=None)
            is_other = device is not None and is_meant_for_cpu() != (device.platform == "cpu")
            return device if is_other else None
    return None


def _device_memory(device: jax.Device | None = None) -> int | None:
    """Return the memory of a device, by default the first one, where it reports its own."""
    device = device or jax.local_devices()[0]
    return (device.memory_stats() or {}).get("bytes_limit")


@functools.cache
def _agreed_budget(device: jax.Device | None = None) -> int:
    """Return the least budget of all processes; they ask each other once."""
    machines = agree(zlib.crc32(socket.gethostname().encode()))
    budgets = agree(Limits(device=device).budget // _MEBIBYTE)  # a number of 32 bits
    if _device_memory(device) is None:  # a machine's memory, which its processes share
        budgets = budgets // np.sum(machines[:, None] == machines, axis=1)
    return max(int(budgets.min()), 1) * _MEBIBYTE


def evenly(num_examples: int, size: int) -> int:
    """Return the smallest chunk size that gives as many chunks as `size` does."""
    return -(-num_examples // -(-num_examples // size))


def readable(num_bytes: int | float) -> str:
    """Return a number of bytes as text with a unit, as in `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"


_WORDS_ABOUT_MESHES = ("mesh", "Mesh", "shard", "Shard", "PartitionSpec")


def apply_model(model_fn: Partial, params: PyTree, x: PyTree) -> PyTree:
    """Call a model; if it refuses the examples, raise a `ValueError` that names their shape.

    If it refuses the mesh that it is called under, or that arrays lie on, the error says so.
    """
    try:
        return model_fn(params, x)
    except jax.errors.ConcretizationTypeError:  # JAX's message explains the fault in the model
        raise
    except (TypeError, ValueError) as error:
        shapes = ", ".join(f"{leaf.shape[1:]} {leaf.dtype}" for leaf in jax.tree.leaves(x))
        reason, *_ = str(error).split("\n")
        if any(word in reason for word in _WORDS_ABOUT_MESHES):
            raise ValueError(
                f"Found a model whose shardings JAX refuses ({type(error).__name__}: {reason}), "
                "expected one that can be called as it was in training, also with one example; "
                "call this function under the model's mesh, `with jax.set_mesh(mesh):`, and let "
                "the model not reshard along the axis of examples."
            ) from error
        raise ValueError(
            f"Found examples of shape {shapes}, which the model refuses "
            f"({type(error).__name__}: {reason}); expected inputs with a "
            "leading axis of examples, each as the model was trained on, for model_fn(params, x)."
        ) from error


@jax.jit
def _call(fn: Partial, *args: PyTree) -> PyTree:
    return fn(*args)  # JAX caches the traces of one jitted function


def activation_bytes(model_fn: Callable, params: PyTree, x: PyTree) -> int:
    """Return a bound on the bytes of intermediate values one more example adds to a forward pass.

    Traces the model abstractly for one and for two examples and compares the sizes of everything
    the two programs compute; no arithmetic is done.

    Parameters
    ----------
    model_fn
        `(params, x) -> outputs`.
    params, x
        Arrays or `jax.ShapeDtypeStruct`s; the leading axis of `x` is replaced.
    """
    model_fn = as_pytree_function(model_fn)

    def total(num: int) -> int:
        def resize(leaf):
            return jax.ShapeDtypeStruct((num, *leaf.shape[1:]), leaf.dtype)

        traced = _call.trace(*shapes((model_fn, params)), jax.tree.map(resize, x))
        return intermediate_bytes(traced.jaxpr.jaxpr)

    own = sum(leaf.dtype.itemsize * leaf.size // leaf.shape[0] for leaf in jax.tree.leaves(x))
    return max(total(2) - total(1), 0) + own


def intermediate_bytes(program: ClosedJaxpr | Jaxpr) -> int:
    """Return the bytes of all values that a program computes, in all iterations of its loops.

    Derivatives of it may keep as many.
    """
    num = 0
    for equation in program.eqns:
        inner = [intermediate_bytes(inner) for inner in programs_in(equation.params)]
        num += sum(inner) * equation.params.get("length", 1)
        num += 0 if inner else _result_bytes(equation)
    return num


def held_bytes(program: ClosedJaxpr | Jaxpr) -> int:
    """Return the bytes of all values that a program computes and may hold at once.

    A loop counts with one iteration and its results, branches with the largest one.
    """
    num = 0
    for equation in program.eqns:
        inner = [held_bytes(inner) for inner in programs_in(equation.params)]
        num += max(inner, default=0)
        is_call = inner and equation.primitive.name not in ("scan", "while")
        num += 0 if is_call else _result_bytes(equation)
    return num


def _result_bytes(equation: JaxprEqn) -> int:
    return sum(
        v.aval.size * jnp.dtype(v.aval.dtype).itemsize
        for v in equation.outvars
        if hasattr(v.aval, "size") and not jax.dtypes.issubdtype(v.aval.dtype, jax.dtypes.extended)
    )
