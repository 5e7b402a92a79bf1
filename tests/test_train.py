"""Training by the evidence ends where it is largest, and does not recompile on the way."""

from collections import Counter

import exact
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from exact import linear
from scipy.optimize import minimize

import laplace_kit as lk
from laplace_kit import train, tree
from laplace_kit.data import InMemory
from laplace_kit.train import train_with_evidence
from laplace_kit.tree import pytree_dataclass

MEAN = 0.2
REGRESSION = exact.regression(num=40)
NUM_OUTPUTS = REGRESSION.y.shape[1]


def train_linear(data=None, **options) -> train.EvidenceTraining:
    params = REGRESSION.unravel(np.zeros(REGRESSION.num_params))
    defaults = {"likelihood": "gaussian", "structure": "full", "key": jax.random.key(0)}
    defaults |= {"num_epochs": 6, "refit_every": 2, "burn_in": 0}
    data = (REGRESSION.x, REGRESSION.y) if data is None else data
    return train_with_evidence(linear, params, data, **defaults | options)


def by_leaf(precisions) -> np.ndarray:
    """Repeat one precision, or that of the bias and that of the weight, for every parameter."""
    num = REGRESSION.num_params
    sizes = [num] if len(precisions) == 1 else [NUM_OUTPUTS, num - NUM_OUTPUTS]
    return np.repeat(precisions, sizes)


def best_linear(num_precisions: int):
    """Return the precisions, noise, mode and evidence that maximise the exact evidence."""

    def at(z) -> exact.Regression:
        return exact.Regression(REGRESSION.x, REGRESSION.y, noise_std=float(np.exp(z[-1])))

    mean = np.full(REGRESSION.num_params, MEAN)

    def loss(z):
        return -at(z).log_evidence(by_leaf(np.exp(z[:-1])), mean)

    found = minimize(loss, np.zeros(num_precisions + 1), tol=1e-12)
    precisions = np.exp(found.x[:-1])
    mode, _ = at(found.x).posterior(by_leaf(precisions), mean)
    return precisions, np.exp(found.x[-1]), mode, -found.fun


# --- linear regression, where the optimum is known ------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("per_leaf", "optimizer", "refit_every"),
    [(False, optax.lbfgs(), 3), (True, optax.adam(0.05), 25)],
    ids=["one precision", "one for each leaf"],
)
def test_finds_the_exact_optimum_of_the_evidence(per_leaf, optimizer, refit_every, x64):
    """Prior precisions, noise and weights all converge to the maximum of log N(y; ...)."""
    precisions, noise_std, mode, evidence = best_linear(1 + per_leaf)
    found = train_linear(
        num_epochs=25 * refit_every,
        refit_every=refit_every,
        optimizer=optimizer,
        prior_mean=MEAN,
        per_leaf=per_leaf,
        prior_precision=30.0,
    )
    la = found.la
    np.testing.assert_allclose(jax.tree.leaves(la.prior_precision), precisions, rtol=1e-5)
    np.testing.assert_allclose(la.likelihood.noise_std, noise_std, rtol=1e-6)
    np.testing.assert_allclose(lk.tree.ravel(la.mode), mode, atol=1e-6)
    twins.assert_close(la.log_marginal_likelihood(), evidence)
    assert np.all(np.diff(found.history.log_marginal_likelihood) > -1e-8)  # block by block, uphill


def shuffled_batches() -> list[tuple]:
    order = np.random.default_rng(0).permutation(len(REGRESSION.y))
    x, y = np.float32(REGRESSION.x[order]), np.float32(REGRESSION.y[order])
    return twins.batches(x, y, 16, 16, 8)


@pytest.mark.parametrize("data", [None, shuffled_batches()], ids=["memory", "ragged stream"])
def test_minibatches_of_single_precision_come_close(data):
    size = 16 if data is None else None
    found = train_linear(
        data, num_epochs=200, prior_mean=MEAN, train_batch_size=size, refit_every=25
    )
    precisions, noise_std, mode, evidence = best_linear(1)
    np.testing.assert_allclose(found.la.prior_precision, precisions[0], rtol=1e-2)
    np.testing.assert_allclose(found.la.likelihood.noise_std, noise_std, rtol=1e-2)
    np.testing.assert_allclose(lk.tree.ravel(found.la.mode), mode, atol=1e-2)
    np.testing.assert_allclose(found.la.log_marginal_likelihood(), evidence, atol=0.05)


def test_the_loss_is_the_objective_per_example(x64):
    """Without steps the parameters stay: the sum, and the penalty of the start, by hand."""
    found = train_linear(
        num_epochs=1,
        optimizer=optax.sgd(0.0),
        prior_mean=MEAN,
        prior_precision=3.0,
        likelihood=lk.Gaussian(0.5),
    )
    residuals = REGRESSION.y / 0.5
    loss = 0.5 * np.sum(residuals**2 + np.log(2 * np.pi * 0.5**2))
    loss += 0.5 * 3.0 * REGRESSION.num_params * MEAN**2
    twins.assert_close(found.history.loss, np.array([loss / len(REGRESSION.y)]))


