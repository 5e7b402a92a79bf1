"""The networks in JAX, on lists of parameters; they need JAX alone."""

import jax
import jax.numpy as jnp
from jax import lax


def mlp(params, x):
    """Apply a tanh network of `[kernel, bias, kernel, bias, ...]`."""
    *hidden, kernel, bias = params
    for k, b in zip(hidden[::2], hidden[1::2], strict=True):
        x = jnp.tanh(x @ k + b)
    return x @ kernel + bias


def lenet(params, x):
    """Apply LeNet-5 to images `(N, 28, 28, 1)`; features are flattened with channels first."""
    *convolutions, k1, b1, k2, b2, k3, b3 = params
    for kernel, bias, padding in zip(
        convolutions[::2], convolutions[1::2], ("SAME", "VALID"), strict=True
    ):
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)
        x = _average_pool(jnp.tanh(x + bias))
    return mlp([k1, b1, k2, b2, k3, b3], x.transpose(0, 3, 1, 2).reshape(len(x), -1))


def _average_pool(x):
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def transformer(params, x):
    """Apply self-attention blocks to tokens `(N, T)`, and average over positions.

    Parameters: token and position embeddings, sixteen arrays for each block, those of a last norm
    and of the head.
    """
    tokens, positions, *blocks, scale, shift, kernel, bias = params
    x = tokens[x] + positions
    for i in range(0, len(blocks), 16):
        x = _block(blocks[i : i + 16], x)
    return _norm(scale, shift, x).mean(axis=1) @ kernel + bias


def _block(params, x, num_heads=4):
    norm, (wq, bq, wk, bk, wv, bv, wo, bo), last, (w1, b1, w2, b2) = (
        params[:2],
        params[2:10],
        params[10:12],
        params[12:],
    )
    y = _norm(*norm, x)
    heads = (*x.shape[:-1], num_heads, -1)
    q, k, v = ((y @ w + b).reshape(heads) for w, b in ((wq, bq), (wk, bk), (wv, bv)))
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
    x = x + mixed.reshape(x.shape) @ wo + bo
    return x + jax.nn.gelu(_norm(*last, x) @ w1 + b1, approximate=True) @ w2 + b2


def _norm(scale, shift, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return scale * centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) + shift


NETWORKS = {"mlp": mlp, "lenet": lenet, "transformer": transformer}


def cross_entropy(logits, y):
    """Sum the negative log-likelihoods of labels."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1).sum()
