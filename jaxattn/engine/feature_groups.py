"""Feature groups: sets of input features that are switched together."""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxattn._static import is_array, is_concrete
from jaxattn._types import check_count

#: An integer array that broadcasts to each leaf of `x`, a pytree of these like `x`, or `None`.
Groups: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The rows of one axis of the input that each group lies in: intervals, disjoint or equal.

    The numbers are bytes, because the intervals are static and hashed at each call.

    Attributes:
        axis: the axis.
        begin_bytes: the first row of each group, int32.
        end_bytes: one past its last row, int32.
    """

    axis: int
    begin_bytes: bytes
    end_bytes: bytes

    @property
    def begin(self) -> Int[np.ndarray, " groups"]:
        """The first row of each group."""
        return np.frombuffer(self.begin_bytes, np.int32)

    @property
    def end(self) -> Int[np.ndarray, " groups"]:
        """One past the last row of each group."""
        return np.frombuffer(self.end_bytes, np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FeatureGroups:
    """Groups of the features of an input, numbered from 0 in the order of their ids.

    Attributes:
        ids: for each leaf of the input the group of each feature, of the leaf's rank; it
            broadcasts to the leaf.
        number: the number of groups.
        complete: whether each group has a feature in every example.
        intervals: the axes along which the groups are intervals, if the input is one array and the
            groups are known before tracing and the same for all examples.
    """

    ids: list[Any]
    number: int = dataclasses.field(metadata={"static": True})
    complete: bool = dataclasses.field(metadata={"static": True})
    intervals: tuple[Intervals, ...] = dataclasses.field(metadata={"static": True})

    def of_features(self, values: Array, x: PyTree) -> PyTree:
        """Return for each feature of `x` the value of its group, of shape (groups,)."""
        leaves, treedef = jax.tree.flatten(x)
        spread = [
            jnp.broadcast_to(values[ids], leaf.shape)
            for ids, leaf in zip(self.ids, leaves, strict=True)
        ]
        return jax.tree.unflatten(treedef, spread)

    def replaced(self, present: Bool[Array, " groups"], x: PyTree, replacement: PyTree) -> PyTree:
        """Return `x` with the features of the groups that are not present replaced."""
        leaves, treedef = jax.tree.flatten(x)
        mixed = [
            jnp.where(present[ids], leaf, new)
            for ids, leaf, new in zip(self.ids, leaves, jax.tree.leaves(replacement), strict=True)
        ]
        return jax.tree.unflatten(treedef, mixed)

    @property
    def exists(self) -> Bool[Array, " groups"]:
        """Whether each group has a feature in this example."""
        found = jnp.zeros(self.number, bool)
        for ids in self.ids:
            found = found.at[jnp.ravel(ids)].set(True)
        return found


def feature_groups(x: PyTree, groups: Groups, num_groups: int | None = None) -> FeatureGroups:
    """Return the groups of one example, or of each example of a batch.

    Groups that are known before tracing are numbered here. Traced ones are numbered in the
    program, which requires `num_groups`.

    Args:
        x: one example, abstract or not.
        groups: the groups; each array may have a leading axis of examples. `None` makes each
            feature a group of its own.
        num_groups: the number of groups, required for traced ones.

    Raises:
        TypeError: for groups that are not integers.
        ValueError: for groups that do not fit `x`, for a single group, for another `num_groups`
            than the number of known groups, and for traced groups without `num_groups`.
    """
    leaves = jax.tree.leaves(x)
    if isinstance(groups, FeatureGroups):
        _check_shapes(groups.ids, leaves)
        return groups
    if groups is None:
        return _each_feature(leaves)
    arrays = [_with_rank(ids, leaf) for ids, leaf in zip(_arrays(groups, x), leaves, strict=True)]
    if len({ids.ndim - leaf.ndim for ids, leaf in zip(arrays, leaves, strict=True)}) > 1:
        raise ValueError(
            "`groups` must have a leading axis of examples for all leaves of x or for none, got "
            f"shapes {[ids.shape for ids in arrays]} for leaves of {[o.shape for o in leaves]}."
        )
    if all(map(is_concrete, arrays)):
        numbered = _numbered(list(map(np.asarray, arrays)), leaves)
        if num_groups is not None and num_groups != numbered.number:
            raise ValueError(
                f"`num_groups` must be the number of groups, {numbered.number}, got {num_groups}."
            )
        return numbered
    if num_groups is None:
        raise ValueError(
            "`num_groups` is missing: `groups` is traced here, so the number of groups is unknown."
        )
    number = check_count("num_groups", num_groups, least=2)
    flat = jnp.concatenate([ids.ravel() for ids in arrays])
    found = jnp.unique(flat, size=number, fill_value=flat.max())
    # Ids beyond the given number of groups join the last one.
    ids = [
        jnp.minimum(jnp.searchsorted(found, ids), number - 1).astype(jnp.int32) for ids in arrays
    ]
    return FeatureGroups(ids, number, False, ())


def prepare_groups(x: PyTree, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a method with `groups` as `FeatureGroups`."""
    rest = {name: value for name, value in options.items() if name != "num_groups"}
    groups = feature_groups(x, options.get("groups"), options.get("num_groups"))
    return {**rest, "groups": groups}


def number_of_groups(x: PyTree, options: dict[str, Any]) -> int:
    """Return the number of groups that the options of a method declare."""
    groups = options.get("groups")
    if groups is None:
        return sum(leaf.size for leaf in jax.tree.leaves(x))
    return feature_groups(x, groups, options.get("num_groups")).number


