"""What a label adds to a batch is what all configurations of labels say, by NumPy."""

import itertools

import exact
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

import laplace_kit as lk
from laplace_kit.eval import acquire, batch_information

KEY = jax.random.key(3)
POOL = np.random.default_rng(1).normal(size=(9, 3))


def binary() -> lk.Laplace:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3))
    y = (x[:, :1] > x[:, 1:2]).astype(float)
    options = {"structure": "full", "prior_precision": 2.0}
    mode = rng.normal(size=(3, 1))
    return lk.fit(lambda params, x: x @ params, mode, (x, y), likelihood="bernoulli", **options)


def drawn(la, num_samples: int) -> tuple[np.ndarray, lk.eval.FunctionSamples]:
    """Return the class probabilities of functions, `(N, K, C)`, by NumPy."""
    samples = la.sample_functions(KEY, num_samples)
    f = np.moveaxis(np.asarray(samples(POOL)), 0, 1)
    if f.shape[-1] == 1:
        return np.concatenate([special.expit(-f), special.expit(f)], axis=-1), samples
    return special.softmax(f, axis=-1), samples


def greedy(p: np.ndarray, num: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(num):
        free = [n for n in range(len(p)) if n not in chosen]
        chosen.append(max(free, key=lambda n: joint_information(p, [*chosen, n])))
    return chosen


def joint_information(p: np.ndarray, chosen: list[int]) -> float:
    """Return the mutual information of labels and functions, over all configurations."""
    total = 0.0
    for labels in itertools.product(range(p.shape[2]), repeat=len(chosen)):
        given = np.prod([p[n, :, c] for n, c in zip(chosen, labels, strict=True)], axis=0)
        total += special.entr(given.mean())
    return total - sum(special.entr(p[n]).sum(axis=-1).mean() for n in chosen)


def test_batch_bald_enumerates_labels(x64):
    la = binary()
    p, samples = drawn(la, 20)
    expected = greedy(p, 3)
    found = batch_information.batch_by_labels(samples, jnp.asarray(POOL), 9, 3, KEY)
    assert found.tolist() == expected
    few = batch_information.batch_by_labels(
        samples, jnp.asarray(POOL), 9, 3, KEY, num_configurations=4
    )
    assert few.tolist() == expected  # four configurations of the two labels before
    la = exact.fitted("full", "float64")
    p, samples = drawn(la, 15)
    expected = greedy(p, 4)
    found = batch_information.batch_by_labels(samples, jnp.asarray(POOL), 9, 4, KEY)
    assert found.tolist() == expected


def gains(p: np.ndarray, chosen: list[int], num_configurations: int, seed: int = 0) -> np.ndarray:
    """Return what each label adds, with configurations of the labels of those chosen."""
    found = batch_information._empty(num_configurations, p.shape[1], np.dtype("float64"))
    table, count = jnp.asarray(p), 1
    for step, n in enumerate(chosen):
        count *= p.shape[2]
        key = jax.random.fold_in(jax.random.key(seed), step)
        drawn = key if count > num_configurations else None
        found = batch_information._grown(None, table, n, found, drawn)
    return np.asarray(jax.jit(batch_information._gain)((None, found), table))


def test_what_a_label_adds(x64):
    p, _ = drawn(exact.fitted("full", "float64"), 15)
    chosen = [2, 5, 7]
    known = joint_information(p, chosen)
    expected = [joint_information(p, [*chosen, n]) - known for n in range(len(POOL))]
    np.testing.assert_allclose(gains(p, chosen, 27), expected, rtol=1e-9)
    np.testing.assert_allclose(gains(p, chosen, 64), expected, rtol=1e-9)
    found = np.mean([gains(p, chosen, 20, seed) for seed in range(300)], axis=0)
    np.testing.assert_allclose(found, expected, rtol=0.02)  # drawn: right on average


def test_batches_of_many_labels_do_not_underflow():
    rng = np.random.default_rng(0)
    pool = np.float32(rng.normal(size=(130, 3)))
    la = exact.fitted("full", "float32")
    chosen = acquire(la, pool, 120, method="batch_bald", key=KEY, num_samples=20)
    assert len(set(chosen.tolist())) == 120


def test_functions_are_evaluated_again_where_they_cannot_be_kept(x64, monkeypatch):
    la = exact.fitted("full", "float64")
    kept = acquire(la, POOL, 4, method="batch_bald", key=KEY, num_samples=15)
    monkeypatch.setattr(batch_information, "_SHARE", 1 << 60)
    again = acquire(la, POOL, 4, method="batch_bald", key=KEY, num_samples=15, batch_size=2)
    np.testing.assert_array_equal(again, kept)
