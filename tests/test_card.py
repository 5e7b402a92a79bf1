"""The card lists facts, and warnings where there are any."""

import dataclasses
import html

import jax.numpy as jnp
import numpy as np
import pytest

import laplace_kit as lk
from laplace_kit import card, tree
from laplace_kit.likelihood import MultivariateGaussian

N = 20


def linear(params, x):
    return x @ params["weight"]


def regression(*, delta=2.0, noise_std=0.5, scale=1.0, dtype="float32", **options) -> lk.Laplace:
    """Return the posterior of two weights at their exact mode."""
    rng = np.random.default_rng(0)
    x = scale * rng.normal(size=(N, 2))
    y = x @ [[0.8 / scale], [-0.5 / scale]] + noise_std * rng.normal(size=(N, 1))
    return at(mode(x, y, delta, noise_std), x, y, delta, noise_std, dtype, **options)


def mode(x, y, delta, noise_std):
    return np.linalg.solve(x.T @ x + delta * noise_std**2 * np.eye(x.shape[1]), x.T @ y)


def at(weight, x, y, delta, noise_std, dtype="float32", **options):
    x, y, weight = (jnp.asarray(part, dtype) for part in (x, y, weight))
    options = {"structure": "full", "prior_precision": delta} | options
    likelihood = lk.Gaussian(noise_std)
    return lk.fit(linear, {"weight": weight}, (x, y), likelihood=likelihood, **options)


def warnings_of(la) -> list[str]:
    return card.card_warnings(la.diagnostics(), la.tuning, tree.dtype(la.mode))


def card_of(la) -> card.Card:
    parts = la.model, la.likelihood, la.expansion, la.prior, la.record
    return card.make_card(*parts, la.diagnostics(), la.log_marginal_likelihood())


def warns(la, words: str) -> bool:
    """Return whether exactly this warning is on the card, in every form of it."""
    said = warnings_of(la)
    shown = la.card().get("warnings", "")
    assert shown == "; ".join(said)
    assert ("warnings" in str(la)) == bool(said)
    return len(said) == 1 and words in said[0]


# --- facts ----------------------------------------------------------------------------------------


def test_facts_are_those_of_the_posterior():
    la = regression()
    found, facts = la.diagnostics(), la.card()
    assert facts == card_of(la).as_dict()
    assert facts["likelihood"] == "Gaussian"
    assert facts["structure"] == "Full"
    assert facts["chosen because"] == la.choice.because
    assert facts["parameters"] == "2 of 2, all of them"
    assert facts["layer capture"] == la.coverage.summary()
    assert facts["training examples"] == "20"
    assert facts["prior precision"] == "2"
    assert facts["noise standard deviation"] == "0.5"
    assert facts["temperature"] == "1"
    assert facts["log marginal likelihood"] == f"{float(la.log_marginal_likelihood()):.2f} nats"
    assert facts["effective parameters"] == f"{float(found.effective_parameters):.1f}"
    assert float(facts["condition number"]) == pytest.approx(float(found.condition_number), 0.01)
    assert float(facts["smallest eigenvalue"]) == pytest.approx(
        float(found.smallest_eigenvalue), 0.01
    )
    assert float(facts["distance from this prior's mode"].split()[0]) < 0.01
    assert facts["jitter"] == "0 of the diagonal"
    assert "warnings" not in facts


def test_text_has_a_line_for_every_fact_in_one_column():
    la = regression()
    lines, facts = str(la).splitlines(), la.card()
    assert [line.split("  ")[0] for line in lines] == list(facts)
    columns = {line.index(text) for line, text in zip(lines, facts.values(), strict=True)}
    assert len(columns) == 1


def test_facts_follow_what_is_changed():
    la = regression().with_temperature(0.25).with_prior(np.array([1.0, 3.0], np.float32))
    assert la.card()["prior precision"] == "1 to 3"
    assert la.card()["temperature"] == "0.25"
    several = dataclasses.replace(la, likelihood=lk.Gaussian(np.array([0.25, 0.5])))
    assert several.card()["noise standard deviation"] == "0.25 to 0.5"


def test_what_a_likelihood_has_not_is_not_listed():
    x, y = np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32)
    params = {"weight": jnp.eye(2)}
    options = {"structure": "diagonal"}
    masked = lk.Masked(lk.Bernoulli())
    la = lk.fit(linear, params, (x, (y, np.ones((4, 1)))), likelihood=masked, **options)
    assert la.card()["likelihood"] == "Bernoulli, masked"
    assert "noise standard deviation" not in la.card()
    masked = lk.Masked(lk.Gaussian(0.5))
    la = lk.fit(linear, params, (x, (y, np.ones((4, 1)))), likelihood=masked, **options)
    assert la.card()["noise standard deviation"] == "0.5"
    noise = MultivariateGaussian(jnp.eye(2))
    la = lk.fit(linear, params, (x, y), likelihood=noise, **options)
    assert la.card()["likelihood"] == "MultivariateGaussian"
    assert "noise standard deviation" not in la.card()


