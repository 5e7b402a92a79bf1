"""Reports announce their stages in order."""

import pytest

from laplace_kit.eval import report
from laplace_kit.eval.report.stages import ignore


@pytest.mark.parametrize("kind", ["classified", "regressed"])
def test_stages_are_announced_in_order(kind, request, tmp_path):
    predictions, y, *_ = request.getfixturevalue(kind)
    seen = []
    if kind == "classified":
        bare = {name: report.ClassPredictions(of.probs) for name, of in predictions.items()}
        report.classification_report(bare, y, tmp_path, on_stage=seen.append)
    else:
        report.regression_report(predictions, y, tmp_path, on_stage=seen.append)
    assert seen == ["resampling", "drawing", "writing"]
    assert ignore("drawing") is None
