"""A number for every example, made of its own values, to fold into a random key.

What is drawn with that key follows the example wherever it comes: a loader may shuffle, and batches
may be of any size. Examples that are equal in all of their values, to float32 precision, have the
same number.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, UInt32

# The golden ratio's fraction: multiples of it are spread evenly over all 32 bits.
_GOLDEN = 0x9E3779B9


def fingerprint(example: PyTree) -> UInt32[Array, ""]:
    """Return 32 bits that depend on every entry of an example and on its place.

    Two examples that differ have the same ones with a probability of one in four billion.

    Parameters
    ----------
    example
        A pytree of arrays of any dtype without a leading axis of examples, such as `(x_n, y_n)`.
        Floating-point numbers count to float32 precision.

    Returns
    -------
    print
        Cost: some ten operations on integers for every entry.

    References
    ----------
    Appleby (2011), MurmurHash3: its mixing of one word, of which those of all places are added.
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
    """Return words each of whose bits depends on all bits of what they were; zero stays zero."""
    words = (words ^ (words >> 16)) * jnp.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * jnp.uint32(0xC2B2AE35)
    return words ^ (words >> 16)
