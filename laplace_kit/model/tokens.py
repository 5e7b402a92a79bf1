"""A language model as a classifier: the logits of given tokens at one position."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from laplace_kit.host import fetch_array
from laplace_kit.model.checks import check_model


def with_tokens(
    model_fn: Callable,
    tokens: Sequence[int] | np.ndarray | Array,
    *,
    position: int | None = -1,
) -> jax.tree_util.Partial:
    r"""Reduce a language model to the logits of K tokens at one position of each sequence.

    For a question with K answers, "A" to "D" or "yes" and "no", the next token after the prompt is
    one of those K: `lk.Categorical()` takes their logits `(N, K)` and labels from 0 to K - 1, the
    places in `tokens`. Their softmax is the probability of each token given that it is one of them.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, T, V)`, logits of V tokens after each of T positions; or, so that the
        logits of other tokens and positions are never formed, `(params, x) -> (hidden, head)` or
        `(hidden, head, bias)` with hidden states `(N, T, d)`, the weight `(d, V)` and the bias
        `(V,)` of the last layer, both frozen. A `jax.tree_util.Partial` keeps its arrays as leaves.
    tokens
        The numbers of K different tokens, at least two.
    position
        The position in each sequence, from its end if negative; -1 suits prompts that are padded on
        the left, or not at all. `None` for prompts of different lengths: inputs are then pairs
        `(x, position)`, with `position` `(N,)`, such as `lengths - 1`.

    Returns
    -------
    model_fn
        `(params, x) -> (N, K)`.

    Raises
    ------
    TypeError
        If `model_fn` is not a function of parameters and inputs; when it is called, if it returns
        neither logits nor hidden states and a head, or the inputs are not a pair.
    ValueError
        If `tokens` are not K different non-negative integers; when it is called, if shapes do not
        match, or a token is not in the vocabulary.

    References
    ----------
    Yang et al. (2024), Bayesian low-rank adaptation for large language models.
    """
    numbers = fetch_array(tokens)
    if (
        numbers.ndim != 1
        or not np.issubdtype(numbers.dtype, np.integer)
        or len(set(numbers.tolist())) < max(len(numbers), 2)
        or numbers.min() < 0
    ):
        raise ValueError(
            f"Found tokens={tokens!r}, expected the numbers of at least two different tokens of "
            "the vocabulary, such as [tokenizer.encode(word)[-1] for word in (' A', ' B')]."
        )
    if not isinstance(model_fn, jax.tree_util.Partial):
        check_model(model_fn)
        model_fn = jax.tree_util.Partial(model_fn)
    position = None if position is None else operator.index(position)
    return jax.tree_util.Partial(_TokenLogits(tuple(numbers.tolist()), position), model_fn)


class _TokenLogits(NamedTuple):
    """The logits of given tokens; compared by value, so that programs are reused."""

    tokens: tuple[int, ...]
    position: int | None

    def __call__(self, model_fn, params, inputs):
        x, position = inputs, self.position
        if position is None:
            if not isinstance(inputs, tuple | list) or len(inputs) != 2:
                raise TypeError(
                    f"Found inputs of type {type(inputs).__name__} for a model with a position in "
                    "each sequence, expected a pair (x, position), which makes data "
                    "((x, position), y)."
                )
            x, position = inputs
        found, *head = _parts(model_fn(params, x))
        at_position = _at(found, position)
        columns = fetch_array(self.tokens)
        size = jnp.shape(head[0] if head else found)[-1]
        if max(self.tokens) >= size:
            raise ValueError(
                f"Found the token {max(self.tokens)} for a vocabulary of {size} tokens, expected "
                f"numbers from 0 to {size - 1}; pass those of the model's own tokenizer."
            )
        if not head:
            return at_position[:, columns]
        weight, *bias = head
        logits = at_position @ jnp.asarray(weight)[:, columns].astype(at_position.dtype)
        return logits + jnp.asarray(bias[0])[columns].astype(logits.dtype) if bias else logits


def _parts(outputs: Any) -> list[Array | np.ndarray]:
    """Return logits alone, or hidden states with the weight and maybe the bias of the head."""
    parts = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    dims = [jnp.ndim(part) if hasattr(part, "shape") else None for part in parts]
    shapes = [tuple(getattr(part, "shape", ())) for part in parts]
    if dims not in ([3], [3, 2], [3, 2, 1]) or len({shape[-1] for shape in shapes[1:]}) > 1:
        raise TypeError(
            f"Found outputs of type {type(outputs).__name__} and shape {shapes}, expected logits "
            "(N, T, V), or (hidden, head) or (hidden, head, bias) of the shapes (N, T, d), (d, V) "
            "and (V,); return one of these from model_fn."
        )
    if len(parts) > 1 and shapes[0][-1] != shapes[1][0]:
        raise ValueError(
            f"Found hidden states of shape {shapes[0]} and a head of shape {shapes[1]}, expected "
            "(N, T, d) and (d, V); for an embedding table (V, d) that is the head too, pass its "
            "transpose."
        )
    return parts


def _at(values: Float[Array, "N T d"], position: int | Array | np.ndarray) -> Float[Array, "N d"]:
    num, length = values.shape[:2]
    if isinstance(position, int):
        if not -length <= position < length:
            raise ValueError(
                f"Found position={position} for sequences of {length} tokens, expected a number "
                f"from {-length} to {length - 1}; pad the prompts, or pass position=None and "
                "inputs (x, position)."
            )
        return values[:, position]
    if jnp.shape(position) != (num,) or not jnp.issubdtype(position.dtype, jnp.integer):
        raise ValueError(
            f"Found positions of shape {jnp.shape(position)} and dtype {position.dtype} for {num} "
            f"sequences, expected integers ({num},), one for each sequence."
        )
    return jnp.take_along_axis(values, position[:, None, None], axis=1)[:, 0]
