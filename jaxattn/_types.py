"""The vocabulary of the library: what a method takes and what every method returns."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

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
