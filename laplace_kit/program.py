"""Programs traced by JAX: search, rewrite, flatten to steps, and run step by step.

All knowledge of jaxprs that depends on JAX's internals is in this file: the parameters an operation
is bound with, which parameter of a call holds its program, which operations cannot be moved out of
their context, and how a scan counts its operands.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Primitive,
    Var,
    jaxpr_as_fun,
)
from jax.sharding import NamedSharding
from jaxtyping import Array, ArrayLike, PyTree

# Calls without semantics of their own. Since JAX 0.12, `closed_call` and `core_call` are one named
# `eval_jaxpr`; `RematTraced` is a `checkpoint` by `jax_remat3`. A call not named here is left
# whole, which computes the same but captures no layers within. That an operation holds one program,
# of its operands' types, does not make it such a call: loops and derivative rules may do so too.
_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "eval_jaxpr"),
    *("checkpoint", "remat2", "RematTraced"),
)
# Operations whose programs depend on their context, by names of axes or references.
_KEPT_WHOLE = ("shard_map", "pallas_call")

Operand = int | Var | Literal
Rules = Mapping[str, Callable[..., Array]]


class Step(NamedTuple):
    """One operation; operands and results are values, by number or variable, or literals.

    `context` are the settings it was traced under, as in `JaxprEqn.ctx`. A step without any is
    applied under the current settings.
    """

    primitive: Primitive
    params: dict[str, Any]
    operands: tuple[Operand, ...]
    results: tuple[int | Var, ...]
    context: Any = None

    def apply(self, *operands: Any) -> list[Any]:
        """Return the results for some operands, arrays or references to them."""
        with _settings(self.context):
            params = self.primitive.get_bind_params(self.params)
            found = self.primitive.bind(*operands, **params)
        return list(found) if self.primitive.multiple_results else [found]


@contextlib.contextmanager
def _settings(context: Any) -> Iterator[None]:
    """Enter the settings of a context, apart from the mesh, which stays the current one."""
    mesh = jax.sharding.get_abstract_mesh()
    with getattr(context, "manager", contextlib.nullcontext()):
        if jax.sharding.get_abstract_mesh() == mesh:
            yield
            return
        with jax.sharding.use_abstract_mesh(mesh):
            yield


def run(
    steps: Iterable[Step],
    values: Mapping[Any, Any],
    rules: Rules | None = None,
    probes: Mapping[int, Array | Callable[[Callable], Array]] | None = None,
) -> Callable[[Operand], Any]:
    """Apply steps in order and return a function that reads each of the values.

    Parameters
    ----------
    steps
        Operations, each after those that compute its operands.
    values
        The initial values, by name.
    rules
        For a primitive's name, a function `(step, *operands) -> result` to use in its place, also
        in the programs that steps hold.
    probes
        For the index of a step, a term added to its result for the steps that follow: an array, or
        a function of `read`, which reads the values so far.
    """
    values = dict(values)

    def read(operand: Operand) -> Any:
        return operand.val if isinstance(operand, Literal) else values[operand]

    for position, step in enumerate(steps):
        operands = map(read, step.operands)
        rule = (rules or {}).get(step.primitive.name)
        if rule is not None:
            results = [rule(step, *operands)]
        else:
            results = (_rewritten_within(step, rules) if rules else step).apply(*operands)
        if probes and position in probes:
            probe = probes[position]
            results = [results[0] + (probe(read) if callable(probe) else probe)]
        values.update(zip(step.results, results, strict=True))
    return read


# --- searching and rewriting --------------------------------------------------------------------


def has_operation(fn: Callable[..., PyTree], *args: PyTree, names: Iterable[str]) -> bool:
    """Return whether a function has an operation of a given name, also in its loops and calls.

    Parameters
    ----------
    fn, *args
        The function and its arguments, or their shapes: it is traced, and nothing is computed.
    names
        Names of primitives.
    """
    return traced(fn, *args).has(*names)


def rewritten(fn: Callable[..., PyTree], rules: Rules) -> Callable[..., PyTree]:
    """Return a function with some of its operations replaced, by name.

    Parameters
    ----------
    fn
        A function of pytrees of arrays, to be called inside `jit`. Derivative rules of functions in
        it stay in force. Programs mapped over shards and choices by platform are not rewritten.
    rules
        As for `run`.

    Returns
    -------
    fn
        It is traced once; then its operations, or their replacements, are added one by one to the
        program around it.
    """
    return lambda *args: traced(fn, *args).run(rules, *args)


class Traced(NamedTuple):
    """A function as it is traced for arguments of some shapes, and the shapes of its result."""

    closed: ClosedJaxpr
    shapes: PyTree

    def has(self, *names: str) -> bool:
        """Return whether there is an operation of one of these names, also in loops and calls."""
        return any(_name(equation) in names for equation in _equations(self.closed))

    def run(self, rules: Rules, *args: PyTree) -> PyTree:
        """Return the function's result, with rules in place of some operations."""
        applies = _has_matches(self.closed, rules)
        program = partial(_replay, rules, self.closed) if applies else jaxpr_as_fun(self.closed)
        outputs = program(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(self.shapes), outputs)


