"""The workloads of all libraries: networks at parameters made by NumPy or trained here."""

import itertools
import math

import jax
import numpy as np

from benchmarks.peers.protocol import Workload
from benchmarks.workloads import LENGTH, NUM_CLASSES, VOCABULARY, trained_mlp

NUM_VECTORS = 16
SEED = 0


def tiny() -> Workload:
    """A network for smoke tests."""
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


def resnet(
    channels: tuple[int, ...] = (64, 128, 256), pixels: int = 32, num_examples: int = 512
) -> Workload:
    """A residual network of two blocks for each number of channels, on colour images."""
    shapes, inputs = [(3, 3, 3, channels[0])], channels[0]
    for outputs in channels:
        shapes += [(3, 3, inputs, outputs), (3, 3, outputs, outputs)]
        shapes += [(1, 1, inputs, outputs)] * (inputs != outputs)
        shapes += [(3, 3, outputs, outputs)] * 2
        inputs = outputs
    shapes.append((inputs, NUM_CLASSES))
    x = _rng().normal(size=(num_examples, pixels, pixels, 3)).astype(np.float32)
    labels = _labels(num_examples, NUM_CLASSES)
    return _workload("residual network", "resnet", _layers(shapes), x, labels)


def gpt(
    width: int = 768,
    num_blocks: int = 12,
    vocabulary: int = 20_000,
    length: int = 128,
    num_examples: int = 32,
) -> Workload:
    """A causal transformer of the size of the smallest GPT-2, a hundred million parameters."""
    params = _attention_params(width, num_blocks, vocabulary, length)
    x = _rng().integers(0, vocabulary, (num_examples, length))
    return _workload("GPT", "gpt", params, x, _labels(num_examples, NUM_CLASSES))


def transformer(width: int = 64, num_blocks: int = 2) -> Workload:
    """Two self-attention blocks on 250 sequences of tokens, as initialised."""
    params = _attention_params(width, num_blocks, VOCABULARY, LENGTH)
    x = _rng().integers(0, VOCABULARY, (250, LENGTH))
    return _workload("transformer", "transformer", params, x, _labels(len(x), NUM_CLASSES))


def _attention_params(width, num_blocks, vocabulary, length):
    """Return the parameters of self-attention blocks, with their embeddings, norms and head."""
    norm = [np.ones(width, np.float32), np.zeros(width, np.float32)]
    attention, network = [(width, width)] * 4, [(width, 4 * width), (4 * width, width)]
    params = [p for shape in ((vocabulary, width), (length, width)) for p in _layers([shape])[:1]]
    for _ in range(num_blocks):
        params += [*norm, *_layers(attention), *norm, *_layers(network)]
    return [*params, *norm, *_layers([(width, NUM_CLASSES)])]


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
