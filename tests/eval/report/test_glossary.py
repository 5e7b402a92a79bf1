"""Whatever a page shows is explained on it."""

from laplace_kit.eval.report.glossary import glossary
from laplace_kit.eval.report.registry import METRICS


def test_every_metric_is_explained_once():
    given = {"predictors": ["map"], "task": "classification", "map": dict.fromkeys(METRICS, 0.5)}
    found = glossary(given)
    labels = {metric.label.split(",")[0] for metric in METRICS.values()}
    assert labels <= set(found)
    assert all(text.endswith(".") for text in found.values())
    assert {"MAP", "p"} <= set(found)
    assert "PIT" not in found


def test_only_what_is_shown_is_explained():
    found = glossary({"predictors": ["net"], "task": "regression", "net": {"crps": 0.5}})
    assert set(found) == {"CRPS", "PIT", "p"}
    grouped = {"predictors": ["net"], "task": "c", "net": {"nll": 1.0}, "groups": {}}
    assert set(glossary(grouped)) == {"NLL", "p", "p of a group"}
    sets = {"shifted": {"far": {"net": {"mce": 0.5}}}}
    assert "MCE" in glossary({"predictors": ["net"], "task": "c", "net": {"nll": 1.0}, **sets})