def traced(fn: Callable[..., PyTree], *args: PyTree) -> Traced:
    """Trace a function for arguments, or for their shapes, under the current settings."""
    return Traced(*jax.make_jaxpr(fn, return_shape=True)(*args))


def _replay(rules: Rules, closed: ClosedJaxpr, *args: ArrayLike) -> list[ArrayLike]:
    """Return the outputs of a program, with rules in place of some operations."""
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    steps = [Step(e.primitive, e.params, e.invars, e.outvars, e.ctx) for e in jaxpr.eqns]
    return list(map(run(steps, values, rules), jaxpr.outvars))


def _rewritten_within(step: Step, rules: Rules) -> Step:
    """Return a step with the programs in its parameters rewritten, without foreign shardings."""

    def rewrite(part: Any) -> Any:
        if not (_is_program(part) and _has_matches(part, rules)):
            return part
        if isinstance(part, ClosedJaxpr):
            avals = [aval.update(sharding=None) for aval in part.in_avals]
            return jax.make_jaxpr(partial(_replay, rules, part))(*avals)
        return rewrite(ClosedJaxpr(part, ())).jaxpr  # as `checkpoint` holds it

    def rewrite_all(value: Any) -> Any:
        holds_any = any(map(_is_program, jax.tree.leaves(value)))
        return jax.tree.map(rewrite, value) if holds_any else value

    if not _may_enter(step.primitive, step.params):
        return step
    params = {name: None if _is_foreign(v) else rewrite_all(v) for name, v in step.params.items()}
    return step._replace(params=params)


def _has_matches(program: ClosedJaxpr | Jaxpr, rules: Rules) -> bool:
    """Return whether a program, or one within it, must be traced again to run here.

    A rule applies, or the types of values name a mesh other than the current one.
    """
    return any(
        equation.primitive.name in rules
        or any(_is_foreign(getattr(v.aval, "sharding", None)) for v in equation.outvars)
        or any(
            _is_program(inner) and _has_matches(inner, rules)
            for inner in programs_in(equation.params)
        )
        for equation in program.eqns
        if _may_enter(equation.primitive, equation.params)
    )


def _is_foreign(sharding: Any) -> bool:
    """Return whether this is a sharding on a mesh other than the current one, if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    named = isinstance(sharding, NamedSharding) and not (mesh.empty or sharding.mesh.empty)
    return named and sharding.mesh.abstract_mesh != mesh


def _may_enter(primitive: Primitive, params: Mapping[str, Any]) -> bool:
    """Return whether the programs of an operation may be traced by themselves."""
    return primitive.name not in _KEPT_WHOLE and params.get("branches_platforms") is None


def _is_program(part: Any) -> bool:
    """Return whether this is a program of arrays, and not one that reads and writes references."""
    return isinstance(part, ClosedJaxpr | Jaxpr) and all(
        isinstance(variable.aval, jax.core.ShapedArray) for variable in _opened(part).invars
    )


def programs_in(params: Mapping[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    """Yield the programs that an operation with these parameters holds."""
    for value in _own_params(params).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, jax.stages.Traced):
                part = part.jaxpr
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part


def _own_params(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of an operation; since JAX 0.11 one of them may be another operation.

    Such are those of `jax_remat3`, `jax_custom_vjp3` and `jax_custom_jvp3`.
    """
    return getattr(params.get("_prim"), "params", params)


