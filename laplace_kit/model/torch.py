"""The adapter of torch: modules of torch, Hugging Face and peft become JAX operations."""

import copy
import functools
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from laplace_kit.arrays import as_array, as_arrays, map_arrays, on_host, read_array
from laplace_kit.host import fetch
from laplace_kit.model.pair import ModelAndParams
from laplace_kit.model.torch_operations import Randomness, environment, errors, running

# Errors of JAX about values that a program depends on, which it does not know as it is traced.
_NEEDS_VALUES = (jax.errors.JAXTypeError, jax.errors.JAXIndexError)


def from_torch(
    module: Any, example_inputs: PyTree = None, *, output: Callable[[Any], Any] | None = None
) -> ModelAndParams:
    """Split a torch module into a JAX function and its parameters.

    The module's `forward` is run once for each trace, on values of JAX, and every operation of
    torch adds its JAX form to the program, by [torchax](https://pypi.org/project/torchax). So
    derivatives, layers and compilation are those of a model written in JAX. torchax is imported by
    the first call, without the changes that it makes to torch otherwise; who uses it besides has to
    import it before.

    Parameters
    ----------
    module
        A trained `torch.nn.Module`, such as a model of Hugging Face or peft, on any device. It is
        left as it is: a copy is put in evaluation mode. Parameters with `requires_grad=False`,
        buffers and tensors that are plain attributes are frozen; tied weights are one parameter. A
        compiled or data-parallel module is unwrapped.
    example_inputs
        A batch of inputs, as the posterior gets them. If it is passed, the module is run on it by
        torch and by JAX, and outputs that differ are refused, as is an operation without a JAX
        form.
    output
        From what the module returns, tensors of torch, to one tensor `(N, *event)`. By default it
        is the module's output itself, or its `logits`.

    Returns
    -------
    model_fn
        `(params, x) -> outputs`. A dictionary x, such as a tokenizer's, is passed as keyword
        arguments, a tuple as positional ones, anything else as the only one. A pytree that holds
        the frozen arrays. Keep it: a second one of the same module is compiled again.
    params
        Nested dictionaries of arrays, by the names of the module: `"layers.0.weight"` is
        `params["layers"]["0"]["weight"]`.

    Raises
    ------
    TypeError
        If `module` is not a torch module, is scripted, has float64 parameters where JAX computes in
        float32, or `forward` depends on values or mixes in tensors that the module does not know.
    ValueError
        If no parameter requires gradients, the module ends in a softmax, does not return one
        tensor, or its outputs differ from torch's.
    NotImplementedError
        If an operation has no JAX form; the message names the layer.
    ImportError
        If torchax is not installed.

    Notes
    -----
    `padding_idx` of an embedding is disregarded: torch keeps that row as it is in training, and
    here it is as random as others.
    """
    module = _unwrapped(module)
    environment()  # at once, should torchax be missing
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False)) | dict(_plain_tensors(module))
    _check_dtypes(parameters | buffers)
    first: dict[int, str] = {}
    for name, value in parameters.items():
        first.setdefault(id(value), name)
    aliases = {name: first[id(value)] for name, value in parameters.items()}
    free = {name for name in first.values() if parameters[name].requires_grad}
    if not free:
        raise ValueError(
            f"Found no parameter of {type(module).__name__} that requires gradients, expected one "
            "or more that are to be random; call .requires_grad_(True) on the module, or on some "
            "of its layers."
        )
    arrays = {name: as_array(parameters[name], name) for name in first.values()}
    frozen = {name: array for name, array in arrays.items() if name not in free}
    frozen |= {name: as_array(value, name) for name, value in buffers.items()}
    tied = {name: leader for name, leader in aliases.items() if name != leader}
    call = _TorchCall(_without_values(module), output or _logits, tied)
    model_fn = jax.tree_util.Partial(call, frozen)
    params = _nested({name: array for name, array in arrays.items() if name in free})
    if example_inputs is not None:
        _check_outputs(call, module, model_fn, params, example_inputs)
    return model_fn, params


