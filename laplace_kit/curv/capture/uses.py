"""How parameters enter a model: its program as a flat list of steps, and each leaf's uses.

The program of one example is traced and flattened, and every parameter leaf is followed through
reshapes and transposes to the operations that consume it.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal
from jaxtyping import Array, PyTree

from laplace_kit.curv.capture.layout import Move
from laplace_kit.model.checks import check_one_output
from laplace_kit.program import Flattening, Program, Step, scan_sizes

# Operations that keep values and derivatives, up to rounding: they only set the dtype, or where and
# when arrays are held. `stop_gradient` is not one of these.
_IDENTITIES = (
    *("convert_element_type", "reduce_precision", "copy", "copy_p", "name"),
    *("optimization_barrier", "device_put", "sharding_constraint", "reshard", "layout_constraint"),
)
# Operations on one array that only move its entries; the last one may repeat them.
_MOVES = (*_IDENTITIES, "reshape", "transpose", "squeeze", "rev", "broadcast_in_dim")
# Operations that cut an array along an axis, into parts of given sizes, or into slices without it.
_CUTS = ("split", "unstack")


class Use(NamedTuple):
    """One use of a leaf: the step, the operand's index, and the moves between leaf and operand.

    `part` is the index of a slice of length one along the leaf's first axis if only that is used.
    """

    step: int
    operand: int
    moves: tuple[Step, ...]
    repeated: bool
    part: int | None = None


def flatten_program(model_fn: jax.tree_util.Partial, params: PyTree, x: PyTree) -> Program:
    """Trace `model_fn(params, x)` and inline its calls.

    Parameters
    ----------
    model_fn
        A function that returns one array; the arrays it holds are arguments of the program.
    params, x
        Arrays or shapes.
    """
    arguments = (model_fn, params, x)
    call = jax.make_jaxpr(lambda model_fn, *args: model_fn(*args), return_shape=True)
    closed, outputs = call(*arguments)
    if len(closed.jaxpr.outvars) != 1:
        check_one_output(outputs)
    moved: set[int] = set()
    flattening = Flattening(partial(_expand, moved))
    numbers = [flattening.fresh(variable.aval) for variable in closed.jaxpr.invars]
    rest = iter(numbers)
    frozen, leaves, inputs = (
        tuple(itertools.islice(rest, len(jax.tree.leaves(part)))) for part in arguments
    )
    moved.update(leaves)
    (output,) = flattening.inline(closed, numbers)
    steps = tuple(flattening.steps)
    return Program(steps, flattening.constants, frozen, leaves, inputs, output, flattening.avals)


def _expand(
    moved: set[int], flattening: Flattening, equation: JaxprEqn, operands: Sequence[int | Literal]
) -> tuple[int | Literal, ...]:
    """Add an operation's steps; `moved` collects parameters and values that are moved parameters.

    A scan over these is unrolled, and operations that cut them into parts become slices.
    """

    def are_moved(values: Sequence[int | Literal]) -> bool:
        return any(not isinstance(value, Literal) and value in moved for value in values)

    name, params = equation.primitive.name, equation.params
    if name == "scan" and are_moved(operands[sum(scan_sizes(params)) :]):
        return _unroll(flattening, params, operands)
    if name in _CUTS and are_moved(operands):
        return _cut(flattening, equation, operands[0])
    results = tuple(flattening.fresh(variable.aval) for variable in equation.outvars)
    for step in _one_by_one(Step(equation.primitive, params, operands, results)):
        flattening.steps.append(step)
        if moves_entries(step) and are_moved(step.operands):
            moved.update(step.results)
    return results


def _unroll(
    flattening: Flattening, params: Mapping[str, Any], operands: Sequence[int | Literal]
) -> tuple[int | Literal, ...]:
    """Inline the body of a scan once for every step, on slices of the scanned arrays."""
    num_consts, num_carry = scan_sizes(params)
    consts, rest = operands[:num_consts], operands[num_consts:]
    carry, scanned = tuple(rest[:num_carry]), rest[num_carry:]
    stacks: list[tuple] = [()] * params["length"]
    order = range(params["length"])
    for i in reversed(order) if params["reverse"] else order:
        take = partial(jax.lax.index_in_dim, index=i, keepdims=False)
        parts = [flattening.inline_function(take, x) for x in scanned]
        results = flattening.inline(params["jaxpr"], (*consts, *carry, *parts))
        carry, stacks[i] = results[:num_carry], results[num_carry:]
    stacked = [
        flattening.inline_function(lambda *ys: jnp.stack(ys), *ys)
        for ys in zip(*stacks, strict=True)
    ]
    return (*carry, *stacked)


def _cut(flattening: Flattening, equation: JaxprEqn, operand: int) -> tuple[int | Literal, ...]:
    """Inline a parameter's split along an axis as slices, one for each part."""
    axis, keepdims = equation.params["axis"], equation.primitive.name == "split"
    num = flattening.avals[operand].shape[axis]
    stops = np.cumsum(equation.params.get("sizes", (1,) * num)).tolist()

    def part(a: Array, start: int, stop: int) -> Array:
        cut = jax.lax.slice_in_dim(a, start, stop, axis=axis)
        return cut if keepdims else jnp.squeeze(cut, axis)

    bounds = zip([0, *stops], stops, strict=False)
    return tuple(
        flattening.inline_function(partial(part, start=start, stop=stop), operand)
        for start, stop in bounds
    )


