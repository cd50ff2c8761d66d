"""The vocabulary of the library: what a method takes and what every method returns."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

from jaxattn._reductions import Reduction, reduced

#: What is explained: an array, or a pytree of arrays, of one example.
Inputs: TypeAlias = PyTree[Shaped[Array | np.ndarray, "..."]]
#: The entry of the output that is explained: an index, indices, or a callable; see
#: `jaxattn.explain`.
Target: TypeAlias = Any
#: A JAX random key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
RandomKey: TypeAlias = Key[Array, ""] | Shaped[Array, "2"]
#: A number that may be traced.
Scalar: TypeAlias = Float[Array, ""]


class AttributionWarning(UserWarning):
    """A result, or a call, is likely not what was meant; the parent of such warnings."""


class ConvergenceWarning(AttributionWarning):
    """The values of an attribution do not sum to the difference that they explain."""


class Importance(NamedTuple):
    """The mean attribution over examples, in the structure and shape of the values of one.

    Attributes:
        mean: the mean.
        standard_error: its standard error; NaN for a single example.
    """

    mean: PyTree[Shaped[Array, "..."]]
    standard_error: PyTree[Shaped[Array, "..."]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Attribution:
    """The result of every method. Under `jaxattn.explain` each leaf has a leading axis of examples.

    It is a pytree, so `jax.tree.map`, `jax.jit` and `jax.vmap` accept it. `attribution[i]` selects
    one example of a batch, or several. If `values` is a single array, `numpy.asarray(attribution)`
    converts it, which is what plotting libraries call.

    Attributes:
        values: the attributions, in the structure and shape of the input unless the method's
            docstring states another shape.
        output: the output of the function for the unperturbed input.
        info: further arrays that the method documents, by name.

    Examples:
        >>> import jax.numpy as jnp, numpy as np, jaxattn as ja
        >>> attribution = ja.explain(ja.gradient, lambda x: (x**2).sum(), jnp.eye(2))
        >>> attribution
        Attribution(values=float32[2,2], output=float32[2], info={})
        >>> np.asarray(attribution[0])
        array([2., 0.], dtype=float32)
    """

    values: PyTree[Shaped[Array, "..."]]
    output: PyTree[Shaped[Array, "..."]]
    info: dict[str, PyTree[Shaped[Array, "..."]]] = dataclasses.field(default_factory=dict)

    def __getitem__(self, index: object) -> "Attribution":
        """Return the attribution of one example of a batch, or of several.

        Raises:
            IndexError: for an integer outside the batch, which JAX itself would clip.
        """
        if isinstance(index, int | np.integer):
            for leaf in jax.tree.leaves(self):
                if np.ndim(leaf) and not -leaf.shape[0] <= index < leaf.shape[0]:
                    raise IndexError(
                        f"`index` must lie in the leading axis, of length {leaf.shape[0]}, got "
                        f"{index}."
                    )
        selected: Attribution = jax.tree.map(lambda leaf: leaf[index], self)
        return selected

    def reduce(
        self,
        axis: int | Sequence[int] = -1,
        reduction: Reduction = "sum",
        *,
        spans: Sequence[tuple[int, int]] | None = None,
    ) -> "Attribution":
        """Reduce the values over axes, or over spans of one axis.

        Sums keep the completeness of an attribution: of channels or embedding dimensions, of the
        parts of a word, or of time steps.

        Args:
            axis: the axis or axes of the values, those of the batch included; the last by default.
            reduction: `"sum"`, `"mean"`, `"l2"` (the Euclidean norm) or `"absmax"` (the largest
                magnitude). The last two are not negative.
            spans: pairs of the first index and the one behind the last along one axis, such as the
                tokens of each word. The axis gets the length of the spans. Spans may overlap.

        Returns:
            an `Attribution` of the reduced values of each leaf, with the output and `info` of this.

        Raises:
            TypeError: for an axis that is not an int.
            ValueError: for an axis that the values do not have, an unknown reduction, several axes
                with spans, or a span that is empty or exceeds the axis.

        Examples:
            >>> import jax.numpy as jnp, jaxattn as ja
            >>> values = jnp.array([[1.0, 2.0, -4.0, 4.0]])
            >>> attribution = ja.Attribution(values, jnp.zeros(1))
            >>> print(attribution.reduce(1).values, attribution.reduce(1, "absmax").values)
            [3.] [4.]
            >>> print(attribution.reduce(1, spans=[(0, 1), (1, 4)]).values)
            [[1. 2.]]
        """
        values = jax.tree.map(lambda leaf: reduced(leaf, axis, reduction, spans), self.values)
        return dataclasses.replace(self, values=values)

    def importance(self, *, absolute: bool = True) -> Importance:
        """Compute the global importance of features: the mean over the examples of a batch.

        Args:
            absolute: whether magnitudes are averaged; otherwise values, which may cancel.

        Returns:
            the mean of each feature and its standard error, in units of the values.

        Raises:
            TypeError: if `absolute` is not a bool.
            ValueError: for values without a leading axis of examples, which those of
                `jaxattn.explain` have. One that is not as long as that of `output` is none.

        Examples:
            >>> import jax.numpy as jnp, jaxattn as ja
            >>> values = jnp.array([[1.0, 2.0], [-1.0, 4.0]])
            >>> found = ja.Attribution(values, jnp.zeros(2)).importance()
            >>> print(found.mean, found.standard_error)
            [1. 3.] [0. 1.]
        """
        check_bool("absolute", absolute)

        def of_leaf(leaf: Array) -> tuple[Array, Array]:
            leaf = jnp.asarray(leaf)
            if leaf.ndim == 0 or not leaf.shape[0]:
                raise ValueError(
                    "`values` must have a leading axis of at least one example, got shape "
                    f"{leaf.shape}."
                )
            size = jnp.abs(leaf) if absolute else leaf
            wide = size.astype(jnp.promote_types(size.dtype, jnp.float32))
            count = leaf.shape[0]
            error = jnp.full_like(wide[0], jnp.nan)
            if count > 1:
                error = jnp.sqrt(jnp.var(wide, 0, ddof=1) / count)
            return wide.mean(0).astype(size.dtype), error.astype(size.dtype)

        leaves, treedef = jax.tree.flatten(self.values)
        counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((self.values, self.output))}
        if len(counts) > 1:
            raise ValueError(
                "`values` must have a leading axis of examples, as those of jaxattn.explain have, "
                f"got shapes {[np.shape(leaf) for leaf in leaves]} for an output of shapes "
                f"{[np.shape(leaf) for leaf in jax.tree.leaves(self.output)]}."
            )
        pairs = [of_leaf(leaf) for leaf in leaves]
        return Importance(
            *(jax.tree.unflatten(treedef, list(each)) for each in zip(*pairs, strict=True))
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Convert `values` to a numpy array.

        Raises:
            TypeError: if `values` is not a single array.
        """
        leaves = jax.tree.leaves(self.values)
        if len(leaves) != 1:
            raise TypeError(
                f"An Attribution of {len(leaves)} arrays cannot be converted to one: convert the "
                f"arrays in `.values`, {_shapes(self.values)}."
            )
        array = np.asarray(leaves[0], dtype)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        """Shapes and dtypes; the numbers are in the fields."""
        fields = (f"{f.name}={_shapes(getattr(self, f.name))}" for f in dataclasses.fields(self))
        return f"Attribution({', '.join(fields)})"

    def _repr_html_(self) -> str | None:
        """Return a drawing of the values for a notebook; `None`, for the repr, if they are many."""
        # Imported by name on first use, as `jaxattn.plot` is: it imports this module.
        drawn: str | None = importlib.import_module("jaxattn.reporting.notebook").result_html(self)
        return drawn


#: A function that returns the `Attribution` of one example:
#: `method(fn, x, target=None, *, args=(), key=None, batch_size=None, **options)`.
Method: TypeAlias = Callable[..., Attribution]


def _shapes(tree: PyTree) -> str:
    return str(jax.tree.map(_Shape, tree))


class _Shape:
    """Prints as the dtype and shape of a leaf."""

    def __init__(self, leaf: object) -> None:
        self.leaf = leaf

    def __repr__(self) -> str:
        shape = ",".join(map(str, getattr(self.leaf, "shape", ())))
        return f"{getattr(self.leaf, 'dtype', type(self.leaf).__name__)}[{shape}]"


def check_count(name: str, value: object, least: int = 1) -> int:
    """Return the value as an int, and raise an error if it is not one of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an int, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    return int(value)


def check_bool(name: str, value: object) -> None:
    """Raise an error for a value that is no bool: `"no"` is true in Python."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be a bool, got {value!r}.")
