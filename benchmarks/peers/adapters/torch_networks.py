"""The networks in PyTorch, made of modules that back ends know; vectors in the shared layout."""

import os

import numpy as np
import torch
from torch import nn

from benchmarks.peers.protocol import ON_CPU, Device, Workload

# As JAX is told, so that all libraries compute in the same place, and multiply as JAX does there.
IS_ON_GPU = os.environ.get("JAX_PLATFORMS") != "cpu" and torch.cuda.is_available()
if IS_ON_GPU:
    torch.set_float32_matmul_precision("high")
PLACE = torch.device("cuda" if IS_ON_GPU else "cpu")
DEVICE = (
    Device(torch.cuda.synchronize, lambda: torch.cuda.max_memory_allocated() / 1e6)
    if IS_ON_GPU
    else ON_CPU
)


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
    elif workload.kind == "resnet":
        model = ResNet([p.shape for p in workload.params if p.ndim == 4], sizes)
    else:
        model = Transformer(workload.params, workload.kind == "gpt")
    with torch.no_grad():
        start = np.concatenate([p.ravel() for p in workload.params])
        for parameter, tensor in zip(model.parameters(), tensors(workload, start), strict=True):
            parameter.copy_(tensor)
    return model.to(PLACE).eval()


def _layers(sizes):
    layers = []
    for inputs, outputs in sizes:
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return layers[:-1]


class ResNet(nn.Module):
    """Residual blocks without norms, averaged over the image."""

    def __init__(self, shapes, sizes):
        super().__init__()
        self.stem = nn.Conv2d(*shapes[0][2:], 3, padding=1)
        blocks, rest = [], shapes[1:]
        while rest:
            inputs, outputs = rest[0][2:]
            blocks.append(Residual(inputs, outputs))
            rest = rest[2 if inputs == outputs else 3 :]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.ReLU()
        self.head = nn.Linear(*sizes[-1])

    def forward(self, x):
        return self.head(self.last(self.blocks(self.stem(x))).mean(dim=(2, 3)))


class Residual(nn.Module):
    """Two convolutions, each after a ReLU; another of one pixel where the channels change."""

    def __init__(self, inputs, outputs):
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.relus = nn.ModuleList([nn.ReLU(), nn.ReLU()])
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x):
        hidden = self.relus[1](self.first(self.relus[0](x)))
        return self.shortcut(x) + self.second(hidden)


class Transformer(nn.Module):
    """Self-attention blocks on tokens, averaged over positions or read at the last of them."""

    def __init__(self, params, is_causal):
        super().__init__()
        vocabulary, width = params[0].shape
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(len(params[1]), width)
        num_blocks = (len(params) - 6) // 16
        self.is_causal = is_causal
        self.blocks = nn.Sequential(*(Block(width, is_causal) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, params[-1].size)

    def forward(self, x):
        x = self.tokens(x) + self.positions.weight
        x = self.norm(self.blocks(x))
        return self.head(x[:, -1] if self.is_causal else x.mean(dim=1))


class Block(nn.Module):
    """Multi-head attention and a network of two layers, each after a norm."""

    def __init__(self, width, is_causal):
        super().__init__()
        self.num_heads, self.is_causal = max(4, width // 64), is_causal
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
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if self.is_causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        x = x + self.out((torch.softmax(scores, dim=-1) @ v).transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.last(x)), approximate="tanh"))


def data(workload: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs, images with channels first, and labels."""
    x, y = torch.from_numpy(workload.x).to(PLACE), torch.from_numpy(workload.y).to(PLACE)
    return x.permute(0, 3, 1, 2).contiguous() if x.ndim == 4 else x, y


def tensors(workload: Workload, flat: np.ndarray) -> list[torch.Tensor]:
    """Return a flat vector in the shared layout as tensors like the parameters."""
    pairs = zip(workload.unravel(flat), _axes(workload), strict=True)
    arrays = [np.ascontiguousarray(part.transpose(axes)) for part, axes in pairs]
    return [torch.from_numpy(array).to(PLACE) for array in arrays]


def flat(workload: Workload, found: list[torch.Tensor]) -> np.ndarray:
    """Return tensors like the parameters as a flat vector in the shared layout."""
    pairs = zip(found, _axes(workload), strict=True)
    arrays = [to_numpy(t).transpose(np.argsort(axes)) for t, axes in pairs]
    return np.concatenate([array.ravel() for array in arrays])


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Return a tensor's values as a NumPy array, from any device."""
    return tensor.detach().cpu().numpy()


def to_vector(workload: Workload, vector: np.ndarray) -> torch.Tensor:
    """Return a flat vector in the shared layout as one in PyTorch's order."""
    return torch.cat([t.flatten() for t in tensors(workload, vector)])


def from_vector(workload: Workload, vector: torch.Tensor) -> np.ndarray:
    """Return a vector in PyTorch's order as one in the shared layout."""
    likes = tensors(workload, workload.v)
    parts = torch.split(vector, [t.numel() for t in likes])
    return flat(workload, [p.reshape(t.shape) for p, t in zip(parts, likes, strict=True)])


def _axes(workload: Workload) -> list[tuple[int, ...]]:
    """Return the order of the axes of each parameter: outputs first, except for embeddings."""
    swapped = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    tables = 2 if workload.kind in ("transformer", "gpt") else 0
    return [
        tuple(range(p.ndim)) if i < tables else swapped[p.ndim]
        for i, p in enumerate(workload.params)
    ]
