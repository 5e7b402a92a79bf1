"""What users hold numbers in is read as arrays, and what holds none is named."""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

from laplace_kit.arrays import as_array, as_arrays, is_list_of_numbers, on_host, read_array


class Tensor:
    """Like a torch tensor: NumPy reads it once it is detached, on the CPU, and not in bfloat16."""

    def __init__(self, values, dtype="torch.float32", *, detached=False, on_cpu=False):
        self.values, self.dtype = np.asarray(values), dtype
        self.detached, self.on_cpu = detached, on_cpu
        self.layout = "torch.strided"

    def detach(self):
        return Tensor(self.values, self.dtype, detached=True, on_cpu=self.on_cpu)

    def cpu(self):
        return Tensor(self.values, self.dtype, detached=self.detached, on_cpu=True)

    def float(self):
        return Tensor(self.values, "torch.float32", detached=self.detached, on_cpu=self.on_cpu)

    def __array__(self, dtype=None, copy=None):
        if not self.detached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if not self.on_cpu or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert this tensor to numpy")
        return self.values


# --- what is read ---------------------------------------------------------------------------------


def test_array_likes_become_jax_arrays_with_memory_of_their_own():
    ours = jnp.ones(2)
    assert as_array(ours) is ours
    for values in ([1.0, 2.0], np.asarray([1.0, 2.0]), Tensor([1.0, 2.0])):
        found = as_array(values)
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, [1.0, 2.0])
    buffer = np.ones(100_000, np.float32)
    arrays = [as_array(buffer) for _ in range(10)]
    buffer[:] = 0
    assert all(array.min() == 1 for array in arrays)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "bool", "float16", "complex128"])
def test_arrays_of_the_host_keep_their_dtype(dtype):
    values = np.ones((2, 3), dtype)
    assert read_array(values) is values
    assert read_array([1.7e9 + 1 / 8]).tolist() == [1.7e9 + 1 / 8]


def test_bfloat16_tensors_keep_their_dtype():
    values = np.asarray([1.0, -2.5, np.inf], np.float32)  # each of them a bfloat16
    found = read_array(Tensor(values, "torch.bfloat16"))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), values)


def test_torch_tensors():
    torch = pytest.importorskip("torch")
    values = torch.tensor([[1.0, -2.5], [3.0, 4.0]])
    for tensor in (values, values.clone().requires_grad_(), values.bfloat16(), values.half()):
        found = read_array(tensor)
        assert str(found.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(found.astype(np.float64), values.numpy())
    with pytest.raises(TypeError, match=r"a sparse Tensor of shape \(2, 2\).*\.to_dense\(\)"):
        read_array(values.to_sparse())


def test_frames_of_pandas():
    pandas = pytest.importorskip("pandas")
    numbers = pandas.DataFrame({"size": [1.5, 2.0], "new": [True, False]})
    np.testing.assert_array_equal(read_array(numbers, "inputs"), [[1.5, 1.0], [2.0, 0.0]])
    np.testing.assert_array_equal(as_array(pandas.Series([3, 4], dtype="Int64")), [3, 4])
    with pytest.raises(TypeError, match=r"DataFrame with the columns 'city' \(.*\), expected"):
        read_array(numbers.assign(city=["Bern", "Ulm"]), "inputs")
    labels = pandas.Series(["cat", "dog"])
    with pytest.raises(TypeError, match=r"targets of text.*such as cat.*np\.unique\(y, return_inv"):
        read_array(labels, "targets")
    for values, codes in (
        (labels.astype("category"), r"y\.cat\.codes"),
        (pandas.Categorical(labels), r"y\.codes"),
    ):
        with pytest.raises(TypeError, match=f"targets as categories, expected.*{codes}"):
            read_array(values, "targets")


def test_a_frame_is_known_by_what_it_can_do():
    class Frame:
        columns = ("size", "city")
        dtypes = (np.dtype(float), np.dtype(object))

        def __array__(self, dtype=None, copy=None):
            return np.asarray([[1.5, "Bern"]], object)

    class Categories:
        dtype, codes = "category", (0, 1)

        def __array__(self, dtype=None, copy=None):
            return np.asarray(["cat", "dog"], object)

    with pytest.raises(TypeError, match=r"Frame with the columns 'city' \(object\), expected"):
        read_array(Frame())
    with pytest.raises(TypeError, match=r"as categories, expected.*y\.codes"):
        read_array(Categories())


def test_lists_of_numbers_are_arrays_and_mappings_are_dictionaries():
    user = collections.UserDict(a=[[1, 2], [3, 4]], b=collections.UserDict(c=np.ones(2)))
    read_only = types.MappingProxyType({"d": (np.zeros(2), [True, False])})
    for read, kind in ((as_arrays, jax.Array), (on_host, np.ndarray)):
        found = read([user, read_only])
        expected = [
            {"a": np.asarray([[1, 2], [3, 4]]), "b": {"c": np.ones(2)}},
            {"d": (np.zeros(2), np.asarray([True, False]))},
        ]
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(found))
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    ordered = collections.OrderedDict(z=np.ones(2), a=np.ones(2))
    assert jax.tree.structure(on_host(ordered)) == jax.tree.structure(ordered)


def test_lists_of_arrays_are_pytrees():
    assert not is_list_of_numbers([np.ones(2), np.ones(2)])
    assert not is_list_of_numbers([])
    assert not is_list_of_numbers((1, 2))
    assert is_list_of_numbers([[np.float32(1.0)], [2]])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.asarray(["cat", "dog"]), TypeError, r"of text \(dtype <U3, such as cat\), expected"),
        (["cat", "dog"], TypeError, r"of text.*np\.unique\(y, return_inverse=True\)\[1\]"),
        (np.asarray(["cat", "dog"], object), TypeError, r"of text \(such as cat\), expected"),
        (np.asarray([1, None], object), TypeError, "as objects.*the first a NoneType.*missing"),
        (np.asarray(["2020-01-01"], "M8[s]"), TypeError, r"dates or times.*np\.timedelta64"),
        ([[1.0, 2.0], [3.0]], ValueError, "of type list, which NumPy refuses.*rows of one length"),
        (sparse.csr_matrix(np.eye(3)), TypeError, r"a sparse csr_matrix of shape \(3, 3\).*toarr"),
        (np.ma.array([1.0, 2.0], mask=[False, True]), ValueError, r"1 entries missing.*lk\.Masked"),
        (lambda x: x, TypeError, "as objects.*the first a function"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_holds_no_numbers_is_named(values, error, message):
    with pytest.raises(error, match=f"Found targets (as |of )?.*{message}"):
        as_arrays({"y": values}, "targets")


def test_objects_that_are_numbers_are_read():
    found = read_array(np.asarray([1, 2.5, True], object))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [1.0, 2.5, 1.0])
    assert read_array(np.ma.array([1.0, 2.0], mask=False)).tolist() == [1.0, 2.0]
