"""What is measured on a GPU: operations are counted, tests read, results kept at once."""

import dataclasses
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.flops import product_flops
from benchmarks.gpu import card, tables, twins
from benchmarks.gpu.__main__ import FULL, QUICK, installed
from benchmarks.peers import compare, page, workloads
from benchmarks.peers.adapters.jax_networks import NETWORKS, cross_entropy
from benchmarks.peers.compare import OURS, PEERS, Measurement, Setting
from benchmarks.peers.tables import Results

# --- operations -----------------------------------------------------------------------------------


def test_operations_of_a_gradient_are_those_of_its_products():
    widths, num = (5, 7, 3), 11
    params = [jnp.ones(shape) for n, m in itertools.pairwise(widths) for shape in ((n, m), (m,))]
    x, y = jnp.ones((num, 5)), jnp.zeros(num, int)

    def loss(params):
        return cross_entropy(NETWORKS["mlp"](params, x), y)

    forward = 2 * num * (5 * 7 + 7 * 3)
    assert product_flops(loss, params) == forward
    # The weights' gradients cost as much, and those of the hidden units as the second layer.
    assert product_flops(jax.grad(loss), params) == 2 * forward + 2 * num * 7 * 3


def test_operations_of_convolutions_loops_and_branches():
    image, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 2, 6))

    def convolve(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=2
        )

    assert product_flops(convolve, image, kernel) == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 2)
    matrix = jnp.ones((3, 3))

    def loop(matrix):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, c), None), matrix, None, 5)[0]

    def branch(matrix):
        several = [lambda a: a, lambda a: a @ a @ a]
        return jax.lax.cond(matrix[0, 0] > 0, *several, matrix)

    assert product_flops(loop, matrix) == 5 * 2 * 27
    assert product_flops(branch, matrix) == 2 * 2 * 27


def test_peak_is_the_rate_of_the_fastest_product(monkeypatch):
    clock = iter([0.0, 9.0, 0.0, 0.5, 0.0, 0.25])
    monkeypatch.setattr(card.time, "perf_counter", lambda: next(clock))
    assert card.peak(jnp.float32, "highest", 4, repetitions=2) == 2 * 64 / 0.25


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", QUICK)
def test_networks_take_their_parameters(step):
    found = step.make()
    outputs = NETWORKS[found.kind](found.params, found.x)
    assert outputs.shape == (len(found.x), found.params[-1].size)
    assert np.isfinite(outputs).all()


def test_the_causal_network_sees_no_later_position():
    found = QUICK[0].make()
    tokens, positions, *rest = found.params
    changed = found.x.copy()
    changed[:, -1] = (changed[:, -1] + 1) % len(tokens)
    # Read at the last position, which a copy of the network that ends sooner has not reached.
    sooner = [tokens, positions[:-1], *rest]
    both = [NETWORKS["gpt"](sooner, x[:, :-1]) for x in (found.x, changed)]
    np.testing.assert_array_equal(*both)
    masked = NETWORKS["gpt"](found.params, found.x)
    assert np.abs(masked - NETWORKS["gpt"](found.params, changed)).max() > 1e-3


def test_a_workload_of_many_arrays_comes_back_in_order(tmp_path):
    found = workloads.gpt(width=8, num_blocks=7, vocabulary=5, length=3, num_examples=2)
    assert len(found.params) > 100
    found.save(tmp_path / "workload.npz")
    again = type(found).load(tmp_path / "workload.npz")
    assert [p.shape for p in again.params] == [p.shape for p in found.params]


# --- tests ----------------------------------------------------------------------------------------

PRINTED = """
tests/curv/test_a.py::test_one[mlp-float64] PASSED                       [ 10%]
[gw1] [ 20%] PASSED tests/curv/test_a.py::test_one[mlp-float32]
[gw0] [ 30%] FAILED tests/curv/test_b.py::test_two
[gw0] [ 40%] ERROR tests/curv/test_b.py::test_three
FAILED tests/curv/test_b.py::test_two - assert 1 == 2
"""


