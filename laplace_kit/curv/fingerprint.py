"""A hash of each example's values, to fold into a random key.

Draws with that key depend on the example and not on its position: a loader may shuffle, and batches
may have any size. Examples whose values are all equal, to float32 precision, have the same hash.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

# The golden ratio's fraction: multiples of it are spread evenly over all 32 bits.
_GOLDEN = 0x9E3779B9


def fingerprint(example: PyTree) -> UInt32[Array, ""]:
    """Return a 32-bit hash of all entries of an example and their positions.

    Two different examples have the same hash with a probability of one in four billion.

    Parameters
    ----------
    example
        A pytree of arrays of any dtype without a leading axis of examples, such as `(x_n, y_n)`.
        Floating-point numbers count to float32 precision.

    Returns
    -------
    print
        Cost: about ten integer operations per entry.

    References
    ----------
    Appleby (2011), MurmurHash3: its finaliser, applied to each word; the results are added.
    """
    total, start = jnp.uint32(0), 0
    for leaf in jax.tree.leaves(example):
        words = _words(leaf)
        places = start + jnp.arange(words.size, dtype=jnp.uint32)
        mixed = _mixed(words ^ _mixed(places * jnp.uint32(_GOLDEN)))
        total += jnp.sum(mixed, dtype=jnp.uint32)
        start += words.size
    return _mixed(total)


def _words(leaf: Array) -> UInt32[Array, " n"]:
    """Return the bits of every entry."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        leaf = jnp.stack([leaf.real, leaf.imag])
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        leaf = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
    return jnp.ravel(leaf).astype(jnp.uint32)


def _mixed(words: UInt32[Array, "*n"]) -> UInt32[Array, "*n"]:
    """Mix the bits of each word by MurmurHash3's finaliser; zero stays zero."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
