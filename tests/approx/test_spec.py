"""A structure that is written in this file works wherever one of the package's does."""

import dataclasses
import itertools
import re
import zipfile

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from scipy import linalg

import laplace_kit as lk
from laplace_kit.approx import Posterior, Sizes, Spectrum, Structure, StructureSpec
from laplace_kit.approx.spec import first_that_fits, settled, sizes_of
from laplace_kit.curv.objective import restrict
from laplace_kit.data import as_data

# --- one dense block for each leaf ----------------------------------------------------------------


def split(vectors, matrices):
    ends = np.cumsum([len(matrix) for matrix in matrices])[:-1]
    return zip(matrices, jnp.split(vectors, ends, axis=-1), strict=True)


def by_block(fn, matrices, vectors):
    parts = [
        fn(matrix, part.reshape(-1, len(matrix)).T).T.reshape(part.shape)
        for matrix, part in split(vectors, matrices)
    ]
    return jnp.concatenate(parts, axis=-1)


def solve(factor, columns, trans):
    return jax.scipy.linalg.solve_triangular(factor, columns, lower=True, trans=trans)


def lower_halves(structure):
    return {"halves": [block[np.tril_indices(len(block))] for block in structure.blocks]}


def from_lower_halves(parts):
    blocks = []
    for half in parts["halves"]:
        num = int((2 * len(half) + 0.25) ** 0.5)
        lower = jnp.zeros((num, num), half.dtype).at[np.tril_indices(num)].set(half)
        blocks.append(lower + jnp.tril(lower, -1).T)
    return BlocksStructure(tuple(blocks))


@lk.storable("tests.BlocksStructure", write=lower_halves, read=from_lower_halves)
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BlocksStructure(Structure):
    blocks: tuple[jax.Array, ...]

    def mv(self, vector):
        return by_block(jnp.matmul, self.blocks, vector)

    def log_det(self, precision, jitter=0.0):
        factors = self.factors(precision, jitter)
        return 2 * sum(jnp.sum(jnp.log(jnp.diagonal(factor))) for factor in factors)

    def posterior(self, precision, jitter=0.0):
        return BlocksPosterior(self.factors(precision, jitter))

    def scaled(self, factor):
        return BlocksStructure(tuple(block * factor for block in self.blocks))

    def spectrum(self):
        values = jnp.concatenate([jnp.linalg.eigvalsh(block) for block in self.blocks])
        return Spectrum(values, values.min(), len(values))

    def factors(self, precision, jitter):
        matrices = (block + jnp.diag(part) for block, part in split(precision, self.blocks))
        return tuple(
            jnp.linalg.cholesky(matrix + jitter * jnp.diag(jnp.diagonal(matrix)))
            for matrix in matrices
        )


@lk.storable("tests.BlocksPosterior")
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class BlocksPosterior(Posterior):
    factors: tuple[jax.Array, ...]

    @property
    def size(self):
        return sum(len(factor) for factor in self.factors)

    def scale_mv(self, eps):
        return by_block(lambda factor, part: solve(factor, part, 1), self.factors, eps)


@lk.storable("tests.Blocks")
@dataclasses.dataclass(frozen=True)
class Blocks(StructureSpec):
    copies: int = 3

    def bytes(self, sizes):
        return self.copies * sum(num**2 for num in sizes.leaf_sizes) * sizes.itemsize

    def fit(self, operator, key=None):
        partition = lk.curv.block_diagonal(operator, by="leaf")
        return BlocksStructure(tuple(partition.block(name).to_dense() for name in partition.blocks))


# --- against the dense matrix ---------------------------------------------------------------------

LEAVES = (4, 12, 3, 12)  # of `twins.mlp`, in flat order


def dense() -> np.ndarray:
    """Return the GGN of `twins.mlp` without its entries between leaves."""
    ggn = twins.dense(twins.ggn, "mlp")
    ends = np.cumsum((0, *LEAVES))
    pairs = itertools.pairwise(ends)
    return linalg.block_diag(*(ggn[start:stop, start:stop] for start, stop in pairs))


