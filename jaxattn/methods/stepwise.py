"""A linear function of a series, step by step, without computing what must be zero."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxattn.engine.batch import chunked_map, varying_as
from jaxattn.engine.window_groups import LEAST_SAVED, Groups, grouped
from jaxattn.jaxpr.flat import is_replayable, varying_axes
from jaxattn.jaxpr.reuse import incremental
from jaxattn.jaxpr.reuse.extents import Rows, RunExtent, Whole
from jaxattn.jaxpr.reuse.reuse_plan import ReusePlan, Traced, plan_reuse

#: Fewer than for occlusion: a loop that answers at every step takes longer to compile.
MOST = 8


def every_image(
    linear: Callable[[Any], Any],
    given: Any,
    reduced: Callable[[Any], Any] | None,
    batch_size: int | None,
) -> Any:
    """The plain way of `Stepwise.images`."""

    def image(i: Any) -> Any:
        one = (jnp.arange(given.size) == i).astype(given.dtype).reshape(given.shape)
        one = varying_as(given, one)
        return linear(one) if reduced is None else reduced(linear(one))

    images = chunked_map(image, jnp.arange(given.size), batch_size)
    return images.reshape(*given.shape, *images.shape[1:])


class Stepwise(NamedTuple):
    """What a linear function makes of each number of its input, and how it is computed.

    A step of the input changes nothing ahead of it in a loop that runs forward, and nothing behind
    it in one that runs in reverse, such as the transpose of the former.

    Attributes:
        given: the function's input, abstractly.
        answer: its output.
        groups: the numbers of the input, by the step that they belong to.
        plan: what is computed for each group.
        flops: operations, all in all.
    """

    given: jax.ShapeDtypeStruct
    answer: jax.ShapeDtypeStruct
    groups: Groups
    plan: ReusePlan
    flops: int

    @classmethod
    def of(
        cls, linear: Callable[[Any], Any], given: Any, batch_size: int | None
    ) -> "Stepwise | None":
        """Looks for what there is to save; `None` if that is not worth while.

        Args:
            linear: from an array to an array, linear.
            given: its input, abstractly.
            batch_size: how many of its answers may be in flight.
        """
        steps, size = (given.shape or (0,))[0], math.prod(given.shape)
        if steps < 2 or size == 0 or varying_axes(given):
            return None
        struct = jax.ShapeDtypeStruct(given.shape, given.dtype)
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

    def images(self, reduced: Callable[[Any], Any] | None, batch_size: int | None) -> Any:
        """The function's answer to each number of its input, 1 there and 0 elsewhere.

        Args:
            reduced: what to make of rows of an answer, by the first axis; one number each.
            batch_size: how many answers are in flight.

        Returns:
            shape (*input, *output), or (*input, length of the output's first axis).
        """
        rows, members = self.groups
        width = math.prod(self.given.shape[1:])
        clean = incremental.run_clean(self.plan, jnp.zeros(self.given.shape, self.given.dtype))
        extents = self.plan.output_extents()

        def step(number: Any, r: Rows) -> Any:
            one = jnp.arange(r.lo * width, r.hi * width) == number
            return one.astype(self.given.dtype).reshape(r.hi - r.lo, *self.given.shape[1:])

        def column(numbers: Any) -> list[Any]:
            given = [step(numbers[g], r) for g, r in enumerate(rows)]
            found = incremental.changed_output_rows(self.plan, clean, given)
            return found if reduced is None else list(map(reduced, found))

        size = batch_size and max(1, batch_size // len(rows))
        columns = chunked_map(column, jnp.asarray(members), size)
        filled = [self._filled(c, e) for c, e in zip(columns, extents, strict=True)]
        images = jnp.stack(filled, 1).reshape(members.size, *filled[0].shape[1:])
        return images[self.groups.places].reshape(*self.given.shape, *images.shape[1:])

    def _filled(self, columns: Any, extent: RunExtent | Whole) -> Any:
        """Rows of answers with the zeros around them."""
        if not isinstance(extent, Rows):
            return columns
        around = [(0, 0)] * columns.ndim
        around[1 + extent.axis] = extent.lo, self.answer.shape[extent.axis] - extent.hi
        return jnp.pad(columns, around)
