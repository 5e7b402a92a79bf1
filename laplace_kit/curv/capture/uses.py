"""How parameters enter a model: its program as a flat list of steps, and each leaf's uses.

The program of one example is traced to a jaxpr, calls are inlined, and every parameter leaf is
followed through reshapes and transposes to the operations that consume it. Calls with a derivative
rule of their own are left whole, so that the rule stays in force.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive
from jaxtyping import Array, ArrayLike, PyTree

from laplace_kit.curv.capture.layout import Move
from laplace_kit.model import check_one_output

# Operations that leave values and derivatives as they are, but for rounding: what they speak of is
# the dtype, or where and when arrays are held. `stop_gradient` is none of these.
_IDENTITIES = (
    *("convert_element_type", "reduce_precision", "copy", "copy_p", "name"),
    *("optimization_barrier", "device_put", "sharding_constraint", "reshard", "layout_constraint"),
)
# Operations on one array that only move its entries about, or, the last one, may repeat them.
_MOVES = (*_IDENTITIES, "reshape", "transpose", "squeeze", "rev", "broadcast_in_dim")
# Operations that cut an array along an axis: into parts of given sizes, or of one without the axis.
_CUTS = ("split", "unstack")
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

    def apply(self, *operands: ArrayLike) -> list[Array]:
        """Return the results for some operands."""
        found = self.primitive.bind(*operands, **self.primitive.get_bind_params(self.params))
        return found if self.primitive.multiple_results else [found]


class Program(NamedTuple):
    """Steps in order, and the numbers of the values that are arguments.

    `frozen` are the arrays that the model itself holds, `leaves` its parameters, `inputs` the rest.
    `avals` holds shape and dtype of every value by its number.
    """

    steps: tuple[Step, ...]
    constants: dict[int, Any]
    frozen: tuple[int, ...]
    leaves: tuple[int, ...]
    inputs: tuple[int, ...]
    output: int | Literal
    avals: dict[int, jax.core.AbstractValue]

    def shape(self, operand: int | Literal) -> tuple[int, ...]:
        """Return the shape of a value."""
        return jnp.shape(operand.val) if isinstance(operand, Literal) else self.avals[operand].shape


class Use(NamedTuple):
    """Where a leaf is consumed: the step, the operand, and the moves that brought it there.

    `part` is the index on the leaf's first axis where only that slice, of length one, is meant.
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
        Returns one array; as a pytree, the arrays it holds are arguments of the program.
    params, x
        Arrays or shapes.
    """
    arguments = (model_fn, params, x)
    call = jax.make_jaxpr(lambda model_fn, *args: model_fn(*args), return_shape=True)
    closed, outputs = call(*arguments)
    if len(closed.jaxpr.outvars) != 1:
        check_one_output(outputs)
    builder = _Builder()
    numbers = [builder.fresh(variable.aval) for variable in closed.jaxpr.invars]
    rest = iter(numbers)
    frozen, leaves, inputs = (
        tuple(itertools.islice(rest, len(jax.tree.leaves(part)))) for part in arguments
    )
    builder.moved.update(leaves)
    (output,) = builder.inline(closed, numbers)
    steps = tuple(builder.steps)
    return Program(steps, builder.constants, frozen, leaves, inputs, output, builder.avals)


class _Builder:
    """Collects steps while calls are inlined, giving every value a number of its own.

    `moved` holds the numbers of parameters, moved about or not: a scan over these is unrolled.
    """

    def __init__(self):
        self.moved: set[int] = set()
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self.avals: dict[int, jax.core.AbstractValue] = {}

    def fresh(self, aval: jax.core.AbstractValue) -> int:
        self.avals[len(self.avals)] = aval
        return len(self.avals) - 1

    def inline(self, closed: ClosedJaxpr | Jaxpr, arguments: Sequence[int | Literal]):
        jaxpr, constants = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            known[variable] = self.fresh(variable.aval)
            self.constants[known[variable]] = value

        def read(atom):
            return atom if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            operands = tuple(read(atom) for atom in equation.invars)
            inner = equation.params.get(_CALLS.get(equation.primitive.name, ""))
            if inner is not None:
                results = self.inline(inner, operands)
            elif self._scans_parameters(equation.primitive, equation.params, operands):
                results = self._unroll(equation.params, operands)
            elif equation.primitive.name in _CUTS and self._are_moved(operands):
                results = self._cut(equation, operands[0])
            else:
                results = tuple(self.fresh(variable.aval) for variable in equation.outvars)
                step = Step(equation.primitive, equation.params, operands, results)
                for part in _one_by_one(step):
                    self.steps.append(part)
                    if moves_entries(part) and self._are_moved(part.operands):
                        self.moved.update(part.results)
            known.update(zip(equation.outvars, results, strict=True))
        return tuple(read(atom) for atom in jaxpr.outvars)

    def _scans_parameters(self, primitive: Primitive, params: dict[str, Any], operands) -> bool:
        return primitive.name == "scan" and self._are_moved(operands[sum(_scan_sizes(params)) :])

    def _are_moved(self, operands: Sequence[int | Literal]) -> bool:
        """Tell whether any of these is a parameter, moved about or not."""
        return any(not isinstance(o, Literal) and o in self.moved for o in operands)

    def _unroll(self, params: dict[str, Any], operands: Sequence[int | Literal]):
        """Inline the body of a scan once for every step; slices of what it scans come first."""
        num_consts, num_carry = _scan_sizes(params)
        consts, rest = operands[:num_consts], operands[num_consts:]
        carry, scanned = tuple(rest[:num_carry]), rest[num_carry:]
        stacks: list[tuple] = [()] * params["length"]
        order = range(params["length"])
        for i in reversed(order) if params["reverse"] else order:
            parts = [
                self._apply(partial(jax.lax.index_in_dim, index=i, keepdims=False), x)
                for x in scanned
            ]
            results = self.inline(params["jaxpr"], (*consts, *carry, *parts))
            carry, stacks[i] = results[:num_carry], results[num_carry:]
        stacked = [self._apply(lambda *ys: jnp.stack(ys), *ys) for ys in zip(*stacks, strict=True)]
        return (*carry, *stacked)

    def _cut(self, equation: JaxprEqn, operand: int) -> tuple[int | Literal, ...]:
        """Inline a parameter's split along an axis as slices, one for each part."""
        axis, keepdims = equation.params["axis"], equation.primitive.name == "split"
        num = self.avals[operand].shape[axis]
        stops = np.cumsum(equation.params.get("sizes", (1,) * num)).tolist()

        def part(a: Array, start: int, stop: int) -> Array:
            cut = jax.lax.slice_in_dim(a, start, stop, axis=axis)
            return cut if keepdims else jnp.squeeze(cut, axis)

        bounds = zip([0, *stops], stops, strict=False)
        return tuple(
            self._apply(partial(part, start=start, stop=stop), operand) for start, stop in bounds
        )

    def _apply(self, fn: Callable, *operands: int | Literal) -> int | Literal:
        """Inline a function of one result."""
        avals = [o.aval if isinstance(o, Literal) else self.avals[o] for o in operands]
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        return self.inline(jax.make_jaxpr(fn)(*shapes), operands)[0]


