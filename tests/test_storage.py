"""Files hold every bit of a posterior; a damaged or foreign one is refused, and nothing is run."""

import dataclasses
import json
import zipfile

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins

import laplace_kit as lk
from laplace_kit import storage, tree


def model(params, x):
    return jnp.tanh(x @ params["first"]) @ params["last"][0]


X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.arange(6) % 2


def parameters(dtype="float32"):
    rng = np.random.default_rng(1)
    first, last = rng.normal(size=(3, 2)), rng.normal(size=(2, 2))
    return {"first": jnp.asarray(first, dtype), "last": [jnp.asarray(last, dtype)]}


def posterior(dtype="float32", **options) -> lk.Laplace:
    options = {"likelihood": "categorical", "structure": "diagonal"} | options
    return lk.fit(model, parameters(dtype), (X, Y), **options)


def without_data(value):
    """Return a posterior without its training examples, which are not stored."""
    if not isinstance(value, lk.Laplace):
        return value
    model, record = value.model, value.record
    model, record = tree.replace(model, plan=None), tree.replace(record, examples=None)
    return tree.replace(value, model=model, record=record)


def is_bitwise_equal(first, second):
    first, second = without_data(first), without_data(second)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert jnp.asarray(a).dtype == jnp.asarray(b).dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def without_field(path, name, cls):
    """Write the file again as if a class had not had a field when it was written."""
    with np.load(path) as archive:
        entries = dict(archive)
    header = json.loads(entries.pop("header").tobytes())
    fields = dict(header["tree"]["items"])["likelihood"]
    assert fields["class"] == cls
    del fields["fields"][name]
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **entries)


# --- round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["class_weights", "label_smoothing"])
def test_a_field_that_is_younger_than_the_file_has_its_default(name, tmp_path):
    la, path = posterior(), tmp_path / "old.npz"
    la.save(path)
    without_field(path, name, "Categorical")
    loaded = lk.load(path, model)
    assert getattr(loaded.likelihood, name) == getattr(lk.Categorical(), name)
    np.testing.assert_array_equal(loaded.predict(X).probs, la.predict(X).probs)


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"prior_precision": {"first": 2.0, "last": 0.3}, "prior_mean": 0.1},
        {"subset": lambda path: path.startswith("last")},
        {"subset": {"first": np.arange(6).reshape(3, 2) > 2, "last": False}},
        {"likelihood": lk.Categorical(), "batch_size": 2, "memory_limit": 10**6},
    ],
    ids=["bfloat16", "prior_tree", "subset", "mask", "options"],
)
def test_every_kind_of_field(options, tmp_path):
    la = posterior(**options)
    la.save(tmp_path / "la.npz")
    again = lk.load(tmp_path / "la.npz", model)
    is_bitwise_equal(again, la)
    is_bitwise_equal(again.params, la.params)


def test_an_array_that_appears_twice_is_stored_once_and_is_one_again(tmp_path):
    array = jnp.arange(5, dtype=jnp.bfloat16)
    storage.write(tmp_path / "twice", {"first": array, "second": (array, array + 1)})
    with zipfile.ZipFile(tmp_path / "twice") as archive:
        assert len(archive.namelist()) == 3  # with the header
    found = storage.read(tmp_path / "twice")
    assert found["second"][0] is found["first"]
    assert found["first"].dtype == jnp.bfloat16
    assert found["second"][1].tolist() == [1, 2, 3, 4, 5]


def test_integer_leaves_and_other_likelihoods(tmp_path):
    problem = twins.problem("with_integers")
    la = lk.fit(*problem.args[:3], likelihood="poisson", structure="diagonal")
    la.save(tmp_path / "la.npz")
    is_bitwise_equal(lk.load(tmp_path / "la.npz", problem.model_fn), la)


def test_random_keys_among_frozen_leaves(tmp_path):
    keys = {"plain": jax.random.key(3), "other": jax.random.split(jax.random.key(4, impl="rbg"))}
    storage.write(tmp_path / "keys", keys)
    again = storage.read(tmp_path / "keys")
    for name, key in keys.items():
        assert again[name].dtype == key.dtype
        drawn = (jax.random.bits(k) if k.ndim == 0 else jax.vmap(jax.random.bits)(k)
                 for k in (again[name], key))  # fmt: skip
        np.testing.assert_array_equal(*drawn)


