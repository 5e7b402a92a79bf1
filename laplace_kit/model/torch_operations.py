"""torchax, which computes the operations of torch by JAX: imported late, a few of them replaced.

Nothing else imports it, and this file does so when the first module is adapted. By itself, torchax
would change torch in the whole process: it names torch's spare backend `jax`, after which
`torch.compile`, `nn.DataParallel` and loaders that pin memory fail, as they take it for the
machine's accelerator, and it turns the fast path of attention off. It is imported without that.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Overloads that torchax 0.0.13 names when it is imported, and that torch has no longer since 2.13.
_REMOVED = {
    "all": ("dimname", "dimname_out"),
    "index_add": ("dimname",),
    "index_copy": ("dimname",),
    "index_copy_": ("dimname",),
    "index_fill": ("Dimname_Scalar", "Dimname_Tensor"),
    "index_fill_": ("Dimname_Scalar", "Dimname_Tensor"),
    "norm": ("names_ScalarOpt_dim", "names_ScalarOpt_dim_dtype", "names_dtype_out", "names_out"),
    "prod": ("dim_Dimname",),
    "std": ("names_dim", "names_out", "correction_names", "correction_names_out"),
    "std_mean": ("names_dim", "correction_names"),
    "unbind": ("Dimname",),
}


class Randomness(Exception):
    """An operation asked for random numbers."""


@functools.cache
def environment() -> Any:
    """Import torchax and return an environment of our own; its default one stays as it is.

    Raises
    ------
    ImportError
        If torchax cannot be imported.
    """
    import torch

    for operation, overloads in _REMOVED.items():
        packet = getattr(torch.ops.aten, operation)
        for overload in overloads:
            if not hasattr(packet, overload):
                setattr(packet, overload, object())  # a key in tables, where nothing looks it up
    try:
        with _without_effects():
            from torchax import device_module, view
            from torchax.ops.ops_registry import Operator
            from torchax.tensor import Environment, Tensor
    except ImportError as error:
        raise ImportError(
            f"Found torch but no torchax that can be imported ({error}), expected torchax 0.0.13 "
            "or newer, which computes torch's operations by JAX; pip install 'laplace-kit[torch]'."
        ) from error
    if device() != "jax":  # not imported by the user before
        for tensor in (Tensor, view.View):
            tensor.device = property(lambda _: torch.device(device(), 0))
        module = types.ModuleType(device())
        vars(module).update(vars(device_module), is_available=lambda: False)
        torch._register_device_module(device(), module)
    env, aten = Environment(), torch.ops.aten
    replaced = {
        (aten.addmm, aten.addmm.default): _addmm,
        (aten.embedding, aten.embedding.default): _embedding,
        (aten._embedding_bag, aten._embedding_bag_forward_only): _embedding_bag,
        (aten.add.Tensor,): _without_factor(jnp.add, env._ops[aten.add.Tensor].func),
        (aten.sub.Tensor,): _without_factor(jnp.subtract, env._ops[aten.sub.Tensor].func),
        (torch.lstm,): _recurrence(_lstm_cell),
        (torch.gru,): _recurrence(_gru_cell),
        (torch.rnn_tanh,): _recurrence(functools.partial(_rnn_cell, jnp.tanh)),
        (torch.rnn_relu,): _recurrence(functools.partial(_rnn_cell, jax.nn.relu)),
    }
    for names, function in replaced.items():
        for name in names:
            env._ops[name] = Operator(name, function, True, True, False, False)
    env.get_and_rotate_prng_key = _refuse_randomness
    return env


def device() -> str:
    """Return the name of the device that torch takes arrays of JAX to be on."""
    import torch

    return torch._C._get_privateuse1_backend_name()


@contextlib.contextmanager
def running() -> Iterator[Any]:
    """Have the operations of torch done by JAX, and yield the environment.

    Tensors that are made without a device are made where the inputs are.
    """
    import torch

    env, fast = environment(), torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation, which has no JAX form
    try:
        with torch.no_grad(), env, torch.device(device()):
            yield env
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _without_effects() -> Iterator[None]:
    """Import torchax without the change of torch's backend and of attention."""
    import torch

    rename, register = torch.utils.rename_privateuse1_backend, torch._register_device_module
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.utils.rename_privateuse1_backend = lambda name: None
    torch._register_device_module = lambda name, module: None
    try:
        yield
    finally:
        torch.utils.rename_privateuse1_backend = rename
        torch._register_device_module = register
        torch.backends.mha.set_fastpath_enabled(fast)


def errors() -> tuple[type[Exception], ...]:
    """Return the errors of operations that have no JAX form, or whose form refuses to be used."""
    from torchax.tensor import OperatorNotFound

    return OperatorNotFound, Randomness


def _refuse_randomness(generator: Any = None) -> Array:
    raise Randomness("a random number was asked for")


# --- operations whose layers are to be found ------------------------------------------------------


def _addmm(bias: Array, a: Array, b: Array, *, beta: Any = 1, alpha: Any = 1) -> Array:
    """Return a product and a bias; multiplied by one, the bias would be taken for a scale."""
    product = a @ b if alpha == 1 else alpha * (a @ b)
    return product + (bias if beta == 1 else beta * bias)