def test_noise_that_is_not_given_is_learned_however_that_is_said(x64):
    by_name, by_object = (
        train_linear(likelihood=likelihood, num_epochs=2)
        for likelihood in ("gaussian", lk.Gaussian())
    )
    np.testing.assert_array_equal(by_name.history.noise_std, by_object.history.noise_std)
    assert by_name.history.noise_std[-1] != 1
    assert not by_name.la.likelihood.known


def test_the_noise_of_masked_targets_is_learned_from_the_observed_ones(x64):
    """Targets that are missing add nothing: those of ten more examples, which may be NaN."""
    x, y = (np.concatenate([part, part[:10]]) for part in (REGRESSION.x, REGRESSION.y))
    is_seen = np.arange(len(x))[:, None] < len(REGRESSION.x)
    options = {"num_epochs": 2, "optimizer": optax.lbfgs(), "train_batch_size": 50}
    masked = train_linear(
        (x, (np.where(is_seen, y, np.nan), is_seen)),
        likelihood=lk.Masked(lk.Gaussian()),
        **options,
    )
    observed = train_linear(likelihood=lk.Gaussian(), **options)
    stds = masked.history.noise_std, observed.history.noise_std
    assert masked.la.likelihood.likelihood.noise_std == stds[0][masked.history.epoch == 2]
    np.testing.assert_allclose(*stds, rtol=1e-6)


def test_noise_that_is_known_is_kept_unless_asked_for(x64):
    kept = train_linear(likelihood=lk.Gaussian(0.7))
    np.testing.assert_array_equal(kept.history.noise_std, [0.7, 0.7, 0.7])
    learned = train_linear(likelihood=lk.Gaussian(0.7), noise="evidence")
    assert np.all(learned.history.noise_std != 0.7)
    assert learned.la.likelihood.noise_std == learned.history.noise_std[-1]


# --- data -----------------------------------------------------------------------------------------


def test_one_batch_in_a_stream_equals_the_same_in_memory(x64):
    pair = (REGRESSION.x, REGRESSION.y)
    streamed, whole = train_linear([pair]), train_linear(pair)
    for a, b in zip(*map(jax.tree.leaves, (streamed.history, whole.history)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_weights_are_copies_in_every_epoch(x64):
    weights = np.arange(len(REGRESSION.y)) % 3
    rows = np.repeat(np.arange(len(weights)), weights)
    copies = train_linear((REGRESSION.x[rows], REGRESSION.y[rows]))
    data = (REGRESSION.x, REGRESSION.y, weights)
    for found in (train_linear(data), train_linear([data])):
        # Adam divides by the size of the gradients, but for a small number
        np.testing.assert_allclose(found.history.loss, copies.history.loss, rtol=1e-6)
        for name in ("log_marginal_likelihood", "noise_std", "prior_precision"):
            a, b = (getattr(training.history, name) for training in (found, copies))
            np.testing.assert_allclose(a, b, rtol=1e-6)


@pytree_dataclass()
class _Visits:
    """A loss whose gradient counts how often each example was seen."""

    num: int = 11

    def __call__(self, params, chunk):
        return jnp.sum(params[chunk.y] * chunk.weight)


@pytest.mark.parametrize(("asked", "size"), [(3, 3), (10, 6), (None, 11)])
def test_an_epoch_visits_every_example_once(asked, size):
    data = InMemory(jnp.zeros((11, 1)), jnp.arange(11))
    assert train._minibatch_size(data, asked) == size
    optimizer = optax.sgd(-1.0)
    start = jnp.zeros(11)
    state = (start, optimizer.init(start))
    (visits, _), _ = train._scan_epoch(_Visits(), optimizer, state, data, jax.random.key(0), size)
    np.testing.assert_array_equal(visits, np.ones(11))
    weights = jnp.arange(11.0)
    data = InMemory(data.x, data.y, weights=weights)
    (visits, _), _ = train._scan_epoch(_Visits(), optimizer, state, data, jax.random.key(0), size)
    np.testing.assert_array_equal(visits, weights)


def test_frozen_leaves_stay_and_counts_have_no_noise():
    problem = twins.problem("with_integers")
    found = train_with_evidence(
        problem.model_fn,
        problem.params,
        (problem.x, problem.y),
        likelihood=problem.likelihood,
        num_epochs=2,
        key=jax.random.key(0),
        structure="diagonal",
    )
    assert found.history.noise_std is None
    assert not found.stopped_early
    moved = 0
    leaves = zip(*map(jax.tree.leaves, (problem.params, found.la.params)), strict=True)
    for before, after in leaves:
        assert before.dtype == after.dtype
        if jnp.issubdtype(before.dtype, jnp.floating):
            moved += bool(jnp.any(before != after))
        else:
            np.testing.assert_array_equal(before, after)
    assert moved


def test_parameters_that_are_one_array(x64):
    """They are trained, and the evidence follows, as in a dictionary."""
    weight = np.zeros((REGRESSION.x.shape[1], NUM_OUTPUTS))
    options = {"likelihood": lk.Gaussian(0.5), "structure": "full", "num_epochs": 1}
    options["key"] = jax.random.key(0)
    data = (REGRESSION.x, REGRESSION.y)
    bare = train_with_evidence(lambda w, x: x @ w, jnp.asarray(weight), data, **options)
    named = train_with_evidence(
        lambda params, x: x @ params["w"], {"w": jnp.asarray(weight)}, data, **options
    )
    np.testing.assert_allclose(bare.la.mode, named.la.mode["w"], rtol=1e-10)
    assert np.abs(bare.la.mode).max() > 0.005  # Adam moved it by its rate
    np.testing.assert_allclose(
        bare.history.log_marginal_likelihood, named.history.log_marginal_likelihood, rtol=1e-10
    )


# --- a network on noisy data ----------------------------------------------------------------------


def network(params, x):
    return jnp.tanh(x @ params["in"]["kernel"] + params["in"]["bias"]) @ params["out"]


def noisy_sine(seed: int, num: int):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-3, 3, (num, 1))
    y = np.sin(2 * x) + 0.3 * rng.normal(size=x.shape)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def train_network(**options) -> train.EvidenceTraining:
    rng = np.random.default_rng(1)
    params = {
        "in": {"kernel": 2 * rng.normal(size=(1, 12)), "bias": 2 * rng.normal(size=12)},
        "out": 0.3 * rng.normal(size=(12, 1)),
    }
    defaults = {"likelihood": "gaussian", "num_epochs": 150, "structure": "kron"}
    return train_with_evidence(
        network,
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params),
        noisy_sine(0, 50),
        key=jax.random.key(0),
        optimizer=_ADAM,
        **defaults | options,
    )