def _each_feature(leaves: list[Any]) -> FeatureGroups:
    """Return groups of one feature each."""
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    ids = [
        np.arange(start, start + leaf.size, dtype=np.int32).reshape(leaf.shape)
        for start, leaf in zip(starts, leaves, strict=False)
    ]
    return FeatureGroups(ids, int(starts[-1]), True, _intervals(ids, leaves, int(starts[-1])))


def _arrays(groups: Groups, x: PyTree) -> list[Array | np.ndarray]:
    """Return the ids for each leaf of `x` as an array of integers."""
    treedef: Any = jax.tree.structure(x)
    if jax.tree.structure(groups) == treedef:
        arrays = jax.tree.leaves(groups)
    elif is_array(groups) or isinstance(groups, (list, tuple)):
        arrays = [groups] * treedef.num_leaves
    else:
        raise ValueError(
            "`groups` must be an integer array that broadcasts to x, or a pytree of these like x, "
            f"{treedef}, got {groups!r}."
        )
    return list(map(_integers, arrays))


def _integers(ids: object) -> Array | np.ndarray:
    """Return ids as an array of integers."""
    if isinstance(ids, (list, tuple)):
        try:
            ids = np.asarray(ids)
        except ValueError as error:
            raise ValueError(f"`groups` must hold rectangular arrays, got {ids!r}.") from error
    elif isinstance(ids, (int, np.integer)) and not isinstance(ids, bool):
        ids = np.asarray(ids)
    if not isinstance(ids, (jax.Array, np.ndarray)):
        raise TypeError(f"`groups` must hold integer arrays, got {type(ids).__name__}.")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"`groups` must hold integers, got {ids.dtype}.")
    return ids


def _with_rank(ids: Array | np.ndarray, leaf: Any) -> Array | np.ndarray:
    """Return ids of the leaf's rank, or of one more for a leading axis of examples."""
    shape = ids.shape[1:] if ids.ndim == leaf.ndim + 1 else ids.shape
    if not _fits(shape, leaf.shape):
        raise ValueError(
            f"`groups` must broadcast to the shape {leaf.shape} of x, or have a leading axis of "
            f"examples in addition, got shape {ids.shape}."
        )
    return ids.reshape((1,) * (leaf.ndim - ids.ndim) + ids.shape)


def _fits(shape: tuple[int, ...], of_leaf: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, of_leaf) == of_leaf
    except ValueError:
        return False


def _check_shapes(ids: list[Any], leaves: list[Any]) -> None:
    """Raise an error for groups that were prepared for an input of other shapes."""
    shapes = [jnp.shape(each) for each in ids], [jnp.shape(leaf) for leaf in leaves]
    if not all(_fits(a, b) and len(a) == len(b) for a, b in zip(*shapes, strict=True)):
        raise ValueError(
            f"`groups` must broadcast to the shape {shapes[1]} of x, got {shapes[0]}; a leading "
            "axis of examples is taken by jaxattn.explain alone."
        )


def _numbered(arrays: list[np.ndarray], leaves: list[Any]) -> FeatureGroups:
    """Return concrete groups with their ids replaced by numbers from 0."""
    found, flat = np.unique(np.concatenate([ids.ravel() for ids in arrays]), return_inverse=True)
    if len(found) < 2:
        raise ValueError(f"`groups` must hold at least two groups, got only {found.tolist()}.")
    ends = np.cumsum([ids.size for ids in arrays])
    parts = np.split(flat.ravel().astype(np.int32), ends[:-1])
    ids = [part.reshape(old.shape) for part, old in zip(parts, arrays, strict=True)]
    if arrays[0].ndim == leaves[0].ndim:
        return FeatureGroups(ids, len(found), True, _intervals(ids, leaves, len(found)))
    of_examples = np.concatenate([each.reshape(len(each), -1) for each in ids], 1)
    complete = all(len(np.unique(row)) == len(found) for row in of_examples)
    return FeatureGroups(ids, len(found), complete, ())


def _intervals(ids: list[np.ndarray], leaves: list[Any], number: int) -> tuple[Intervals, ...]:
    """Return the axes of the only leaf along which each group lies in an interval of its own."""
    if len(leaves) != 1:
        return ()
    whole, found = np.broadcast_to(ids[0], leaves[0].shape), []
    for axis, size in enumerate(whole.shape):
        rows = np.arange(size, dtype=np.int32).reshape(
            [-1 if a == axis else 1 for a in range(whole.ndim)]
        )
        rows = np.broadcast_to(rows, whole.shape).ravel()
        begin, end = np.full(number, size, np.int32), np.zeros(number, np.int32)
        np.minimum.at(begin, whole.ravel(), rows)
        np.maximum.at(end, whole.ravel(), rows + 1)
        distinct = np.unique(np.stack([begin, end], 1), axis=0)
        if (distinct[1:, 0] >= distinct[:-1, 1]).all():
            found.append(Intervals(axis, begin.tobytes(), end.tobytes()))
    return tuple(found)


def values_of_groups(
    groups: FeatureGroups, values: Float[Array, " groups"], x: PyTree, score: Array
) -> tuple[PyTree, Array]:
    """Return the value of each feature, that of its group, and the values of the groups.

    Groups without a feature in this example get exactly zero.
    """
    if not groups.complete:
        values = jnp.where(groups.exists, values, 0)
    return groups.of_features(values.astype(score.dtype), x), values