def _one_by_one(step: Step) -> list[Step]:
    """Return an identity on several arrays as one step for each; other steps are unchanged.

    The identity's parameters are shared, or have an entry for each array.
    """
    num = len(step.operands)
    if num == 1 or step.primitive.name not in _IDENTITIES:
        return [step]

    def part(value: Any, i: int) -> Any:
        by_operand = isinstance(value, tuple | list) and len(value) == num
        return value[i : i + 1] if by_operand else value

    return [
        Step(
            step.primitive,
            {name: part(value, i) for name, value in step.params.items()},
            (operand,),
            (result,),
        )
        for i, (operand, result) in enumerate(zip(step.operands, step.results, strict=True))
    ]


def find_uses(program: Program) -> tuple[tuple[Use, ...], ...]:
    """Return the uses of each leaf; a leaf that the program returns is used at its end."""
    origin = {number: (leaf, (), False, None) for leaf, number in enumerate(program.leaves)}
    uses: list[list[Use]] = [[] for _ in program.leaves]
    for position, step in enumerate(program.steps):
        for place, operand in enumerate(step.operands):
            if isinstance(operand, Literal) or operand not in origin:
                continue
            leaf, moves, repeated, part = origin[operand]
            unmoved = part is None and not as_moves(moves, program)
            taken = _part_taken(step, program) if unmoved else None
            if taken is not None:
                origin[step.results[0]] = (leaf, (), False, taken)
            elif moves_entries(step):
                repeated = repeated or _repeats(step, program)
                origin[step.results[0]] = (leaf, (*moves, step), repeated, part)
            else:
                uses[leaf].append(Use(position, place, moves, repeated, part))
    if not isinstance(program.output, Literal) and program.output in origin:
        leaf, moves, repeated, part = origin[program.output]
        uses[leaf].append(Use(len(program.steps), 0, moves, repeated, part))
    return tuple(tuple(found) for found in uses)


def _part_taken(step: Step, program: Program) -> int | None:
    """Return the index of a slice of length one along the first axis, or `None` for other steps."""
    if step.primitive.name != "slice":
        return None
    start, stop = step.params["start_indices"], step.params["limit_indices"]
    shape = program.shape(step.operands[0])
    one = stop[0] - start[0] == 1 and (*start[1:], *stop[1:]) == (
        *(0,) * (len(shape) - 1),
        *shape[1:],
    )
    return start[0] if one and set(step.params["strides"] or ()) <= {1} else None


def moves_entries(step: Step) -> bool:
    """Return whether a step only moves the entries of one array."""
    if step.primitive.name == "convert_element_type":  # no gradient passes through integers
        return jnp.issubdtype(step.params["new_dtype"], jnp.floating)
    return step.primitive.name in _MOVES and len(step.operands) == 1


def _repeats(step: Step, program: Program) -> bool:
    sizes = [math.prod(program.shape(n)) for n in (step.operands[0], step.results[0])]
    return sizes[0] != sizes[1]


def as_moves(steps: Iterable[Step], program: Program) -> tuple[Move, ...]:
    """Return steps that move entries without repeating them as moves."""
    moves = []
    for step in steps:
        name = step.primitive.name
        if name == "reshape" and step.params["dimensions"] is not None:  # the axes' order, first
            moves.append(Move("transpose", tuple(step.params["dimensions"])))
        if name == "transpose":
            moves.append(Move("transpose", tuple(step.params["permutation"])))
        elif name == "rev":
            moves.append(Move("flip", tuple(step.params["dimensions"])))
        elif name not in _IDENTITIES:
            moves.append(Move("reshape", program.shape(step.results[0])))
    return tuple(moves)
