"""Scores of coalitions: some feature groups are present, the others are replaced."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxattn._types import Scalar
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.feature_groups import FeatureGroups


class Game(NamedTuple):
    """A score as a function of which feature groups are present.

    Attributes:
        score_of: from an input to the score and the output.
        x: the input.
        replacement: the values of groups that are absent, in the structure and shapes of `x`.
        groups: the groups.
    """

    score_of: Callable[[PyTree], tuple[Scalar, PyTree]]
    x: PyTree
    replacement: PyTree
    groups: FeatureGroups

    def scores(
        self,
        present: Callable[[Any], Bool[Array, " groups"]],
        coalitions: PyTree,
        batch_size: int | None,
    ) -> Float[Array, " coalitions"]:
        """Return the scores of coalitions, in a wide dtype.

        Args:
            present: from one coalition to the groups that are present.
            coalitions: each leaf with a leading axis.
            batch_size: the evaluations in flight.
        """

        def score(coalition: PyTree) -> Scalar:
            mixed = self.groups.replaced(present(coalition), self.x, self.replacement)
            return self.score_of(mixed)[0]

        scores: Array = chunked_map(score, coalitions, batch_size)
        return scores.astype(wide(scores.dtype))

    def score_of_members(
        self, members: Bool[Array, "coalitions groups"], batch_size: int | None
    ) -> Float[Array, " coalitions"]:
        """Return the scores of coalitions that are given as rows of truth values."""
        return self.scores(lambda row: row, jnp.asarray(members), batch_size)