_ADAM = optax.adam(3e-2)  # made once: an optimiser is part of the program


@pytest.fixture(scope="module")
def trained():
    """Return a network trained by the evidence until patience ended it."""
    return train_network(num_epochs=2000, per_leaf=True, patience=6, burn_in=50)


@pytest.mark.slow
def test_the_evidence_grows_and_patience_ends_training(trained):
    history = trained.history
    evidence = history.log_marginal_likelihood
    best = int(np.argmax(evidence))
    assert trained.stopped_early
    assert len(history.loss) == history.epoch[-1] < 2000
    assert len(evidence) == best + 1 + 6
    assert evidence[best] > evidence[0] + 3
    np.testing.assert_array_equal(history.epoch, 55 + 5 * np.arange(len(evidence)))
    assert float(trained.la.log_marginal_likelihood()) == evidence[best]
    chosen = jax.tree.map(lambda leaf: leaf[best], history.prior_precision)
    pairs = zip(*map(jax.tree.leaves, (trained.la.prior_precision, chosen)), strict=True)
    for found, expected in pairs:
        assert found == expected
    np.testing.assert_allclose(history.noise_std[best], 0.3, rtol=0.3)


def test_predicts_better_than_with_a_bad_prior(trained):
    test = noisy_sine(1, 200)
    learned = trained.la.evaluate(test)["nll"]
    for precision in (1e-4, 30.0):
        fixed = train_network(refit_every=150, prior_precision=precision).la
        at_start = fixed.with_prior(precision)
        assert learned < at_start.evaluate(test)["nll"] - 0.02


# --- what users see -------------------------------------------------------------------------------


def test_the_checkpoint_is_the_best_posterior_and_training_goes_on_from_it(tmp_path):
    path = tmp_path / "best.npz"
    found = train_linear(checkpoint=path, per_leaf=True)
    assert [file.name for file in tmp_path.iterdir()] == ["best.npz"]
    read = lk.load(path, linear)
    saved = (read, found.la)
    for a, b in zip(*(jax.tree.leaves((la.params, la.posterior)) for la in saved), strict=True):
        np.testing.assert_array_equal(a, b)
    assert read.likelihood.noise_std == found.la.likelihood.noise_std
    assert float(read.log_marginal_likelihood()) == float(found.la.log_marginal_likelihood())
    resumed = train_with_evidence(
        linear,
        read.params,
        (REGRESSION.x, REGRESSION.y),
        likelihood=read.likelihood,
        prior_precision=read.prior_precision,
        noise="evidence",
        per_leaf=True,
        num_epochs=2,
        key=jax.random.key(1),
        structure="full",
    )
    best = found.history.log_marginal_likelihood.max()
    assert resumed.history.log_marginal_likelihood[-1] > best


