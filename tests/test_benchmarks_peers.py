"""Libraries side by side: a line asks, a line answers; values come before times, in tables too."""

import dataclasses
import sys

import numpy as np
import pytest

from benchmarks.peers import compare, page, tables, workloads
from benchmarks.peers.compare import OURS, Library, Measurement, Process, Setting, distance_between
from benchmarks.peers.protocol import Workload
from benchmarks.peers.tables import Results
from benchmarks.quality import tables as quality
from benchmarks.quality.tables import Scores

PEER = Library("peer", "peer")

# An adapter: right, wrong, raising, silent, and gone.
ADAPTER = """
import os, sys, time
import numpy as np
from benchmarks.peers.protocol import Job, serve

def jobs(workload, variant):
    def fail():
        raise ValueError("three words only")
    def noisy():
        print("progress")
        return workload.v
    of = lambda found: {"product": np.asarray(found)}
    return {
        "gradient": Job(noisy, of, held=lambda: 1.5),
        "other": Job(lambda: 2 * workload.v, of),
        "raises": Job(fail, of),
        "slow": Job(lambda: time.sleep(60), of),
        "gone": Job(lambda: os._exit(1), of),
        "absent": "for a reason",
    }

serve(jobs, "numpy")
"""


@pytest.fixture
def tiny():
    rng = np.random.default_rng(0)
    params = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (2,))]
    x, y = rng.normal(size=(5, 3)).astype(np.float32), rng.integers(0, 2, 5)
    v, vs = np.arange(8, dtype=np.float32), rng.normal(size=(2, 8)).astype(np.float32)
    return Workload("tiny", "mlp", params, x, y, v, vs)


@pytest.fixture
def process(tiny, tmp_path, monkeypatch):
    """A process of the adapter above, in the place of one of the package."""
    (tmp_path / "adapter.py").write_text(ADAPTER)
    tiny.save(tmp_path / "workload.npz")
    found = Process(PEER, sys.executable, tmp_path / "workload.npz", tmp_path)
    found._command[1:3] = [str(tmp_path / "adapter.py")]
    monkeypatch.setenv("PYTHONPATH", str(page.PAGE.parents[1]))
    with found:
        yield found


def measurement(workload, job, library, seconds, **more):
    return Measurement(workload, job, library, first=1.0, seconds=seconds, peak=10.0, **more)


@pytest.fixture
def results():
    gradient = [("S", "gradient", OURS.name, (0.01, 0.02, 0.03)), ("S", "gradient", "b", (0.05,))]
    fits = [("S", "fit full", OURS.name, (0.1, 0.1)), ("S", "fit full", "a", (0.4,))]
    found = [measurement(*row) for row in (*gradient, *fits)]
    found.append(measurement("S", "fit full", "b", (0.001,), distance=0.5))
    found.append(measurement("S", "fit full", "c", (0.7,), distance=1e-6))
    found.append(measurement("S", "16 GGN products", OURS.name, (0.64,)))
    found.append(Measurement("S", "16 GGN products", "a", note="longer than 9 s"))
    found.append(Measurement("S", "16 GGN products", "b", note="for a reason"))
    versions = {name: {"numpy": "2"} for name in (OURS.name, "a", "b", "c")}
    return Results({"date": "today"}, versions, {"S": "a network"}, tuple(found))