def test_frozen_leaves_are_named():
    x, y = np.ones((4, 2), np.float32), np.zeros((4, 2), np.float32)
    params = {"weight": jnp.eye(2), "step": jnp.asarray(3), "empty": jnp.zeros((0, 2))}
    la = lk.fit(linear, params, (x, y), likelihood="gaussian", structure="diagonal")
    assert la.card()["frozen"] == "2 leaves: empty (float32), step (int32)"
    assert la.card()["parameters"] == "4 of 4, all of them"
    assert "frozen" not in regression().card()
    many = params | {f"other{i}": jnp.ones(3) for i in range(6)}
    subset = dict.fromkeys(many, False) | {"weight": np.array([[True, False], [True, True]])}
    la = lk.fit(linear, many, (x, y), likelihood="gaussian", structure="diagonal", subset=subset)
    assert la.card()["parameters"] == "3 of 22, a subset"
    assert la.card()["frozen"] == (
        "9 leaves: empty (float32), other0 (float32), other1 (float32), other2 (float32), 5 more"
    )
    assert "frozen" in str(la)
    partly = {"weight": np.array([[True, False], [True, True]])}
    la = lk.fit(
        linear,
        {"weight": jnp.eye(2)},
        (x, y),
        likelihood="gaussian",
        structure="diagonal",
        subset=partly,
    )
    assert la.card()["frozen"] == "1 leaf: weight (1 of 4 entries)"


# --- warnings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("deviations", "said"), [(0.9, False), (1.1, True)])
def test_parameters_that_are_no_mode_of_this_prior(deviations, said):
    """More than one standard deviation away, where two parameters are free."""
    rng = np.random.default_rng(1)
    x, delta, noise_std = rng.normal(size=(N, 2)), 2.0, 0.5
    y = x @ [[0.8], [-0.5]]
    weight = mode(x, y, delta, noise_std)
    precision = x.T @ x / noise_std**2 + delta * np.eye(2)
    weight[0, 0] += deviations / np.sqrt(precision[0, 0])
    la = at(weight, x, y, delta, noise_std)
    assert float(la.diagnostics().mode_distance) == pytest.approx(deviations, rel=1e-3)
    assert warns(la, "these parameters are not the mode of this prior") == said
    assert bool(warnings_of(la)) == said


def test_a_mode_of_another_prior():
    """The parameters are the mode of the prior they were trained with, and not of another."""
    la = regression(delta=2.0)
    assert warnings_of(la) == []
    other = la.with_prior(1e4)
    assert warns(other, "train with this prior as weight decay")


def test_tuned_to_a_bound():
    la = regression()
    inside = la.tune()
    assert warnings_of(inside) == []
    best = float(inside.prior_precision)
    with pytest.warns(UserWarning, match="at a bound"):
        tuned = la.tune(bounds=(1.2 * best, 1e6))
    assert warns(tuned, "tuned to a bound; widen bounds=")
    assert warnings_of(tuned.with_prior(2.0)) == []  # set by hand, it is nobody's bound


def test_an_evidence_that_is_flat():
    """Four observations of one weight, under noise six hundred times as large."""
    x, y = np.ones((4, 1)), np.full((4, 1), 0.1)
    la = at(np.array([[0.1]]), x, y, 1.0, 60.0)
    with pytest.warns(UserWarning, match="evidence is flat"):
        tuned = la.tune()
    assert not tuned.tuning.at_bound
    assert warns(tuned, "hardly depends on the prior precision; set it from what you know")
    assert not regression().tune().tuning.flat


def test_an_ill_conditioned_precision_is_one_of_single_precision(x64):
    x = np.ones((N, 2)) * [1.0, 3e4]
    single, double = (
        at(np.zeros((2, 1)), x, np.zeros((N, 1)), 0.1, 1.0, d) for d in ("float32", "float64")
    )
    assert float(double.diagnostics().condition_number) > 1e9
    assert warns(single, "ill-conditioned for this dtype; use float64")
    assert warnings_of(double) == []
    assert warnings_of(at(np.zeros((2, 1)), x, np.zeros((N, 1)), 1e4, 1.0)) == []


def test_jitter_where_rounding_made_the_precision_singular():
    """Two features that are one, and next to no prior."""
    x = np.full((N, 2), 1e3)
    la = at(np.zeros((2, 1)), x, np.zeros((N, 1)), 1e-6, 1.0)
    assert la.jitter > 0
    said = warnings_of(la)
    assert "had to be raised to be factorised in this dtype" in said[-1]
    assert la.card()["jitter"] == f"{float(la.jitter):.2g} of the diagonal"
    better = la.with_prior(100.0)
    assert better.jitter == 0
    assert not any("had to be raised" in warning for warning in warnings_of(better))


