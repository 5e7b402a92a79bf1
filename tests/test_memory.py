"""The memory budget, and the size of an example counted on models whose size is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laplace_kit import memory
from laplace_kit.memory import Limits, evenly

PARAMS = jax.ShapeDtypeStruct((3, 4), jnp.float32)
INPUTS = jax.ShapeDtypeStruct((7, 3), jnp.float32)


def linear(params, x):
    return x @ params


def activated(params, x):
    return jnp.tanh(x @ params)


def branched(params, x):
    return jax.lax.cond(params[0, 0] > 0, activated, linear, params, x)


def repeated(params, x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h), None), x @ params, length=5)[0]


def without_examples(params, x):
    return x @ (params + jnp.exp(params))


def randomised(params, x):
    return x @ params + jax.random.normal(jax.random.key(0), (4,))


@pytest.mark.parametrize(
    ("model_fn", "numbers"),
    [
        (linear, 3 + 4),
        (activated, 3 + 4 + 4),
        (jax.jit(activated), 3 + 4 + 4),
        (jax.checkpoint(activated), 3 + 4 + 4),
        (branched, 3 + (4 + 4) + 4),
        (repeated, 3 + 4 + 5 * 4),
        (without_examples, 3 + 4),
        (randomised, 3 + 4 + 4),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_example_counts_inputs_and_intermediate_values(model_fn, numbers):
    assert memory.activation_bytes(model_fn, PARAMS, INPUTS) == 4 * numbers


def test_example_counts_every_input_in_its_own_dtype():
    def embed(params, x):
        return params["table"][x["tokens"]].sum(axis=1) + x["shift"]

    params = {"table": jax.ShapeDtypeStruct((10, 4), jnp.bfloat16)}
    x = {
        "tokens": jax.ShapeDtypeStruct((5, 6), jnp.int32),
        "shift": jax.ShapeDtypeStruct((5, 4), jnp.bfloat16),
    }
    found = memory.activation_bytes(embed, params, x)
    least = 6 * 4 + 4 * 2 + 6 * 4 * 2 + 4 * 2  # both inputs, the rows, and their sum
    assert least <= found <= 8 * least


def test_arrays_are_as_good_as_shapes():
    found = memory.activation_bytes(linear, jnp.ones((3, 4)), jnp.ones((2, 3)))
    assert found == memory.activation_bytes(linear, PARAMS, INPUTS)


def test_chunk_is_what_fits():
    assert Limits(memory=1000).chunk_size(100) == 10
    assert Limits(memory=1000).chunk_size(101) == 9
    assert Limits(memory=1000).chunk_size(2000) == 1
    assert Limits(memory=1000).chunk_size(0) == 1000


def test_chunk_of_a_sum_is_what_calls_hand_on_to_each_other():
    def chunk(unit, memory=None, **options):
        return Limits(memory=memory).summed_chunk(10**18, unit, **options)

    most = chunk(1)
    assert 32 * 2**20 < most < 128 * 2**20
    assert chunk(2**20) == most // 2**20
    assert chunk(2**20, 5 * 2**20) == 5
    assert chunk(2**20, 1) == 1
    # All that is not cut has no slice of the data beside it.
    assert Limits().summed_chunk(2 * most, 1) == 2 * most
    assert Limits().summed_chunk(2 * most + 1, 1) == evenly(2 * most + 1, most) < most
    # A few examples make the most of a pass, unless there is no memory for them.
    assert chunk(most, 100 * most) == 25
    assert chunk(most, 100 * most, num_vectors=25) == 5
    assert chunk(most, 10 * most) == 10
    # Adding up large sums takes as long as many examples, but not as any number of them.
    sums = most // 4
    assert chunk(2**20, 2**40, sum_bytes=sums) == 8 * sums // 2**20
    assert chunk(2**20, 2**40, sum_bytes=2**40) == 512
    assert chunk(2**20, 2**23, sum_bytes=2**40) == 8


def test_accelerators_hold_what_fits(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert Limits(memory=2**40).summed_chunk(10**12, 10) == evenly(10**12, 2**40 // 10)
    assert Limits(memory=2**40).working_set() == 2**40


def test_working_set_is_small_unless_sums_are_large():
    assert Limits(memory=2**40).working_set() < 2**25
    assert Limits(memory=2**20).working_set() == 2**20
    assert Limits(memory=2**40).working_set(sum_bytes=2**30) == 2**33
    assert Limits(memory=2**31).working_set(sum_bytes=2**30) == 2**31


def test_default_is_a_share_of_what_the_device_tells(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    monkeypatch.setattr(jax, "local_devices", lambda: [Device({"bytes_limit": 8 * 2**30})])
    assert Limits().budget == 2 * 2**30
    assert Limits(memory=17).budget == 17
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    monkeypatch.setattr("os.sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.get)
    assert Limits().budget == 1000 * 4096 // 4


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit):
    with pytest.raises(ValueError, match=f"Found memory_limit={limit}, expected a positive number"):
        Limits(memory=limit)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2 GiB"), (5 * 2**50, "5120 TiB")],
)
def test_numbers_of_bytes_are_readable(num_bytes, text):
    assert memory.readable(num_bytes) == text


@given(num=st.integers(1, 40), size=st.integers(1, 50))
def test_even_chunks_are_as_many_and_no_larger(num, size):
    even = evenly(num, size)
    assert 1 <= even <= min(num, size)
    assert -(-num // even) == -(-num // size)
    assert (even - 1) * -(-num // size) < num


def test_a_process_alone_agrees_with_itself():
    limits = Limits(batch_size=3)
    assert limits.shared_by({"a": jnp.ones(3)}, None) is limits
    assert Limits(memory=7).shared_by(jnp.ones(3)).budget == 7


def test_the_agreed_budget_is_that_of_the_process_with_least(monkeypatch):
    of_machines, of_budgets = np.array([5, 9, 5]), np.array([600, 500, 800])
    answers = iter([of_machines, of_budgets])
    monkeypatch.setattr(memory, "agree", lambda number: next(answers))
    monkeypatch.setattr(memory, "_device_memory", lambda device: None)
    # Two processes share the memory of machine 5: 300 and 400 MiB, next to 500.
    assert memory._agreed_budget.__wrapped__() == 300 * 2**20
    answers = iter([of_machines, of_budgets])
    monkeypatch.setattr(memory, "_device_memory", lambda device: 2**30)  # of a device of its own
    assert memory._agreed_budget.__wrapped__() == 500 * 2**20


def test_a_model_refused_for_its_mesh_is_told_so_and_not_its_examples():
    def model(params, x):
        return jax.sharding.reshard(x @ params, jax.sharding.PartitionSpec("data"))

    with pytest.raises(
        ValueError, match=r"model whose shardings JAX refuses .*mesh context"
    ) as error:
        memory.apply_model(jax.tree_util.Partial(model), jnp.ones((3, 2)), jnp.ones((4, 3)))
    assert "with jax.set_mesh(mesh):" in str(error.value)
    assert "examples of shape" not in str(error.value)


def test_limits_are_those_of_the_platform_of_the_arrays(monkeypatch):
    """Next to an accelerator that is JAX's default, arrays on the CPU take chunks for a CPU."""
    here = jax.device_put(np.ones(3), jax.devices("cpu")[0])
    usual = Limits().shared_by(here)
    assert usual == Limits()  # one program serves arrays that are committed and those that are not
    monkeypatch.setattr(memory, "is_meant_for_cpu", lambda: False)
    assert Limits().working_set() == Limits().reused == Limits().budget
    found = Limits().shared_by(np.ones(3), here)
    assert found.device.platform == "cpu"
    assert found.working_set(10**7) < found.budget
    assert found.reused == min(found.budget, 80 * 2**20)
    assert found.summed_chunk(10**9, 1000) < Limits().summed_chunk(10**9, 1000)
    # Whatever follows keeps it; a limit that is given stays.
    assert found.shared_by(np.ones(3)).device is found.device
    assert Limits(memory=10**6).shared_by(here).budget == 10**6


def test_memory_is_that_of_the_device_of_the_arrays(monkeypatch):
    here = jax.devices("cpu")[0]
    sizes = {here: 8 * 2**30, None: 4 * 2**30}
    monkeypatch.setattr(memory, "_device_memory", sizes.get)
    assert Limits(device=here).budget == 2 * 2**30
    assert Limits().budget == 2**30