class _TorchCall:
    """A module without values, called with arrays in their place; compared by identity.

    Running a module takes torch far longer than JAX takes to read a program that it has traced, so
    `jit` keeps the program for each shape of the inputs.
    """

    def __init__(self, module: Any, output: Callable[[Any], Any], tied: Mapping[str, str]):
        self.module, self.output, self.tied = module, output, tied
        self.program = jax.jit(self.traced)

    def __call__(self, frozen: dict[str, Array], params: PyTree, x: PyTree) -> Array:
        return self.program(frozen, params, as_arrays(x, "inputs"))

    def traced(self, frozen: dict[str, Array], params: PyTree, x: PyTree) -> Array:
        """Return the outputs, each operation of torch replaced by its form in JAX."""
        state = dict(_flat(params)) | frozen
        state |= {name: state[leader] for name, leader in self.tied.items()}
        with running() as env:
            state, x = env.j2t_iso((state, x))
            try:
                return env.t2j_iso(self.run(state, x))
            except (NotImplementedError, AssertionError, *_NEEDS_VALUES, *errors()) as error:
                if isinstance(error, AssertionError) and "mixed math" not in str(error):
                    raise  # of the module's own, and not of torchax
                raise _explained(error, self.module) from error

    def run(self, state: Mapping[str, Any], x: Any) -> Any:
        """Return the module's one output for tensors of any kind."""
        import torch

        args = x if isinstance(x, tuple) else () if isinstance(x, dict) else (x,)
        kwargs = x if isinstance(x, dict) else {}
        found = torch.func.functional_call(self.module, state, args, kwargs, tie_weights=False)
        found = self.output(found)
        if isinstance(found, torch.Tensor):
            return found
        names = [*found] if isinstance(found, Mapping) else []
        parts = f" with {', '.join(map(str, names))}" if names else ""
        one = repr(names[0]) if names else "0"
        raise ValueError(
            f"Found a {type(found).__name__}{parts} as the output of {type(self.module).__name__}, "
            "expected one tensor with a leading axis of examples; choose it, as in "
            f"from_torch(module, output=lambda out: out[{one}])."
        )


def _logits(out: Any) -> Any:
    """Return the logits of an output of Hugging Face, and any other output as it is."""
    return getattr(out, "logits", out)


# --- the module and its values --------------------------------------------------------------------


