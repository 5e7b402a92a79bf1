r"""Jacobian rows of one layer in factors, and contractions of the factors.

Where a weight enters as $z_t = a_t W$ at positions t, the row of direction r is
$J_{nr} = \sum_t a_{nt}\, g_{nrt}^\top$, and `a` and `g` are kept. Each of several groups has its
own matrix, as in grouped convolutions. With one position every operation is a contraction of the
factors; with several, a chunk of rows is temporarily multiplied out. Any other parameter is a layer
with the constant input 1, whose `g` are its rows.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from laplace_kit.curv.capture.layout import Layout
from laplace_kit.tree import pytree_dataclass


class _Single(NamedTuple):
    """Rows with one position: `inputs` `(B, G, I)`, `gradients` `(B, R, G, O)`, matrix shape."""

    inputs: Float[Array, "B G I"]
    gradients: Float[Array, "B R G O"]
    shape: tuple[int, int, int]


@pytree_dataclass(static=("layout",))
class FactoredRows:
    """`inputs` at T positions for each of G groups, and `gradients` for R directions."""

    inputs: Float[Array, "B T G I"]
    gradients: Float[Array, "B R T G O"]
    layout: Layout

    def to_dense(self) -> Float[Array, "B R G I O"]:
        """Return the rows themselves."""
        return jnp.einsum("btgi,brtgo->brgio", self.inputs, self.gradients)

    def single(self) -> _Single:
        """Return rows with one position: unchanged, or multiplied out with the input 1."""
        if self.inputs.shape[1] == 1:
            return _Single(self.inputs[:, 0], self.gradients[:, :, 0], self.layout.shape)
        return _multiplied_out(self)

    def squared_sum(self) -> Float[Array, "G I O"]:
        r"""Return $\sum_n \sum_r J_{nr}^2$ elementwise."""
        a, g, _ = self.single()
        total = jnp.einsum("bgi,bgo->gio", a**2, jnp.sum(g**2, axis=1))
        return total.reshape(*self.inputs.shape[2:], self.gradients.shape[4])

    def outer(self, scale: Float[Array, "G I O"]) -> Float[Array, "B R R"]:
        r"""Return $J_n \operatorname{diag}(d) J_n^\top$."""
        a, g, shape = self.single()
        weight = _by_group(a**2, scale.reshape(shape))
        return jnp.einsum("brgo,bsgo->brs", g * weight[:, None], g)

    def squares(self, scale: Float[Array, "G I O"]) -> Float[Array, "B R"]:
        """Return the diagonal of `outer`."""
        a, g, shape = self.single()
        weight = _by_group(a**2, scale.reshape(shape))
        return jnp.einsum("brgo,bgo->br", g**2, weight)

    def squared_norms(self) -> Float[Array, "B R"]:
        r"""Return $\|J_{nr}\|^2$, over pairs of positions or multiplied out if that is smaller."""
        num, (_, width, out) = self.inputs.shape[1], self.layout.shape
        if num > 1 and num**2 > width * out:
            return jnp.sum(_multiplied_out(self).gradients ** 2, axis=(2, 3))
        a = jnp.einsum("btgi,bugi->btug", self.inputs, self.inputs)
        g = jnp.einsum("brtgo,brugo->brtug", self.gradients, self.gradients)
        return jnp.maximum(jnp.einsum("btug,brtug->br", a, g), 0)

    def cross(
        self, other: "FactoredRows | HeadRows", scale: Float[Array, ""] | Float[Array, "G I _"]
    ) -> Float[Array, "B R D S"]:
        r"""Return $J_n \operatorname{diag}(d) J_m'^\top$ for all pairs of two batches.

        The scale is one value, one for each input `(G, I, 1)`, or one for each parameter. In the
        last case a pair takes $I O$ more operations, and several positions are multiplied out.
        """
        other = other.factored() if isinstance(other, HeadRows) else other
        if scale.ndim == 0 or scale.shape[2] == 1:
            return self._cross_by_inputs(other, scale)
        (a, g, shape), (b, h, _) = self._alike(other)
        scale = scale.reshape(shape)
        if shape[1] == 1:
            return jnp.einsum("brgo,dsgo->brds", g * (a * scale[:, 0])[:, None], h * b[:, None])
        weight = _by_group(a[:, None] * b, scale)
        return jnp.einsum("brgo,bdgo,dsgo->brds", g, weight, h)

    def _cross_by_inputs(
        self, other: "FactoredRows", scale: Float[Array, ""] | Float[Array, "G I 1"]
    ) -> Float[Array, "B R D S"]:
        """Return `cross` for a scale that outputs share: over pairs of positions, if smaller."""
        if self.pairs_multiply_out(other):
            scale = jnp.broadcast_to(scale, self.layout.shape).reshape(-1)
            (_, g, _), (_, h, _) = _multiplied_out(self), _multiplied_out(other)
            return jnp.einsum("brgo,dsgo->brds", g * scale, h)
        weighted = self.inputs * (scale if scale.ndim == 0 else scale[..., 0])
        inputs = jnp.einsum("btgi,dugi->btdug", weighted, other.inputs)
        return jnp.einsum("brtgo,dsugo,btdug->brds", self.gradients, other.gradients, inputs)

    def pairs_multiply_out(self, other: "FactoredRows") -> bool:
        """Return whether there are more pairs of positions than entries of a row."""
        num = self.inputs.shape[1] * other.inputs.shape[1]
        return num > max(1, self.layout.shape[1] * self.layout.shape[2])

    def project(self, vectors: Float[Array, "G I O K"]) -> Float[Array, "B R K"]:
        """Return the products of every row with K vectors."""
        columns, num_positions = self.gradients.shape[1:3]
        if 1 < num_positions <= columns:  # fewer operations than multiplying out
            hidden = jnp.einsum("btgi,giok->btgok", self.inputs, vectors)
            return jnp.einsum("brtgo,btgok->brk", self.gradients, hidden)
        a, g, shape = self.single()
        groups, width, out = shape
        num = vectors.shape[-1]
        hidden = _by_group(a, vectors.reshape(groups, width, out * num))
        hidden = hidden.reshape(len(a), groups, out, num)
        return jnp.einsum("brgo,bgok->brk", g, hidden)

    def combine(self, coefficients: Float[Array, "B R K"]) -> Float[Array, "G I O K"]:
        r"""Return $\sum_n \sum_r c_{nrk} J_{nr}$ over all rows: the transpose of `project`."""
        outputs = jnp.einsum("brtgo,brk->btgok", self.gradients, coefficients)
        return jnp.einsum("btgi,btgok->giok", self.inputs, outputs)

    def along_inputs(self, vectors: Float[Array, "G I O"]) -> Float[Array, "B R G O"]:
        """Return the products of the rows' columns with a vector of inputs for each output."""
        weight = _by_group(self.inputs, vectors)
        return jnp.einsum("brtgo,btgo->brgo", self.gradients, weight)

    def along_outputs(self, vectors: Float[Array, "G I O"]) -> Float[Array, "B R G I"]:
        """Return the products of the rows' lines with a vector of outputs for each input."""
        weight = jnp.einsum("brtgo,gio->brtgi", self.gradients, vectors)
        return jnp.einsum("brtgi,btgi->brgi", weight, self.inputs)

    def squares_along(
        self, vectors: Float[Array, "G I O"], gain: Float[Array, "G O"]
    ) -> Float[Array, "B R"]:
        """Return the squares of `along_inputs`, summed over outputs with weights."""
        return jnp.einsum("brgo,go->br", self.along_inputs(vectors) ** 2, gain)

    def outside(
        self, left: Float[Array, "G I _"] | None, right: Float[Array, "G O _"] | None, axis: int
    ) -> "FactoredRows":
        """Return the rows without their part in the span of one side's basis of few vectors.

        The axis is 1 for inputs and 2 for outputs; the other side is rotated.
        """
        a, g = self.inputs, self.gradients
        if axis == 1:
            a = a - _by_group(_by_group(a, left), left.mT)
            return FactoredRows(a, g, self.layout).rotate(None, right)
        g = g - _by_group(_by_group(g, right), right.mT)
        return FactoredRows(a, g, self.layout).rotate(left, None)

    def rotate(
        self, left: Float[Array, "G I J"] | None, right: Float[Array, "G O Q"] | None
    ) -> "FactoredRows":
        """Return the rows in other bases of inputs and outputs; `None` keeps the basis."""
        a, g = self.inputs, self.gradients
        a = a if left is None else _by_group(a, left)
        g = g if right is None else _by_group(g, right)
        return FactoredRows(a, g, self.layout)

    def split(self) -> tuple["FactoredRows", ...]:
        """Return the rows of each single layer, where this is a layer of several."""
        parts = self.layout.parts
        if len(parts) == 1:
            return (self,)
        inputs = jnp.split(self.inputs, len(parts), axis=2)
        gradients = jnp.split(self.gradients, len(parts), axis=3)
        return tuple(map(FactoredRows, inputs, gradients, parts))

    def _alike(self, other: "FactoredRows") -> tuple[_Single, _Single]:
        if self.inputs.shape[1] == other.inputs.shape[1]:
            return self.single(), other.single()
        return _multiplied_out(self), _multiplied_out(other)


