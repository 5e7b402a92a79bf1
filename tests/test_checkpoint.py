"""Sums over a stream that are saved, and go on after an interruption."""

import jax
import jax.numpy as jnp
import loaders
import numpy as np
import pytest
import twins
from exact import as_users_call

from laplace_kit import storage
from laplace_kit.checkpoint import Checkpoint, as_checkpoint, claim, fingerprint, release
from laplace_kit.data import as_data, forget, with_checkpoint
from laplace_kit.sums import sum_over

X = np.random.default_rng(0).normal(size=(23, 3)).astype("float32")
Y = np.arange(23, dtype="float32")
NUM = 8  # batches of three, the last of two


def sums(scale, chunk):
    """Several sums, which depend on the order of additions in their last bits."""
    return {
        "x": scale * chunk.weight @ jnp.sin(chunk.x),
        "both": jnp.einsum("n,n,ni->i", chunk.weight, chunk.y, chunk.x),
        "num": chunk.weight.sum().astype(int),
    }


def total(loader, checkpoint=None, *, scale=1.5, batch_size=2):
    data = as_data(loader)
    data = data if checkpoint is None else with_checkpoint(data, checkpoint)
    return sum_over(sums, jnp.float32(scale), data, batch_size)


def interrupt(loader, checkpoint, **options) -> None:
    """Let a pass end at the loader's `stop`, which counts the batch that `as_data` reads."""
    with pytest.raises(loaders.Interrupted):
        total(loader, checkpoint, **options)