def test_the_progress_bar_shows_epochs_and_the_evidence(capsys):
    found = train_linear(progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epochs: 100%" in shown.err
    assert f"{found.history.log_marginal_likelihood[-1]:.3g}"[:4] in shown.err
    assert "pass" not in shown.err  # in memory there is none to see


def test_each_pass_over_a_stream_has_a_bar(capsys):
    data = twins.Loader(REGRESSION.x, REGRESSION.y, 16)
    train_linear(data, num_epochs=1, progress=True)
    shown = capsys.readouterr().err
    first, epoch, refit = "log-likelihood and gradient:", "training:", "dense matrix:"
    assert shown.index("epochs:") < shown.index(epoch)
    assert shown.index(first) < shown.index(epoch) < shown.rindex(refit)
    assert "0.00/48.0" in shown  # as if the last batch of the three were like the first


def with_unused(params, x):
    return linear(params["used"], x)


def test_a_precision_at_a_bound_is_said_once():
    """A leaf far from zero that nothing depends on asks for as little precision as there is."""
    used = REGRESSION.unravel(np.full(REGRESSION.num_params, 0.3))
    params = {"used": used, "unused": jnp.ones(3)}
    with pytest.warns(
        UserWarning, match="At epoch .*largest evidence in 4 refits: .*bound"
    ) as seen:
        found = train_with_evidence(
            with_unused,
            params,
            (REGRESSION.x, REGRESSION.y),
            likelihood="gaussian",
            num_epochs=8,
            key=jax.random.key(0),
            optimizer=optax.sgd(0.0),
            structure="diagonal",
            per_leaf=True,
            refit_every=2,
            burn_in=0,
        )
    assert len(seen) == 1
    assert len(found.history.epoch) == 4
    assert found.la.prior_precision["unused"] < 2e-4


@pytest.mark.parametrize("streamed", [False, True])
def test_neither_epochs_nor_refits_compile_the_training_step_again(streamed):
    data = twins.batches(REGRESSION.x, REGRESSION.y, 16, 16, 8) if streamed else None
    with twins.compilations() as names:
        train_linear(data, optimizer=_ADAM, num_epochs=6)
    counts = Counter(names)
    assert counts["jit(_training_step)"] + counts["jit(_scan_epoch)"] == 1
    with twins.compilations() as names:  # only the bookkeeping of so many refits, if that
        train_linear(data, optimizer=_ADAM, num_epochs=12, prior_precision=2.0)
    assert not {"jit(_training_step)", "jit(_scan_epoch)"} & set(names)


ERRORS = [
    ({"num_epochs": 0}, "num_epochs=0"),
    ({"refit_every": 0}, "refit_every=0"),
    ({"patience": 0}, "patience=0"),
    ({"train_batch_size": 0}, "train_batch_size=0"),
    ({"burn_in": 6}, "burn_in=6 for num_epochs=6"),
    ({"burn_in": -1}, "burn_in=-1"),
    ({"optimizer": optax.adam}, "expected an optax.GradientTransformation"),
    ({"likelihood": "poisson", "noise": "evidence"}, "Found a Poisson likelihood.*noise='keep'"),
    ({"prior_precision": -1.0}, "expected positive"),
    ({"data": [(REGRESSION.x, REGRESSION.y)], "train_batch_size": 4}, "train_batch_size=4 with a"),
    ({"data": iter([])}, "one-shot iterator"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_wrong_options_are_refused_before_training(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        train_linear(**options)


def test_a_checkpoint_that_cannot_be_written_is_refused_before_training(tmp_path):
    for path in (tmp_path / "missing" / "best.npz", tmp_path):
        with pytest.raises(FileNotFoundError, match="expected the path of a file"):
            train_linear(checkpoint=path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_parameters_that_are_a_module(tmp_path):
    """A `Partial` is a pytree of a class that files do not know."""
    module = jax.tree_util.Partial(linear, REGRESSION.unravel(np.zeros(REGRESSION.num_params)))
    training = train_with_evidence(
        lambda module, x: module(x),
        module,
        (REGRESSION.x, REGRESSION.y),
        likelihood="gaussian",
        structure="full",
        num_epochs=1,
        key=jax.random.key(0),
        checkpoint=tmp_path / "best.npz",
    )
    again = lk.load(tmp_path / "best.npz", lambda module, x: module(x), params=module)
    assert jax.tree.structure(again.params) == jax.tree.structure(module)
    np.testing.assert_array_equal(tree.ravel(again.mode), tree.ravel(training.la.mode))


def test_training_that_diverges_is_stopped_with_a_remedy():
    with pytest.raises(ValueError, match="training diverged; lower the learning rate"):
        train_linear(optimizer=optax.sgd(1e30))