def test_the_likelihood_s_own_leaves(tmp_path, x64):
    regression = exact.regression()
    la = regression.fit(*exact.priors(regression.num_params), structure="full")
    la.save(tmp_path / "la.npz")
    again = lk.load(tmp_path / "la.npz", exact.linear)
    assert float(again.likelihood.noise_std) == regression.noise_std
    is_bitwise_equal(*(jax.tree.leaves(without_data(value)) for value in (again, la)))


def test_a_likelihood_that_is_a_function_is_given_again(tmp_path):
    problem = twins.problem("bare")
    la = lk.fit(*problem.args[:3], likelihood=problem.likelihood, structure="diagonal")
    la.save(tmp_path / "la.npz")
    with pytest.raises(ValueError, match=r"no likelihood in .*lk\.load\(path, model_fn, like"):
        lk.load(tmp_path / "la.npz", problem.model_fn)
    again = lk.load(tmp_path / "la.npz", problem.model_fn, likelihood=problem.likelihood)
    is_bitwise_equal(again, la)


def test_saving_again_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "la.npz"
    posterior().save(path)
    posterior(prior_precision=5.0).save(path)
    assert float(lk.load(path, model).prior_precision) == 5
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_while_saving_leaves_the_old_file(tmp_path):
    path = tmp_path / "la.npz"
    posterior().save(path)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"Found set .*expected dictionaries"):
        storage.write(path, {"a": {1, 2}})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- classes of one's own -------------------------------------------------------------------------


@storage.storable(
    "tests.Symmetric",
    write=lambda value: {"lower": value.matrix[np.tril_indices(len(value.matrix))]},
    read=lambda parts: Symmetric.from_lower(parts["lower"]),
)
class Symmetric:
    """No dataclass: a matrix of which a file holds one half."""

    def __init__(self, matrix):
        self.matrix = matrix

    @classmethod
    def from_lower(cls, lower):
        num = int((2 * len(lower) + 0.25) ** 0.5)
        matrix = np.zeros((num, num), lower.dtype)
        matrix[np.tril_indices(num)] = lower
        return cls(matrix + np.tril(matrix, -1).T)


def test_a_class_with_a_format_of_its_own(tmp_path):
    matrix = np.arange(9.0, dtype=np.float32).reshape(3, 3)
    matrices = [Symmetric(matrix + matrix.T), Symmetric(np.ones((2, 2), np.float32))]
    storage.write(tmp_path / "file", {"a": matrices})
    with zipfile.ZipFile(tmp_path / "file") as file:
        entries = [np.load(file.open(name)) for name in file.namelist() if "array" in name]
    assert sorted(entry.shape for entry in entries) == [(3,), (6,)]
    for found, expected in zip(storage.read(tmp_path / "file")["a"], matrices, strict=True):
        assert type(found) is Symmetric
        np.testing.assert_array_equal(found.matrix, expected.matrix)


def test_a_name_stands_for_one_class_which_may_be_defined_again():
    def define():
        @storage.storable("tests.Again")
        @dataclasses.dataclass
        class Again:
            value: int

        return Again

    assert storage.is_storable(define())
    newest = define()  # as where a cell of a notebook runs again
    assert storage.is_storable(newest)
    with pytest.raises(ValueError, match=r"the name 'tests\.Again', under which .*Again is stored"):
        storage.storable("tests.Again")(Other)
    with pytest.raises(ValueError, match=r"the name 'Gaussian'.*'my_project.Other'"):
        storage.storable("Gaussian")(Other)


@dataclasses.dataclass
class Other:
    value: int


def test_what_is_no_dataclass_needs_both_ways():
    with pytest.raises(TypeError, match=r"Found set, .*dataclass.*`write` and `read`"):
        storage.storable("tests.Set", write=list)(set)


# --- what is refused ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "la.npz"
    posterior().save(path)
    return path.read_bytes()


def load_bytes(content: bytes, directory):
    path = directory / "file.npz"
    path.write_bytes(content)
    return lk.load(path, model)


REFUSED = r"cannot be read as a file of laplace_kit .*expected one written by la\.save.*damaged, or"


@pytest.mark.parametrize("length", [0, 1, 3, 100, 0.5, 0.9, 0.999])
def test_truncated(saved, length, tmp_path):
    length = int(length * len(saved)) if 0 < length < 1 else length
    with pytest.raises(ValueError, match=REFUSED):
        load_bytes(saved[:length], tmp_path)