def assert_same(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


KINDS = (loaders.Plain, loaders.LikeGrain, loaders.LikeTorchdata)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_done", [1, 4, NUM])
def test_an_interrupted_sum_goes_on_to_the_same_bits(kind, num_done, tmp_path):
    expected = total(kind(X, Y, 3))
    checkpoint = Checkpoint(tmp_path, batches=1)
    if num_done < NUM:
        interrupt(kind(X, Y, 3, stop=1 + num_done), checkpoint)
    else:
        total(kind(X, Y, 3), checkpoint)
    again = kind(X, Y, 3)
    assert_same(total(again, checkpoint), expected)
    first, *passes = again.reads
    assert first == 1
    if num_done == NUM:  # a finished pass is not made again
        assert passes == []
    else:
        assert passes == [NUM if kind is loaders.Plain else NUM - num_done]


def test_batches_that_were_summed_are_not_summed_again(tmp_path):
    expected = total(loaders.Plain(X, Y, 3))
    interrupt(loaders.Plain(X, Y, 3, stop=6), Checkpoint(tmp_path, batches=1))
    corrupted = X.copy()
    corrupted[3:12] = np.nan  # batches 2 to 4 of the five
    assert_same(total(loaders.Plain(corrupted, Y, 3), tmp_path), expected)


@pytest.mark.parametrize(("batches", "saved"), [(2, 5), (3, 4), (100, 1)])
def test_sums_are_saved_after_the_first_batch_and_every_so_many(batches, saved, tmp_path):
    interrupt(loaders.LikeGrain(X, Y, 3, stop=7), Checkpoint(tmp_path, batches=batches))
    again = loaders.LikeGrain(X, Y, 3)
    total(again, tmp_path)
    assert again.reads == [1, NUM - saved]


def test_sums_are_saved_every_so_many_seconds(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("laplace_kit.checkpoint.time.monotonic", lambda: now[0])

    class Slow(loaders.LikeGrain):
        def read(self, batch):
            now[0] += 25.0
            return super().read(batch)

    interrupt(Slow(X, Y, 3, stop=6), tmp_path)  # saved after 25, 100 (since a minute has passed)
    again = loaders.LikeGrain(X, Y, 3)
    total(again, tmp_path)
    assert again.reads == [1, NUM - 4]


def test_another_pass_begins_at_its_first_batch(tmp_path):
    interrupt(loaders.LikeGrain(X, Y, 3, stop=5), Checkpoint(tmp_path, batches=1))
    for other in ({"scale": 2.5}, {"batch_size": 3}):
        again = loaders.LikeGrain(X, Y, 3)
        assert_same(total(again, tmp_path, **other), total(loaders.Plain(X, Y, 3), **other))
        assert again.reads == [1, NUM]


def test_in_float64_too(x64, tmp_path):
    data = X.astype("float64"), Y.astype("float64"), 3
    expected = total(loaders.Plain(*data))
    assert expected["both"].dtype == "float64"
    interrupt(loaders.Plain(*data, stop=5), Checkpoint(tmp_path, batches=1))
    assert_same(total(loaders.Plain(*data), tmp_path), expected)


class Weighted(loaders.Plain):
    def __iter__(self):
        for batch in super().__iter__():
            yield *batch, np.asarray(batch[1]) % 3


def test_weights_are_in_the_sums(tmp_path):
    expected = total(Weighted(X, Y, 3))
    assert expected["num"] == np.sum(Y % 3)
    interrupt(Weighted(X, Y, 3, stop=5), Checkpoint(tmp_path, batches=1))
    assert_same(total(Weighted(X, Y, 3), tmp_path), expected)


def test_no_program_is_compiled_to_go_on(tmp_path):
    total(loaders.Plain(X, Y, 3), batch_size=3)
    interrupt(loaders.Plain(X, Y, 3, stop=5), Checkpoint(tmp_path, batches=1), batch_size=3)
    with twins.compilations() as names:
        total(loaders.Plain(X, Y, 3), tmp_path, batch_size=3)
    assert names == []


# --- loaders that do not go on --------------------------------------------------------------------


def test_another_order_is_refused(tmp_path):
    interrupt(loaders.Plain(X, Y, 3, stop=5), Checkpoint(tmp_path, batches=1))
    with pytest.raises(ValueError, match=r"another batch number 4 than.*expected the same.*shuff"):
        total(loaders.Plain(X[::-1], Y[::-1], 3), tmp_path)


def test_fewer_batches_are_refused(tmp_path):
    interrupt(loaders.Plain(X, Y, 3, stop=7), Checkpoint(tmp_path, batches=1))
    with pytest.raises(ValueError, match=r"Found 3 batches in a loader of which 6 were summed"):
        total(loaders.Plain(X[:9], Y[:9], 3), tmp_path)


def test_a_state_that_no_file_holds_is_refused_at_the_first_batch(tmp_path):
    class Iterator(loaders._Iterator):
        def get_state(self):
            return {"place": object()}

    class Loader(loaders.LikeGrain):
        def __iter__(self):
            return Iterator(self)

    loader = Loader(X, Y, 3)
    with pytest.raises(TypeError, match=r"Found object in the object to save, expected"):
        total(loader, tmp_path)
    assert loader.reads == [1, 1]


# --- the directory --------------------------------------------------------------------------------


JOB = {"the model": "program", "the parameters": (np.ones(2), jnp.ones(3))}


def test_a_directory_belongs_to_one_job(tmp_path):
    checkpoint = Checkpoint(tmp_path / "a" / "b")
    for _ in range(2):
        claim(checkpoint, JOB)
    other = JOB | {"the parameters": (np.ones(2), jnp.ones(3).at[1].set(1.0000001))}
    with pytest.raises(ValueError, match=r"another fit in .*, which differs in the parameters; ex"):
        claim(checkpoint, other)
    with pytest.raises(ValueError, match=r"differs in the model, the parameters and the key; "):
        claim(checkpoint, {"the model": "p", "the parameters": (), "the key": 1})


def test_what_is_released_is_gone_and_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    claim(Checkpoint(tmp_path), JOB)
    interrupt(loaders.Plain(X, Y, 3, stop=5), tmp_path)
    assert len([*tmp_path.iterdir()]) == 3
    forget(with_checkpoint(as_data(loaders.Plain(X, Y, 3)), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    release(Checkpoint(tmp_path))  # of nothing
    claim(Checkpoint(tmp_path), {"the model": "another"})


def test_files_of_something_else_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file', which is a file, expected a directory"):
        claim(Checkpoint(tmp_path / "file"), JOB)
    (tmp_path / "fit.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"fit.npz', which is damaged or something else.*delete"):
        claim(Checkpoint(tmp_path), JOB)
    storage.write(tmp_path / "fit.npz", {"content": "other"})
    with pytest.raises(ValueError, match=r"something other than a checkpoint, expected an empty"):
        claim(Checkpoint(tmp_path), JOB)


def test_a_damaged_pass_is_refused(tmp_path):
    interrupt(loaders.Plain(X, Y, 3, stop=5), tmp_path)
    (path,) = tmp_path.glob("pass-*")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"pass-\w+.npz', which is damaged"):
        total(loaders.Plain(X, Y, 3), tmp_path)


def test_options_are_checked(tmp_path):
    assert as_checkpoint(tmp_path) == Checkpoint(tmp_path, seconds=60.0, batches=None)
    assert as_checkpoint(Checkpoint("there", seconds=1)).seconds == 1
    message = r"a checkpoint of type int, expected the path of a dir"
    with as_users_call(), pytest.raises(TypeError, match=message):
        as_checkpoint(3)
    with pytest.raises(ValueError, match=r"seconds=-1, expected the time between two saves"):
        Checkpoint("there", seconds=-1)
    with pytest.raises(ValueError, match=r"batches=0"):
        Checkpoint("there", batches=0)


def test_data_in_memory_are_refused():
    with pytest.raises(TypeError, match=r"checkpoint= with data in memory, expected a stream"):
        with_checkpoint(as_data((X, Y)), "there")


def test_processes_that_each_have_batches_of_their_own_are_refused(monkeypatch):
    data = as_data(loaders.Plain(X, Y, 3))
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match=r"checkpoint= in 4 processes whose batches are not spre"):
        with_checkpoint(data, "there")


# --- fingerprints ---------------------------------------------------------------------------------


def test_fingerprints_tell_values_shapes_and_dtypes_apart():
    trees = [
        (np.zeros(4, "float32"),),
        (np.zeros((2, 2), "float32"),),
        (np.zeros(4, "int32"),),
        (np.asarray([0, 0, 0, -0.0], "float32"),),
        (np.zeros(2, "float32"), np.zeros(2, "float32")),
        ("text",),
        ("te", "xt"),
        (jax.random.key(0),),
        (jax.random.key(1),),
        (True,),
        (),
    ]
    prints = [fingerprint(tree) for tree in trees]
    assert len({*prints}) == len(trees)
    assert fingerprint((jnp.zeros(4),)) == prints[0]
    assert fingerprint((jnp.zeros(4, jnp.bfloat16),)) not in prints
