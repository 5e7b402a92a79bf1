"""The example of a language model runs, here with a few steps on a few snippets."""

import runpy
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "language_model.py"


def test_snippets_are_numbered_words_of_the_library():
    script = runpy.run_path(str(SCRIPT))
    assert script["words"]('def fitTo(x):\n    "é1"') == [
        "def", "fit", "To", "(", "x", ")", ":", "\n    ", '"', "é", "1", '"',
    ]  # fmt: skip
    texts = [script["words"]("import xml\nimport xml"), script["words"]("email")]
    numbers = script["Vocabulary"](texts)
    assert [numbers.numbers[name] for name in script["PACKAGES"]] == [1, 2, 3, 4]
    np.testing.assert_array_equal(numbers.encode(["import", "xml", "nothing"]), [5, 4, 0])
    rows = script["snippets"]([np.arange(100)], 3, np.random.default_rng(0))
    np.testing.assert_array_equal(rows - rows[:, :1], [np.arange(script["LENGTH"])] * 3)
    assert all(len(script["sources"](name)) >= 8 for name in script["PACKAGES"])


@pytest.mark.slow
def test_language_model_is_trained_fitted_tuned_and_measured(capsys):
    main = runpy.run_path(str(SCRIPT))["main"]
    found = main(pretraining=3, finetuning=3, num_train=16, num_test=16)
    assert found.keys() == {"MAP", "Laplace"}
    for metrics in found.values():
        assert {"accuracy", "nll", "ece", "AUROC English", "AUROC noise"} <= metrics.keys()
        assert np.isfinite([float(value) for value in metrics.values()]).all()
    assert "fitted 4,096 adapters of 235,264 parameters" in capsys.readouterr().out