def test_several_at_once_are_all_said():
    x = np.full((N, 2), 1e3)
    la = at(np.ones((2, 1)), x, np.zeros((N, 1)), 1e-6, 1.0)
    said = warnings_of(la)
    assert len(said) == 3
    assert la.card()["warnings"].split("; ")[0] == said[0].split("; ")[0]
    assert str(la).splitlines()[-1].startswith("warnings")


# --- of a report ----------------------------------------------------------------------------------


def test_a_report_lists_every_free_parameter_with_its_own_prior_precision():
    params = {"head": jnp.ones((2, 1)), "tail": {"bias": jnp.zeros(1)}}
    x, y = jnp.asarray(np.random.default_rng(1).normal(size=(2, N, 2)), jnp.float32)

    def model_fn(params, x):
        return x @ params["head"] + params["tail"]["bias"]

    for subset, listed in (
        (None, {"head": "2", "tail/bias": "0.5"}),
        (lambda path: "head" in path, {"head": "2"}),
        ({"head": jnp.array([[True], [False]]), "tail": {"bias": True}}, None),
    ):
        prior = 3.0 if listed is None else {"head": 2.0, "tail": 0.5}
        la = lk.fit(
            model_fn,
            params,
            (x, y[:, :1]),
            likelihood="gaussian",
            structure="full",
            subset=subset,
            prior_precision=prior,
        )
        found = card.report_card(card_of(la), la.model, la.prior, la.coverage)
        table = {row[0]: row[-1] for row in found.layers}
        assert len(table) == len(la.coverage)
        assert listed is None or table == listed
        assert found.columns[-1] == "prior precision"
        assert "warnings" not in found.facts
        assert list(found.warnings) == warnings_of(la)


# --- notes ----------------------------------------------------------------------------------------


def null_space(offset):
    """Return a posterior of five weights, three of which the data do not see, off their mode."""
    rng = np.random.default_rng(1)
    x, delta, noise_std = np.zeros((N, 5)), 2.0, 0.5
    x[:, :2] = rng.normal(size=(N, 2))
    y = x @ [[0.8], [-0.5], [0.0], [0.0], [0.0]] + noise_std * rng.normal(size=(N, 1))
    weight = mode(x, y, delta, noise_std) + np.reshape(offset, (5, 1))
    return at(weight, x, y, delta, noise_std), x


def test_the_shift_of_predictions_is_that_of_a_step_to_the_mode():
    """In a linear model the Newton step is exact: predictions move, relative to their spread."""
    offset = np.array([0.1, -0.05, 3.0, 2.0, 1.0])
    la, x = null_space(offset)
    for tempered in (la, la.with_temperature(0.25)):
        f = tempered.predict(x)
        moved = np.square(x @ offset).sum()
        spread = np.asarray(f.f_var, float).sum()
        shift = float(tempered.diagnostics().prediction_shift)
        assert shift == pytest.approx(np.sqrt(moved / spread), rel=1e-3)


def test_far_from_the_mode_without_a_change_of_predictions_is_a_note():
    la, _ = null_space([0.0, 0.0, 3.0, 2.0, 1.0])
    assert float(la.diagnostics().mode_distance) > 5
    assert warnings_of(la) == []
    facts = la.card()
    assert "warnings" not in facts
    assert facts["notes"].startswith("these parameters are not the mode of this prior, as usual")
    assert str(la).splitlines()[-1].startswith("notes")
    found = card.report_card(card_of(la), la.model, la.prior, la.coverage)
    assert found.warnings == ()
    assert len(found.notes) == 1


def test_far_from_the_mode_with_a_change_of_predictions_is_a_warning():
    la, _ = null_space([0.5, 0.5, 3.0, 2.0, 1.0])
    assert warns(la, "a Newton step towards it changes predictions by")
    assert "notes" not in la.card()


def test_a_mode_has_neither_note_nor_warning():
    la = regression()
    assert float(la.diagnostics().prediction_shift) < 0.01
    assert not {"notes", "warnings"} & set(la.card())


# --- short forms ----------------------------------------------------------------------------------


def test_a_posterior_is_shown_short_and_as_a_table():
    la = regression()
    assert repr(la) == "Laplace(Full, 2 parameters, Gaussian)"
    found = la._repr_html_()
    for name, text in la.card().items():
        assert f"{html.escape(name)}</th>" in found
        assert html.escape(text) in found
    warned = regression(delta=2.0).with_prior(1e4)._repr_html_()
    assert warned.index("warnings</th>") < warned.index("likelihood</th>")
