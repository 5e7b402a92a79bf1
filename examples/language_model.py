"""Adapters of a small language model, made Bayesian: which package does a snippet come from?

Run `python examples/language_model.py`: no downloads, some three minutes on two cores. A GPT learns
Python from the sources that come with it; low-rank adapters then teach it to answer with the name
of the package that a snippet is from; a Laplace approximation of the adapters says how sure it is,
also of text that is no Python at all.

The steps after training are the same for any language model in JAX: a function that returns hidden
states and the head, its adapters, and the tokens of the answers.
"""

import argparse
import pydoc_data.topics
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import laplace_kit as lk

PACKAGES = ("asyncio", "email", "unittest", "xml")  # the answers
LENGTH, VOCABULARY, WIDTH, NUM_BLOCKS, RANK = 48, 1000, 64, 2, 8


# --- text -----------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    """Return words, signs and the starts of lines: a token each, if they are in the vocabulary."""
    return re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d|\n *|[^\sA-Za-z\d]", text)


def sources(package: str) -> list[list[str]]:
    """Return the words of each file of a package of Python's library, without its tests."""
    folder = Path(sysconfig.get_path("stdlib")) / package
    files = [path for path in sorted(folder.rglob("*.py")) if "test" not in path.parts]
    return [words(path.read_text(encoding="utf-8")) for path in files]


class Vocabulary:
    """The most frequent words by number; 0 is any other."""

    def __init__(self, texts: list[list[str]]):
        counts = Counter(word for text in texts for word in text)
        names = [*PACKAGES, *(word for word, _ in counts.most_common() if word not in PACKAGES)]
        self.numbers = {word: number for number, word in enumerate(names[: VOCABULARY - 1], 1)}

    def encode(self, text: list[str]) -> np.ndarray:
        return np.asarray([self.numbers.get(word, 0) for word in text], np.int32)


def snippets(texts: list[np.ndarray], num: int, rng: np.random.Generator) -> np.ndarray:
    """Return `num` windows of texts, (num, LENGTH); a longer text gives more of them."""
    text = np.concatenate(texts)
    starts = rng.integers(0, len(text) - LENGTH, num)
    return text[starts[:, None] + np.arange(LENGTH)]


# --- the model ------------------------------------------------------------------------------------


class Attention(nnx.Module):
    """Causal attention with four heads; adapters on queries and values."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = nnx.LoRALinear(WIDTH, WIDTH, lora_rank=RANK, rngs=rngs)
        self.key = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.value = nnx.LoRALinear(WIDTH, WIDTH, lora_rank=RANK, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        query, key, value = (
            layer(x).reshape(*x.shape[:2], 4, -1) for layer in (self.query, self.key, self.value)
        )
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.reshape(x.shape))


class Block(nnx.Module):
    """Attention and a layer for each position, each added to its input."""

    def __init__(self, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = Attention(rngs)
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x):
        x = x + self.attention(self.norms[0](x))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class GPT(nnx.Module):
    """Returns hidden states (N, T, d) and the head (d, V), instead of all logits."""

    def __init__(self, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(rngs) for _ in range(NUM_BLOCKS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Param(0.02 * jax.random.normal(rngs.params(), (WIDTH, VOCABULARY)))

    def __call__(self, x):
        h = self.tokens(x) + self.positions(jnp.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.norm(h), self.head[...]


# --- training -------------------------------------------------------------------------------------


def train(module: nnx.Module, wrt, loss, batches, rate: float) -> None:
    """Fit the variables that `wrt` selects by Adam, one step for each batch."""
    optimizer = nnx.Optimizer(module, optax.adam(rate), wrt=wrt)

    @nnx.jit
    def step(module, optimizer, *batch):
        gradient = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))(module, *batch)
        optimizer.update(module, gradient)

    for batch in batches:
        step(module, optimizer, *batch)


def next_token_loss(module: GPT, x):
    hidden, head = module(x[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ head, x[:, 1:]).mean()


def answer_loss(module: GPT, x, answers):
    hidden, head = module(x)
    logits = hidden[:, -1] @ head
    return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()


# --- from text to posterior -----------------------------------------------------------------------


def main(pretraining: int = 800, finetuning: int = 400, num_train: int = 1200, num_test: int = 600):
    """Train, fit, tune and measure; return the metrics of the MAP and of the posterior."""
    rng, start = np.random.default_rng(0), time.perf_counter()

    def log(text: str) -> None:
        print(f"{time.perf_counter() - start:5.0f} s  {text}", flush=True)

    texts = {package: sources(package) for package in PACKAGES}
    vocabulary = Vocabulary([text for files in texts.values() for text in files])
    encoded = {name: [vocabulary.encode(text) for text in files] for name, files in texts.items()}
    # Different files for training, validation and test.
    parts = {
        "train": [files[0::4] + files[1::4] for files in encoded.values()],
        "validation": [files[2::4] for files in encoded.values()],
        "test": [files[3::4] for files in encoded.values()],
    }

    def examples(part: str, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Return snippets and the numbers of their packages, equally many of each."""
        per_package = num // len(PACKAGES)
        x = [snippets(files, per_package, rng) for files in parts[part]]
        return np.concatenate(x), np.repeat(np.arange(len(PACKAGES)), per_package)

    gpt = GPT(nnx.Rngs(0))
    text = [file for files in parts["train"] for file in files]
    base = nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam))
    train(
        gpt, base, next_token_loss, ((snippets(text, 32, rng),) for _ in range(pretraining)), 2e-3
    )
    log(f"pretrained on {sum(map(len, text)):,} tokens")

    x, y = examples("train", num_train)
    tokens = np.asarray([vocabulary.numbers[name] for name in PACKAGES])
    chosen = (rng.integers(0, len(x), 32) for _ in range(finetuning))
    train(gpt, nnx.LoRAParam, answer_loss, ((x[i], tokens[y[i]]) for i in chosen), 5e-3)
    log("fine-tuned the adapters")

    # The adapters are random, the rest is frozen; the head is multiplied by four columns only.
    model_fn, adapters = lk.model.from_nnx(gpt, nnx.LoRAParam)
    model_fn = lk.model.with_tokens(model_fn, tokens)
    la = lk.fit(model_fn, adapters, (x, y), likelihood="categorical", structure="kron")
    log(f"fitted {la.posterior.size:,} adapters of {num_params(gpt):,} parameters")
    la = la.tune(data=examples("validation", num_test))
    log("tuned by held-out snippets")

    x_test, y_test = examples("test", num_test)
    prose = vocabulary.encode(words(" ".join(pydoc_data.topics.topics.values())))
    foreign = {
        "English": snippets([prose], num_test, rng),
        "noise": rng.integers(0, VOCABULARY, (num_test, LENGTH)),
    }
    found = {}
    for name, predict in (("MAP", la.predict_at_mode), ("Laplace", la.predict)):
        predictive = predict(x_test)
        found[name] = lk.eval.evaluate(la.likelihood, predictive, y_test)
        for kind, inputs in foreign.items():
            scores = [-np.max(p, axis=-1) for p in (predictive.probs, predict(inputs).probs)]
            found[name][f"AUROC {kind}"] = lk.eval.metrics.auroc(*scores)
        shown = "  ".join(f"{key} {float(value):.3f}" for key, value in found[name].items())
        log(f"{name:8} {shown}")
    return found


def num_params(module: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pretraining", type=int, default=800, help="steps on all text")
    parser.add_argument("--finetuning", type=int, default=400, help="steps of the adapters")
    arguments = parser.parse_args()
    main(arguments.pretraining, arguments.finetuning)
