"""The accelerator that JAX sees, as JSON: `python -m benchmarks.gpu.card`.

Its peaks are measured, with a product of two large square matrices, and not those of its vendor.
"""

import json
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import machine

# A name, the dtype of the matrices, and the precision that JAX is asked for.
KINDS = (
    ("float32, default precision", jnp.float32, "default"),
    ("float32, highest precision", jnp.float32, "highest"),
    ("bfloat16", jnp.bfloat16, "default"),
)
DEFAULT = KINDS[0][0]


def describe() -> dict[str, Any]:
    """Return the machine, whether JAX sees an accelerator, its memory in MB, peaks in FLOP/s."""
    device = jax.devices()[0]
    is_gpu = device.platform != "cpu"
    size = 8192 if is_gpu else 256
    stats = device.memory_stats() or {}
    return {
        "machine": machine(),
        "is_gpu": is_gpu,
        "memory": stats["bytes_limit"] / 1e6 if "bytes_limit" in stats else None,
        "size": size,
        "peaks": {name: peak(*kind, size) for name, *kind in KINDS},
    }


def peak(dtype: Any, precision: str, size: int, repetitions: int = 10) -> float:
    """Return the FLOP/s of a product of square matrices, the fastest of several."""
    values = np.random.default_rng(0).normal(size=(size, size))
    matrix = jnp.asarray(values, dtype)
    product = jax.jit(partial(jnp.matmul, precision=precision))
    seconds = []
    for _ in range(repetitions + 1):  # the first one compiles
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


if __name__ == "__main__":
    print(json.dumps(describe()))
