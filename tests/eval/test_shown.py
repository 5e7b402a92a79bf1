"""Predictives are shown short, whatever they hold."""

import jax
import jax.numpy as jnp
import numpy as np

from laplace_kit.eval.predictive import Predictive
from laplace_kit.targets.classes import ClassTargets
from laplace_kit.targets.normal import NormalTargets
from laplace_kit.targets.outputs import Outputs


def regression(num=10, outputs=1):
    mean = jnp.asarray(np.arange(num * outputs, dtype=np.float32).reshape(num, outputs))
    return Predictive(NormalTargets(Outputs(mean, jnp.full_like(mean, 3.0)), jnp.ones_like(mean)))


def test_one_line_says_what_it_is():
    found = repr(regression(285))
    assert found == "Predictive(NormalTargets, 285 inputs, outputs (1,))"
    assert "\n" not in found


def test_a_table_of_the_first_inputs():
    found = regression()._repr_html_()
    assert "<td>0.0 ± 2.0</td>" in found
    assert "<td>7.0 ± 2.0</td>" in found
    assert "<td>8.0 ± 2.0</td>" not in found
    assert "and 2 more" in found
    assert regression(2, 6)._repr_html_().count("<th>output") == 4


def test_a_table_of_classes():
    probs = jnp.asarray([[0.25, 0.75], [0.9, 0.1]])
    targets = ClassTargets(Outputs(jnp.log(probs), jnp.zeros((2, 2))), probs, jnp.log(probs))
    found = Predictive(targets)._repr_html_()
    assert "<td>1</td><td>0.750</td>" in found
    assert "<td>0</td><td>0.900</td>" in found


def test_nothing_is_looked_at_under_a_transformation():
    seen = []

    @jax.jit
    def show(predictive):
        seen.append((repr(predictive), predictive._repr_html_()))
        return predictive.f_mean

    show(regression())
    assert seen == [
        (
            "Predictive(NormalTargets, 10 inputs, outputs (1,))",
            "<p>Predictive(NormalTargets, 10 inputs, outputs (1,))</p>",
        )
    ]
