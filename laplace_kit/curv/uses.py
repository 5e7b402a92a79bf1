"""How parameters enter a model: its program as a flat list of steps, and each leaf's uses.

The program of one example is traced to a jaxpr, calls are inlined, and every parameter leaf is
followed through reshapes and transposes to the operations that consume it. Calls with a derivative
rule of their own are left whole, so that the rule stays in force.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive
from jaxtyping import PyTree

# Operations that only move entries about; the last one also repeats them.
_MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy")
_REPEATS = "broadcast_in_dim"
# Calls without semantics of their own, by the parameter that holds the program.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}


class Step(NamedTuple):
    """One operation; operands are numbers of values, or literals."""

    primitive: Primitive
    params: dict[str, Any]
    operands: tuple[int | Literal, ...]
    results: tuple[int, ...]


class Program(NamedTuple):
    """Steps in order; `leaves` and `inputs` are the numbers of the arguments' values."""

    steps: tuple[Step, ...]
    constants: dict[int, Any]
    leaves: tuple[int, ...]
    inputs: tuple[int, ...]
    output: int | Literal


class Use(NamedTuple):
    """Where a leaf is consumed: the step, the operand, and the moves that brought it there."""

    step: int
    operand: int
    moves: tuple[Step, ...]
    repeated: bool


def flatten_program(model_fn: Callable, params: PyTree, x: PyTree) -> Program:
    """Trace `model_fn(params, x)` and inline its calls.

    Parameters
    ----------
    model_fn
        Returns one array.
    params, x
        Arrays or shapes.
    """
    closed = jax.make_jaxpr(model_fn)(params, x)
    builder = _Builder()
    numbers = [builder.fresh() for _ in closed.jaxpr.invars]
    (output,) = builder.inline(closed, numbers)
    num_leaves = len(jax.tree.leaves(params))
    return Program(
        tuple(builder.steps),
        builder.constants,
        tuple(numbers[:num_leaves]),
        tuple(numbers[num_leaves:]),
        output,
    )


class _Builder:
    """Collects steps while calls are inlined, giving every value a number of its own."""

    def __init__(self):
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self._count = 0

    def fresh(self) -> int:
        self._count += 1
        return self._count

    def inline(self, closed: ClosedJaxpr | Jaxpr, arguments: Sequence[int | Literal]):
        jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            known[variable] = self.fresh()
            self.constants[known[variable]] = value

        def read(atom):
            return atom if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            operands = tuple(read(atom) for atom in equation.invars)
            inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
            if inner is not None:
                results = self.inline(inner, operands)
            else:
                results = tuple(self.fresh() for _ in equation.outvars)
                self.steps.append(Step(equation.primitive, equation.params, operands, results))
            known.update(zip(equation.outvars, results, strict=True))
        return tuple(read(atom) for atom in jaxpr.outvars)


def find_uses(program: Program) -> tuple[tuple[Use, ...], ...]:
    """Return, for each leaf, the steps that consume it; a leaf that is returned counts as used."""
    origin = {number: (leaf, (), False) for leaf, number in enumerate(program.leaves)}
    uses: list[list[Use]] = [[] for _ in program.leaves]
    for position, step in enumerate(program.steps):
        for place, operand in enumerate(step.operands):
            if isinstance(operand, Literal) or operand not in origin:
                continue
            leaf, moves, repeated = origin[operand]
            name = step.primitive.name
            if name in _MOVES or (name == _REPEATS and len(step.operands) == 1):
                moved = (leaf, (*moves, step), repeated or name == _REPEATS)
                origin[step.results[0]] = moved
            else:
                uses[leaf].append(Use(position, place, moves, repeated))
    if not isinstance(program.output, Literal) and program.output in origin:
        leaf, moves, repeated = origin[program.output]
        uses[leaf].append(Use(len(program.steps), 0, moves, repeated))
    return tuple(tuple(found) for found in uses)


def apply_step(step: Step, operands: Sequence[Any]) -> Sequence[Any]:
    """Bind a step's primitive to values."""
    params = step.primitive.get_bind_params(step.params)
    results = step.primitive.bind(*operands, **params)
    return results if step.primitive.multiple_results else (results,)