def fitted(dtype="float64", **options) -> lk.Laplace:
    problem = twins.problem("mlp", dtype)
    options = {"likelihood": "categorical", "structure": Blocks()} | options
    return lk.fit(problem.model_fn, problem.params, (problem.x, problem.y), **options)


def test_fit_and_predict(x64):
    la, problem = fitted(prior_precision=2.0), twins.problem("mlp", "float64")
    matrix = dense() + 2.0 * np.eye(31)
    cov, jac = np.linalg.inv(matrix), twins.dense(twins.jacobian, "mlp")
    expected = np.einsum("ncp,pq,ndq->ncd", jac, cov, jac)
    for found in (la.predict(problem.x), la.predict(problem.x, joint=True)):
        twins.assert_close(found.f_cov, expected, rtol=1e-9)
    variances = la.predict(problem.x, covariance="diagonal").f_var
    twins.assert_close(variances, np.einsum("ncc->nc", expected), rtol=1e-9)
    twins.assert_close(la.posterior.variance(), np.diag(cov), rtol=1e-9)
    twins.assert_close(la.posterior.covariance(), cov, rtol=1e-9)
    assert la.posterior.num_projections == 31
    theta = np.asarray(twins.flat(problem)[0])
    log_likelihood = float(la.log_likelihood)
    expected = exact.evidence(log_likelihood, dense(), np.full(31, 2.0), theta)
    twins.assert_close(la.log_marginal_likelihood(), expected)
    assert la.choice.structure == "Blocks"
    assert la.choice.because == "it was asked for"
    assert la.card()["structure"] == "Blocks"


def test_tune_evaluate_and_compile(x64):
    la, problem = fitted(), twins.problem("mlp", "float64")
    tuned = la.tune(bounds=(1e-3, 1e4))
    grid = np.geomspace(1e-3, 1e4, 500)
    theta, log_likelihood = np.asarray(twins.flat(problem)[0]), float(la.log_likelihood)
    best = max(exact.evidence(log_likelihood, dense(), np.full(31, d), theta) for d in grid)
    assert float(tuned.log_marginal_likelihood()) >= best
    others = problem.x, (problem.y + (np.arange(7) < 3)) % 3  # some of which are far from certain
    held_out = tuned.tune(data=others, bounds=(1e-4, 1e6))
    losses = [la.evaluate(others)["nll"] for la in (held_out, tuned, fitted())]
    assert losses[0] == min(losses)
    probs = jax.jit(lambda la, x: la.predict(x).probs)(tuned, problem.x)
    twins.assert_close(probs, tuned.predict(problem.x).probs)
    draws = tuned.sample(jax.random.key(0), 3)
    assert draws["out"]["bias"].shape == (3, 3)


@pytest.mark.slow
def test_folds_and_training_by_the_evidence():
    problem = twins.problem("mlp")
    data = (problem.x, problem.y)
    options = {"method": "cross_validation", "data": data, "num_folds": 2, "bounds": (1e-6, 1e6)}
    assert np.isfinite(float(fitted("float32").tune(**options).prior_precision))
    training = lk.train_with_evidence(
        problem.model_fn,
        problem.params,
        data,
        likelihood="categorical",
        num_epochs=2,
        key=jax.random.key(0),
        structure=Blocks(),
    )
    assert training.la.choice.spec == Blocks()