def _unwrapped(module: Any) -> Any:
    """Return the module within a compiled or data-parallel one; refuse what is no model."""
    import torch

    module = getattr(module, "_orig_mod", module)
    if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
        module = module.module
    if not isinstance(module, torch.nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise TypeError(
            f"Found {type(module).__name__}, expected a torch.nn.Module whose forward is Python; "
            "pass the module that was scripted or exported, with its state loaded."
        )
    last = module
    while isinstance(last, torch.nn.Sequential) and len(last):
        last = last[-1]
    if isinstance(last, torch.nn.Softmax):
        raise ValueError(
            "Found a module that ends in Softmax, expected outputs before it, logits, as "
            "likelihoods take them; pass the module without its last layer, such as module[:-1]."
        )
    return module


def _plain_tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield tensors that are attributes but neither parameters nor buffers, by name."""
    import torch

    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name}" if path else name, value


def _check_dtypes(tensors: Mapping[str, Any]) -> None:
    import torch

    for name, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"Found {name!r} without values, expected a trained module; a lazy one gets its "
                "parameters when it is first called."
            )
        if tensor.dtype == torch.float64 and not jax.config.jax_enable_x64:
            raise TypeError(
                f"Found {name!r} in float64 while JAX computes in float32, expected the same; pass "
                "module.float(), or set jax.config.update('jax_enable_x64', True) at the start."
            )


def _without_values(module: Any) -> Any:
    """Return a copy in evaluation mode whose tensors have shapes alone, without copying any."""
    import torch

    plain = dict(_plain_tensors(module))
    empty = {id(p): torch.nn.Parameter(_meta(p), requires_grad=False) for p in module.parameters()}
    empty |= {id(value): _meta(value) for value in (*module.buffers(), *plain.values())}
    skeleton = copy.deepcopy(module, empty).eval()
    for path in plain:  # `functional_call` replaces parameters and buffers
        owner, _, name = path.rpartition(".")
        part = skeleton.get_submodule(owner)
        if hasattr(type(part), name):
            raise TypeError(
                f"Found the tensor {path!r}, whose class {type(part).__name__} has an attribute of "
                "that name too, expected a buffer; take the attribute out of the class."
            )
        tensor = vars(part).pop(name)
        part.register_buffer(name, tensor, persistent=False)
    return skeleton


def _meta(tensor: Any) -> Any:
    return tensor.detach().to("meta")


def _nested(flat: Mapping[str, Array]) -> dict[str, Any]:
    """Return leaves named `"a.b"` as nested dictionaries."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *groups, name = path.split(".")
        functools.reduce(lambda part, group: part.setdefault(group, {}), groups, tree)[name] = leaf
    return tree


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Array]]:
    """Yield the leaves of nested dictionaries with the names that torch has for them."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


# --- checks ---------------------------------------------------------------------------------------


def _check_outputs(
    call: _TorchCall, module: Any, model_fn: Any, params: PyTree, example_inputs: PyTree
) -> None:
    """Refuse outputs for a batch of inputs in which torch and JAX differ by more than rounding."""
    import torch

    with jax.default_matmul_precision("highest"):
        found = model_fn(params, example_inputs)
    state = dict(module.named_parameters(remove_duplicate=False))
    state |= dict(module.named_buffers(remove_duplicate=False)) | dict(_plain_tensors(module))
    device = next(iter(state.values())).device
    tensors = map_arrays(functools.partial(_as_tensor, device=device), example_inputs)
    # cuDNN rounds the inputs of convolutions to ten bits by default.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        expected = on_host(call.run(state, tensors)).astype(float)
    tolerance = float(jnp.finfo(found.dtype).eps) ** 0.5
    found = fetch(found).astype(float)
    difference, size = np.abs(found - expected).max(), np.abs(expected).max()
    if not difference <= tolerance * max(size, 1):
        raise ValueError(
            f"Found outputs of JAX that differ from torch's by {difference:.2g} where these are up "
            f"to {size:.2g}, expected the same to rounding; does {type(module).__name__}.forward "
            "change what the module holds, or branch on its inputs?"
        )


def _as_tensor(values: Any, device: Any) -> Any:
    """Return values as a tensor; torch's own keep their dtype, others have the one of JAX."""
    import torch

    if not isinstance(values, torch.Tensor):
        array = np.array(fetch(read_array(values)))
        if array.dtype == np.float64:
            array = array.astype(jax.dtypes.canonicalize_dtype(array.dtype))
        exact = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
        values = torch.from_numpy(exact)
        values = values.bfloat16() if array.dtype == jnp.bfloat16 else values
    return values.to(device)


def _explained(error: Exception, module: Any) -> Exception:
    """Return an error that names the layer in which another arose, and the remedy."""
    names = {id(part): name for name, part in module.named_modules()}
    layer = type(module).__name__
    for frame, _ in traceback.walk_tb(error.__traceback__):
        part = frame.f_locals.get("self")
        if names.get(id(part)):
            layer = f"{names[id(part)]!r} ({type(part).__name__})"
    what = str(error).partition("\n")[0]
    if isinstance(error, Randomness):
        return ValueError(
            f"Found randomness in the layer {layer} in evaluation mode, expected the same outputs "
            "in each call; where it is dropout, call it with training=self.training."
        )
    if isinstance(error, AssertionError):
        return TypeError(
            f"Found a tensor in the layer {layer} that is neither a parameter nor a buffer "
            f"({what}), expected tensors that the module knows; call "
            "self.register_buffer(name, tensor) for those that it holds in lists or dictionaries, "
            "and make others on the device of the inputs."
        )
    if isinstance(error, _NEEDS_VALUES):
        return TypeError(
            f"Found that the layer {layer} depends on the values of tensors ({what}), expected a "
            "program that is the same for all inputs; replace branches by torch.where, and rows "
            "selected by a mask by products with it."
        )
    return NotImplementedError(
        f"Found that the layer {layer} uses what has no JAX form ({what}), expected operations "
        "that torchax has; replace the layer by others with the same outputs."
    )
