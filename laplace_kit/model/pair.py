"""The pair that every adapter returns."""

import jax
from jaxtyping import PyTree

ModelAndParams = tuple[jax.tree_util.Partial, PyTree]
