"""The workloads that all are given: networks at parameters made by NumPy or trained here."""

import itertools
import math

import jax
import numpy as np

from benchmarks.peers.protocol import Workload
from benchmarks.workloads import LENGTH, NUM_CLASSES, VOCABULARY, trained_mlp

NUM_VECTORS = 16
SEED = 0


def tiny() -> Workload:
    """A network to see that things run."""
    return _mlp("tiny", (8, 6, 3), 50)


def small() -> Workload:
    return _trained("S", (64, 32, NUM_CLASSES), 1500)


def medium() -> Workload:
    return _trained("M", (784, 200, 200, NUM_CLASSES), 2000)


def medium_of_many() -> Workload:
    return _trained("M, 8,000", (784, 200, 200, NUM_CLASSES), 8000)


def _trained(name: str, widths: tuple[int, ...], num_examples: int) -> Workload:
    found = trained_mlp(name, widths, num_examples)
    params = [np.asarray(leaf) for leaf in jax.tree.leaves(found.params)]
    return _workload(name, "mlp", params, np.asarray(found.x), np.asarray(found.y))


def lenet() -> Workload:
    """LeNet-5 on 500 images of 28 x 28, as initialised."""
    shapes = [(5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, NUM_CLASSES)]
    x = _rng().normal(size=(500, 28, 28, 1)).astype(np.float32)
    return _workload("LeNet", "lenet", _layers(shapes), x, _labels(len(x), NUM_CLASSES))


def transformer(width: int = 64, num_blocks: int = 2) -> Workload:
    """Two self-attention blocks on 250 sequences of tokens, as initialised."""
    norm = [np.ones(width, np.float32), np.zeros(width, np.float32)]
    attention, network = [(width, width)] * 4, [(width, 4 * width), (4 * width, width)]
    params = [p for shape in ((VOCABULARY, width), (LENGTH, width)) for p in _layers([shape])[:1]]
    for _ in range(num_blocks):
        params += [*norm, *_layers(attention), *norm, *_layers(network)]
    params += [*norm, *_layers([(width, NUM_CLASSES)])]
    x = _rng().integers(0, VOCABULARY, (250, LENGTH))
    return _workload("transformer", "transformer", params, x, _labels(len(x), NUM_CLASSES))


def wide() -> Workload:
    """A last layer of 128 features and 3,100 classes, on 1,000 examples."""
    return _mlp("wide", (64, 128, 3100), 1000)


def large() -> Workload:
    """Ten million parameters, 1,000 examples."""
    return _mlp("XL", (320, 3000, 3000, NUM_CLASSES), 1000)


def _mlp(name: str, widths: tuple[int, ...], num_examples: int) -> Workload:
    x = _rng().normal(size=(num_examples, widths[0])).astype(np.float32)
    params = _layers(list(itertools.pairwise(widths)))
    return _workload(name, "mlp", params, x, _labels(num_examples, widths[-1]))


def _layers(shapes):
    rng = _rng()
    found = []
    for shape in shapes:
        scale = 1 / math.sqrt(math.prod(shape[:-1]))
        found.append((scale * rng.standard_normal(shape)).astype(np.float32))
        found.append(np.zeros(shape[-1], np.float32))
    return found


def _labels(num_examples, num_classes):
    return _rng().integers(0, num_classes, num_examples)


def _workload(name, kind, params, x, y):
    num_params = sum(p.size for p in params)
    rng = np.random.default_rng(SEED + 1)
    num_vectors = NUM_VECTORS if num_params < 1_000_000 else 0
    v = rng.standard_normal(num_params, np.float32)
    vs = rng.standard_normal((num_vectors, num_params), np.float32)
    return Workload(name, kind, params, x, y.astype(np.int64), v, vs)


def _rng():
    return np.random.default_rng(SEED)
