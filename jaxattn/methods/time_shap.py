"""TimeSHAP: Shapley values of events, features and cells of a series, with its old past pooled."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxattn._types import Attribution, Inputs, RandomKey, Scalar, Target, check_count
from jaxattn.engine.background import check_background
from jaxattn.engine.coalition_reuse import WindowGame, game_of_rows
from jaxattn.engine.coalitions import Game
from jaxattn.engine.feature_groups import FeatureGroups
from jaxattn.engine.method import method
from jaxattn.engine.perturb import broadcast_baseline
from jaxattn.engine.target import scored
from jaxattn.methods.coalition_draws import coalitions_of_existing, kernel_size
from jaxattn.methods.surrogates import kernel_values, with_ends

Level: TypeAlias = Literal["event", "feature", "cell"]


class _Settings(NamedTuple):
    """The options of TimeSHAP that shapes depend on, checked.

    Attributes:
        level: what the groups are.
        num_samples: the largest number of coalitions of each game.
        events: the events that can be apart.
        num_events: the events of cells.
        num_features: the features of cells.
    """

    level: Level
    num_samples: int
    events: int
    num_events: int
    num_features: int


def _settings(shape: tuple[int, ...], options: dict[str, Any]) -> _Settings:
    """Return the options that shapes depend on."""
    level = options.get("level", "event")
    if level not in get_args(Level):
        raise ValueError(f'`level` must be "event", "feature" or "cell", got {level!r}.')
    if len(shape) < 1 or shape[0] < 2:
        raise ValueError(f"`x` must have a leading axis of at least two steps, got shape {shape}.")
    if level != "event" and len(shape) != 2:
        raise ValueError(f'`x` must have shape (T, D) for level="{level}", got {shape}.')
    samples = check_count("num_samples", options.get("num_samples", 1024), least=2)
    most = options.get("max_events")
    events = shape[0] if most is None else min(check_count("max_events", most), shape[0])
    cells = {
        name: check_count(name, options.get(name, 3)) for name in ("num_events", "num_features")
    }
    return _Settings(
        level,
        samples,
        events,
        min(cells["num_events"], events),
        min(cells["num_features"], shape[-1]),
    )


def _numbers(settings: _Settings, shape: tuple[int, ...]) -> list[int]:
    """Return the number of groups of each game: one per event, per feature, and per cell."""
    numbers = {
        "event": settings.events + 1,
        "feature": shape[-1] + 1,
        "cell": settings.num_events * settings.num_features + 1,
    }
    return list(numbers.values()) if settings.level == "cell" else [numbers[settings.level]]


def _most_groups(settings: _Settings, shape: tuple[int, ...], tolerance: Any) -> int:
    """Return the largest number of groups that a game can have; some of `_numbers` are absent."""
    pools = settings.events < shape[0]
    most = {
        "event": settings.events + pools,
        "feature": shape[-1] + (pools or tolerance is not None),
        "cell": settings.num_events * settings.num_features + 1,
    }
    return max(most.values()) if settings.level == "cell" else most[settings.level]


def _evaluations(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    shape = _series(x).shape
    settings = _settings(shape, options)
    of_games = [kernel_size(n, settings.num_samples) + 2 for n in _numbers(settings, shape)]
    pruning = 0 if options.get("tolerance", 0) is None else 2 * settings.events
    return sum(of_games) + pruning + 1


def _series(x: PyTree) -> Any:
    """Return the only leaf of `x`."""
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1:
        raise ValueError(f"`x` must be one array for time_shap, got {len(leaves)} arrays.")
    return leaves[0]


# The old past depends on the target, and coalitions on it: not `backward=False`.
@method(
    evaluations=_evaluations,
    shares_states=True,
    draws=True,
    numbers={"tolerance": "not negative"},
)
def time_shap(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    level: Level = "event",
    tolerance: ArrayLike | None = 0.025,
    baseline: PyTree[ArrayLike] | None = None,
    background: PyTree[ArrayLike] | None = None,
    num_samples: int = 1024,
    max_events: int | None = None,
    num_events: int = 3,
    num_features: int = 3,
) -> Attribution:
    """Compute TimeSHAP: Shapley values of the events, features or cells of a series.

    The old past is one group. It begins where the older of two groups, the steps before t and those
    from t on, first has a Shapley value within the tolerance, for t from the end backwards. The
    values are Shapley values of the groups by KernelSHAP: exact if all their coalitions fit
    `num_samples`, otherwise estimates from coalitions that are drawn in complementary pairs.

    Cost: 2 evaluations of `fn` per event for pruning, if there is a tolerance, and at most
    `num_samples + 2` for the groups; cells take three times the latter. Draws coalitions: `key` is
    required, unless all fit.

    Args:
        level: `"event"`: each step that is not in the old past is a group; `"feature"`: each
            feature, in the steps that are not in the old past; `"cell"`: each of the most important
            features at each of the most important events, and all else together.
        tolerance: the largest absolute Shapley value of the old past, in units of the score; `None`
            for no pruning.
        baseline: the values of absent features: a number or an array that broadcasts to `x`; 0 by
            default.
        background: instead, a set of series, with a leading axis: absent features take the average
            event, the mean over all series and steps.
        num_samples: the largest number of coalitions.
        max_events: the largest number of events apart; the events before them belong to the old
            past, even beyond the tolerance. By default all can be apart. A small number makes the
            coalitions fewer.
        num_events: the number of events whose cells are groups.
        num_features: the number of features whose cells are groups.

    Returns:
        values of the shape of `x`, (T, ...), signed, in units of the output: each feature gets the
        value of its group. `info["groups"]` holds the values of the groups, which sum to f(x) -
        f(baseline): first that of the old past (with all else, for cells), then those of events in
        order (the last `max_events`; 0 for those in the old past), of features, or of cells by
        event, then feature. `info["pruned"]` is the number of steps in the old past, and
        `info["pruning"]` the Shapley value of the steps before each of the last `max_events` steps,
        unless the tolerance is `None`.
        For cells, `info["events"]` and `info["features"]` are the steps and features of the cells.

    Raises:
        TypeError: for a background of a series of integers.
        ValueError: without a key where coalitions are drawn, for an unknown level, an input that is
            no series, a negative tolerance, both a baseline and a background, or a background of
            another structure or shape.

    Reference:
        Bento et al. 2021, TimeSHAP: Explaining recurrent models through sequence perturbations,
        arXiv:2012.00073.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return x[3, 0] * x[4, 0] + x[2, 1]
        >>> result = ja.time_shap(fn, jnp.ones((5, 2)))
        >>> print(result.values[:, 0].round(3), result.info["pruned"])
        [0.  0.  1.  0.5 0.5] 2
    """
    series = _series(x)
    options = {"level": level, "num_samples": num_samples, "max_events": max_events}
    options |= {"num_events": num_events, "num_features": num_features}
    settings = _settings(series.shape, options)
    if key is None:
        if 2 ** _most_groups(settings, series.shape, tolerance) - 2 > settings.num_samples:
            raise ValueError(
                "`key` is missing: time_shap draws coalitions, give jax.random.key(0)."
            )
        key = jax.random.key(0)  # draws nothing
    score_of = scored(fn, target, args)
    score, output = score_of(x)
    run = _Run(score_of, x, _replacement(x, baseline, background), settings, batch_size)
    info = {"pruned": jnp.asarray(series.shape[0] - settings.events, jnp.int32)}
    if tolerance is not None:
        info["pruning"] = run.pruning()
        info["pruned"] = _pruned(info["pruning"], tolerance, series.shape[0])
    pruned = info["pruned"]
    if level != "cell":
        values, ids = run.values_at(level, pruned, key)
    else:
        keys = jax.random.split(key, 3)
        of_events = run.values_at("event", pruned, keys[0])[0][1:]
        of_features = run.values_at("feature", pruned, keys[1])[0][1:]
        events = _most_important(of_events, settings.num_events)
        events += series.shape[0] - settings.events
        features = _most_important(of_features, settings.num_features)
        ids = _cells(series.shape, events, features, pruned)
        values = run.values_of(ids, settings.num_events * settings.num_features + 1, keys[2])
        info |= {"events": events, "features": features}
    of_features = jnp.broadcast_to(values[ids].astype(score.dtype), series.shape)
    values_like_x = jax.tree.unflatten(jax.tree.structure(x), [of_features])
    return Attribution(values_like_x, output, {"groups": values, **info})


def _replacement(x: PyTree, baseline: Any, background: Any) -> PyTree:
    """Return the values of absent features."""
    if background is None:
        return broadcast_baseline(0.0 if baseline is None else baseline, x)
    if baseline is not None:
        raise ValueError("`baseline` must be left out where `background` is given, got both.")
    dtype = _series(x).dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(
            f"`background` must be left out where `x` holds integers, got {dtype}: they have no "
            "average event, give a `baseline`."
        )
    series = check_background(background, x)
    average = jax.tree.map(lambda leaf: leaf.mean((0, 1)), series)
    return broadcast_baseline(average, x)


def _pruned(pruning: Float[Array, " events"], tolerance: ArrayLike, length: int) -> Int[Array, ""]:
    """Return the number of steps in the old past: those before the last t within the tolerance."""
    events = pruning.shape[0]
    steps = jnp.arange(length - events, length, dtype=jnp.int32)
    least = jnp.asarray(length - events, jnp.int32)
    within = jnp.abs(pruning) <= jnp.asarray(tolerance, pruning.dtype)
    return jnp.maximum(least, jnp.where(within, steps, 0).max())


def _most_important(values: Float[Array, " groups"], count: int) -> Int[Array, " count"]:
    """Return the groups with the largest absolute values, in their order."""
    return jnp.sort(jax.lax.top_k(jnp.abs(values), count)[1].astype(jnp.int32))


def _cells(
    shape: tuple[int, ...],
    events: Int[Array, " events"],
    features: Int[Array, " features"],
    pruned: Int[Array, ""],
) -> Int[Array, "T D"]:
    """Return the group of each cell: 0 but for the chosen events and features."""
    place_of_event = jnp.zeros(shape[0], jnp.int32)
    place_of_event = place_of_event.at[events].set(jnp.arange(1, 1 + len(events), dtype=jnp.int32))
    place_of_event = jnp.where(jnp.arange(shape[0], dtype=jnp.int32) >= pruned, place_of_event, 0)[
        :, None
    ]
    place_of_feature = jnp.zeros(shape[1], jnp.int32)
    numbers = jnp.arange(1, 1 + len(features), dtype=jnp.int32)
    place_of_feature = place_of_feature.at[features].set(numbers)[None]
    cell = (place_of_event - 1) * len(features) + place_of_feature
    return jnp.where((place_of_event > 0) & (place_of_feature > 0), cell, 0)


class _Run(NamedTuple):
    """The explanation of one series.

    Attributes:
        score_of: from an input to the score and the output.
        x: the input.
        replacement: the values of absent features.
        settings: what shapes depend on.
        batch_size: the evaluations in flight.
    """

    score_of: Callable[[PyTree], tuple[Scalar, PyTree]]
    x: PyTree
    replacement: PyTree
    settings: _Settings
    batch_size: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the series."""
        shape: tuple[int, ...] = _series(self.x).shape
        return shape

    def pruning(self) -> Float[Array, " events"]:
        """Return the Shapley value of the steps before each step, of two groups."""
        length, events = self.shape[0], self.settings.events
        steps = np.arange(length, dtype=np.int32).reshape(-1, *[1] * (len(self.shape) - 1))
        groups = FeatureGroups([steps], length, True, ())
        game = Game(self.score_of, self.x, self.replacement, groups)
        indices = jnp.arange(length, dtype=jnp.int32)

        def present(cut: tuple[Array, Array]) -> Bool[Array, " T"]:
            start, recent = cut
            return (indices >= start) == recent

        starts = jnp.arange(length - events, length + 1, dtype=jnp.int32)
        cuts = jnp.tile(starts, 2), jnp.repeat(jnp.array([False, True]), len(starts))
        scores = None
        windows = self._windows(game)
        if windows is not None:  # the first windows, or the last ones from the end on
            places = np.arange(windows.number, dtype=np.int32)
            chains = jnp.asarray(np.stack([places, places[::-1]]))
            scores = windows.along_permutations(chains, self.batch_size)
        if scores is None:
            old, recent = game.scores(present, cuts, self.batch_size).reshape(2, -1)
        else:
            old, recent = scores[0, -len(starts) :], scores[1, len(starts) - 1 :: -1]
        full, empty = old[-1], recent[-1]
        return ((old - empty) + (full - recent))[:-1] / 2

    def values_at(
        self, level: Level, pruned: Int[Array, ""], key: RandomKey
    ) -> tuple[Float[Array, " groups"], Int[Array, "..."]]:
        """Return the values of events or features, and the group of each cell."""
        length = self.shape[0]
        steps = jnp.arange(length, dtype=jnp.int32).reshape(-1, *[1] * (len(self.shape) - 1))
        if level == "event":
            inside, number = steps - (length - self.settings.events) + 1, self.settings.events + 1
        else:
            number = self.shape[-1] + 1
            inside = jnp.arange(1, number, dtype=jnp.int32)[None]
        ids = jnp.where(steps >= pruned, inside, 0)
        return self.values_of(ids, number, key), ids

    def values_of(
        self, ids: Int[Array, "..."], number: int, key: RandomKey
    ) -> Float[Array, " groups"]:
        """Return the Shapley values of groups by KernelSHAP."""
        groups = FeatureGroups([ids], number, False, ())
        game = Game(self.score_of, self.x, self.replacement, groups)
        coalitions = coalitions_of_existing(key, groups.exists, self.settings.num_samples)
        scores = self._scores(game, with_ends(coalitions), ids)
        return kernel_values(scores, coalitions, groups.exists)[0]

    def _scores(
        self, game: Game, coalitions: Bool[Array, "coalitions groups"], ids: Int[Array, "..."]
    ) -> Float[Array, " coalitions"]:
        """Return the scores of coalitions; those of events share the states of loops."""
        windows = self._windows(game) if ids.shape[1:] == (1,) * (ids.ndim - 1) else None
        if windows is not None:
            of_steps = coalitions[:, ids.ravel()[windows.edges[:-1]]]
            scores = windows.of_members(of_steps, self.batch_size)
            if scores is not None:
                return scores
        return game.score_of_members(coalitions, self.batch_size)

    def _windows(self, game: Game) -> WindowGame | None:
        """Return the game of the steps that can be apart and of all before them."""
        length, events = self.shape[0], self.settings.events
        begin = np.arange(length - events, length)
        return game_of_rows(game, 0, begin if events == length else np.append(0, begin))
