"""The benchmark of first answers measures whole processes, and says what its numbers say."""

import dataclasses
import json
import sys

import pytest

from benchmarks import first_answer
from benchmarks.first_answer import Job, Measurement, Process
from benchmarks.peers import page, workloads
from benchmarks.quality.tables import RESULTS


def process(seconds, programs=(3, 2, 1), missed=0) -> Process:
    stages = {
        name: {"seconds": 1.0, "programs": num, "compiling": 0.25}
        for name, num in zip(first_answer.STAGES, programs, strict=True)
    }
    return Process(seconds, 2 * seconds, stages, missed)


def measurement(job="small", share=1.0, theirs=(8.0, 5.0, 6.0)) -> Measurement:
    return Measurement(
        job,
        share,
        ours=tuple(map(process, (4.0, 3.0, 9.0))),
        theirs=tuple(dataclasses.replace(process(s), stages={}) for s in theirs),
        filling=(process(5.0), process(6.0), process(4.0)),
        cached=(process(2.0), process(1.5), process(9.0)),
    )


def test_targets_compare_medians():
    rows = [target.row for target in first_answer.targets([measurement(share=0.5)])]
    assert rows == [
        "| small, share of laplace-torch's seconds | at most 0.5 | 0.667 | **missed** |",
        "| small, second process as a share of the first | at most 0.5 | 0.4 | met |",
        "| small, programs | at most 25 | 6 | met |",
    ]
    alone = next(first_answer.targets([measurement(theirs=())]))
    assert alone.row.endswith("| - | not measured |")


def test_tables_have_seconds_and_programs_of_each_stage():
    content = {
        "machine": {"date": "today"},
        "measurements": [dataclasses.asdict(measurement(theirs=()))],
    }
    text = first_answer.page(json.loads(json.dumps(content)))
    assert text.startswith("date today.")
    assert "| small | 4.0 (8.0) | - | 5.0 (10.0) | 2.0 (4.0) |" in text
    assert "| small | 1.00, 3, 0.25 | 1.00, 2, 0.25 | 1.00, 1, 0.25 | 6 |" in text


def test_a_program_that_is_not_found_again_is_a_failure():
    assert first_answer.failures([measurement()]) == []
    found = dataclasses.replace(measurement(), cached=(process(1.0, missed=2),))
    assert first_answer.failures([found]) == [
        "small: a second process compiled 2 programs that the first had kept"
    ]


def test_a_process_that_fails_says_why(tmp_path):
    workloads.tiny().save(tmp_path / "workload.npz")
    with pytest.raises(RuntimeError, match="ended with 1: ValueError: Found structure='none'"):
        first_answer.run(sys.executable, first_answer.OURS, tmp_path / "workload.npz", "none")


def test_the_page_agrees_with_the_results_where_there_are_some():
    path = RESULTS / "first_answer.json"
    text = page.PAGE.read_text(encoding="utf-8")
    assert text.count("<!-- first_answer -->") == 1
    if path.exists():
        assert page.replaced(text, "first_answer", page.whole_processes(path)) == text


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["kron", "diagonal", "full", "ekfac", "low_rank"])
def test_a_second_process_finds_every_program(structure, tmp_path):
    job = Job(structure, workloads.tiny, structure)
    found = first_answer.measure(job, None, 1, tmp_path)
    assert first_answer.failures([found]) == []
    (fills,), (reads,) = found.filling, found.cached
    assert fills.missed == fills.total("programs") > 10
    assert reads.total("compiling") < 0.5 * fills.total("compiling")
    assert 0 < reads.processor < fills.processor
