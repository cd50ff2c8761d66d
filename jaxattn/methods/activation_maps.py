"""Class activation maps at a layer: Grad-CAM, Grad-CAM++ and guided Grad-CAM."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxattn._types import Attribution, Inputs, RandomKey, Target, check_bool, check_count
from jaxattn.engine.batch import wide
from jaxattn.engine.method import method
from jaxattn.jaxpr.capture import split_at
from jaxattn.methods.backprop import guided_backprop
from jaxattn.methods.gradients import value_and_gradient

#: Returns the weights of the channels of a layer, from its output, the gradient and the axes of
#: positions, which have length 1 in the result.
_Weights = Callable[[Array, Array, tuple[int, ...]], Array]


@method(needs_at=True, per_example=())
def grad_cam(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    channel_axis: int | np.integer = -1,
    relu: bool = True,
    shape: int | Sequence[int] | None = None,
) -> Attribution:
    """Compute Grad-CAM (gradient-weighted class activation mapping) at a layer.

    Each channel of the layer's output is weighted by the mean of its gradient over all positions.
    The map is the ReLU of the weighted sum of the channels. `at` is required: it names an
    intermediate with a channel axis and at least one other, such as (H, W, C) or (T, C).

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Args:
        channel_axis: the axis of the intermediate that holds the channels.
        relu: whether the ReLU is applied; otherwise the map is signed.
        shape: the shape to which the map is resized by linear interpolation, such as (H, W) of the
            image. Leading axes of length 1, as in a model that takes batches, are dropped then.

    Returns:
        values of the shape of the intermediate without its channel axis, or of `shape`, in units of
        the output.

    Raises:
        TypeError: if the intermediate holds integers, or `shape` does not hold ints.
        ValueError: if the target does not fit the output, the intermediate has no axis besides its
            channels, or `shape` does not have as many axes as the map.

    Reference:
        Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks via gradient-based
        localization, arXiv:1610.02391.

    Examples:
        A layer with two positions and two channels, of which the second lowers the target.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     h = ja.tag(x ** 2, "layer")
        ...     return (h[:, 0] - h[:, 1]).sum()
        >>> x = jnp.array([[2.0, 1.0], [0.0, 3.0]])
        >>> print(ja.grad_cam(fn, x, at="layer").values)
        [3. 0.]
        >>> print(ja.grad_cam(fn, x, at="layer", relu=False).values)
        [ 3. -9.]
    """

    def weights(layer: Array, slope: Array, positions: tuple[int, ...]) -> Array:
        return slope.mean(positions, keepdims=True)

    return _class_activation(weights, fn, x, target, args, channel_axis, relu, shape)


@method(needs_at=True, per_example=())
def grad_cam_plus_plus(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    channel_axis: int | np.integer = -1,
    relu: bool = True,
    shape: int | Sequence[int] | None = None,
) -> Attribution:
    """Compute Grad-CAM++, which weights the positions of each channel by higher derivatives.

    Several occurrences of an object count alike, whatever their size. The weight of channel k is
    the sum over positions of relu(g) / (2 + s_k g), for the gradient g of the target at the
    position and the sum s_k of the channel's activations. These are the weights of the paper for a
    network that is piecewise linear behind the layer, where the score is the exponential of the
    target, without the factor exp(target), which all channels share. `at` is required: it names an
    intermediate with a channel axis and at least one other, such as (H, W, C) or (T, C).

    Cost: one evaluation of `fn` and one vector-Jacobian product per example. Deterministic.

    Args:
        channel_axis: the axis of the intermediate that holds the channels.
        relu: whether the ReLU is applied; otherwise the map is signed.
        shape: the shape to which the map is resized by linear interpolation, such as (H, W) of the
            image. Leading axes of length 1, as in a model that takes batches, are dropped then.

    Returns:
        values of the shape of the intermediate without its channel axis, or of `shape`.

    Raises:
        TypeError: if the intermediate holds integers, or `shape` does not hold ints.
        ValueError: if the target does not fit the output, the intermediate has no axis besides its
            channels, or `shape` does not have as many axes as the map.

    Reference:
        Chattopadhyay et al. 2018, Grad-CAM++: improved visual explanations for deep convolutional
        networks, arXiv:1710.11063.

    Examples:
        Two positions and one channel, whose activations sum to 4. The gradient is 1/2 at both.

        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     return ja.tag(x, "layer").mean()
        >>> x = jnp.array([[1.0], [3.0]])
        >>> print(ja.grad_cam_plus_plus(fn, x, at="layer").values)
        [0.25 0.75]
    """

    def weights(layer: Array, slope: Array, positions: tuple[int, ...]) -> Array:
        layer, slope = (leaf.astype(wide(leaf.dtype)) for leaf in (layer, slope))
        divisor = 2 + layer.sum(positions, keepdims=True) * slope
        parts = jax.nn.relu(slope) / jnp.where(divisor == 0, 1, divisor)
        return parts.sum(positions, keepdims=True)

    return _class_activation(weights, fn, x, target, args, channel_axis, relu, shape)


@method(needs_at=True, keeps_input=True, per_example=())
def guided_grad_cam(
    fn: Callable[..., Any],
    x: Inputs,
    target: Target = None,
    *,
    args: tuple[Any, ...] = (),
    at: str | None = None,
    key: RandomKey | None = None,
    batch_size: int | None = None,
    check_finite: bool = True,
    channel_axis: int | np.integer = -1,
) -> Attribution:
    """Compute guided Grad-CAM: guided backpropagation times the Grad-CAM map of a layer.

    The map, with its ReLU, is resized by linear interpolation to the input and multiplies all of
    its channels. It is coarse and specific to the target; guided backpropagation is fine. `at` is
    required: it names an intermediate as for `jaxattn.grad_cam`.

    Cost: two evaluations of `fn` and two vector-Jacobian products per example. Deterministic.

    Args:
        channel_axis: the axis that holds the channels, of the intermediate and of an `x` that has
            one axis more than the map.

    Returns:
        values of the shape of `x`, signed, in units of the output squared per unit of `x`.

    Raises:
        TypeError: if `x` or the intermediate holds integers.
        ValueError: if `x` is not one array with the axes of the map, and maybe one of channels; if
            the target does not fit the output; or if the intermediate has no axis besides its
            channels.

    Reference:
        Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks via gradient-based
        localization, arXiv:1610.02391.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> def fn(x):
        ...     h = ja.tag(jax.nn.relu(x), "layer")
        ...     return (h[:, 0] - h[:, 1]).sum()
        >>> x = jnp.array([[2.0, 1.0], [-1.0, 3.0]])
        >>> print(ja.guided_grad_cam(fn, x, at="layer").values)
        [[1. 0.]
         [0. 0.]]
    """
    if at is None:
        raise ValueError("`at` is missing: guided_grad_cam needs the name of an intermediate.")
    if len(jax.tree.leaves(x)) != 1:
        raise ValueError(f"`x` must be one array for guided_grad_cam, got {jax.tree.structure(x)}.")
    (image,) = jax.tree.leaves(x)
    layer, rest = split_at(fn, (x, *args), at)
    map_ = grad_cam(rest, layer, target, channel_axis=channel_axis).values
    fewest = map_.ndim - next((i for i, size in enumerate(map_.shape) if size > 1), map_.ndim)
    if fewest <= image.ndim - 1 <= map_.ndim and channel_axis in range(-image.ndim, image.ndim):
        sizes = tuple(np.delete(image.shape, channel_axis).tolist())
        map_ = jnp.expand_dims(_resized(map_, sizes), int(channel_axis))
    elif fewest <= image.ndim <= map_.ndim:
        map_ = _resized(map_, image.shape)
    else:
        raise ValueError(
            f"`x` must have the axes of the map of shape {map_.shape}, and maybe one of channels, "
            f"got shape {image.shape}."
        )
    guided = guided_backprop(fn, x, target, args=args)
    values = jax.tree.map(lambda leaf: leaf * map_.astype(leaf.dtype), guided.values)
    return Attribution(values, guided.output)


def _class_activation(
    weights_of: _Weights,
    fn: Callable[..., Any],
    x: Inputs,
    target: Target,
    args: tuple[Any, ...],
    channel_axis: int | np.integer,
    relu: bool,
    shape: int | Sequence[int] | None,
) -> Attribution:
    """Return the sum over the channels of a layer, each with a weight."""
    check_bool("relu", relu)
    (layer,) = jax.tree.leaves(x)
    if layer.ndim < 2:
        raise ValueError(
            "`at` must name an intermediate with channels and another axis, got shape "
            f"{layer.shape}."
        )
    if channel_axis not in range(-layer.ndim, layer.ndim):
        raise ValueError(
            f"`channel_axis` must be an axis of the intermediate of shape {layer.shape}, got "
            f"{channel_axis}."
        )
    result = value_and_gradient(fn, layer, target, args)
    positions = tuple(axis for axis in range(layer.ndim) if axis != channel_axis % layer.ndim)
    weights = weights_of(layer, result.gradient, positions).astype(result.gradient.dtype)
    values = (layer * weights).sum(channel_axis)
    if relu:
        values = jax.nn.relu(values)
    return Attribution(values if shape is None else _resized(values, shape), result.output)


def _resized(values: Array, shape: int | Sequence[int]) -> Array:
    """Resize a map by linear interpolation, without its leading axes of length 1."""
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    for size in sizes:
        check_count("shape", size)
    kept = values.shape[values.ndim - len(sizes) :]
    if len(kept) != len(sizes) or math.prod(kept) != values.size:
        raise ValueError(
            f"`shape` must have as many axes as the map of shape {values.shape}, got {sizes}."
        )
    return jax.image.resize(values.reshape(kept), sizes, "linear")