def test_save_and_load_by_a_format_of_its_own(tmp_path):
    la, x = fitted("float32", prior_precision=0.5), twins.problem("mlp").x
    la.save(tmp_path / "la.npz")
    with zipfile.ZipFile(tmp_path / "la.npz") as file:
        shapes = [np.load(file.open(name)).shape for name in file.namelist()]
    assert all((num * (num + 1) // 2,) in shapes for num in LEAVES)
    loaded = lk.load(tmp_path / "la.npz", twins.mlp)
    assert type(loaded.structure) is BlocksStructure
    assert loaded.choice == la.choice
    for first, second in ((loaded, la), (loaded.with_prior(3.0), la.with_prior(3.0))):
        jax.tree.map(np.testing.assert_array_equal, first.structure, second.structure)
        np.testing.assert_array_equal(first.predict(x).probs, second.predict(x).probs)


def test_report(tmp_path):
    problem = twins.problem("mlp")
    report = fitted("float32").report((problem.x, problem.y), tmp_path)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "Blocks" in page
    assert report.metrics


def test_what_is_not_registered_is_refused_by_save(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Unregistered(Blocks):
        pass

    la = fitted("float32", structure=Unregistered())
    with pytest.raises(TypeError, match=r"Found Unregistered .*@lk\.storable"):
        la.save(tmp_path / "la.npz")
    assert not list(tmp_path.iterdir())


def test_curvatures_that_nobody_knows_how_to_add():
    la, problem = fitted("float32"), twins.problem("mlp")
    with pytest.raises(TypeError, match=r"structure Blocks, which cannot be .*sum_of_curvatures"):
        la.update((problem.x, problem.y))


def test_its_memory_is_asked_for(x64):
    needed = 3 * sum(num**2 for num in LEAVES) * 8
    with pytest.raises(ValueError, match="structure='Blocks' for P=31 parameters, which needs abo"):
        fitted(memory_limit=needed - 1)
    auto = lk.Auto((lk.Full(max_rows=20), Blocks()))
    la = fitted(structure=auto)
    assert la.choice.spec == Blocks()
    expected = (
        r"the richest that fits, at about 7\.336 KiB of .*; full would have more than 20 rows"
    )
    assert re.match(expected, la.choice.because)


# --- sizes ----------------------------------------------------------------------------------------


class Counted:
    """A re-iterable of batches that counts those that were read."""

    def __init__(self, batches):
        self.batches, self.num_read = batches, 0

    def __iter__(self):
        for batch in self.batches:
            self.num_read += 1
            yield batch


def planned(limit=None):
    problem = twins.problem("mlp")
    objective, _ = restrict(problem.model_fn, problem.params, problem.likelihood)
    return problem, objective.planned(problem.x).within(memory=limit)


def test_sizes_of_a_model():
    problem, objective = planned()
    sizes = sizes_of(objective, as_data((problem.x, problem.y)), 3)
    assert (sizes.num_params, sizes.itemsize, sizes.leaf_sizes) == (31, 4, LEAVES)
    assert sizes.kronecker_entries == 4**2 + 4**2 + 5**2 + 3**2
    assert (sizes.num_data, sizes.num_rows) == (7, 21)
    # For each of three directions a gradient of 4 and of 3 outputs; inputs of 4 and 5 numbers.
    assert sizes.design_entries == 3 * (4 + 3) + 4 + 5
    without = sizes_of(objective, as_data((problem.x, problem.y)), None)
    assert (without.num_data, without.num_rows, without.design_entries) == (None, None, None)
    assert Sizes(31, 4).num_rows is None


@pytest.mark.parametrize(("rows", "num_read", "num_data"), [(30, 3, 7), (10, 2, None)])
def test_a_stream_is_counted_only_as_far_as_its_rows_fit(rows, num_read, num_data):
    problem, objective = planned(limit=4 * rows**2)
    stream = Counted(twins.batches(problem.x, problem.y, 3, 3, 1))
    data = as_data(stream)
    sizes, stream.num_read = sizes_of(objective, data, 3), 0
    assert stream.num_read == 0  # nobody has asked yet
    assert sizes.num_data == sizes.num_data == num_data
    assert stream.num_read == num_read


def test_first_that_fits_and_settled():
    forms = (lk.Full("primal"), lk.Diagonal())
    sizes = Sizes(10, 4)
    assert first_that_fits(forms, sizes, 1200) == lk.Full("primal")
    assert first_that_fits(forms, sizes, 1199) == lk.Diagonal()
    assert first_that_fits(forms, sizes, 10) is None
    ggn = lk.curv.GGNOperator(*twins.problem("mlp").args)
    assert settled(lk.Full(), ggn) == settled(lk.Full(), ggn + 0.1) == lk.Full("primal")
    with pytest.raises(ValueError, match=r"Found Kronecker\(.*\) for a DampedOperator of shape"):
        settled(lk.Kronecker(), ggn + 0.1)