def _by_group(
    vectors: Float[Array, "*batch G n"], matrices: Float[Array, "G n m"]
) -> Float[Array, "*batch G m"]:
    """Multiply each group's vectors by its matrix; a single group as one plain product."""
    if len(matrices) == 1:  # einsum would transpose the matrix, which may be the larger operand
        return (vectors[..., 0, :] @ matrices[0])[..., None, :]
    return jnp.einsum("...gn,gnm->...gm", vectors, matrices)


def _multiplied_out(block: "Block") -> _Single:
    rows = block.to_dense()
    num, size = len(rows), math.prod(rows.shape[2:])
    rows = rows.reshape(num, rows.shape[1], 1, size)
    return _Single(jnp.ones((num, 1, 1), rows.dtype), rows, (1, 1, size))


@pytree_dataclass(static=("layout",))
class LookupRows:
    """Rows for a lookup table: the `indices` looked up, and `gradients`, at each position."""

    indices: Int[Array, "B T"]
    gradients: Float[Array, "B R T O"]
    layout: Layout

    def to_dense(self) -> Float[Array, "B R 1 V O"]:
        """Return the rows themselves."""
        hot = jax.nn.one_hot(self.indices, self.layout.shape[1], dtype=self.gradients.dtype)
        return jnp.einsum("btv,brto->brvo", hot, self.gradients)[:, :, None]

    def single(self) -> _Single:
        """Return the rows multiplied out with the input 1."""
        return _multiplied_out(self)

    def squared_sum(self) -> Float[Array, "1 V O"]:
        r"""Return $\sum_n \sum_r J_{nr}^2$ elementwise."""
        total = jnp.zeros(self.layout.shape[1:], self.gradients.dtype)
        squares = jnp.sum(self._distinct() ** 2, axis=1)
        return total.at[self.indices].add(squares, mode="drop")[None]

    def outer(self, scale: Float[Array, "1 V O"]) -> Float[Array, "B R R"]:
        r"""Return $J_n \operatorname{diag}(d) J_n^\top$."""
        g = self._distinct()
        return jnp.einsum("brto,bto,bsto->brs", g, self._take(scale[0]), g)

    def squares(self, scale: Float[Array, "1 V O"]) -> Float[Array, "B R"]:
        """Return the diagonal of `outer`."""
        return jnp.einsum("brto,bto->br", self._distinct() ** 2, self._take(scale[0]))

    def squared_norms(self) -> Float[Array, "B R"]:
        r"""Return $\|J_{nr}\|^2$."""
        return jnp.sum(self._distinct() ** 2, axis=(2, 3))

    def cross(
        self, other: "LookupRows", scale: Float[Array, ""] | Float[Array, "1 V _"]
    ) -> Float[Array, "B R D S"]:
        r"""Return $J_n \operatorname{diag}(d) J_m'^\top$ for all pairs of two batches."""
        same = self.indices[:, :, None, None] == other.indices
        known = (self.indices < self.layout.shape[1])[:, :, None, None]
        by_entry = scale if scale.ndim == 0 else self._take(scale[0])[:, None]
        inner = jnp.einsum("brto,dsuo->brtdsu", self.gradients * by_entry, other.gradients)
        return jnp.einsum("brtdsu,btdu->brds", inner, (same & known).astype(inner.dtype))

    def project(self, vectors: Float[Array, "1 V O K"]) -> Float[Array, "B R K"]:
        """Return the products of every row with K vectors."""
        return jnp.einsum("brto,btok->brk", self.gradients, self._take(vectors[0]))

    def combine(self, coefficients: Float[Array, "B R K"]) -> Float[Array, "1 V O K"]:
        r"""Return $\sum_n \sum_r c_{nrk} J_{nr}$ over all rows: the transpose of `project`."""
        outputs = jnp.einsum("brto,brk->btok", self.gradients, coefficients)
        total = jnp.zeros((*self.layout.shape[1:], outputs.shape[-1]), outputs.dtype)
        return total.at[self.indices].add(outputs, mode="drop")[None]

    def along_inputs(self, vectors: Float[Array, "1 V O"]) -> Float[Array, "B R 1 O"]:
        """Return the products of the rows' columns with a vector of inputs for each output."""
        found = self._take(vectors[0])
        return jnp.einsum("brto,bto->bro", self.gradients, found)[:, :, None]

    def squares_along(
        self, vectors: Float[Array, "1 V O"], gain: Float[Array, "1 O"]
    ) -> Float[Array, "B R"]:
        """Return the squares of `along_inputs`, summed over outputs with weights."""
        return jnp.einsum("brgo,go->br", self.along_inputs(vectors) ** 2, gain)

    def rotate(self, left: None, right: Float[Array, "1 O Q"] | None) -> "LookupRows":
        """Return the rows in another basis of outputs; the basis of inputs stays."""
        if right is None:
            return self
        turned = jnp.einsum("brto,oq->brtq", self.gradients, right[0])
        return LookupRows(self.indices, turned, self.layout)

    def _distinct(self) -> Float[Array, "B R T O"]:
        """Return gradients summed over positions with the same index, at the first of them."""
        same = self.indices[:, :, None] == self.indices[:, None, :]
        first = jnp.argmax(same, axis=2) == jnp.arange(self.indices.shape[1])
        known = self.indices < self.layout.shape[1]
        same = (same & (first & known)[:, :, None]).astype(self.gradients.dtype)
        return jnp.einsum("btu,bruo->brto", same, self.gradients)

    def _take(self, table: Float[Array, "V *rest"]) -> Float[Array, "B T *rest"]:
        return table.at[self.indices].get(mode="fill", fill_value=0)


