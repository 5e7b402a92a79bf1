"""Adapters: from a trained module of a neural-network library to `(model_fn, params)`.

Only the module's parameters become `params`. Batch statistics, random states and other arrays are
frozen: they are leaves of `model_fn`, a `jax.tree_util.Partial`, and not constants of the compiled
program. Modules are put in evaluation mode without being changed.
"""

from laplace_kit.model.equinox import from_equinox as from_equinox
from laplace_kit.model.functions import batched as batched
from laplace_kit.model.functions import with_offset as with_offset
from laplace_kit.model.haiku import from_haiku as from_haiku
from laplace_kit.model.keras import from_keras as from_keras
from laplace_kit.model.linen import from_linen as from_linen
from laplace_kit.model.nnx import from_nnx as from_nnx
from laplace_kit.model.pair import ModelAndParams as ModelAndParams
from laplace_kit.model.tokens import with_tokens as with_tokens
from laplace_kit.model.torch import from_torch as from_torch
