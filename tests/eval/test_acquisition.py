"""What is acquired is what dense covariances, quadrature and enumeration of labels would choose."""

import functools
import itertools

import exact
import jax
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree
from scipy import integrate, special

import laplace_kit as lk
from laplace_kit.eval import acquire, acquisition

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
POOL = np.random.default_rng(1).normal(size=(9, 3))
TARGET = np.random.default_rng(2).normal(size=(4, 3)) + 1
NOISE, DELTA = 0.5, 2.0
DESIGN = RNG.normal(size=(12, 3))


def linear(params, x):
    return x @ params


@functools.cache
def regression(num_outputs: int = 1, num_data: int = 12) -> lk.Laplace:
    y = RNG.normal(size=(12, num_outputs))
    mode = RNG.normal(size=(3, num_outputs))
    likelihood = lk.Gaussian(noise_std=NOISE)
    options = {"structure": "full", "prior_precision": DELTA}
    data = DESIGN[:num_data], y[:num_data]
    return lk.fit(linear, mode, data, likelihood=likelihood, **options)


@functools.cache
def binary(num_data: int = 12, delta: float = DELTA) -> lk.Laplace:
    y = (DESIGN @ np.asarray([1.0, -1.0, 0.5]) > 0)[:, None].astype(float)
    mode, data = RNG.normal(size=(3, 1)), (DESIGN[:num_data], y[:num_data])
    options = {"structure": "full", "prior_precision": delta}
    return lk.fit(linear, mode, data, likelihood="bernoulli", **options)


