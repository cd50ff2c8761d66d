"""All images of a linear function of a series, without the entries that must be zero."""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxattn.engine.batch import chunked_map, varying_as
from jaxattn.engine.window_groups import LEAST_SAVED, Groups, grouped
from jaxattn.jaxpr.flat import is_replayable, varying_axes
from jaxattn.jaxpr.reuse import incremental
from jaxattn.jaxpr.reuse.extents import Rows, RunExtent, Whole
from jaxattn.jaxpr.reuse.reuse_plan import ReusePlan, Traced, plan_reuse

#: A linear function from an array to an array.
Linear: TypeAlias = Callable[[Array], Array]

#: At most so many groups of steps. Fewer than for occlusion: a loop with an output at every step
#: takes longer to compile.
MOST = 8


def every_image(
    linear: Linear, operand: Array, reduced: Linear | None, batch_size: int | None
) -> Array:
    """Compute `Stepwise.images` without leaving anything out, one unit vector at a time."""

    def image(i: Array) -> Array:
        unit = (jnp.arange(operand.size) == i).astype(operand.dtype).reshape(operand.shape)
        unit = varying_as(operand, unit)
        return linear(unit) if reduced is None else reduced(linear(unit))

    images: Array = chunked_map(image, jnp.arange(operand.size), batch_size)
    return images.reshape(*operand.shape, *images.shape[1:])


class Stepwise(NamedTuple):
    """A linear function of a series, and what to compute for the image of each unit vector.

    In a loop that runs forward a time step of the operand changes nothing before it; in a loop that
    runs in reverse, such as the transpose of the former, nothing after it.

    Attributes:
        operand: the shape and dtype of the operand.
        image: the shape and dtype of the output.
        groups: the entries of the operand, grouped by their time steps.
        plan: what is computed for each group.
        flops: the number of operations for all images.
    """

    operand: jax.ShapeDtypeStruct
    image: jax.ShapeDtypeStruct
    groups: Groups
    plan: ReusePlan
    flops: int

    @classmethod
    def of(
        cls, linear: Linear, operand: Array | jax.ShapeDtypeStruct, batch_size: int | None
    ) -> "Stepwise | None":
        """Analyse a linear function; `None` if too little can be left out.

        Args:
            linear: the function.
            operand: an array like its operand, abstract or not.
            batch_size: how many images may be in flight.
        """
        steps, size = (operand.shape or (0,))[0], math.prod(operand.shape)
        if steps < 2 or size == 0 or varying_axes(operand):
            return None
        struct = jax.ShapeDtypeStruct(operand.shape, operand.dtype)
        traced = Traced.of(linear, struct)
        if not is_replayable(traced.flat):
            return None
        begin = np.repeat(np.arange(steps), size // steps)
        groups = grouped(0, begin, begin + 1, min(MOST, batch_size or MOST))
        plan = plan_reuse(traced, groups.rows, linear=True)
        flops = plan.flops * len(groups.members)
        by_step = all(not isinstance(e, Rows) or e.axis == 0 for e in plan.output_extents())
        if flops > (1 - LEAST_SAVED) * traced.flops * size or not by_step:
            return None
        return cls(struct, jax.eval_shape(linear, struct), groups, plan, flops)

    def images(self, reduced: Linear | None, batch_size: int | None) -> Array:
        """Compute the image of each unit vector of the operand.

        Args:
            reduced: maps rows of an image, along its first axis, to one number each; `None` to
                return the images themselves.
            batch_size: how many images are in flight.

        Returns:
            shape (*operand, *image), or (*operand, length of the image's first axis).
        """
        rows, members = self.groups
        width = math.prod(self.operand.shape[1:])
        clean = incremental.run_clean(self.plan, jnp.zeros(self.operand.shape, self.operand.dtype))
        extents = self.plan.output_extents()

        def unit(entry: Array, r: Rows) -> Array:
            """Return the changed rows of the unit vector of an entry."""
            one_hot = jnp.arange(r.lo * width, r.hi * width) == entry
            one_hot = one_hot.astype(self.operand.dtype)
            return one_hot.reshape(r.hi - r.lo, *self.operand.shape[1:])

        def column(entries: Array) -> list[Array]:
            units = [unit(entries[g], r) for g, r in enumerate(rows)]
            rows_of_images = incremental.changed_output_rows(self.plan, clean, units)
            changed = [jnp.asarray(row) for row in rows_of_images]
            return changed if reduced is None else list(map(reduced, changed))

        size = batch_size and max(1, batch_size // len(rows))
        columns = chunked_map(column, jnp.asarray(members), size)
        padded = [self._padded(c, e) for c, e in zip(columns, extents, strict=True)]
        images = jnp.stack(padded, 1).reshape(members.size, *padded[0].shape[1:])
        return images[self.groups.places].reshape(*self.operand.shape, *images.shape[1:])

    def _padded(self, columns: Array, extent: RunExtent | Whole) -> Array:
        """Add the zeros around the rows of images that were computed."""
        if not isinstance(extent, Rows):
            return columns
        around = [(0, 0)] * columns.ndim
        around[1 + extent.axis] = extent.lo, self.image.shape[extent.axis] - extent.hi
        return jnp.pad(columns, around)
