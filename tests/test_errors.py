"""Unknown options are refused with what was found, what is known and the nearest name."""

import inspect

import numpy as np
import pytest

from laplace_kit.errors import check_count, check_option, warn

STRUCTURES = ("full", "diagonal", "low_rank")


@pytest.mark.parametrize("found", STRUCTURES)
def test_known_options_pass(found):
    assert check_option("structure", found, STRUCTURES) == found
    assert check_option("structure", found, dict.fromkeys(STRUCTURES)) == found


def test_the_nearest_option_is_named():
    with pytest.raises(ValueError, match="Found") as error:
        check_option("structure", "diagnal", STRUCTURES)
    assert str(error.value) == (
        "Found structure='diagnal', expected one of 'full', 'diagonal', 'low_rank'. "
        "Did you mean 'diagonal'?"
    )


@pytest.mark.parametrize("found", ["xyz", 3, None, ["full"], ("full",)])
def test_without_a_near_one_the_options_are_listed(found):
    with pytest.raises(ValueError, match="expected one of 'full', 'diagonal', 'low_rank'") as error:
        check_option("structure", found, STRUCTURES)
    assert repr(found) in str(error.value)
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize("found", [0, -1, 1.5, 2.0, "3", None])
def test_what_is_no_count_is_refused(found):
    message = rf"^Found num_samples={found}, expected a whole number of draws, at least 1\.$"
    with pytest.raises(ValueError, match=message):
        check_count("num_samples", found, "draws")


def test_counts_pass():
    check_count("num_samples", 1, "draws")
    check_count("num_samples", np.int64(2), "draws", least=2)


def test_words_of_other_libraries_have_hints_of_their_own():
    hints = {"low_ranked": "That is 'low_rank'.", "all_of_it": "Did you mean 'full'?"}
    for found in ("all_of_it", "All-of it"):
        with pytest.raises(ValueError, match=r"'low_rank'\. Did you mean 'full'\?$"):
            check_option("structure", found, STRUCTURES, hints)
    with pytest.raises(ValueError, match=r"That is 'low_rank'\.$"):  # before the nearest one
        check_option("structure", "low_ranked", STRUCTURES, hints)
    with pytest.raises(ValueError, match=r"Did you mean 'diagonal'\?$"):
        check_option("structure", "DIAG", STRUCTURES, hints)


def test_a_warning_points_to_the_line_that_called_the_package(tmp_path):
    inside = {"__name__": "laplace_kit.inner", "warn": inspect.unwrap(warn)}
    exec("def inner():\n    warn('look')\ndef outer():\n    inner()\n", inside)
    outside = {"__name__": "users_script", "outer": inside["outer"]}
    code = compile("\n\nouter()\n", str(tmp_path / "script.py"), "exec")
    with pytest.warns(UserWarning, match="look") as caught:
        exec(code, outside)
    assert (caught[0].filename, caught[0].lineno) == (str(tmp_path / "script.py"), 3)