def test_a_workload_comes_back_from_its_file(tiny, tmp_path):
    tiny.save(tmp_path / "workload.npz")
    found = Workload.load(tmp_path / "workload.npz")
    assert (found.name, found.kind) == ("tiny", "mlp")
    for name in ("x", "y", "v", "vs"):
        np.testing.assert_array_equal(getattr(found, name), getattr(tiny, name))
    for ours, theirs in zip(found.params, tiny.params, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(tiny.unravel(tiny.v)[0], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(tiny.kernels, [1] * 6 + [0] * 2)
    assert tiny.describe() == "tanh network 3-2, 8 parameters, 5 examples"


def test_a_library_answers_whatever_it_prints_or_raises(process, tiny, tmp_path):
    offer = process.ask({}, 30)
    assert offer["versions"] == {"numpy": np.__version__}
    assert offer["missing"] == {"absent": "for a reason"}
    assert offer["jobs"] == ["gradient", "other", "raises", "slow", "gone"]
    answer = process.ask({"job": "gradient", "values": str(tmp_path / "values.npz")}, 30)
    assert answer["seconds"] > 0
    assert answer["peak"] >= 0
    assert answer["held"] == 1.5
    np.testing.assert_array_equal(np.load(tmp_path / "values.npz")["product"], tiny.v)
    assert process.ask({"job": "raises", "values": "unused"}, 30) == {
        "error": "ValueError: three words only"
    }
    assert process.ask({"job": "slow"}, 0.2) == {"error": "longer than 0.2 s"}
    assert process.ask({"job": "gone"}, 30)["error"].startswith("the process ended")
    assert process.ask({"job": "other"}, 30)["seconds"] > 0  # it was started again
    other = process.ask({"job": "other", "values": str(tmp_path / "values.npz")}, 30)
    assert other["held"] is None


def test_wrong_values_are_not_timed():
    class Answers:
        def __init__(self):
            self.asked = []

        def ask(self, request, limit):
            self.asked.append(request["job"])
            return {"seconds": 0.3}

    right, wrong, slow = (
        dataclasses.replace(measurement("S", "job", "peer", ()), **values)
        for values in ({"distance": 1e-5}, {"distance": 0.1}, {"first": 9.0})
    )
    process = Answers()
    first = {("right", PEER): right, ("wrong", PEER): wrong, ("slow", PEER): slow}
    setting = Setting(repetitions=5, budget=1.0, once=5.0, limit=9.0)
    seconds = compare._in_turns(first, {PEER: process}, setting)
    assert set(process.asked) == {"right"}
    assert seconds == {("right", PEER): [0.3] * 3}  # a fourth would exceed the budget


def test_distances_are_of_what_both_name():
    ours = {"a": np.array([3.0, 4.0]), "b": np.ones(2)}
    assert distance_between({"a": np.array([3.0, 4.5])}, ours) == pytest.approx(0.1)
    assert distance_between({"c": np.ones(2)}, ours) is None
    assert distance_between({"a": np.ones(3)}, ours) == np.inf
    assert distance_between({"a": np.array([np.nan, 1.0])}, ours) == np.inf


def test_speed_is_compared_with_the_fastest_that_is_right(results):
    assert tables.speedup(results.find("S", "fit full")) == pytest.approx(4.0)
    assert tables.speedup(results.find("S", "16 GGN products")) is None
    assert tables.gradients(results, "S", "16 GGN products") == pytest.approx(2.0)
    found = {target.name: target.row for target in tables.targets(results)}
    assert found["S: fit full, times faster than the fastest peer"].endswith("| 4 | **missed** |")
    assert found["S: 16 GGN products, gradients for each"].endswith("| 2 | **missed** |")
    assert found["S: tune full, times faster than the fastest peer"].endswith(
        "| - | not measured |"
    )
    assert all(name.startswith("S: ") for name in found)
    more = [
        measurement(name, "GGN product", OURS.name, (seconds,), held=held)
        for name, seconds, held in (("M", 1.0, 10.0), ("M, 8,000", 3.0, 20.0))
    ]
    grown = tables.targets(dataclasses.replace(results, measurements=more))
    found = {target.name: target.found for target in grown}
    assert found["M: GGN product, seconds with four times the examples"] == 3.0
    assert found["M: GGN product, memory held with four times the examples"] == 2.0
    assert tables.slower(results).endswith("on 1 jobs: met.")


def test_tables_say_what_is_wrong_failed_and_absent(results):
    rows = tables.times(results, "S").splitlines()
    assert rows[0] == "| milliseconds | laplace_kit | a | b | c | times faster |"
    assert rows[2] == "| gradient | 20.0 | - | 50.0 | - | 2.50 |"
    assert rows[3] == "| fit full | 100 | 400 | wrong by 0.5 | 700 | 4.00 |"
    assert rows[4] == "| 16 GGN products | 640 | failed | - | - | - |"
    assert tables.reasons(results, "S").splitlines() == [
        "- a, 16 GGN products: longer than 9 s.",
        "- b, 16 GGN products: for a reason.",
    ]
    line = tables.details(results, "S").splitlines()[2]
    assert line == "| gradient | 1.00 | 20.0 (15.0 to 25.0) | 1.00 | 10 | 10 | - |"


def test_results_come_back_from_their_file_and_renew_the_page(results, tmp_path):
    results.write(tmp_path / "peers.json")
    assert Results.read(tmp_path / "peers.json") == results
    values = {"NLL": (0.5, 0.7), "ECE": (0.1, 0.1)}
    scores = [Scores("glass", method, values) for method in ("MAP", "auto")]
    quality.keep("images", scores, "the setting", tmp_path)
    text = "".join(f"{name}\n<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in page.SECTIONS)
    found = page.renewed(text, tmp_path)
    assert found.count("old") == len(page.SECTIONS) - 2
    assert "| fit full | 100 | 400 | wrong by 0.5 | 700 | 4.00 |" in found
    assert "| MAP | 0.600 ± 0.100 | 0.100 ± 0.000 |" in found
    assert "| glass | 0.6000 | 0.6000 | +0.0000 ± 0.0000 | yes |" in found
    assert "`the setting`" in found
    assert page.renewed(found, tmp_path) == found


def test_page_agrees_with_the_results_where_there_are_some():
    text = page.PAGE.read_text(encoding="utf-8")
    assert all(text.count(f"<!-- {name} -->") == 1 for name in page.SECTIONS)
    path = quality.RESULTS / "peers.json"
    if path.exists():
        assert page.replaced(text, "peers", page.side_by_side(path)) == text


def test_failures_are_wrong_values_too_much_memory_and_no_answer(results):
    ours = dataclasses.replace(results.measurements[0], job="none", first=None, note="no")
    wrong = measurement("S", "diagonal", "definitions", (1.0,), distance=0.2)
    found = dataclasses.replace(results, measurements=(*results.measurements, ours, wrong))
    assert tables.failures(results, peak_limit=20.0) == []
    assert tables.failures(found, peak_limit=20.0) == [
        "S: none: no",
        "S: diagonal: differs from its definition by 0.2",
    ]
    assert len(tables.failures(results, peak_limit=5.0)) == 3


@pytest.mark.parametrize("make", [workloads.lenet, workloads.transformer, workloads.wide])
def test_networks_take_the_parameters_that_are_made_for_them(make):
    from benchmarks.peers.adapters.jax_networks import NETWORKS

    found = make()
    outputs = NETWORKS[found.kind](found.params, found.x[:2])
    assert outputs.shape == (2, found.params[-1].size)
    assert found.y.max() < outputs.shape[1]
    assert np.isfinite(outputs).all()
    again = make()
    np.testing.assert_array_equal(found.v, again.v)


def test_our_values_are_those_of_the_definitions(tiny, monkeypatch):
    """All that the quick subset compares, in this process."""
    from benchmarks.peers.adapters import dense, laplace_kit

    monkeypatch.setattr(laplace_kit, "NUM_STEPS", 3)
    ours, definitions = laplace_kit.jobs(tiny, ""), dense.jobs(tiny, "")
    assert definitions.keys() <= ours.keys()
    for name, job in definitions.items():
        expected, found = job.values(job.run()), ours[name].values(ours[name].run())
        assert distance_between(found, expected) < 1e-4, name
