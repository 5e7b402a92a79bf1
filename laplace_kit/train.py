"""Training by the evidence: prior precision and noise are learned along with the parameters."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from laplace_kit import storage, tree
from laplace_kit.approx.names import StructureName
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.bars import is_shown
from laplace_kit.curv.objective import Objective, chunk_loss
from laplace_kit.data import Chunk, Data, InMemory, as_data, whole
from laplace_kit.errors import check_option
from laplace_kit.fitting import fit
from laplace_kit.host import fetch, fetch_array
from laplace_kit.laplace import Laplace
from laplace_kit.likelihood import Gaussian, Likelihood, MultivariateGaussian, as_likelihood
from laplace_kit.portable import to_portable
from laplace_kit.selection import can_vary
from laplace_kit.sums import chunks
from laplace_kit.tree import pytree_dataclass, replace
from laplace_kit.tune.chain import NOISES, has_unknown_noise

_LEARNING_RATE = 1e-2
_BATCH_SIZE = 128
_BURN_IN = 0.1  # of all epochs
_WITH_NOISE = Gaussian | MultivariateGaussian


@pytree_dataclass()
class TrainingHistory:
    """The history of E epochs of training and R refits of the posterior.

    `loss` `(E,)` is the training objective per example, averaged over each epoch while the
    parameters moved. Refit r followed epoch `epoch[r]`; its largest evidence was
    `log_marginal_likelihood[r]`, at `prior_precision`, whose leaves have a leading axis R, and
    `noise_std` `(R, ...)`, which is `None` unless the likelihood is `Gaussian`.
    """

    loss: Float[np.ndarray, " E"]
    epoch: Int[np.ndarray, " R"]
    log_marginal_likelihood: Float[np.ndarray, " R"]
    prior_precision: PyTree
    noise_std: Float[np.ndarray, "R ..."] | None


@pytree_dataclass(static=("stopped_early",))
class EvidenceTraining:
    """The posterior with the largest evidence, the history, and whether training stopped early."""

    la: Laplace
    history: TrainingHistory
    stopped_early: bool


def train_with_evidence(
    model_fn: Callable,
    params: PyTree,
    data: Any,
    *,
    likelihood: Likelihood | str,
    num_epochs: int,
    key: PRNGKeyArray,
    optimizer: Any = None,
    train_batch_size: int | None = None,
    structure: StructureName | StructureSpec = "auto",
    prior_precision: PyTree = 1.0,
    prior_mean: PyTree = None,
    per_leaf: bool = False,
    noise: Literal["keep", "residuals", "evidence"] | None = None,
    refit_every: int = 5,
    burn_in: int | None = None,
    patience: int | None = None,
    checkpoint: str | os.PathLike | None = None,
    batch_size: int | None = None,
    memory_limit: int | None = None,
    progress: bool = False,
) -> EvidenceTraining:
    r"""Train parameters by gradient descent and their prior and noise by the evidence, alternately.

    Between refits, minibatches descend on

    $$\frac1N \Bigl( \sum_n -\log p(y_n \mid f(x_n)) + \tfrac12 (\theta - \theta_0)^\top d\,
    (\theta - \theta_0) \Bigr).$$

    Every `refit_every` epochs the posterior is fitted at the current parameters, and the prior
    precision d and the noise are replaced by those that maximise its evidence. At fixed parameters
    the evidence is concave in their logarithms, so that each refit reaches the maximum instead of
    taking a few gradient steps towards it. The refit of largest evidence is returned.

    Parameters
    ----------
    model_fn
        `(params, x) -> (N, *event)`, pure: without batch statistics to update or dropout.
    params
        The initial parameters, a pytree. Leaves that are not floating point are frozen.
    data
        The training data: `(x, y)` in memory, reshuffled for every epoch, or a re-iterable of such
        pairs, whose batches are the minibatches, in their own order; with weights
        `(x, y, weights)`.
    likelihood
        As in `fit`.
    num_epochs
        The number of passes of training over the data, at most.
    key
        Shuffles the data in memory.
    optimizer
        An `optax.GradientTransformation`, also one that needs more than gradients, such as
        `optax.lbfgs()`; `None` for Adam with a learning rate that falls from 0.01 to 0 along a
        cosine.
    train_batch_size
        The number of examples of a minibatch in memory, at most; `None` for 128, or all if they are
        fewer. The examples are divided evenly.
    structure, prior_mean, batch_size, memory_limit
        As in `fit`; for all parameters, even where `"auto"` would take the last layer.
    prior_precision
        The initial d, in any form that `fit` takes.
    per_leaf
        One prior precision for every leaf instead of one for all parameters.
    noise
        As in `Laplace.tune`, starting from the noise of the likelihood. `None`: `"evidence"` if the
        noise is unknown, as in `lk.Gaussian()` or `"gaussian"`, else `"keep"`.
    refit_every
        The number of epochs from one refit to the next. The last epoch is always followed by one.
    burn_in
        The number of epochs before the refits begin; `None` for a tenth of all.
    patience
        How many refits in a row may fail to exceed the largest evidence before training stops;
        `None` for any number.
    checkpoint
        A file to which `la.save` atomically writes the best posterior so far. To resume, start with
        the `params`, `prior_precision` and `likelihood` of the posterior that `load` reads.
    progress
        Show a progress bar of epochs, and one for each pass over a stream.

    Returns
    -------
    training
        An `EvidenceTraining`. Cost: training, and `fit` and `tune` at every refit.

    Raises
    ------
    TypeError, ValueError
        For invalid arguments, before training begins; later if training diverges.
    OSError
        If the checkpoint cannot be written.

    Warns
    -----
    UserWarning
        The warnings of `tune` at the refit that is returned, such as a precision at a bound.

    References
    ----------
    Immer et al. (2021), Scalable marginal likelihood estimation for model selection in deep
    learning. MacKay (1992), A practical Bayesian framework for backpropagation networks.
    """
    burn_in = int(_BURN_IN * num_epochs) if burn_in is None else burn_in
    _check_numbers(num_epochs, refit_every, burn_in, patience, train_batch_size)
    _check_optimizer(optimizer)
    data, noise = as_data(data, progress=progress), _noise_to_learn(noise, likelihood)
    size = _minibatch_size(data, train_batch_size)
    _check_checkpoint(checkpoint, params)

    def refit(params: PyTree, likelihood: Likelihood, prior_precision: PyTree) -> Laplace:
        return fit(
            model_fn,
            params,
            data,
            likelihood=likelihood,
            structure=structure,
            prior_precision=prior_precision,
            prior_mean=prior_mean,
            subset=_every_leaf,
            batch_size=batch_size,
            memory_limit=memory_limit,
        )

    la = refit(params, _with_array_noise(likelihood, params), prior_precision)  # checks all input
    optimizer = optimizer or _default_optimizer(num_epochs * _num_steps(data, la, size))
    # Some optimisers start from weakly typed numbers, which would compile the epoch twice.
    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), optimizer.init(la.mode))
    state = (la.mode, start)
    loss = _TrainingLoss.at(la, size)
    losses, refits, best, stale = [], [], None, 0
    with _bar(num_epochs, progress) as (epochs, show):
        for epoch in epochs:
            shuffle = jax.random.fold_in(key, epoch)
            state, total = _train_epoch(loss, optimizer, state, data, shuffle, size)
            losses.append(_finite(float(total) * size / la.num_data, epoch))
            if epoch != num_epochs and (epoch <= burn_in or (epoch - burn_in) % refit_every):
                continue
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                la = refit(la.selection.insert(state[0]), la.likelihood, la.prior_precision)
                la = la.tune(method="evidence", per_leaf=per_leaf, noise=noise, temperature=False)
            loss = _TrainingLoss.at(la, size)
            refits.append(_Refit.of(epoch, la, caught))
            show(loss=losses[-1], evidence=refits[-1].evidence)
            if best is None or refits[-1].evidence > best.evidence:
                best, best_la, stale = refits[-1], la, 0
                if checkpoint is not None:
                    la.save(checkpoint)
            else:
                stale += 1
            if stale == patience:
                break
    _repeat_warnings(best, len(refits))
    return EvidenceTraining(best_la, _history(losses, refits), stopped_early=epoch < num_epochs)


# --- the record -----------------------------------------------------------------------------------


class _Refit(NamedTuple):
    """One refit: its evidence, prior precision and noise, and the warnings raised."""

    epoch: int
    evidence: float
    prior_precision: PyTree
    noise_std: np.ndarray | None
    caught: list[warnings.WarningMessage]

    @classmethod
    def of(cls, epoch: int, la: Laplace, caught: list[warnings.WarningMessage]) -> "_Refit":
        std = fetch_array(la.likelihood.noise_std) if isinstance(la.likelihood, Gaussian) else None
        precision = fetch(la.prior_precision)
        return cls(epoch, float(la.log_marginal_likelihood()), precision, std, caught)


def _history(losses: list[float], refits: list[_Refit]) -> TrainingHistory:
    stds = [refit.noise_std for refit in refits]
    return TrainingHistory(
        loss=np.array(losses),
        epoch=np.array([refit.epoch for refit in refits]),
        log_marginal_likelihood=np.array([refit.evidence for refit in refits]),
        prior_precision=jax.tree.map(
            lambda *leaves: np.stack(leaves), *(refit.prior_precision for refit in refits)
        ),
        noise_std=None if stds[0] is None else np.stack(stds),
    )


def _repeat_warnings(chosen: _Refit, num_refits: int) -> None:
    """Issue the warnings of the returned refit, and drop those of the others."""
    for text, category in dict.fromkeys((str(w.message), w.category) for w in chosen.caught):
        where = f"At epoch {chosen.epoch}, of the largest evidence in {num_refits} refits: "
        warnings.warn(where + text, category, stacklevel=3)


@contextlib.contextmanager
def _bar(num_epochs: int, progress: bool) -> Iterator[tuple[Iterable[int], Callable]]:
    """Yield the epochs, and a function that shows numbers next to the bar if there is one."""
    epochs = range(1, num_epochs + 1)
    if not is_shown(progress):
        yield epochs, lambda *, loss, evidence: None
        return
    from tqdm.auto import tqdm

    with tqdm(epochs, desc="epochs") as bar:
        yield bar, lambda *, loss, evidence: bar.set_postfix(loss=loss, evidence=evidence)


# --- one epoch ------------------------------------------------------------------------------------


@pytree_dataclass()
class _TrainingLoss:
    """A minibatch's part of the training objective, divided by the size of a full minibatch.

    Each example carries its share of the prior, so that over an epoch all examples count equally,
    also where a stream's last batch is small.
    """

    objective: Objective
    precision: Float[Array, " P"]
    prior_mean: Float[Array, " P"]
    num_data: int | float
    size: int

    @classmethod
    def at(cls, la: Laplace, size: int) -> "_TrainingLoss":
        return cls(la.objective, la.expand(la.prior_precision), la.prior_mean, la.num_data, size)

    def __call__(self, params: PyTree, chunk: Chunk) -> Float[Array, ""]:
        deviation = tree.ravel(params).astype(self.precision.dtype) - self.prior_mean
        penalty = 0.5 * jnp.sum(self.precision * deviation**2)
        share = jnp.sum(chunk.weight) / self.num_data
        return (chunk_loss(self.objective, params, chunk) + share * penalty) / self.size


def _train_epoch(loss, optimizer, state, data: Data, key, size: int):
    """Return parameters and optimiser state after one pass over the data, and the summed loss."""
    if isinstance(data, InMemory):
        return _scan_epoch(loss, optimizer, state, data, key, size)
    total = 0.0
    for chunk in chunks(data, size, "training"):
        state, value = _training_step(loss, optimizer, state, chunk)
        total += value
    return state, total


@partial(jax.jit, static_argnames=("optimizer", "size"))
def _scan_epoch(loss, optimizer, state, data, key, size):
    num = data.num_examples
    shape = (size, -(-num // size))  # in columns, no two of which differ by more than one example
    order = jnp.resize(jax.random.permutation(key, num), shape)
    weight = jnp.arange(order.size).reshape(shape) < num

    def body(state, batch):
        rows, weight = batch
        chunk = whole(jax.tree.map(lambda leaf: leaf[rows], data))
        return _training_step(loss, optimizer, state, replace(chunk, weight=weight * chunk.weight))

    state, losses = jax.lax.scan(body, state, (order.T, weight.T.astype(jnp.float32)))
    return state, jnp.sum(losses)


@partial(jax.jit, static_argnames="optimizer")
def _training_step(loss, optimizer, state, chunk):
    import optax

    params, optimizer_state = state

    def at(params):
        return loss(params, chunk)

    value, gradient = jax.value_and_grad(at)(params)
    updates, optimizer_state = optax.with_extra_args_support(optimizer).update(
        gradient, optimizer_state, params, value=value, grad=gradient, value_fn=at
    )
    return (optax.apply_updates(params, updates), optimizer_state), value


@cache  # one object per number of steps, so that later runs reuse compiled programs
def _default_optimizer(num_steps: int):
    import optax

    return optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, num_steps))


def _num_steps(data: Data, la: Laplace, size: int) -> int:
    """Return the number of minibatches in an epoch; weights of examples do not change it."""
    if isinstance(data, InMemory):
        return -(-data.num_examples // size)
    if not data.is_weighted:
        return -(-la.num_data // size)
    return sum(1 for _ in chunks(data, size, "counting minibatches"))


def _minibatch_size(data: Data, train_batch_size: int | None) -> int:
    if isinstance(data, InMemory):
        num = data.num_examples
        num_steps = -(-num // (train_batch_size or _BATCH_SIZE))
        return -(-num // num_steps)
    if train_batch_size is not None:
        raise ValueError(
            f"Found train_batch_size={train_batch_size} with a stream, whose batches are the "
            "minibatches; expected None: make the stream's own batches of that size."
        )
    return data.num_first


# --- input ----------------------------------------------------------------------------------------


def _every_leaf(path: str) -> bool:
    return True


def _noise_to_learn(noise: str | None, likelihood: Likelihood | str) -> str:
    kind = as_likelihood(likelihood)
    if noise is None:
        return "evidence" if has_unknown_noise(kind) else "keep"
    check_option("noise", noise, NOISES)
    if noise != "keep" and not isinstance(kind, _WITH_NOISE):
        raise TypeError(
            f"Found noise={noise!r} with a {type(kind).__name__} likelihood, expected an unmasked "
            "Gaussian one, whose noise can be learned; pass noise='keep' or leave it out."
        )
    return noise


def _with_array_noise(likelihood: Likelihood | str, params: PyTree) -> Likelihood:
    """Convert a noise given as a Python number to the dtype of a learned noise."""
    likelihood = as_likelihood(likelihood)
    if not isinstance(likelihood, _WITH_NOISE):
        return likelihood
    floats = [leaf for leaf in jax.tree.leaves(params) if can_vary(leaf)]
    dtype = jnp.result_type(jnp.float32, *floats)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), likelihood)


def _check_numbers(num_epochs, refit_every, burn_in, patience, train_batch_size) -> None:
    positive = {"num_epochs": num_epochs, "refit_every": refit_every}
    optional = {"patience": patience, "train_batch_size": train_batch_size}
    positive |= {name: value for name, value in optional.items() if value is not None}
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"Found {name}={value}, expected a positive whole number.")
    if not 0 <= burn_in < num_epochs:
        raise ValueError(
            f"Found burn_in={burn_in} for num_epochs={num_epochs}, expected 0 or more and fewer "
            "than all epochs, so that there is a refit; train longer or lower it."
        )


def _check_optimizer(optimizer: Any) -> None:
    parts = [getattr(optimizer, name, None) for name in ("init", "update")]
    if optimizer is not None and not all(map(callable, parts)):
        raise TypeError(
            f"Found an optimizer of type {type(optimizer).__name__}, expected an "
            "optax.GradientTransformation such as optax.adam(1e-3), or None."
        )


def _check_checkpoint(checkpoint: str | os.PathLike | None, params: PyTree) -> None:
    """Check before training that the parameters can be saved at this path."""
    if checkpoint is None:
        return
    path = Path(checkpoint)
    if path.is_dir() or not path.parent.is_dir():
        raise FileNotFoundError(
            f"Found checkpoint={os.fspath(checkpoint)!r}, which is a directory or lies in none "
            "that exists, expected the path of a file; make its directory first."
        )
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        storage.write(Path(directory) / "params", to_portable(params))


def _finite(loss: float, epoch: int) -> float:
    if not np.isfinite(loss):
        raise ValueError(
            f"Found a training loss of {loss} in epoch {epoch}, expected finite numbers: training "
            "diverged; lower the learning rate, as in optimizer=optax.adam(1e-3)."
        )
    return loss
