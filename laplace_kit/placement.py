"""Where examples lie: the mesh, and the axes of it over which their rows are spread.

Data that are sharded by rows stay where they are: each device runs the loop over chunks on its own
rows, and sums are added over devices once, at the end. The placement is read from the arrays
outside of `jit`, as the types of arrays on a mesh of automatic axes do not name it, and travels
with the data as structure. Other axes of the mesh, over which parameters may be sharded, are left
to the compiler.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from laplace_kit.program import Rules, Step, traced


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, whose axes all count as automatic, and the axes over which rows are spread.

    The mesh may extend over several processes: only shapes and names are read.
    """

    mesh: Mesh | AbstractMesh
    axes: tuple[str, ...]

    @property
    def num_parts(self) -> int:
        """The number of parts into which the rows are cut."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def is_shared(self) -> bool:
        """Whether several processes have a part of the rows each."""
        return len({device.process_index for device in self.mesh.devices.flat}) > 1

    @property
    def by_rows(self) -> NamedSharding:
        """The sharding of an array with a leading axis of examples."""
        return NamedSharding(self.mesh, PartitionSpec(self.axes))


def placement_of(arrays: PyTree) -> Placement | None:
    """Return where the rows of arrays lie, or `None` if they are not spread over devices.

    The first leaf that is sharded along its leading axis decides. Inside `jit` the types tell only
    about meshes of explicit axes.
    """
    for leaf in jax.tree.leaves(arrays):
        if not isinstance(leaf, jax.Array):
            continue
        is_traced = isinstance(leaf, jax.core.Tracer)
        sharding = jax.typeof(leaf).sharding if is_traced else leaf.sharding
        if not isinstance(sharding, NamedSharding) or not sharding.spec or not sharding.spec[0]:
            continue
        mesh, axes = sharding.mesh, sharding.spec[0]
        mesh = mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        found = Placement(mesh, axes if isinstance(axes, tuple) else (axes,))
        if found.num_parts > 1:
            return found
    return None


def num_parts(placement: Placement | None) -> int:
    """Return the number of parts into which rows are cut, one without a placement."""
    return 1 if placement is None else placement.num_parts


def num_held(num: int, placement: Placement | None) -> int:
    """Return how many of `num` rows each device holds."""
    return num // num_parts(placement)


def sharding_of_sums(*trees: PyTree, axes: tuple[str, ...] | None = None) -> Sharding | None:
    """Return where sums over rows will lie: on every device of the first committed array.

    `None` if no array is committed to devices. With `axes` of a mesh the leading axis of the sums
    is spread over these.
    """
    for leaf in jax.tree.leaves(trees):
        is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        if is_array and leaf.committed:
            found = leaf.sharding
            is_named = isinstance(found, NamedSharding)
            return NamedSharding(found.mesh, PartitionSpec(axes)) if is_named else found
    return None


# --- what the compiler is told --------------------------------------------------------------------


def everywhere(arrays: PyTree, placement: Placement | None) -> PyTree:
    """Return arrays that every device has whole; without a placement, as they are."""
    return _laid(arrays, placement, ())


def by_rows(arrays: PyTree, placement: Placement | None) -> PyTree:
    """Return arrays whose leading axes are spread over the devices, in parts of one size."""
    return arrays if placement is None else _laid(arrays, placement, (placement.axes,))


def by_last_axis(arrays: PyTree, placement: Placement | None) -> PyTree:
    """Return arrays whose last axes are spread over the devices, in parts of one size."""
    if placement is None:
        return arrays

    def lay(leaf: jax.Array) -> jax.Array:
        return _laid(leaf, placement, (None,) * (leaf.ndim - 1) + (placement.axes,))

    return jax.tree.map(lay, arrays)


def _laid(arrays: PyTree, placement: Placement | None, spec: tuple) -> PyTree:
    if placement is None:
        return arrays
    where = NamedSharding(placement.mesh, PartitionSpec(*spec))
    return jax.lax.with_sharding_constraint(arrays, where)


def rounded_up(num: int, placement: Placement | None) -> int:
    """Return the number of rows with which each device has equally many of `num` or more."""
    return -(-num // num_parts(placement)) * num_parts(placement)


def in_parts(
    fn: Callable[[PyTree, PyTree], PyTree],
    placement: Placement | None,
    args: PyTree,
    rows: PyTree,
    *,
    summed: bool,
) -> PyTree:
    """Return `fn(args, rows)`, where each device works on its own rows.

    Parameters
    ----------
    fn
        A function of arguments that every device has, and of any number of rows.
    placement
        Over which devices the rows are spread; `None` leaves the work to the compiler, as do models
        that are mapped over shards themselves.
    args, rows
        Traced arrays: this is called inside `jit`.
    summed
        Whether results are summed over devices; otherwise their rows stay where they are.
    """
    if placement is None and explicit_mesh((args, rows)) is None:
        return fn(args, rows)
    num_parts, axes = (placement.num_parts, placement.axes) if placement else (1, ())

    def cut(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return leaf.update(shape=(leaf.shape[0] // num_parts, *leaf.shape[1:]))

    # Traced outside of the map, where models may name the axes that are mapped within.
    program = traced(fn, shapes(args), jax.tree.map(cut, shapes(rows)))
    local = partial(program.run, _rules(axes))
    if placement is None:
        return automatic(local, args, rows)
    out_axes = None if summed else axes
    if program.has("shard_map"):
        return automatic(fn, args, rows, axes=out_axes)

    def on_each(args: PyTree, rows: PyTree) -> PyTree:
        found = local(args, rows)
        return jax.lax.psum(found, axes) if summed else found

    def on_all(args: PyTree, rows: PyTree) -> PyTree:
        by_rows, whole = PartitionSpec(axes), PartitionSpec()
        within_mesh = not jax.sharding.get_abstract_mesh().empty
        return jax.shard_map(
            on_each,
            mesh=None if within_mesh else placement.mesh,
            in_specs=(whole, by_rows),
            out_specs=whole if summed else by_rows,
            axis_names=set(axes),
            check_vma=False,  # models do not mark what differs between devices in their loops
        )(args, rows)

    return automatic(on_all, args, rows, axes=out_axes)


def shapes(arrays: PyTree) -> PyTree:
    """Return the shapes and dtypes of arrays as JAX traces them, without where they lie."""
    found = jax.eval_shape(lambda arrays: arrays, arrays)
    return jax.tree.map(lambda leaf: leaf.update(sharding=None), found)


def _rules(axes: tuple[str, ...]) -> Rules:
    """Return rules for what a model says about shardings, where some axes are mapped already."""
    return {
        "sharding_constraint": partial(_constrained, axes),
        "reshard": lambda step, operand: operand,
    }


def _constrained(axes: tuple[str, ...], step: Step, operand: jax.Array) -> jax.Array:
    """Apply a constraint on a sharding with the axes that are left."""

    def rest(entry: Any) -> Any:
        if entry is PartitionSpec.UNCONSTRAINED:
            return entry
        names = entry if isinstance(entry, tuple) else (entry,)
        return tuple(name for name in names if name is not None and name not in axes) or None

    sharding = step.params["sharding"]
    if not isinstance(sharding, NamedSharding):
        return operand
    spec = PartitionSpec(*map(rest, sharding.spec))
    if all(entry is None or entry is PartitionSpec.UNCONSTRAINED for entry in spec):
        return operand
    return jax.lax.with_sharding_constraint(operand, NamedSharding(sharding.mesh, spec))


def automatic(
    fn: Callable, *args: PyTree, axes: tuple[str, ...] | None = None, last: bool = False
) -> PyTree:
    """Return `fn(*args)`, with all shardings within it left to the compiler.

    On a mesh of explicit axes operations would have to name the shardings of their results. Outside
    of such a mesh this is the plain call.

    Parameters
    ----------
    fn, *args
        A function of pytrees of arrays.
    axes
        The axes of the mesh over which the leading axis of each result is spread; by default every
        device holds the results.
    last
        Whether it is the last axis of each result in place of the leading one.
    """
    mesh = explicit_mesh(args)
    if mesh is None:
        return fn(*args)
    where = NamedSharding(mesh, PartitionSpec(axes))
    if last:
        found = jax.eval_shape(fn, *shapes(args))
        where = jax.tree.map(
            lambda leaf: NamedSharding(mesh, PartitionSpec(*(None,) * (leaf.ndim - 1), axes)), found
        )
    return jax.sharding.auto_axes(fn, out_sharding=where)(*args)


def explicit_mesh(arrays: PyTree) -> AbstractMesh | None:
    """Return the mesh of explicit axes on which any of these arrays lies, as its type names it."""
    for leaf in jax.tree.leaves(arrays):
        mesh = jax.typeof(leaf).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None


def on_automatic_axes(fn: Callable, *args: PyTree) -> PyTree:
    """Return `fn(*args)` for arrays on the same devices, with a mesh of automatic axes.

    For several programs after each other; `automatic` is for a part of one. Arrays that lie on a
    mesh of explicit axes are moved without a copy, and a mesh in the context is replaced.

    Parameters
    ----------
    fn, *args
        A function of pytrees of arrays, outside of transformations. Traced arrays stay as they are.

    Returns
    -------
    result
        On the mesh of the arguments, with each leading axis spread over what it was spread over.
    """
    leaves = jax.tree.leaves(args)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return fn(*args)
    mesh = next(filter(None, map(_explicit_mesh_of, leaves)), None)
    if mesh is None and AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
        mesh = jax.sharding.get_mesh()  # for arrays of the host
    if mesh is None:
        return fn(*args)
    same = mesh.update(axis_types=(AxisType.Auto,) * len(mesh.axis_names))

    def moved(leaf: Any) -> Any:
        if _explicit_mesh_of(leaf) is None:
            return leaf
        return jax.device_put(leaf, NamedSharding(same, leaf.sharding.spec))

    def back(leaf: Any) -> Any:
        is_named = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding)
        if not is_named:
            return leaf
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[:1])))

    has_context = not jax.sharding.get_abstract_mesh().empty
    with jax.set_mesh(same) if has_context else contextlib.nullcontext():
        found = fn(*jax.tree.map(moved, args))
    return jax.tree.map(back, found)


def in_automatic_context(fn: Callable, *args: PyTree) -> PyTree:
    """Return `fn(*args)`, as by `on_automatic_axes` where the context is a mesh of explicit axes.

    In such a context every array that is made, also of the host's, names the mesh, and what mixes
    it with others would have to say where the result lies.
    """
    types = jax.sharding.get_abstract_mesh().axis_types
    is_explicit = AxisType.Explicit in types
    return on_automatic_axes(fn, *args) if is_explicit else fn(*args)


def _explicit_mesh_of(leaf: Any) -> Mesh | None:
    """Return the mesh of explicit axes on which an array lies, by its sharding."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return None
    found = leaf.sharding
    is_explicit = isinstance(found, NamedSharding) and AxisType.Explicit in found.mesh.axis_types
    return found.mesh if is_explicit else None