def test_outcomes_are_read_from_what_pytest_prints():
    found = twins.outcome(PRINTED, 3.0, False)
    failed = ("tests/curv/test_b.py::test_three", "tests/curv/test_b.py::test_two")
    assert found == twins.Outcome(2, failed, 3.0, False)
    said = tables.tested(found)
    assert said.startswith("The time was not enough for all tests marked for it: 2 tests")
    assert "**failed: tests/curv/test_b.py::test_three, tests/curv/test_b.py::test_two**" in said


def test_tests_that_take_too_long_are_ended():
    start = time.monotonic()
    found = twins.run(0.2, on_gpu=False, arguments=("tests/curv/test_ggn.py",))
    assert not found.is_complete
    assert time.monotonic() - start < 10


# --- results --------------------------------------------------------------------------------------


@pytest.fixture
def findings():
    def measured(job, seconds, **more):
        return Measurement("GPT", job, OURS.name, 2.0, (seconds,), on_device=500.0, **more)

    rows = (measured("gradient", 0.01, flops=2e10), measured("GGN product", 0.02, flops=3e10))
    about = {"machine": {"device": "a card"}, "size": 8, "memory": 2000.0}
    peaks = {name: 1e13 for name, *_ in card.KINDS}
    tests = twins.Outcome(7, (), 3.0, True)
    results = Results({}, {OURS.name: {"jax": "1"}}, {"GPT": "a network"}, rows)
    return tables.Findings(about | {"peaks": peaks}, tests, results)


def test_findings_come_back_from_their_file(findings, tmp_path):
    findings.write(tmp_path / "gpu.json")
    assert tables.Findings.read(tmp_path / "gpu.json") == findings
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    text = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in page.SECTIONS)
    assert "| GGN product | 2.00 | 20.0 | 2.00 | 1.5 | 15% | 0.5 |" in page.renewed(text, tmp_path)


def test_the_page_shows_rates_and_what_was_to_be_reached(findings):
    text = "\n".join(tables.page(findings))
    assert "| GPT: GGN product, gradients for each | at most 1.5 | 2 | **missed** |" in text
    assert "| GPT: peak of all its jobs, of the card's memory | at most 1 | 0.25 | met |" in text
    assert "7 tests against dense definitions passed there" in text
    nothing = dataclasses.replace(findings, tests=None, results=Results({}, {}, {}, ()))
    assert len(list(tables.page(nothing))) == 2


def test_each_measurement_is_kept_at_once_and_none_begun_late(monkeypatch):
    class Answers:
        def __init__(self, *arguments):
            assert arguments[-1]  # on the GPU

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def offer(self):
            return {"jobs": ["fast", "slow", "late"], "missing": {}, "versions": {}}

        def ask(self, request, limit):
            clock[0] += 1.0 if request["job"] == "fast" else 60.0
            assert limit <= 10.0
            assert request.get("values") is None  # nobody compares them
            names = ("peak", "held", "flops", "on_device")
            return dict.fromkeys(names) | {"seconds": 1.0}

    clock, kept = [0.0], []
    monkeypatch.setattr(compare, "Process", Answers)
    monkeypatch.setattr(compare.time, "monotonic", lambda: clock[0])
    setting = Setting(repetitions=3, budget=9.0, once=9.0, limit=10.0, total=50.0, on_gpu=True)
    found, _ = compare.compare(
        QUICK[1].make(),
        ("fast", "slow", "late"),
        {OURS: sys.executable},
        setting,
        lambda measured, versions: kept.append([m.note for m in measured]),
    )
    late = "no time was left"
    assert kept[:-1] == [[""], ["", ""], ["", "", late]]
    assert [m.first for m in found] == [1.0, 1.0, None]
    assert all(m.seconds == () for m in found)


def test_libraries_that_are_not_installed_are_left_out():
    assert installed(PEERS[:1], sys.executable) == []
    assert installed((), sys.executable) == []


def test_a_run_fits_eight_minutes():
    assert sum(step.seconds for step in FULL) <= 8 * 60 - 75
