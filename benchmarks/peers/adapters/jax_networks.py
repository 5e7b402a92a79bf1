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


def resnet(params, x):
    """Apply a residual network without norms to images `(N, H, W, 3)`.

    Parameters: kernel and bias of a first convolution, of two for each block, and of a third, of
    1 x 1, where the block changes the number of channels and halves the image; then of the head.
    """
    rest = iter([*zip(params[::2], params[1::2], strict=True)])
    x = _convolve(x, *next(rest))
    *rest, (kernel, bias) = rest
    while rest:
        (first, second), rest = rest[:2], rest[2:]
        stride = 1 if first[0].shape[2] == first[0].shape[3] else 2
        shortcut = x
        if stride == 2:
            shortcut, rest = _convolve(x, *rest[0], stride), rest[1:]
        hidden = jax.nn.relu(_convolve(jax.nn.relu(x), *first, stride))
        x = shortcut + _convolve(hidden, *second)
    return jax.nn.relu(x).mean(axis=(1, 2)) @ kernel + bias


def _convolve(x, kernel, bias, stride=1):
    layout, margin = ("NHWC", "HWIO", "NHWC"), len(kernel) // 2
    padding = [(margin, margin)] * 2
    found = lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=layout)
    return found + bias


def transformer(params, x):
    """Apply self-attention blocks to tokens `(N, T)`, and average over positions.

    Parameters: token and position embeddings, sixteen arrays for each block, those of a last norm
    and of the head.
    """
    x, kernel, bias = _attend(params, x, None)
    return x.mean(axis=1) @ kernel + bias


def gpt(params, x):
    """Apply causal self-attention blocks to tokens `(N, T)`, and read at the last position.

    Parameters are those of `transformer`.
    """
    mask = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
    x, kernel, bias = _attend(params, x, mask)
    return x[:, -1] @ kernel + bias


def _attend(params, x, mask):
    tokens, positions, *blocks, scale, shift, kernel, bias = params
    x = tokens[x] + positions
    num_heads = max(4, x.shape[-1] // 64)
    for i in range(0, len(blocks), 16):
        x = _block(blocks[i : i + 16], x, num_heads, mask)
    return _norm(scale, shift, x), kernel, bias


def _block(params, x, num_heads, mask):
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
    scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
    mixed = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
    x = x + mixed.reshape(x.shape) @ wo + bo
    return x + jax.nn.gelu(_norm(*last, x) @ w1 + b1, approximate=True) @ w2 + b2


def _norm(scale, shift, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    return scale * centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) + shift


NETWORKS = {
    "mlp": mlp,
    "lenet": lenet,
    "transformer": transformer,
    "resnet": resnet,
    "gpt": gpt,
}


def cross_entropy(logits, y):
    """Sum the negative log-likelihoods of labels."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1).sum()
