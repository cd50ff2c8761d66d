"""The vocabulary of the library: what a method takes and what every method returns."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, Shaped

#: What is explained: an array, or a pytree of arrays, of one example.
Inputs: TypeAlias = PyTree[Shaped[Array | np.ndarray, "..."]]
#: Which number of the output is explained; see `jaxattn.explain`.
Target: TypeAlias = Any
#: A JAX random key, typed (`jax.random.key`) or raw (`jax.random.PRNGKey`).
RandomKey: TypeAlias = Key[Array, ""] | Shaped[Array, "2"]
#: A number that may be traced.
Scalar: TypeAlias = Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class Attribution:
    """What every method returns; under `jaxattn.explain` each leaf has a leading axis of examples.

    Attributes:
        values: the attributions, in the structure and shape of the input unless the method's
            docstring states another shape.
        output: what the function returned for the unperturbed input.
        info: further numbers that the method documents, by name.
    """

    values: PyTree[Shaped[Array, "..."]]
    output: PyTree[Shaped[Array, "..."]]
    info: dict[str, PyTree[Shaped[Array, "..."]]] = dataclasses.field(default_factory=dict)

    def __getitem__(self, index: Any) -> "Attribution":
        """The attribution of one example, or of some, of a batch."""
        picked: Attribution = jax.tree.map(lambda leaf: leaf[index], self)
        return picked

    def __repr__(self) -> str:
        """Shapes and dtypes; the numbers are in the fields."""

        def shown(tree: Any) -> str:
            return str(jax.tree.map(_Shown, tree))

        return (
            f"Attribution(values={shown(self.values)}, output={shown(self.output)}, "
            f"info={shown(self.info)})"
        )


class _Shown:
    """Prints as a leaf's dtype and shape."""

    def __init__(self, leaf: Any) -> None:
        self.leaf = leaf

    def __repr__(self) -> str:
        shape = ",".join(map(str, getattr(self.leaf, "shape", ())))
        return f"{getattr(self.leaf, 'dtype', type(self.leaf).__name__)}[{shape}]"


def check_count(name: str, value: Any, least: int = 1) -> int:
    """The value as an int; refuses what is not a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def check_bool(name: str, value: Any) -> None:
    """Refuses what is not true or false, but would be taken for one: "no" is true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be a bool, got {value!r}")


class Method(Protocol):
    """A pure function of one example that says which inputs made `fn` answer what it answered."""

    def __call__(
        self,
        fn: Callable[..., Any],
        x: Inputs,
        target: Target = None,
        *,
        args: tuple[Any, ...] = (),
        key: RandomKey | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Attribution:
        """Explains `fn(x, *args)`; at most `batch_size` evaluations of `fn` are in flight."""
        ...
