"""The networks in PyTorch, made of modules that back ends know; vectors in the shared layout."""

import numpy as np
import torch
from torch import nn

from benchmarks.peers.protocol import Workload


def network(workload: Workload) -> nn.Module:
    """Return the network of a workload at its parameters, in the order that all share."""
    sizes = [p.shape for p in workload.params if p.ndim == 2]
    if workload.kind == "mlp":
        model = nn.Sequential(*_layers(sizes))
    elif workload.kind == "lenet":
        model = nn.Sequential(
            nn.Conv2d(1, 6, 5, padding=2),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.Tanh(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            *_layers(sizes),
        )
    else:
        model = Transformer(workload.params)
    with torch.no_grad():
        start = np.concatenate([p.ravel() for p in workload.params])
        for parameter, tensor in zip(model.parameters(), tensors(workload, start), strict=True):
            parameter.copy_(tensor)
    return model.eval()


def _layers(sizes):
    layers = []
    for inputs, outputs in sizes:
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return layers[:-1]


class Transformer(nn.Module):
    """Self-attention blocks on tokens, averaged over positions."""

    def __init__(self, params):
        super().__init__()
        vocabulary, width = params[0].shape
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(len(params[1]), width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range((len(params) - 6) // 16)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, params[-1].size)

    def forward(self, x):
        x = self.tokens(x) + self.positions.weight
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class Block(nn.Module):
    """Multi-head attention and a network of two layers, each after a norm."""

    def __init__(self, width, num_heads=4):
        super().__init__()
        self.num_heads = num_heads
        self.first = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.last = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        y = self.first(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        scores = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        x = x + self.out((scores @ v).transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.last(x)), approximate="tanh"))


def data(workload: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs, images with channels first, and labels."""
    x = torch.from_numpy(workload.x)
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x, torch.from_numpy(workload.y)


def tensors(workload: Workload, flat: np.ndarray) -> list[torch.Tensor]:
    """Return a flat vector in the shared layout as tensors like the parameters."""
    pairs = zip(workload.unravel(flat), _axes(workload), strict=True)
    return [torch.from_numpy(np.ascontiguousarray(part.transpose(axes))) for part, axes in pairs]


def flat(workload: Workload, found: list[torch.Tensor]) -> np.ndarray:
    """Return tensors like the parameters as a flat vector in the shared layout."""
    pairs = zip(found, _axes(workload), strict=True)
    arrays = [t.detach().numpy().transpose(np.argsort(axes)) for t, axes in pairs]
    return np.concatenate([array.ravel() for array in arrays])


def to_vector(workload: Workload, vector: np.ndarray) -> torch.Tensor:
    """Return a flat vector in the shared layout as one in PyTorch's order."""
    return torch.cat([t.flatten() for t in tensors(workload, vector)])


def from_vector(workload: Workload, vector: torch.Tensor) -> np.ndarray:
    """Return a vector in PyTorch's order as one in the shared layout."""
    likes = tensors(workload, workload.v)
    parts = torch.split(vector, [t.numel() for t in likes])
    return flat(workload, [p.reshape(t.shape) for p, t in zip(parts, likes, strict=True)])


def _axes(workload: Workload) -> list[tuple[int, ...]]:
    """Return what becomes of the axes of each parameter: outputs first, but for embeddings."""
    swapped = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    tables = 2 if workload.kind == "transformer" else 0
    return [
        tuple(range(p.ndim)) if i < tables else swapped[p.ndim]
        for i, p in enumerate(workload.params)
    ]
