r"""A model cut in two where its free parameters enter: features, computed once, and a head.

Values that do not depend on the free parameters are the same in every pass over the data. The
program of one example is cut there, $f(\theta, x) = h(\theta, \phi(x))$: the features $\phi(x)$ are
the values that depend only on the inputs and are read by steps that also depend on free parameters.
Values that depend on neither are computed once, for all examples together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree, UInt32

from laplace_kit.curv.capture.uses import moves_entries
from laplace_kit.curv.fingerprint import fingerprint
from laplace_kit.curv.objective import Objective
from laplace_kit.curv.plan import Plan, make_plan
from laplace_kit.data import Data, InMemory
from laplace_kit.program import Program, Step, evaluate, reached_from
from laplace_kit.sums import map_over
from laplace_kit.tree import as_pytree_function, replace


def split(model_fn: Callable, free: PyTree, x: PyTree) -> tuple[Partial, Partial]:
    r"""Cut a model where its free parameters enter: `head(free, features(x)) = model_fn(free, x)`.

    Parameters
    ----------
    model_fn
        `(free, x) -> (N, *event)`, pure; the arrays that it holds as a pytree are frozen, as
        `laplace_kit.curv.objective.restrict` makes it.
    free
        The free parameters.
    x
        Inputs with a leading axis, or their `jax.ShapeDtypeStruct`s: values are not read.

    Returns
    -------
    features
        `x -> phi`, a tuple of arrays with the leading axis of `x`. Steps that only move or repeat
        entries are left to the head, so that `phi` consists of leaves of `x` if the first layer is
        free.
    head
        `(free, phi) -> (N, *event)`. Both are pytrees of the frozen arrays that they read; their
        structure is compared by value, so that programs compiled for one serve the next.
    """
    model_fn = as_pytree_function(model_fn)
    plan = make_plan(model_fn, free, x)
    return Partial(_Features(plan), model_fn), Partial(_Head(plan), _shared(plan, model_fn))


def with_features(objective: Objective, data: Data) -> tuple[Objective, Data]:
    """Return the head's objective and data of features, computed in one pass over the inputs.

    Parameters
    ----------
    objective
        The model, planned, its free parameters and the likelihood; its limits hold for the features
        too.
    data
        In memory; a stream is returned unchanged.

    Returns
    -------
    objective, data
        With the same outputs, derivatives and layers. Returned unchanged for a stream, if no frozen
        array is used before free parameters enter, as with a free first layer, and if the features
        exceed the memory limit. Features may be infinite, as in an attention mask.
    """
    if not isinstance(data, InMemory):
        return objective, data
    plan, limits = objective.plan, objective.limits
    program = plan.layers.program
    if not (program.frozen or program.constants):
        return objective, data
    cut = _cut(plan)
    num_bytes = data.num_held * cut.bytes_per_example
    if not cut.reads_frozen or num_bytes > limits.budget:
        return objective, data
    features, head = split(objective.model_fn, objective.params, data.x)
    size = limits.batch_size or max(limits.working_set() // max(plan.example_bytes, 1), 1)
    phi, prints = map_over(_apply, features, (data.x, data.y), size)
    return objective.with_model(head).planned(phi), replace(data, x=phi, prints=prints)


def _apply(features: Partial, examples: PyTree) -> tuple[tuple[Array, ...], UInt32[Array, " B"]]:
    """Return the features, and fingerprints of the examples, whose features may be equal."""
    x, _ = examples
    return features(x), jax.vmap(fingerprint)(examples)


class _Cut(NamedTuple):
    """A program, the steps of its head, and the values these read: per example, and shared."""

    program: Program
    head: tuple[Step, ...]
    features: tuple[int, ...]
    shared: tuple[int, ...]

    @property
    def bytes_per_example(self) -> int:
        """The size of the features."""
        avals = [self.program.avals[number] for number in self.features]
        return sum(aval.size * aval.dtype.itemsize for aval in avals)

    @property
    def reads_frozen(self) -> bool:
        """Whether the features depend on arrays that the model holds, and not only on inputs."""
        held = {*self.program.frozen, *self.program.constants}
        steps = _needed(self.program, self.features)
        return any(held & _numbers(step.operands) for step in steps)


def _cut(plan: Plan) -> _Cut:
    """Cut the program, from its end, before the last values that depend on no free parameter."""
    program = plan.layers.program
    varying = reached_from(program, program.leaves)
    read, head = _numbers([program.output]), []
    for step in reversed(program.steps):
        if read.intersection(step.results) and (
            varying.intersection(step.results) or moves_entries(step)
        ):
            read = read.difference(step.results) | _numbers(step.operands)
            head.append(step)
    read -= set(program.leaves)
    active = reached_from(program, program.inputs)
    features = sorted(read & active) or program.inputs  # to know the number of examples
    return _Cut(program, tuple(reversed(head)), tuple(features), tuple(sorted(read - active)))


def _numbers(operands: Any) -> set[int]:
    return {operand for operand in operands if not isinstance(operand, Literal)}


def _needed(program: Program, targets: tuple[int, ...]) -> tuple[Step, ...]:
    """Return the steps that some values depend on."""
    needed, steps = set(targets), []
    for step in reversed(program.steps):
        if needed.intersection(step.results):
            needed |= _numbers(step.operands)
            steps.append(step)
    return tuple(reversed(steps))


def _shared(plan: Plan, model_fn: Partial) -> list[Array | np.ndarray]:
    """Return the values that the head reads and that depend on no input."""
    program, _, _, shared = _cut(plan)
    part = program._replace(steps=_needed(program, shared), leaves=(), inputs=())
    read = evaluate(part, jax.tree.leaves(model_fn), (), ())
    return [read(number) for number in shared]


class _Features(NamedTuple):
    """The first part of a model, as a function of the model and its inputs."""

    plan: Plan

    def __call__(self, model_fn: Partial, x: PyTree) -> tuple[Array, ...]:
        program, _, features, _ = _cut(self.plan)
        part = program._replace(steps=_needed(program, features), leaves=())
        frozen = jax.tree.leaves(model_fn)

        def features_of_example(x_n: PyTree) -> tuple[Array, ...]:
            read = evaluate(part, frozen, (), [a[None] for a in jax.tree.leaves(x_n)])
            return tuple(read(number) for number in features)

        return jax.vmap(features_of_example)(x)


class _Head(NamedTuple):
    """The rest of a model, as a function of shared values, free parameters and features."""

    plan: Plan

    def __call__(
        self, shared: list[Array], free: PyTree, phi: tuple[Array | np.ndarray, ...]
    ) -> Float[Array, "N *event"]:
        program, head, features, numbers = _cut(self.plan)
        part = program._replace(steps=head, constants={}, frozen=numbers, inputs=features)

        def outputs_of_example(phi_n: tuple[Array, ...]) -> Array:
            read = evaluate(part, shared, jax.tree.leaves(free), phi_n)
            return jnp.asarray(read(program.output))[0]

        return jax.vmap(outputs_of_example)(phi)