def _scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """Return how many of a scan's operands are constants, and how many are carried on.

    Numbers up to JAX 0.10; in later versions the lengths of the first two of three groups.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(carried)


def _one_by_one(step: Step) -> list[Step]:
    """Return an identity on several arrays as one for each, and any other step as it is.

    Its parameters are in common, or have an entry for each array.
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
    """Return, for each leaf, the steps that consume it; a leaf that is returned counts as used."""
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
    """Return the index of the one slice along the first axis that a step takes, if it does."""
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
    """Tell whether a step moves the entries of one array about, and does nothing else."""
    if step.primitive.name == "convert_element_type":  # no gradient passes through integers
        return jnp.issubdtype(step.params["new_dtype"], jnp.floating)
    return step.primitive.name in _MOVES and len(step.operands) == 1


def _repeats(step: Step, program: Program) -> bool:
    sizes = [math.prod(program.shape(n)) for n in (step.operands[0], step.results[0])]
    return sizes[0] != sizes[1]


def reached_from(program: Program, sources: Iterable[int]) -> frozenset[int]:
    """Return the numbers of all values that depend on any of these."""
    reached = set(sources)
    for step in program.steps:
        if any(
            not isinstance(operand, Literal) and operand in reached for operand in step.operands
        ):
            reached.update(step.results)
    return frozenset(reached)


def as_moves(steps: Iterable[Step], program: Program) -> tuple[Move, ...]:
    """Return what steps that move entries, and repeat none, do to an array."""
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


def evaluate(
    program: Program,
    frozen: Sequence[Any],
    leaves: Sequence[Any],
    inputs: Sequence[Any],
    probes: Mapping[int, Array | Callable[[Callable], Array]] | None = None,
) -> Callable[[int | Literal], Any]:
    """Run a program and return what gives each of its values.

    Parameters
    ----------
    frozen, leaves, inputs
        The values of the arguments.
    probes
        By the number of a step, what is added to its result for the steps that follow: an array, or
        a function of what gives the values so far.
    """
    values = dict(program.constants)
    values.update(zip(program.frozen, frozen, strict=True))
    values.update(zip(program.leaves, leaves, strict=True))
    values.update(zip(program.inputs, inputs, strict=True))

    def read(operand: int | Literal) -> Any:
        return operand.val if isinstance(operand, Literal) else values[operand]

    for position, step in enumerate(program.steps):
        results = step.apply(*map(read, step.operands))
        if probes and position in probes:
            probe = probes[position]
            results = [results[0] + (probe(read) if callable(probe) else probe)]
        values.update(zip(step.results, results, strict=True))
    return read
