"""Recurrent layers over time: gates, the path of the state, and how far memory reaches."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from numpy.typing import ArrayLike

from jaxattn.plot import style
from jaxattn.plot.feature_panels import feature_grid
from jaxattn.plot.style import ColorMap, Panels


@runtime_checkable
class GateItems(Protocol):
    """Values by gate, such as `jaxattn.introspect.LSTMGates`; a dict is one too."""

    def items(self) -> Iterable[tuple[str, ArrayLike]]:
        """Iterate over the names of the gates and their values."""


@runtime_checkable
class ReachLike(Protocol):
    """An object with the fields of `jaxattn.introspect.MemoryReach` that are drawn."""

    @property
    def norms(self) -> ArrayLike:
        """The mean norm of dh_t/dh_(t-k) for each k."""

    @property
    def steps(self) -> ArrayLike:
        """The number of steps that the memory reaches."""


def gate_activations(
    gates: GateItems,
    *,
    ax: np.ndarray | None = None,
    limit: float | None = None,
    cmap: ColorMap | None = None,
    rows: int | None = None,
    columns: int | None = None,
    time: tuple[float, float] | None = None,
    colorbar: bool = True,
    title: str | None = None,
    xlabel: str = "time step",
    ylabel: str = "unit",
    label: str = "activation",
) -> Panels:
    """Draw the values of the gates of a recurrent layer over time, one heat map per gate.

    Args:
        gates: Values `(T, H)` by gate, such as `jaxattn.introspect.gates(...).activation`, the
            gradients of `jaxattn.introspect.gate_gradients(...).preactivation`, or a dict.
        ax: Array `(gates,)` of Axes to draw on; a new figure by default.
        limit: The largest magnitude that has a colour of its own; by default 1, or in panels whose
            largest magnitude is above 1 or below 0.05, that magnitude.
        cmap: Colour map; by default diverging where a value is negative, otherwise sequential.
        rows: Number of panels per column.
        columns: Number of panels per row; by default one row.
        time: Times of the first and the last step, for the axis; by default their indices.
        colorbar: Whether to add a colour bar to each panel.
        title: Title of the figure.
        xlabel: Label of the time steps.
        ylabel: Label of the units.
        label: Label of the colour bars.

    Returns:
        The panels, shape `(gates,)`; `images[0]` of each holds the values, units downwards.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, `limit` is not positive, or the
            grid is too small.
        TypeError: If a gate does not hold real numbers.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0))
        >>> gates = ja.introspect.gates(lstm, jnp.ones((5, 3)))
        >>> ja.plot.gate_activations(gates.activation).shape
        (4,)
    """
    named = {name: style.real("gates", values) for name, values in gates.items()}
    if any(values.ndim != 2 for values in named.values()) or not named:
        shapes = [values.shape for values in named.values()]
        raise ValueError(f"`gates` must have shape (T, H) for each gate, got {shapes}.")
    columns = len(named) if rows is None and columns is None else columns
    grid = feature_grid(ax, len(named), "gates", (3.2, 2.6), rows=rows, columns=columns)
    for panel, (name, values) in zip(grid.axes, named.items(), strict=True):
        largest = style.largest(values)
        end = max(1.0, largest) if largest > 0.05 else largest
        scale = style.color_scale([values], end if limit is None else limit, cmap)
        steps, units = values.shape
        ends = (0, steps - 1) if time is None else time
        half = 0.5 * (ends[1] - ends[0]) / max(steps - 1, 1)
        panel.imshow(
            values.T, cmap=scale.cmap, norm=scale.norm, aspect="auto", interpolation="nearest",
            extent=(ends[0] - half, ends[1] + half, units - 0.5, -0.5),
        )  # fmt: skip
        panel.set_title(name, loc="left", fontsize="small")
        panel.set_xlabel(xlabel, fontsize="small")
        panel.spines[:].set_visible(False)
        panel.tick_params(labelsize="x-small")
        if colorbar:
            mappable = ScalarMappable(scale.norm, scale.cmap)
            style.finish_bar(panel.figure.colorbar(mappable, ax=panel))
    grid.axes[0].set_ylabel(ylabel, fontsize="small")
    if colorbar:
        grid.axes[-1].figure.axes[-1].set_ylabel(label, fontsize="small")
    if title is not None:
        grid.axes.figure.suptitle(title)
    return grid.axes


def state_trajectories(
    states: ArrayLike,
    *,
    ax: Axes | None = None,
    sample_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Axes:
    """Draw the path of hidden states in the plane of their two principal components.

    Args:
        states: States `(T, H)`, or those of N samples, `(N, T, H)`, such as
            `jaxattn.introspect.states(...).hidden`.
        ax: Axes to draw on; a new figure by default.
        sample_names: N names for a legend; samples of one name, such as a class, share a colour.
        title: Title of the panel.

    Returns:
        The Axes; its lines are the paths of the samples, with a circle at the first and a square at
        the last time step. The components are those of the states of all samples and time steps;
        each has the sign that makes its largest weight positive.

    Raises:
        ValueError: If a shape does not fit, a value is not finite, or H is below 2.
        TypeError: If `states` does not hold real numbers.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0))
        >>> states = ja.introspect.states(lstm, jnp.ones((5, 3)))
        >>> ax = ja.plot.state_trajectories(states.hidden)
        >>> ax.lines[0].get_xydata().shape
        (5, 2)
    """
    paths = style.real("states", states)
    if paths.ndim not in (2, 3) or paths.shape[-1] < 2:
        raise ValueError(
            f"`states` must have shape (T, H) or (N, T, H) with H of at least 2, got {paths.shape}."
        )
    paths = paths if paths.ndim == 3 else paths[None]
    style.same_length("sample_names", sample_names, len(paths), "samples")
    flat = paths.reshape(-1, paths.shape[-1])
    centred = paths - flat.mean(0)
    _, sizes, components = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    components = components[:2]
    signs = np.sign(components[np.arange(len(components)), np.abs(components).argmax(1)])
    plane = centred @ (components * signs[:, None]).T
    if plane.shape[-1] == 1:  # a single state
        plane = np.concatenate([plane, np.zeros_like(plane)], axis=-1)
    shares = np.square(sizes) / max(float(np.square(sizes).sum()), np.finfo(float).tiny)
    ax = style.panel(ax, (5.0, 4.2))
    names = list(range(len(plane))) if sample_names is None else list(sample_names)
    kinds = list(dict.fromkeys(names))
    for n, path in enumerate(plane):
        colour = style.PALETTE[kinds.index(names[n]) % len(style.PALETTE)]
        name = None if names[n] in names[:n] else str(names[n])
        ax.plot(*path.T, color=colour, linewidth=1.2, marker=".", markersize=3, label=name)
        ax.scatter(
            path[0, 0], path[0, 1], color="white", edgecolors=colour, s=36, marker="o", zorder=3
        )
        ax.scatter(path[-1, 0], path[-1, 1], color=colour, s=36, marker="s", zorder=3)
    labels = [
        f"component {i + 1} ({shares[i] if i < len(shares) else 0:.0%} of variance)" for i in (0, 1)
    ]
    ax.set(xlabel=labels[0], ylabel=labels[1])
    ax.spines[["top", "right"]].set_visible(False)
    if title is not None:
        ax.set_title(title)
    if sample_names is not None:
        ax.legend(frameon=False, fontsize="small")
    return ax


def memory_reach(
    reach: ReachLike | Mapping[str, ReachLike],
    *,
    ax: Axes | None = None,
    title: str | None = None,
    xlabel: str = "time steps between two states",
    ylabel: str = "norm of the Jacobian",
) -> Axes:
    """Draw how the influence of a state on later states decays.

    Args:
        reach: The result of `jaxattn.introspect.memory_reach`, or several by name.
        ax: Axes to draw on; a new figure by default.
        title: Title of the panel.
        xlabel: Label of the number of time steps.
        ylabel: Label of the norms.

    Returns:
        The Axes, logarithmic upwards. Its first lines are the norms from one time step on, one for
        each layer; dashed lines stand where the memory ends.

    Raises:
        ValueError: If norms are not of shape `(T,)` with T of at least 2, or not finite.
        TypeError: If norms are not real numbers.

    Examples:
        >>> import jax.numpy as jnp, jaxattn as ja
        >>> from flax import nnx
        >>> lstm = ja.nn.LSTM(3, 4, rngs=nnx.Rngs(0))
        >>> ax = ja.plot.memory_reach(ja.introspect.memory_reach(lstm, jnp.ones((9, 3))))
        >>> len(ax.lines[0].get_ydata())
        8
    """
    named = {"": reach} if isinstance(reach, ReachLike) else dict(reach)
    norms = {name: style.real("reach", one.norms) for name, one in named.items()}
    for values in norms.values():
        if values.ndim != 1 or len(values) < 2:
            raise ValueError(
                f"`reach` must have norms of shape (T,), T of at least 2, got {values.shape}."
            )
    ax = style.panel(ax, (6.0, 3.2))
    for n, (name, values) in enumerate(norms.items()):
        colour = style.PALETTE[n % len(style.PALETTE)]
        ax.plot(np.arange(1, len(values)), values[1:], color=colour, marker=".", label=name)
    for n, one in enumerate(named.values()):
        steps = float(np.asarray(one.steps))
        if np.isfinite(steps):
            ax.axvline(steps, color=style.PALETTE[n % len(style.PALETTE)], linestyle="--", lw=0.9)
    ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    if title is not None:
        ax.set_title(title)
    if "" not in named:
        ax.legend(frameon=False, fontsize="small")
    return ax
