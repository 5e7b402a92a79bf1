"""What determines the sums of passes over a stream: a checkpoint belongs to one such job."""

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from laplace_kit import __version__, streams, tree
from laplace_kit.approx.spec import StructureSpec
from laplace_kit.curv.objective import Objective, chunk_loss
from laplace_kit.curv.spec import CurvatureSpec
from laplace_kit.data import Chunk, Stream, chunk_spec
from laplace_kit.examples import Examples
from laplace_kit.placement import shapes
from laplace_kit.sums import one_step


def job_of(
    objective: Objective,
    data: Stream,
    *,
    params: PyTree,
    indices: PyTree,
    structure: StructureSpec,
    curvature: CurvatureSpec,
    key: PRNGKeyArray | None,
    examples: Examples,
) -> dict[str, PyTree]:
    """Return what determines the sums of a fit or an update, by its name in messages.

    Not the prior, which enters after the sums. The first examples stand for all of them, unless
    their order belongs to the state of the loader.

    Parameters
    ----------
    objective, data
        The model at its mode, planned, and the stream.
    params, indices
        All parameters, and which entries of them are random.
    structure, curvature, key
        What is summed, with all options settled.
    examples
        The first examples.
    """
    limits = objective.limits
    software = __version__, jax.__version__, jax.default_backend()
    precision = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision
    return {
        "the versions, the precision or the device": (*software, *map(str, precision)),
        "the shapes of batches": (str(data.first), data.num_first, data.is_weighted),
        "the model or the loss": one_step.lower(
            _loss, shapes(objective), chunk_spec(data)
        ).as_text(),
        "the parameters": (*tree.paths(params), params),
        "the likelihood": (type(objective.likelihood).__name__, objective.likelihood),
        "the subset": (*tree.paths(objective.params), indices),
        "the structure": repr(structure),
        "the curvature": (repr(curvature), curvature),
        "the key": key,
        "the limits of memory": (repr(limits), limits.budget),
        "the first examples": () if streams.orders_itself(data.batches.iterable) else examples,
    }


def _loss(objective: Objective, chunk: Chunk) -> Float[Array, ""]:
    return chunk_loss(objective, objective.params, chunk)
