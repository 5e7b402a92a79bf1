"""The record of a fit: what each step leaves in it."""

import jax
import numpy as np
import twins

import laplace_kit as lk


def test_a_record_follows_fit_tune_update_and_save(tmp_path):
    problem = twins.problem("mlp", "float32")
    data = problem.x, problem.y
    la = lk.fit(problem.model_fn, problem.params, data, likelihood=problem.likelihood)
    assert la.record.tuning is None
    assert np.array_equal(la.record.examples.x, problem.x)

    tuned = la.tune()
    assert tuned.record.tuning.prior_precision == tuned.prior_precision
    assert tuned.record.choice == la.record.choice
    assert tuned.with_prior(2.0).record.tuning is None

    updated = tuned.update(data)
    assert len(updated.record.examples.x) == 2 * len(problem.x)

    la.save(tmp_path / "la.npz")
    loaded = lk.load(tmp_path / "la.npz", problem.model_fn).record
    assert loaded.examples is None
    assert loaded.coverage == la.record.coverage


def test_a_record_passes_through_a_compiled_function():
    problem = twins.problem("mlp", "float32")
    data = problem.x, problem.y
    record = lk.fit(problem.model_fn, problem.params, data, likelihood=problem.likelihood).record
    again = jax.jit(lambda record: record)(record)
    assert jax.tree.structure(again) == jax.tree.structure(record)
    assert float(again.jitter) == float(record.jitter)
