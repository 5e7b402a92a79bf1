"""Fingerprints of examples: they depend on every value and its place, and on nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from laplace_kit.curv.fingerprint import fingerprint


def by_python(example) -> int:
    """The same in exact integers, from MurmurHash3's published finaliser."""

    def mixed(word):
        word = ((word ^ (word >> 16)) * 0x85EBCA6B) % 2**32
        word = ((word ^ (word >> 13)) * 0xC2B2AE35) % 2**32
        return word ^ (word >> 16)

    words = np.concatenate([np.ravel(leaf) for leaf in example])
    bits = [int(np.float32(word).view(np.uint32)) for word in words]
    places = [mixed(place * 0x9E3779B9 % 2**32) for place in range(len(bits))]
    return mixed(sum(mixed(b ^ p) for b, p in zip(bits, places, strict=True)) % 2**32)


def test_fingerprints_are_those_of_exact_integers():
    x, y = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4), np.float32([0.0, 1e-9])
    assert int(fingerprint((jnp.asarray(x), jnp.asarray(y)))) == by_python((x, y))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "int8", "uint32", "bool", "complex64"])
def test_all_dtypes_count_with_every_entry(dtype, x64):
    values = np.asarray([0, 1, 0, 0])
    others = [np.where(np.arange(4) == i, 1 - values, values) for i in range(4)]
    found = {int(fingerprint(jnp.asarray(example, dtype))) for example in (values, *others)}
    assert len(found) == 5


def test_precision_beyond_float32_does_not_count(x64):
    x = jnp.asarray([0.1, 0.7])
    assert fingerprint(x) == fingerprint(x.astype(jnp.float32)) == fingerprint(x + 1e-12)


def test_random_keys_and_imaginary_parts_count():
    assert fingerprint(jax.random.key(0)) != fingerprint(jax.random.key(1))
    assert fingerprint(jnp.asarray([1 + 2j])) != fingerprint(jnp.asarray([1 - 2j]))


def test_places_count():
    x = jnp.asarray([[0.0, 1.0], [2.0, 3.0]])
    variants = (x, x.T, x[::-1], x[:, ::-1], (x[:1], x[:1]), jnp.zeros((2, 2)), jnp.zeros((2, 3)))
    assert len({int(fingerprint(variant)) for variant in variants}) == len(variants)


def test_many_similar_examples_differ_and_fill_all_bits():
    """All pairs of ones among zeros, as one-hot encodings and binary images are."""
    rows, columns = np.triu_indices(200, 1)
    x = np.zeros((len(rows), 200), np.float32)
    x[np.arange(len(x)), rows] = x[np.arange(len(x)), columns] = 1
    found = np.asarray(jax.jit(jax.vmap(fingerprint))(x))
    expected_pairs = len(x) ** 2 / 2**33  # 0.05
    assert len(x) - len(set(found.tolist())) <= 1 > expected_pairs
    bits = (found[:, None] >> np.arange(32)) & 1
    np.testing.assert_allclose(bits.mean(axis=0), 0.5, atol=5 * 0.5 / np.sqrt(len(x)))
    counts = np.bincount(found >> 24, minlength=256)
    assert chisquare(counts).pvalue > 1e-4