def of_network(kind: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class probabilities, and the dense covariance of outputs `(N, C, N, C)`."""
    params = twins.problem("mlp", "float64").params
    theta, unravel = ravel_pytree(params)
    jac = np.asarray(jax.jacobian(lambda t: twins.mlp(unravel(t), x))(theta))
    covariance = exact.covariance(kind, np.ones(31))
    joint = np.einsum("ncp,pq,mdq->ncmd", jac, covariance, jac)
    return special.softmax(np.asarray(twins.mlp(params, x)), axis=1), joint


def curvature_of_labels(probs: np.ndarray) -> np.ndarray:
    return np.einsum("nc,cd->ncd", probs, np.eye(probs.shape[1])) - np.einsum(
        "nc,nd->ncd", probs, probs
    )


def log_det(joint: np.ndarray, curvature: np.ndarray, chosen: list[int]) -> float:
    """Return log det(I + Lambda V) of a batch."""
    num, size = len(chosen), joint.shape[1]
    v = joint[np.ix_(chosen, range(size), chosen, range(size))].reshape(num * size, num * size)
    inner = np.zeros((num, size, num, size))
    inner[range(num), :, range(num)] = curvature[chosen]
    return np.linalg.slogdet(np.eye(num * size) + inner.reshape(num * size, num * size) @ v)[1]


def remaining_variance(joint, curvature, chosen: list[int], n: int) -> float:
    """Return the trace of the covariance of input n given labels of others."""
    num, size = len(chosen), joint.shape[1]
    v = joint[np.ix_(chosen, range(size), chosen, range(size))].reshape(num * size, num * size)
    inner = np.zeros((num, size, num, size))
    inner[range(num), :, range(num)] = curvature[chosen]
    inner = inner.reshape(num * size, num * size)
    cross = joint[n][:, chosen].reshape(size, -1)
    explained = cross @ np.linalg.solve(np.eye(num * size) + inner @ v, inner @ cross.T)
    return np.trace(joint[n, :, n] - explained)


def greedy(score, num: int, size: int) -> list[int]:
    """Return the inputs that maximise a score of those chosen before and one more."""
    chosen: list[int] = []
    for _ in range(num):
        free = [n for n in range(size) if n not in chosen]
        chosen.append(max(free, key=lambda n: score(chosen, n)))
    return chosen


# --- Gaussian outputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", exact.KINDS)
def test_greedy_choices_are_those_of_the_dense_covariance(kind, x64):
    la = exact.fitted(kind, "float64")
    probs, joint = of_network(kind, POOL)
    curvature = curvature_of_labels(probs)

    def information(chosen, n):
        return log_det(joint, curvature, [*chosen, n])

    def variance(chosen, n):
        return remaining_variance(joint, curvature, chosen, n)

    expected = greedy(information, 5, len(POOL))
    assert acquire(la, POOL, 5, method="logdet").tolist() == expected
    assert acquire(la, POOL, 5, method="variance").tolist() == greedy(variance, 5, len(POOL))


def test_all_of_the_pool_in_chunks(x64):
    la = exact.fitted("full", "float64")
    for method in ("logdet", "variance"):
        whole = acquire(la, POOL, len(POOL), method=method)
        assert sorted(whole.tolist()) == list(range(len(POOL)))
        parts = acquire(la, POOL, len(POOL), method=method, batch_size=2)
        np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_design_of_regression_is_d_optimal(num_outputs, x64):
    pool = np.random.default_rng(4).normal(size=(30, 3))
    precision = DESIGN.T @ DESIGN / NOISE**2 + DELTA * np.eye(3)

    def determinant(chosen, n):
        rows = pool[[*chosen, n]]
        return np.linalg.det(precision + rows.T @ rows / NOISE**2)

    expected = greedy(determinant, 6, len(pool))
    la = regression(num_outputs)
    assert acquire(la, pool, 6, method="logdet").tolist() == expected
    if num_outputs == 1:  # then the best of both criteria is the largest variance left
        assert acquire(la, pool, 6, method="variance").tolist() == expected


def test_pairs_against_all_pairs(x64):
    la = exact.fitted("full", "float64")
    probs, joint = of_network("full", POOL)
    values = {
        pair: log_det(joint, curvature_of_labels(probs), list(pair))
        for pair in itertools.combinations(range(len(POOL)), 2)
    }
    first, second = acquire(la, POOL, 2, method="logdet").tolist()
    found = values[min(first, second), max(first, second)]
    assert found == max(value for pair, value in values.items() if first in pair)
    assert found >= 0.75 * max(values.values())  # Nemhauser, Wolsey and Fisher (1978)


def test_large_noise_keeps_the_order_in_single_precision():
    rng = np.random.default_rng(6)
    x, pool = np.float32(rng.normal(size=(8, 2))), np.float32(rng.normal(size=(20, 2)))
    likelihood = lk.Gaussian(noise_std=1e4)
    mode = np.zeros((2, 1), np.float32)
    la = lk.fit(linear, mode, (x, x[:, :1]), likelihood=likelihood, prior_precision=1.0)
    first = acquire(la, pool, 1, method="logdet")[0]  # information of 1e-8, lost in one plus it
    assert first == np.argmax(np.sum(pool**2, axis=1))


def test_copies_are_chosen_last(x64):
    pool = np.concatenate([POOL[:4], POOL[:4] + 1e-9])
    for method in ("logdet", "variance"):
        la = regression(num_data=1)
        assert len(set((acquire(la, pool, 2, method=method) % 4).tolist())) == 2
    la = binary(num_data=1, delta=0.01)  # functions that differ by more than labels do by chance
    chosen = acquire(la, pool, 2, method="batch_bald", key=KEY) % 4
    assert chosen[0] != chosen[1]
    best = acquire(la, pool, 2, method="bald") % 4
    assert best[0] == best[1]


# --- labels ---------------------------------------------------------------------------------------


def test_bald_of_binary_labels_is_the_integral(x64):
    la = binary()
    covariance = np.linalg.inv(np.asarray(la.structure.matrix) + DELTA * np.eye(3))
    mean = POOL @ np.asarray(la.params)[:, 0]
    std = np.sqrt(np.einsum("np,pq,nq->n", POOL, covariance, POOL))

    def expected(fn, m, s):
        return integrate.quad(lambda z: fn(special.expit(m + s * z)) * np.exp(-(z**2) / 2), -9, 9)[
            0
        ] / np.sqrt(2 * np.pi)

    def entropy(p):
        return special.entr(p) + special.entr(1 - p)

    values = [
        entropy(expected(lambda p: p, m, s)) - expected(entropy, m, s)
        for m, s in zip(mean, std, strict=True)
    ]
    objective, posterior = la.objective.planned(POOL), la.posterior
    found = acquisition._mutual_information(objective, posterior, POOL, None, 2)
    np.testing.assert_allclose(found, values, rtol=1e-7)
    np.testing.assert_array_equal(acquire(la, POOL, 4), np.argsort(-np.asarray(values))[:4])


def test_bald_of_classes_is_that_of_draws(x64):
    la = exact.fitted("full", "float64")
    _, joint = of_network("full", POOL)
    f = np.asarray(twins.mlp(la.params, POOL))
    rng = np.random.default_rng(0)
    values = []
    for n in range(len(POOL)):
        p = special.softmax(rng.multivariate_normal(f[n], joint[n, :, n], 40_000), axis=1)
        values.append(special.entr(p.mean(0)).sum() - special.entr(p).sum(1).mean())
    objective, posterior = la.objective.planned(POOL), la.posterior
    found = acquisition._mutual_information(objective, posterior, POOL, KEY, 20_000)
    np.testing.assert_allclose(found, values, rtol=0.04)
    chosen = acquire(la, POOL, 9, key=KEY, num_samples=20_000)
    np.testing.assert_array_equal(chosen, np.argsort(-np.asarray(found), kind="stable"))
    parts = acquire(la, POOL, 9, key=KEY, num_samples=20_000, batch_size=2)
    np.testing.assert_array_equal(parts, chosen)


def drawn(la, x, num_samples: int) -> np.ndarray:
    """Return the class probabilities of functions, `(N, K, C)`, by NumPy."""
    samples = la.sample_functions(KEY, num_samples)
    return special.softmax(np.moveaxis(np.asarray(samples(x)), 0, 1), axis=-1)


# --- information about predictions ----------------------------------------------------------------


def test_epig_of_labels(x64):
    la = exact.fitted("full", "float64")
    p = drawn(la, POOL, 30)
    others = drawn(la, TARGET, 30)
    joint = np.einsum("nkc,tkd->ntcd", p, others) / 30
    product = np.einsum("nc,td->ntcd", p.mean(1), others.mean(1))
    expected = special.rel_entr(joint, product).sum(axis=(2, 3)).mean(axis=1)
    objective = la.objective.planned(POOL)
    found = acquisition._predictive_information(objective, la.posterior, POOL, TARGET, KEY, 30)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    chosen = acquire(la, POOL, 5, method="epig", target=TARGET, key=KEY, num_samples=30)
    np.testing.assert_array_equal(chosen, np.argsort(-expected)[:5])


@pytest.mark.parametrize("batch_size", [None, 2])
def test_epig_of_numbers(batch_size, x64):
    la = regression(2)
    covariance = np.linalg.inv(DESIGN.T @ DESIGN / NOISE**2 + DELTA * np.eye(3))
    both = np.concatenate([POOL, TARGET])
    joint = both @ covariance @ both.T
    own = np.diag(joint) + NOISE**2
    squares = joint[:9, 9:] ** 2 / (own[:9, None] * own[9:])
    expected = -np.log1p(-squares).mean(axis=1)  # half of it for each of two independent outputs
    objective = la.objective.planned(POOL).within(batch_size).planned(POOL)
    found = acquisition._predictive_information(objective, la.posterior, POOL, TARGET, None, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    chosen = acquire(la, POOL, 5, method="epig", target=TARGET, batch_size=batch_size)
    np.testing.assert_array_equal(chosen, np.argsort(-expected)[:5])


# --- cost, and what is refused --------------------------------------------------------------------


@pytest.mark.parametrize("method", acquisition.METHODS)
def test_a_smaller_pool_is_not_compiled_again(method):
    la = exact.fitted("diagonal", "float32")
    pool = np.float32(np.random.default_rng(0).normal(size=(40, 3)))
    target = np.float32(TARGET) if method == "epig" else None
    options = {"method": method, "target": target, "key": KEY, "num_samples": 8}
    with twins.compilations() as names:
        acquire(la, pool, 4, **options)
    assert 0 < len(names) < 20
    with twins.compilations() as names:
        for num in (39, 38, 37):
            chosen = acquire(la, pool[:num], 4, **options)
            assert chosen.max() < num
    assert not names


@pytest.mark.slow
def test_a_million_inputs():
    rng = np.random.default_rng(0)
    pool = np.float32(rng.normal(size=(1_000_000, 2)))
    x = np.float32(rng.normal(size=(8, 2)))
    la = lk.fit(
        linear,
        np.zeros((2, 1), np.float32),
        (x, x[:, :1]),
        likelihood=lk.Gaussian(noise_std=1.0),
        structure="full",
        prior_precision=1.0,
    )
    precision, expected = x.T @ x + np.eye(2), []
    for _ in range(3):
        scores = np.einsum("np,pq,nq->n", pool, np.linalg.inv(precision), pool)
        scores[expected] = 0
        expected.append(int(np.argmax(scores)))
        precision = precision + np.outer(pool[expected[-1]], pool[expected[-1]])
    assert acquire(la, pool, 3, method="logdet").tolist() == expected
    assert acquire(la, pool, 3, method="variance").tolist() == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "random"}, "Found method='random', expected one of 'bald'"),
        ({"num": 0}, "Found num=0, expected a whole number of inputs to label"),
        ({"num": 10}, "Found num=10 inputs to choose from a pool of 9, expected at most"),
        ({"key": None}, "Found no key, expected one to draw the logits"),
        ({"method": "batch_bald", "key": None}, "Found no key, expected one to draw functions"),
        ({"method": "epig"}, "Found no target inputs, expected some for method='epig'"),
        ({"method": "epig", "target": TARGET, "key": None}, "Found no key, expected one"),
        ({"target": TARGET}, "Found target inputs for method='bald', expected none"),
        ({"num_samples": 1}, "Found num_samples=1, expected a whole number of draws, at least 2"),
        ({"pool": np.full((9, 3), np.nan)}, "Found inputs that are not finite"),
        ({"pool": POOL[:, :2]}, "Found"),
    ],
)
def test_wrong_arguments(options, words, x64):
    options = {"pool": POOL, "num": 3, "key": KEY} | options
    with exact.as_users_call(), pytest.raises((ValueError, TypeError), match=words):
        acquire(exact.fitted("full", "float64"), **options)


def test_likelihoods_that_do_not_suit(x64):
    for method in ("bald", "batch_bald"):
        with pytest.raises(ValueError, match="for a Gaussian likelihood, expected one with class"):
            acquire(regression(), POOL, 2, method=method, key=KEY)
    problem = twins.problem("several_axes", "float64")
    data = problem.x, problem.y
    la = lk.fit(problem.model_fn, problem.params, data, likelihood="categorical")
    with pytest.raises(ValueError, match="with 2 labels for each input, expected one label"):
        acquire(la, problem.x, 2, method="batch_bald", key=KEY)
    assert len(acquire(la, problem.x, 2, key=KEY)) == 2


def test_memory_is_limited(x64):
    la = exact.fitted("full", "float64")
    small = la.objective.within(memory=30_000)

    class Posterior:
        objective, posterior = small, la.posterior

    pool = np.random.default_rng(0).normal(size=(500, 3))
    with pytest.raises(ValueError, match="are kept, expected at most the memory limit"):
        acquire(Posterior(), pool, 3, method="logdet")
