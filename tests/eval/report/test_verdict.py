"""Verdicts say what the numbers say, on numbers chosen by hand."""

import pytest

from laplace_kit.eval.report.verdict import claims, verdict

SURE = {"nll": [-0.2, -0.3, -0.1], "ece": [-0.04, -0.1, 0.02], "auroc": [0.1, 0.05, 0.15]}


def numbers(differences=SURE, task="classification", claims=(), others=None, **predictors):
    """Return `metrics.json` of predictors given by (nll, ece)."""
    values = {name: {"nll": of[0], "ece": of[1]} for name, of in predictors.items()}
    bootstrap = {"intervals": {}, "differences": dict.fromkeys(predictors, differences)}
    others = others or {"shifted": {}, "ood": {}}
    return {
        "task": task,
        "predictors": list(predictors),
        **values,
        **others,
        "claims": dict(claims),
        "bootstrap": {
            "test": bootstrap,
            **{kind: dict.fromkeys(found, bootstrap) for kind, found in others.items()},
        },
    }


def claim(claimed, kept, p_value, task="classification"):
    given = {"laplace": {"claimed": claimed, "kept": kept, "p_value": p_value}}
    (found,) = claims(numbers(task=task, claims=given, laplace=(0.2, 0.02)))
    return found


def test_a_gain_is_significant_where_its_interval_leaves_out_zero():
    use, sentence = verdict(numbers(map=(0.5, 0.07), laplace=(0.25, 0.02)))
    assert use.startswith("Use Laplace")
    assert sentence == (
        "Against MAP, Laplace has a significantly lower NLL (0.2500 against 0.5000) and a lower "
        "ECE, though within sampling error (0.0200 against 0.0700)."
    )


def test_losses_and_ties_are_said_too():
    worse = {"nll": [0.05, 0.01, 0.1]}
    _, sentence = verdict(numbers(worse, map=(0.2, 0.07), laplace=(0.25, 0.07)))
    assert sentence == (
        "Against MAP, Laplace has a significantly higher NLL (0.2500 against 0.2000) and the same "
        "ECE (0.0700)."
    )


def test_a_value_that_is_not_finite_loses_and_is_named():
    use, sentence = verdict(numbers({}, map=(None, 0.02), laplace=(8.0, 0.02)))
    assert use == "Use Laplace: the NLL of every other predictor is infinite."
    assert "Laplace has a lower NLL (8.0000 against not finite)" in sentence


def test_every_other_predictor_is_compared_with_the_first():
    _, *found = verdict(numbers(map=(0.5, 0.07), laplace=(0.2, 0.02), ensemble=(0.3, 0.03)))
    assert [sentence.split(" has ")[0] for sentence in found] == [
        "Against MAP, Laplace",
        "Against MAP, ensemble",
    ]


def test_a_single_predictor_is_judged_alone():
    given = {"laplace": {"claimed": 0.97, "kept": 0.9, "p_value": 1e-9}}
    (sentence,) = verdict(numbers(claims=given, laplace=(0.2, 0.02)))
    assert sentence == (
        "Laplace is over-confident by 7.0 points (p < 0.001): its mean confidence is 97.0%, its "
        "accuracy 90.0%."
    )


@pytest.mark.parametrize(
    ("claimed", "kept", "p_value", "judgement"),
    [
        (0.97, 0.90, 1e-9, "over-confident by 7.0 points"),
        (0.85, 0.90, 0.01, "under-confident by 5.0 points"),
        (0.91, 0.90, 0.4, "calibrated on average"),
    ],
)
def test_confidence_is_judged_by_its_chance(claimed, kept, p_value, judgement):
    found = claim(claimed, kept, p_value)
    assert found.judgement == judgement
    assert found.is_calibrated == (p_value > 0.05)


def test_intervals_are_judged_by_their_coverage():
    found = claim(0.9, 0.7, 1e-9, "regression")
    assert "its 90% intervals cover 70.0% of the targets" in found.sentence
    assert found.judgement == "over-confident by 20.0 points"


def test_the_other_sets_follow():
    others = {
        "shifted": {"rotated": {"map": {"nll": 2.0}, "laplace": {"nll": 1.8}}},
        "ood": {"noise": {"map": {"auroc": 0.8}, "laplace": {"auroc": 0.9}}},
    }
    found = verdict(numbers(others=others, map=(0.5, 0.07), laplace=(0.2, 0.03)))
    assert found[2:] == (
        "Shifted, rotated: against MAP, Laplace has a significantly lower NLL (1.8000 against "
        "2.0000).",
        "Out of distribution, noise: against MAP, Laplace has a significantly higher AUROC "
        "(0.9000 against 0.8000).",
    )


def test_labels_of_probability_zero_are_said():
    given = claim_of(
        "classification", {"claimed": 0.9, "kept": 0.9, "p_value": 1.0, "impossible": 2}
    )
    assert given.sentence.endswith(
        "It gives 2 labels probability zero, so that its NLL is infinite."
    )
    given = claim_of(
        "classification", {"claimed": 0.9, "kept": 0.9, "p_value": 1.0, "impossible": 1}
    )
    assert "It gives one label probability zero" in given.sentence


def test_intervals_of_counts_are_judged_by_their_probability():
    numbers = {"claimed": 0.957, "kept": 0.955, "p_value": 0.8}
    sentence = claim_of("regression", numbers).sentence
    assert "its 90% intervals, of 95.7% probability as counts have steps, cover 95.5%" in sentence
    plain = claim_of("regression", numbers | {"claimed": 0.9}).sentence
    assert "its 90% intervals cover 95.5% of the targets" in plain


def claim_of(task, numbers):
    (found,) = claims({"task": task, "claims": {"map": numbers}})
    return found


def test_the_proper_score_concludes_where_it_is_significant():
    def concluded(differences, best, **nll):
        found = numbers(**{name: (value, 0.1) for name, value in nll.items()})
        of_nll = {name: {"nll": [0.0, *map(float, ends)]} for name, ends in differences.items()}
        found["bootstrap"]["test"] = {"differences": of_nll, "best": best}
        return verdict(found)[0]

    assert concluded({"b": (-2, -1)}, {"nll": "b"}, a=0.5, b=0.25) == (
        "Use b: its NLL, a proper score, is significantly lower (0.2500; a 0.5000)."
    )
    assert concluded({"b": (1, 2)}, {"nll": "map"}, map=0.5, b=0.75).startswith("Use MAP: its NLL")
    assert concluded({"b": (-2, 1)}, {"ece": "b"}, a=0.5, b=0.25).startswith(
        "No predictor has a significantly lower NLL than all others (a 0.5000, b 0.2500): by this"
    )
    both = {"b": (-2, -1), "c": (-2, -1)}
    assert concluded(both, {}, a=0.5, b=0.25, c=0.26).startswith(
        "Use b or c rather than a: their NLL, a proper score, is significantly lower. Between them"
    )
    one = {"b": (-2, -1), "c": (-2, 1)}
    assert concluded(one, {}, a=0.5, b=0.25, c=0.4).startswith("Use b rather than a: its NLL")
    assert concluded({}, {}, a=None, b=None).startswith("No predictor has a finite NLL")


def test_sections_conclude_last():
    found = numbers(map=(0.5, 0.1)) | {"sections": {"groups": {"conclusions": ["The worst."]}}}
    assert verdict(found)[-1] == "The worst."


def test_caution_and_overconfidence_are_of_different_kinds():
    assert [claim(*of).kind for of in ((0.9, 0.8, 0.0), (0.8, 0.9, 0.0), (0.9, 0.9, 1.0))] == [
        "over",
        "under",
        "calibrated",
    ]
