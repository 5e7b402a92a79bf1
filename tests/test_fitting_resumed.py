"""Fits over a stream that are killed, and go on to the same posterior, bit for bit."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import loaders
import numpy as np
import pytest
import twins

import laplace_kit as lk

RNG = np.random.default_rng(3)
X = RNG.normal(size=(23, 3)).astype("float32")
Y = RNG.integers(0, 3, 23)
PARAMS = {
    "hidden": {"kernel": RNG.normal(size=(3, 4)).astype("float32"), "bias": np.ones(4, "float32")},
    "out": {"kernel": RNG.normal(size=(4, 3)).astype("float32")},
}
NUM = 8  # batches of three, the last of two


def model(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"]


def fit(loader, checkpoint=None, *, model_fn=model, params=PARAMS, **options) -> lk.Laplace:
    options = {"likelihood": "categorical", "structure": "diagonal"} | options
    return lk.fit(model_fn, params, loader, checkpoint=checkpoint, **options)


def assert_same(found: lk.Laplace, expected: lk.Laplace) -> None:
    parts = [(la.expansion, la.posterior, la.record.examples) for la in (found, expected)]
    jax.tree.map(np.testing.assert_array_equal, *parts)


STRUCTURES = {
    "diagonal": {},
    "kron": {},
    "ekfac": {},
    "full": {},
    "low_rank": {"rank": 3},
    "labels": {"structure": "kron", "curvature": "mc_fisher", "key": jax.random.key(5)},
    "last layer": {"structure": "full", "subset": "last_layer"},
}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[pytest.mark.slow] if k == "low_rank" else []) for k in STRUCTURES],
)
def test_a_fit_goes_on_in_the_pass_in_which_it_was_interrupted(kind, tmp_path):
    options = {"structure": kind} | STRUCTURES[kind]
    whole = loaders.LikeGrain(X, Y, 3)
    expected = fit(whole, **options)
    *_, before, last = whole.reads
    assert before == last == NUM
    stop = sum(whole.reads) - 3
    checkpoint = lk.Checkpoint(tmp_path, batches=2)
    with pytest.raises(loaders.Interrupted):
        fit(loaders.LikeGrain(X, Y, 3, stop=stop), checkpoint, **options)
    again = loaders.LikeGrain(X, Y, 3)
    assert_same(fit(again, checkpoint, **options), expected)
    # The first batch, the examples that are kept, and what is left of the last pass: of the five
    # batches that were summed, one, three and five had been saved.
    assert again.reads == [1, NUM, NUM - 5]
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", [loaders.Plain, loaders.LikeGrain, loaders.LikeTorchdata])
def test_a_fit_may_be_interrupted_again_and_again(kind, tmp_path):
    expected = fit(kind(X, Y, 3), structure="ekfac")
    checkpoint = lk.Checkpoint(tmp_path, batches=1)
    interruptions = 0
    while True:
        # Of its own, each attempt makes 1 + 8 reads; a plain loader also those that it skips.
        loader = kind(X, Y, 3, stop=12 + (NUM if kind is loaders.Plain else 0))
        try:
            found = fit(loader, checkpoint, structure="ekfac")
            break
        except loaders.Interrupted:
            interruptions += 1
    assert interruptions > 1
    if kind is loaders.LikeTorchdata:  # another order in each pass and process
        twins.assert_close(
            found.structure.blocks[0].values, expected.structure.blocks[0].values, dtype="float32"
        )
    else:
        assert_same(found, expected)


SCRIPT = """
    import os, signal, sys
    import jax, numpy as np
    import laplace_kit as lk

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3)).astype("float32"), rng.integers(0, 3, 20)
    params = rng.normal(size=(3, 3)).astype("float32")

    class Loader:
        def __init__(self, stop):
            self.stop, self.reads = stop, 0

        def __iter__(self):
            for low in range(0, 20, 2):
                if self.reads == self.stop:
                    os.kill(os.getpid(), signal.SIGKILL)
                self.reads += 1
                yield x[low : low + 2], y[low : low + 2]

    def fit(loader, checkpoint=None):
        model_fn = lambda params, x: x @ params
        return lk.fit(
            model_fn, params, loader, likelihood="categorical", structure="full",
            checkpoint=checkpoint,
        )

    checkpoint = lk.Checkpoint(sys.argv[1], batches=1)
    loader = Loader(int(sys.argv[2]))
    found = fit(loader, checkpoint)
    whole = Loader(-1)
    expected = fit(whole)
    jax.tree.map(np.testing.assert_array_equal, found.expansion, expected.expansion)
    jax.tree.map(np.testing.assert_array_equal, found.posterior, expected.posterior)
    print(loader.reads, whole.reads)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_in_another(tmp_path):
    def run(stop: int) -> subprocess.CompletedProcess:
        code = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), str(stop)]
        # Texts of programs must not depend on the order of sets.
        environment = os.environ | {"PYTHONHASHSEED": str(stop + 2)}
        return subprocess.run(code, env=environment, capture_output=True, text=True, check=False)

    killed = run(26)  # one batch, ten for the examples, ten at the mode and five of the curvature
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len([*tmp_path.glob("pass-*.npz")]) == 2
    done = run(-1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["21", "31"]  # without the pass that was finished
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
def test_a_fit_on_eight_devices_goes_on(axes):
    """Batches and parameters are spread over all of them."""
    twins.run_on_eight_devices(
        f"""
        import sys, tempfile
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import jax, jax.numpy as jnp, numpy as np
        import laplace_kit as lk, loaders
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(70, 8)).astype("float32"), rng.integers(0, 3, 70)
        kind = jax.sharding.AxisType.{axes}
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        by_rows = jax.NamedSharding(mesh, jax.P("data"))
        params = jax.device_put(rng.normal(size=(8, 3)).astype("float32"), by_rows)
        def fit(loader, checkpoint=None):
            batches = lk.data.shard_batches(loader, mesh)
            return lk.fit(
                lambda params, x: jnp.tanh(x) @ params, params, batches,
                likelihood="categorical", structure="kron", checkpoint=checkpoint,
            )
        whole = loaders.Plain(x, y, 16)
        expected = fit(whole)
        assert whole.reads == [1, 5, 5, 5]
        directory = tempfile.mkdtemp()
        try:
            fit(loaders.Plain(x, y, 16, stop=14), lk.Checkpoint(directory, batches=1))
            raise AssertionError
        except loaders.Interrupted:
            pass
        again = loaders.Plain(x, y, 16)
        found = fit(again, directory)
        assert again.reads == [1, 5, 5]
        jax.tree.map(np.testing.assert_array_equal, found.expansion, expected.expansion)
        """
    )


# --- another fit ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """The checkpoint of a fit that was interrupted."""
    path = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(loaders.Interrupted):
        fit(loaders.Plain(X, Y, 3, stop=21), lk.Checkpoint(path, batches=1))
    return path


def relu_model(params, x):
    hidden = jax.nn.relu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"]


def wider() -> dict:
    return {
        "hidden": {"kernel": np.ones((3, 5), "float32"), "bias": np.ones(5, "float32")},
        "out": {"kernel": np.ones((5, 3), "float32")},
    }


CHANGES = {
    "another value": ({"params": jax.tree.map(lambda a: a * 1.0000002, PARAMS)}, "the parameters"),
    "other shapes": ({"params": wider()}, r"the model or the loss and the parameters"),
    "another name": (
        {
            "params": {"hidden": PARAMS["hidden"], "output": PARAMS["out"]},
            "model_fn": lambda params, x: model({**params, "out": params["output"]}, x),
        },
        "the parameters and the subset",
    ),
    "another model": ({"model_fn": relu_model}, "the model or the loss"),
    "a frozen array": (
        {"model_fn": lambda params, x: model(params, x) + np.float32(0.5)},
        "the model or the loss",
    ),
    "another likelihood": (
        {"likelihood": lk.Categorical(label_smoothing=0.1)},
        "the model or the loss",
    ),
    "a loss": (
        {"likelihood": lk.FromLoss(lambda f, y: -jax.nn.log_softmax(f)[y] * 1.5)},
        "the model or the loss and the likelihood",
    ),
    "another structure": ({"structure": "kron"}, "the structure"),
    "another rank": ({"structure": "low_rank", "rank": 2}, "the structure"),
    "another curvature": ({"curvature": "empirical_fisher"}, "the curvature"),
    "labels": (
        {"curvature": "mc_fisher", "key": jax.random.key(1)},
        "the curvature and the key",
    ),
    "a subset": ({"subset": "last_layer"}, "the subset"),
    "a batch size": ({"batch_size": 2}, "the limits of memory"),
    "a memory limit": ({"memory_limit": 10**8}, "the limits of memory"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_fit_is_refused(change, interrupted):
    options, differing = CHANGES[change]
    loader = loaders.Plain(X, Y, 3)
    message = rf"another fit in '.*', which differs in {differing}; expected the fit that"
    with pytest.raises(ValueError, match=message):
        fit(loader, interrupted, **options)
    assert loader.reads == [1, NUM]  # no pass was made


def test_other_data_are_refused(interrupted):
    message = "differs in the {}; expected the fit"
    for loader, part in (
        (loaders.Plain(X, Y, 4), "shapes of batches and the model or the loss"),
        (loaders.Plain(X + 1, Y, 3), "first examples"),
        (loaders.Plain(X[::-1], Y[::-1], 3), "first examples"),
    ):
        with pytest.raises(ValueError, match=message.format(part)):
            fit(loader, interrupted)


def test_another_version_is_refused(interrupted, monkeypatch):
    monkeypatch.setattr("laplace_kit.job.__version__", "9.9")
    with pytest.raises(ValueError, match="differs in the versions, the precision or the device"):
        fit(loaders.Plain(X, Y, 3), interrupted)


def test_another_precision_is_refused(interrupted, x64):
    with pytest.raises(ValueError, match="differs in the versions, the precision or the device"):
        fit(loaders.Plain(X, Y, 3), interrupted)


def test_another_prior_goes_on_from_the_same_sums(interrupted, tmp_path):
    for file in interrupted.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    prior = {"prior_precision": 3.0, "prior_mean": 0.1}
    again = loaders.Plain(X, Y, 3)
    assert_same(fit(again, tmp_path, **prior), fit(loaders.Plain(X, Y, 3), **prior))
    assert again.reads == [1, NUM, NUM]


# --- what does not go on --------------------------------------------------------------------------


def test_sums_of_data_that_are_refused_are_forgotten(tmp_path):
    bad = X.copy()
    bad[20] = np.nan
    with pytest.raises(ValueError, match="inputs that are not finite"):
        fit(loaders.Plain(bad, Y, 3), tmp_path)
    assert [*tmp_path.iterdir()] == []
    assert_same(fit(loaders.Plain(X, Y, 3), tmp_path), fit(loaders.Plain(X, Y, 3)))


def test_a_posterior_that_does_not_exist_keeps_the_sums(tmp_path):
    """With a larger prior precision, the indefinite Hessian needs no further pass."""
    options = {"structure": "full", "curvature": "hessian"}
    with pytest.raises(ValueError, match="an indefinite curvature"):
        fit(loaders.Plain(X, Y, 3), tmp_path, prior_precision=1e-3, **options)
    again = loaders.Plain(X, Y, 3)
    fit(again, tmp_path, prior_precision=100.0, **options)
    assert again.reads == [1, NUM]


def test_data_in_memory_are_refused_before_the_model_is_called(tmp_path):
    def never(params, x):
        raise AssertionError

    with pytest.raises(TypeError, match=r"checkpoint= with data in memory, expected a stream"):
        fit((X, Y), tmp_path / "new", model_fn=never)
    assert not (tmp_path / "new").exists()


# --- bars -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("structure", "passes"),
    [
        ("diagonal", ["log-likelihood and gradient", "diagonal"]),
        (
            "ekfac",
            [
                "log-likelihood and gradient",
                "Kronecker factors",
                "second moments in the eigenbasis",
            ],
        ),
    ],
)
def test_bars_name_and_number_the_passes(structure, passes, capsys):
    fit(loaders.Plain(X, Y, 3), structure=structure, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    found = [f"pass {number}, {name}:" for number, name in enumerate(passes, 1)]
    places = [err.index(each) for each in found]
    assert places == sorted(places)
    assert f"pass {len(passes) + 1}," not in err
    assert "examples/s" in err
    assert "0.00/24.0" in err  # as many as there would be if the last batch were full