def _without_factor(combine: Callable, general: Callable) -> Callable:
    """Return a sum or difference that multiplies by no factor where that is one."""

    def combined(x: Any, y: Any, *, alpha: Any = 1) -> Array:
        if isinstance(x, jax.Array) and isinstance(y, jax.Array) and alpha == 1:
            return combine(x, y)
        return general(x, y, alpha=alpha)

    return combined


def _embedding(
    table: Float[Array, "V D"],
    indices: Int[Array, "..."],
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Float[Array, "... D"]:
    """Return rows of a table; what torch does to their gradients in training does not apply."""
    return jnp.take(table, indices, axis=0)


def _embedding_bag(
    table: Float[Array, "V D"],
    indices: Int[Array, " L"],
    offsets: Int[Array, " B"],
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Float[Array, " L"] | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Array, Array, Array, Array]:
    """Return sums (mode 0), means (1) or maxima (2) over bags of rows, and torch's bookkeeping."""
    starts = offsets[:-1] if include_last_offset else offsets
    bag = jnp.searchsorted(starts, jnp.arange(len(indices)), side="right") - 1
    counted, rows = indices != padding_idx, jnp.take(table, indices, axis=0)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[:, None]
    sizes = jax.ops.segment_sum(counted.astype(rows.dtype), bag, len(starts))[:, None]
    if mode == 2:
        rows = jnp.where(counted[:, None], rows, -jnp.inf)
        bags = jnp.where(sizes > 0, jax.ops.segment_max(rows, bag, len(starts)), 0)
    else:
        rows = jnp.where(counted[:, None], rows, 0)
        bags = jax.ops.segment_sum(rows, bag, len(starts))
        bags = bags / jnp.maximum(sizes, 1) if mode == 1 else bags
    return bags, bag, sizes[:, 0], starts


# --- recurrent layers -----------------------------------------------------------------------------


def _recurrence(cell: Callable) -> Callable:
    """Return torch's operation for layers of a cell, as scans over time.

    Inputs are multiplied by their weight at all times at once, a dense layer; torch's own
    decomposition does so step by step, and its program grows with the number of steps.
    """

    def run(
        x: Array,
        state: Array | tuple[Array, Array],
        weights: Sequence[Array],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Array, ...]:
        if not isinstance(has_biases, bool):  # the operation has another form, of other arguments
            raise NotImplementedError("packed sequences; pass padded ones")
        states = state if isinstance(state, tuple | list) else (state,)
        directions = (False, True) if bidirectional else (False,)
        num_each = len(weights) // (num_layers * len(directions))
        x, last = jnp.swapaxes(x, 0, 1) if batch_first else x, []
        for _ in range(num_layers):
            outputs = []
            for reverse in directions:
                number = len(last)
                own = weights[number * num_each : (number + 1) * num_each]
                step, inputs = _cell_of(cell, own, has_biases, x)
                carried = tuple(each[number] for each in states)
                carried, output = jax.lax.scan(step, carried, inputs, reverse=reverse)
                last.append(carried)
                outputs.append(output)
            x = jnp.concatenate(outputs, axis=-1)
        stacked = tuple(jnp.stack(each) for each in zip(*last, strict=True))
        return (jnp.swapaxes(x, 0, 1) if batch_first else x, *stacked)

    return run


def _cell_of(
    cell: Callable, weights: Sequence[Array], has_biases: bool, x: Float[Array, "T B I"]
) -> tuple[Callable, Float[Array, "T B G"]]:
    """Return a scan's step for the weights of one direction, and what the inputs contribute."""
    w_input, w_state, *rest = weights
    b_input, b_state = rest[:2] if has_biases else (None, None)
    projection = rest[2 * has_biases :]
    inputs = x @ w_input.T if b_input is None else x @ w_input.T + b_input

    def step(state: tuple[Array, ...], from_input: Array) -> tuple[tuple[Array, ...], Array]:
        from_state = state[0] @ w_state.T
        from_state = from_state if b_state is None else from_state + b_state
        hidden, *others = cell(from_input, from_state, state)
        hidden = hidden @ projection[0].T if projection else hidden
        return (hidden, *others), hidden

    return step, inputs


def _lstm_cell(
    from_input: Array, from_state: Array, state: tuple[Array, Array]
) -> tuple[Array, Array]:
    let_in, keep, new, let_out = jnp.split(from_input + from_state, 4, axis=-1)
    memory = jax.nn.sigmoid(keep) * state[1] + jax.nn.sigmoid(let_in) * jnp.tanh(new)
    return jax.nn.sigmoid(let_out) * jnp.tanh(memory), memory


def _gru_cell(from_input: Array, from_state: Array, state: tuple[Array]) -> tuple[Array]:
    reset, keep, new = zip(
        *(jnp.split(part, 3, axis=-1) for part in (from_input, from_state)), strict=True
    )
    kept = jax.nn.sigmoid(sum(keep))
    fresh = jnp.tanh(new[0] + jax.nn.sigmoid(sum(reset)) * new[1])
    return (fresh + kept * (state[0] - fresh),)


def _rnn_cell(
    activation: Callable, from_input: Array, from_state: Array, state: tuple[Array]
) -> tuple[Array]:
    return (activation(from_input + from_state),)