@pytree_dataclass(static=("layout",))
class HeadRows:
    r"""Rows of outputs that are single values of a layer times a constant (see `heads.py`).

    Row r is $c_r\, a_{n t_r}\, q_{o_r}^\top$. Its gradient is shared by all examples and never
    written out: `places` holds $t_r O + o_r$, `factors` $c_r$, and `basis` the rows $q_o$, `None`
    for unit vectors.
    """

    inputs: Float[Array, "B T 1 I"]
    places: Int[Array, " R"]
    factors: Float[Array, " R"]
    basis: Float[Array, "O Q"] | None
    layout: Layout

    def factored(self) -> FactoredRows:
        """Return the rows with gradients for each example."""
        num, positions = self.inputs.shape[:2]
        at = jax.nn.one_hot(self.places // self._out, positions, dtype=self.factors.dtype)
        g = jnp.einsum("rt,ro->rto", at, self.shared_gradients())[:, :, None]
        return FactoredRows(self.inputs, jnp.broadcast_to(g, (num, *g.shape)), self.layout)

    def to_dense(self) -> Float[Array, "B R 1 I O"]:
        """Return the rows themselves."""
        return self.factored().to_dense()

    def single(self) -> _Single:
        """Return rows with one position: unchanged, or multiplied out with the input 1."""
        return self.factored().single()

    def squared_sum(self) -> Float[Array, "1 I O"]:
        r"""Return $\sum_n \sum_r J_{nr}^2$ elementwise."""
        return self.factored().squared_sum()

    def outer(self, scale: Float[Array, "1 I O"]) -> Float[Array, "B R R"]:
        r"""Return $J_n \operatorname{diag}(d) J_n^\top$."""
        if self.inputs.shape[1] > 1:
            return self.factored().outer(scale)
        if self.basis is None:
            unit, c = self.places % self._out, self.factors
            same = jnp.where(unit[:, None] == unit, c[:, None] * c, 0)
            return (self.inputs[:, 0, 0] ** 2 @ scale[0])[:, unit, None] * same
        weight, g = self.inputs[:, 0, 0] ** 2 @ scale[0], self.shared_gradients()
        return (g * weight[:, None]) @ g.T

    def squares(self, scale: Float[Array, "1 I O"]) -> Float[Array, "B R"]:
        """Return the diagonal of `outer`."""
        return self._squares(self.inputs[:, :, 0] ** 2 @ scale[0])

    def squared_norms(self) -> Float[Array, "B R"]:
        r"""Return $\|J_{nr}\|^2$."""
        return self.squares(jnp.ones(self.layout.shape, self.inputs.dtype))

    def cross(
        self, other: "FactoredRows | HeadRows", scale: Float[Array, ""] | Float[Array, "1 I _"]
    ) -> Float[Array, "B R D S"]:
        r"""Return $J_n \operatorname{diag}(d) J_m'^\top$ for all pairs of two batches."""
        return self.factored().cross(other, scale)

    def project(self, vectors: Float[Array, "1 I O K"]) -> Float[Array, "B R K"]:
        """Return the products of every row with K vectors."""
        if self.inputs.shape[1] > 1 or self.basis is not None:
            return self.factored().project(vectors)
        columns = vectors[0][:, self.places] * self.factors[:, None]
        return jnp.einsum("bi,irk->brk", self.inputs[:, 0, 0], columns)

    def combine(self, coefficients: Float[Array, "B R K"]) -> Float[Array, "1 I O K"]:
        r"""Return $\sum_n \sum_r c_{nrk} J_{nr}$ over all rows: the transpose of `project`."""
        return self.factored().combine(coefficients)

    def along_inputs(self, vectors: Float[Array, "1 I O"]) -> Float[Array, "B R 1 O"]:
        """Return the products of the rows' columns with a vector of inputs for each output."""
        return self.factored().along_inputs(vectors)

    def along_outputs(self, vectors: Float[Array, "1 I O"]) -> Float[Array, "B R 1 I"]:
        """Return the products of the rows' lines with a vector of outputs for each input."""
        if self.inputs.shape[1] > 1 or self.basis is not None:
            return self.factored().along_outputs(vectors)
        columns = vectors[0][:, self.places] * self.factors
        return (self.inputs[:, 0, 0][:, None] * columns.T)[:, :, None]

    def squares_along(
        self, vectors: Float[Array, "1 I O"], gain: Float[Array, "1 O"]
    ) -> Float[Array, "B R"]:
        """Return the squares of `along_inputs`, summed over outputs with weights."""
        return self._squares((self.inputs[:, :, 0] @ vectors[0]) ** 2 * gain[0])

    def outside(
        self, left: Float[Array, "1 I _"], right: Float[Array, "1 O _"] | None, axis: Literal[1]
    ) -> "HeadRows":
        """Return the rows without their part in the span of a basis of few vectors of inputs."""
        a = self.inputs - _by_group(_by_group(self.inputs, left), left.mT)
        rows = HeadRows(a, self.places, self.factors, self.basis, self.layout)
        return rows.rotate(None, right)

    def rotate(
        self, left: Float[Array, "1 I J"] | None, right: Float[Array, "1 O Q"] | None
    ) -> "HeadRows":
        """Return the rows in other bases of inputs and outputs; `None` keeps the basis."""
        inputs = self.inputs if left is None else _by_group(self.inputs, left)
        basis = self.basis
        if right is not None:
            basis = right[0] if basis is None else basis @ right[0]
        return HeadRows(inputs, self.places, self.factors, basis, self.layout)

    @property
    def num_columns(self) -> int:
        """The number of columns of the gradients: outputs, or vectors of their basis."""
        return self._out if self.basis is None else self.basis.shape[1]

    @property
    def _out(self) -> int:
        return self.layout.shape[2]

    def shared_gradients(self) -> Float[Array, "R O"]:
        """Return the rows' gradients at their positions, the same for every example."""
        unit, dtype = self.places % self._out, self.factors.dtype
        g = jax.nn.one_hot(unit, self._out, dtype=dtype) if self.basis is None else self.basis[unit]
        return self.factors[:, None] * g

    def gradients_along(self, columns: Int[Array, " U"]) -> Float[Array, "U R"]:
        """Return some columns of `shared_gradients`; the last one again beyond the last."""
        unit = self.places % self._out
        if self.basis is None:
            columns = jnp.minimum(columns, self._out - 1)
            return jnp.where(unit == columns[:, None], self.factors, 0)
        return self.basis.T.at[columns].get(mode="clip")[:, unit] * self.factors

    def to_units(self, values: Float[Array, "_ R"]) -> Float[Array, "_ O"]:
        """Return one value for each output of the layer from one for each row, summed."""
        total = jnp.zeros((len(values), self._out), values.dtype)
        return total.at[:, self.places % self._out].add(values)

    def _squares(self, weight: Float[Array, "B T O"]) -> Float[Array, "B R"]:
        """Return the rows' squared gradients, summed with the weights at their positions."""
        values = weight if self.basis is None else weight @ (self.basis**2).T
        return values.reshape(len(values), -1)[:, self.places] * self.factors**2


Block = FactoredRows | LookupRows | HeadRows
