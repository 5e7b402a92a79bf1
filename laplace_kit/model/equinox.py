"""The adapter of equinox."""

from typing import Any

import jax

from laplace_kit.model.pair import ModelAndParams


def from_equinox(module: Any, state: Any = None) -> ModelAndParams:
    """Split an equinox module of single examples into a function of batches and its parameters.

    Parameters
    ----------
    module
        A callable `eqx.Module`; its inexact arrays are the parameters, all else is frozen. A copy
        is put in inference mode and vmapped over examples.
    state
        The `eqx.nn.State` of a stateful module, such as one with BatchNorm, after training. The
        module is called as `module(x, state)`, and the state that it returns is dropped.

    Returns
    -------
    model_fn, params
        `params` is the module with `None` for everything that is not a parameter.

    Raises
    ------
    TypeError
        If `module` is not an `eqx.Module` that can be called, or a stateful one is passed without
        its state.
    """
    import equinox as eqx

    if not isinstance(module, eqx.Module) or not callable(module):
        raise TypeError(
            f"Found {type(module).__name__}, expected an equinox.Module that can be called; a "
            "stateful one also takes its state, from_equinox(model, state); for flax.nnx use "
            "from_nnx(module), for flax.linen from_linen(module, variables)."
        )

    def is_index(node):
        return isinstance(node, eqx.nn.StateIndex)

    stateful = any(map(is_index, jax.tree.leaves(module, is_leaf=is_index)))
    if (stateful and state is None) or not isinstance(state, eqx.nn.State | None):
        raise TypeError(
            f"Found {'no state' if state is None else type(state).__name__} for the module "
            f"{type(module).__name__}, expected the equinox.nn.State that it is called with, as "
            "training left it; pass from_equinox(model, state), where model, state = "
            "equinox.nn.make_with_state(Model)(...)."
        )
    params, frozen = eqx.partition(eqx.nn.inference_mode(module), eqx.is_inexact_array)
    arrays, structure = eqx.partition((frozen, state), eqx.is_array)
    return jax.tree_util.Partial(_EquinoxCall(structure), arrays), params


class _EquinoxCall:
    """An equinox module called on single examples, its structure compared by value."""

    def __init__(self, structure: Any):
        leaves, treedef = jax.tree.flatten(structure)
        self._key = (tuple(leaves), treedef)

    def __call__(self, arrays, params, x):
        import equinox as eqx

        leaves, treedef = self._key
        frozen, state = eqx.combine(arrays, jax.tree.unflatten(treedef, leaves))
        module = eqx.combine(params, frozen)

        def single(x_n):
            return module(x_n) if state is None else module(x_n, state)[0]

        return jax.vmap(single)(x)

    def __eq__(self, other):
        return isinstance(other, _EquinoxCall) and self._key == other._key

    def __hash__(self):
        return hash(self._key)