def spread(arrays: PyTree, placement: Placement | None) -> PyTree:
    """Return arrays of rows with those that lie on one device moved to the devices of the others.

    Traced arrays stay as they are.
    """
    if placement is None:
        return arrays
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arrays)]
    meshes = (of.mesh for of in shardings if isinstance(of, NamedSharding) and of.num_devices > 1)
    # That of the others, whose axes may be explicit.
    by_rows = NamedSharding(next(meshes, placement.mesh), PartitionSpec(placement.axes))

    def move(leaf: jax.Array | np.ndarray) -> jax.Array:
        is_array = isinstance(leaf, jax.Array)
        is_spread = is_array and (
            isinstance(leaf, jax.core.Tracer) or len(leaf.sharding.device_set) > 1
        )
        return leaf if is_spread else jax.device_put(leaf, by_rows)

    return jax.tree.map(move, arrays)


def check_devices(args: PyTree, rows: PyTree) -> None:
    """Raise a `ValueError` if arguments are committed to devices other than those of the rows."""
    devices = _committed_devices(rows)
    others = _committed_devices(args)
    if not devices or not others or devices == others:
        return
    raise ValueError(
        f"Found parameters on {_described(others)} and examples on {_described(devices)}, expected "
        "both on the same devices; put parameters on all devices of a mesh by "
        "jax.device_put(params, jax.NamedSharding(mesh, jax.P())), and examples on the device of "
        "parameters by jax.device_put(x, device)."
    )


def _committed_devices(arrays: PyTree) -> set[jax.Device]:
    """Return the devices of the first array that is committed to some, or an empty set."""
    for leaf in jax.tree.leaves(arrays):
        is_array = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
        if is_array and leaf.committed:
            return leaf.sharding.device_set
    return set()


def _described(devices: set[jax.Device]) -> str:
    return str(next(iter(devices))) if len(devices) == 1 else f"{len(devices)} devices"
