"""Bars: the name and the number of a pass, and examples a second without the first batch."""

import itertools
import re

import jax
import numpy as np
import pytest
import tqdm.auto

from laplace_kit.bars import Bars, is_shown, length_of, stages, title_of, titled, with_bar
from laplace_kit.data import as_data


@pytest.fixture
def shown(monkeypatch):
    """Collect the bars, on a clock that only the test moves."""
    bars = []

    class Bar(tqdm.auto.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, mininterval=0, **kwargs)
            bars.append(self)

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    return bars


@pytest.fixture
def clock(monkeypatch):
    """The time, in a list of one number."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_the_rate_and_the_time_left_are_without_the_first_batch(shown, clock):
    batches = with_bar(["a" * 50] * 11, "factors", len, num_batches=11)
    for number, _ in enumerate(batches):
        clock[0] += 60.0 if number == 0 else 0.5  # the first one is compiled for
        if number == 5:
            text = str(shown[0])  # of five batches, of which the first one has no time
    assert re.fullmatch(r"factors: .*250/550 \[00:02<00:03, 100 examples/s\]", text)


def test_a_pass_that_goes_on_counts_from_where_it_was(shown, clock):
    for number, _ in enumerate(with_bar([[0] * 10] * 3, "sums", len, num_batches=8, done=50)):
        clock[0] += 1.0
        if number == 2:
            assert str(shown[0]).startswith("sums:")
            assert "70.0/80.0 [00:02<00:01, 10.0 examples/s]" in str(shown[0])


def test_without_a_length_there_is_no_end(shown, clock):
    for _ in with_bar(([0] * 10 for _ in range(4)), "sums", len):
        clock[0] += 1.0
    assert shown[0].total is None
    assert shown[0].n == 40


def test_passes_are_numbered(shown):
    bars = Bars()
    assert [*bars.over([[1], [2]], "gradient", len)] == [[1], [2]]
    assert [*bars.over([[3]], "factors", len)] == [[3]]
    assert [bar.desc.rstrip(": ") for bar in shown] == ["pass 1, gradient", "pass 2, factors"]


def test_stages_are_shown_on_request(capsys):
    with stages(False, 2) as enter:
        enter("the first")
    assert capsys.readouterr() == ("", "")
    with stages(True, 2) as enter:
        enter("the first")
        enter("the second")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.index("1/2 the first") < err.index("2/2 the second")


def test_one_of_several_processes_shows_bars(monkeypatch):
    assert is_shown(True)
    assert not is_shown(False)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert not is_shown(True)
    assert as_data([(np.ones(2), np.ones(2))], progress=True).bars is None


def test_lengths():
    assert length_of([1, 2, 3]) == 3
    assert length_of(itertools.repeat(1)) is None
    assert length_of(batch for batch in [1]) is None


def test_a_function_has_a_title_or_its_name():
    @titled("what it computes")
    def with_title():
        pass

    def without():
        pass

    class Callable:
        def __call__(self):
            pass

    assert title_of(with_title) == "what it computes"
    assert title_of(without) == "without"
    assert title_of(Callable()) == "Callable"
