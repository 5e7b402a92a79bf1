"""The benchmarks measure what they say: turns, budgets, verdicts, and networks of known layers."""

from collections import Counter

import numpy as np
import pytest

from benchmarks import memory, timing
from benchmarks.memory import Loader, Measurement, Setting, measure_here
from benchmarks.products import per_product
from benchmarks.timing import Job, Timing, measure, table
from benchmarks.workloads import lenet, transformer
from laplace_kit.curv import coverage


@pytest.fixture
def clock(monkeypatch):
    """Time stands still but for what jobs take."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def job_of(seconds, **targets):
        calls = []

        def run():
            # The first call compiles, as it were, for a second.
            now[0] += seconds + (not calls)
            calls.append(now[0])

        return Job(f"{seconds} s", run, (), **targets), calls

    return job_of


def test_jobs_take_turns_within_their_budget(clock):
    (yardstick, yardstick_calls), (fast, fast_calls), (slow, slow_calls) = map(
        clock, (0.5, 0.25, 4.0)
    )
    timings = measure([yardstick, fast, slow], repetitions=12, budget=8.0)
    # Twelve times half a second is within the budget. The budget has room for two turns of four
    # seconds, but three are the fewest.
    assert [len(calls) for calls in (yardstick_calls, fast_calls, slow_calls)] == [13, 13, 4]
    assert [timing.first for timing in timings] == [1.5, 1.25, 5.0]
    for found, seconds in zip(timings, (0.5, 0.25, 4.0), strict=True):
        np.testing.assert_allclose(found.steady, seconds)
        np.testing.assert_allclose(found.ratios, seconds / 0.5)
        assert found.compilation == 1.0


@pytest.mark.slow
def test_cold_jobs_are_warmed_up_after_their_first_calls(clock):
    jobs, calls = zip(*(clock(seconds) for seconds in (0.5, 0.25)), strict=True)
    measure(jobs, repetitions=2, cold=True)
    assert list(map(len, calls)) == [4, 4]


def test_gradients_are_for_one_of_several_products(clock):
    (yardstick, _), (several, _) = clock(0.5), clock(4.0, target=0.6)
    timed = measure([yardstick, several], repetitions=3)[1]
    found = per_product(timed, 16)
    np.testing.assert_allclose(found.steady, 4.0)
    np.testing.assert_allclose(found.ratios, 4.0 / 16 / 0.5)
    assert found.verdict() == "0.6 gradients: met"
    assert timed.verdict() == "0.6 gradients: missed"


def test_loader_makes_the_same_ragged_batches_again():
    loader = Loader(num_examples=7, num_features=2, batch_size=3)
    first, second = list(loader), list(loader)
    assert [x.shape for x, _ in first] == [(3, 2), (3, 2), (1, 2)]
    for (x, y), (x_again, y_again) in zip(first, second, strict=True):
        assert len(x) == len(y)
        np.testing.assert_array_equal(x, x_again)
        np.testing.assert_array_equal(y, y_again)


@pytest.mark.parametrize("over_loader", [False, True])
def test_memory_is_that_of_a_product_over_idle(monkeypatch, over_loader):
    """Resident memory is that of the empty process, then with data, then at the peak."""
    resident = iter([100.0, 110.0, 150.0])
    monkeypatch.setattr(memory, "resident_memory", lambda field: next(resident))
    setting = Setting(widths=(3, 4, 10), num_examples=(), batch_size=4)
    found = measure_here(setting, 10, over_loader)
    assert found.num_params == 3 * 4 + 4 + 4 * 10 + 10
    assert (found.data, found.peak) == (10.0, 40.0)
    assert found.compiled >= 1
    assert found.again == 0


def test_growth_compares_peaks():
    few, many = (Measurement(1, 0.0, peak, 1.0, 2, 0) for peak in (100.0, 109.0))
    assert memory.growth(few, many) == "grows by a factor of 1.09; target 1.1: met"
    assert memory.growth(many, few).endswith("0.92; target 1.1: met")
    assert memory.growth(few, Measurement(1, 0.0, 111.0, 1.0, 2, 0)).endswith("missed")
    row = memory.table({(True, 10_000): many}).splitlines()[-1]
    assert row == "| loader | 10,000 | 0 | 109 | 1.00 | 2, then 0 |"


def test_table_compares_medians_with_targets():
    steady, ratios = np.array([0.1, 0.2, 0.6]), np.array([1.0, 2.0, 6.0])
    jobs = [
        Job("a", max, (), target=2.0),
        Job("b", max, (), target=1.9),
        Job("c", max, (), seconds=0.3),
        Job("d", max, (), seconds=0.1),
        Job("e", max, ()),
    ]
    lines = table([Timing(job, 1.0, steady, ratios) for job in jobs]).splitlines()[2:]
    ends = ["2 gradients: met", "1.9 gradients: missed", "0.3 s: met", "0.1 s: missed", ""]
    for job, line, end in zip(jobs, lines, ends, strict=True):
        assert line == f"| {job.name} | 1.00 | 200.00 | 2.00 (1.50 to 4.00) | {end} |"


@pytest.mark.parametrize(
    ("make", "counts"),
    [
        (lenet, {"convolution": 2, "dense": 3, "bias": 5}),
        (transformer, {"embedding": 2, "dense": 13, "bias": 18, "scale": 5}),
    ],
)
def test_networks_are_made_of_layers_that_are_captured(make, counts):
    workload = make(num_examples=2)
    found = coverage(workload.model_fn, workload.params, workload.x)
    assert Counter(leaf.kind for leaf in found) == counts
    weights = [leaf for leaf in found if leaf.kind in ("convolution", "dense", "embedding")]
    assert {leaf.method for leaf in weights} <= {"factors", "lookup"}