@pytest.mark.parametrize("content", [b"hello", b"PK\x03\x04 no archive", bytes(range(256)) * 4])
def test_random_bytes(content, tmp_path):
    with pytest.raises(ValueError, match=REFUSED) as error:
        load_bytes(content, tmp_path)
    assert "allow_pickle" not in str(error.value)  # no advice to trust it


def test_a_flipped_byte_is_refused_or_does_not_matter(saved, tmp_path):
    """Whichever byte it is: checksums see those that matter, a few (dates) do not."""
    original = load_bytes(saved, tmp_path)
    refused = 0
    for position in range(0, len(saved), 13):
        content = bytearray(saved)
        content[position] ^= 0xFF
        try:
            loaded = load_bytes(bytes(content), tmp_path)
        except ValueError:
            refused += 1
        else:
            is_bitwise_equal(loaded, original)
    assert refused > len(saved) / 13 / 2
    is_bitwise_equal(load_bytes(saved, tmp_path), original)  # the process keeps running


def archive(tree, **changes) -> dict:
    header = {"format": storage.FORMAT, "version": storage.VERSION, "tree": tree} | changes
    return {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}


def load_arrays(arrays: dict, directory):
    np.savez(directory / "file.npz", **arrays)
    return lk.load(directory / "file.npz", model)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"weights": np.ones(3)}, "header"),
        ({"header": np.frombuffer(b"[1, 2", np.uint8)}, "Expecting"),
        ({"header": np.frombuffer(b"[" * 10**5, np.uint8)}, "recursion"),
        ({"header": np.array([{"a": 1}], object)}, "Object arrays cannot be loaded"),
        (archive(None, format="other"), "its format is 'other'"),
        (archive(None, version=3), "its version is 3, newer than 2"),
        (archive({"kind": "object", "class": "Gaussian", "fields": {"std": 1}}), "fields"),
        (archive({"kind": "array", "name": "array0", "dtype": "float32"}), "array0"),
        (archive({"kind": "dict", "items": [[[1], 2]]}), "unhashable"),
    ],
)
def test_foreign_archives(arrays, reason, tmp_path):
    with pytest.raises(ValueError, match=REFUSED) as error:
        load_arrays(arrays, tmp_path)
    assert reason in str(error.value)


def test_an_object_of_a_class_that_is_not_registered_names_it_and_imports_nothing(tmp_path):
    for name in ("Popen", "subprocess.Popen", "my_project.Blocks"):
        with pytest.raises(
            ValueError, match=f"class '{name}' in .*which no class.*import"
        ) as error:
            load_arrays(archive({"kind": "object", "class": name, "fields": {}}), tmp_path)
        assert f"@lk.storable('{name}')" in str(error.value)


def test_a_pickle_is_never_opened(tmp_path):
    """Neither as a file nor inside an archive: what is loaded is data, not code."""
    mark = tmp_path / "mark"

    class Bomb:
        def __reduce__(self):
            return (mark.write_text, ("opened",))

    bomb = np.array([Bomb()], object)
    with pytest.raises(ValueError, match=REFUSED):
        load_bytes(bomb.dumps(), tmp_path)
    header = {"kind": "array", "name": "array0", "dtype": "float32"}
    with pytest.raises(ValueError, match=REFUSED):
        load_arrays({**archive(header), "array0": bomb}, tmp_path)
    assert not mark.exists()


def test_something_else_of_this_library(tmp_path):
    for other in (None, {"kind": "dict", "items": [["mode", 1]]}):
        with pytest.raises(ValueError, match="holds something other than a posterior; expected a"):
            load_arrays(archive(other), tmp_path)


def test_a_missing_file_stays_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        lk.load(tmp_path / "nowhere.npz", model)


def test_only_arrays_and_json_are_written(saved, tmp_path):
    (tmp_path / "la.npz").write_bytes(saved)
    with zipfile.ZipFile(tmp_path / "la.npz") as file:
        assert {name.rpartition(".")[2] for name in file.namelist()} == {"npy"}
    with np.load(tmp_path / "la.npz", allow_pickle=False) as arrays:
        header = json.loads(arrays["header"].tobytes())
        assert header["format"] == "laplace_kit"
        assert all(arrays[name].dtype.kind in "fiub" for name in arrays)