def _name(equation: JaxprEqn) -> str:
    """Return the name of an operation, or of the one that it holds."""
    inner = equation.params.get("_prim")
    return equation.primitive.name if inner is None else type(inner).__name__


def _opened(program: ClosedJaxpr | Jaxpr) -> Jaxpr:
    """Return a program with its variables; the two classes are one since JAX 0.12."""
    return getattr(program, "jaxpr", program)


def _equations(program: ClosedJaxpr | Jaxpr) -> Iterator[JaxprEqn]:
    """Yield the equations of a program and of those within it."""
    for equation in program.eqns:
        yield equation
        for inner in programs_in(equation.params):
            yield from _equations(inner)


# --- flat programs ------------------------------------------------------------------------------


class Program(NamedTuple):
    """Steps in order, and the numbers of the values that are arguments.

    `frozen` are the arrays that the model holds, `leaves` its parameters, `inputs` the rest.
    `avals` has the shape and dtype of every value by its number.
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


def evaluate(
    program: Program,
    frozen: Sequence[Any],
    leaves: Sequence[Any],
    inputs: Sequence[Any],
    probes: Mapping[int, Array | Callable[[Callable], Array]] | None = None,
) -> Callable[[int | Literal], Any]:
    """Run a program and return a function that reads each of its values.

    Parameters
    ----------
    frozen, leaves, inputs
        The values of the arguments.
    probes
        As for `run`.
    """
    values = dict(program.constants)
    values.update(zip(program.frozen, frozen, strict=True))
    values.update(zip(program.leaves, leaves, strict=True))
    values.update(zip(program.inputs, inputs, strict=True))
    return run(program.steps, values, probes=probes)


def reached_from(program: Program, sources: Iterable[int]) -> frozenset[int]:
    """Return the numbers of all values that depend on any of these.

    A reference that such a value may have been written to is one of them.
    """
    reached = set(sources)
    for step in program.steps:
        operands = [operand for operand in step.operands if not isinstance(operand, Literal)]
        if reached.intersection(operands):
            reached.update(step.results)
            reached.update(o for o in operands if _is_reference(program.avals[o]))
    return frozenset(reached)


def _is_reference(aval: jax.core.AbstractValue) -> bool:
    return not isinstance(aval, jax.core.ShapedArray)


class Flattening:
    """Collects the steps of a program with its calls inlined; every value gets its own number.

    Calls with their own derivative rule are not inlined, so that the rule stays in force.

    Parameters
    ----------
    expand
        `(flattening, equation, operands) -> results`, for every operation that is not a call: adds
        its step, or others in its place.
    """

    def __init__(self, expand: "Callable[[Flattening, JaxprEqn, tuple], Sequence[int | Literal]]"):
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self.avals: dict[int, jax.core.AbstractValue] = {}
        self._expand = expand

    def fresh(self, aval: jax.core.AbstractValue) -> int:
        """Return a new value's number."""
        self.avals[len(self.avals)] = aval
        return len(self.avals) - 1

    def inline(
        self, closed: ClosedJaxpr | Jaxpr, arguments: Sequence[int | Literal]
    ) -> tuple[int | Literal, ...]:
        """Add the steps of a program and return its outputs."""
        jaxpr, constants = _opened(closed), getattr(closed, "consts", ())
        known = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, value in zip(jaxpr.constvars, constants, strict=True):
            known[variable] = self.fresh(variable.aval)
            self.constants[known[variable]] = value

        def read(atom: Var | Literal) -> int | Literal:
            return atom if isinstance(atom, Literal) else known[atom]

        for equation in jaxpr.eqns:
            operands = tuple(map(read, equation.invars))
            if _name(equation) in _CALLS:
                (inner,) = programs_in(equation.params)
                results = self.inline(inner, operands)
            else:
                results = self._expand(self, equation, operands)
            known.update(zip(equation.outvars, results, strict=True))
        return tuple(map(read, jaxpr.outvars))

    def inline_function(self, fn: Callable, *operands: int | Literal) -> int | Literal:
        """Add the steps of a function of one result, and return it."""
        avals = [o.aval if isinstance(o, Literal) else self.avals[o] for o in operands]
        shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
        return self.inline(jax.make_jaxpr(fn)(*shapes), operands)[0]


def scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return the numbers of a scan's constants and of its carried operands.

    These are parameters up to JAX 0.10, and the lengths of the first two of three groups later.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(carried)
