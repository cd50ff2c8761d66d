"""A generator of the next time step of a series, and its training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Integer, PyTree, Shaped

from jaxattn import nn
from jaxattn.nn.attention_layer import check_sizes

#: Added to the diagonal of the factor of a covariance.
_LEAST_SCALE = 1e-3


class NextStep(NamedTuple):
    """A Gaussian distribution of the next time step, for each prefix of a series.

    Attributes:
        mean: the mean of x[t + 1] given x[: t + 1], in row t.
        covariance: its covariance.
    """

    mean: Float[Array, "T D"]
    covariance: Float[Array, "T D D"]


class FeatureGenerator(nnx.Module):
    """Generator of the next time step of a series, for `jaxattn.fit` and `jaxattn.windowed_fit`.

    A GRU reads the series. From its state after a step follow the mean and the deviation of a
    latent variable, and from a draw of that the mean and the covariance of all features of the next
    step (joint feature generator).

    Args:
        in_features: D, number of features of a time step.
        hidden_features: Number of units of the GRU.
        latent_features: Size of the latent variable.
        layer_features: Size of the hidden layers before the latent variable and after it.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer.

    Reference:
        Chung et al. 2015, A recurrent latent variable model for sequential data, arXiv:1506.02216;
        Tonekaboni et al. 2020, What went wrong and when? arXiv:2003.02821.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> generator = ja.models.FeatureGenerator(3, rngs=nnx.Rngs(0))
        >>> step = generator(jnp.ones((7, 3)))
        >>> step.mean.shape, step.covariance.shape
        ((7, 3), (7, 3, 3))
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden_features: int = 100,
        latent_features: int = 100,
        layer_features: int = 10,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_sizes(
            in_features=in_features,
            hidden_features=hidden_features,
            latent_features=latent_features,
            layer_features=layer_features,
        )
        self.in_features = in_features
        self.latent_features = latent_features

        def layers(rows: int, columns: int) -> nnx.Sequential:
            return nnx.Sequential(
                nnx.Linear(rows, layer_features, param_dtype=param_dtype, rngs=rngs),
                nnx.tanh,
                nnx.Linear(layer_features, columns, param_dtype=param_dtype, rngs=rngs),
            )

        self.recurrent = nn.GRU(in_features, hidden_features, param_dtype=param_dtype, rngs=rngs)
        self.latent = layers(hidden_features, 2 * latent_features)
        self.mean = layers(latent_features, in_features)
        self.factor = layers(latent_features, in_features**2)

    def __call__(
        self, x: Float[ArrayLike, "T D"], key: Shaped[Array, "..."] | None = None
    ) -> NextStep:
        """Compute the distribution of the step after each step.

        Args:
            x: A series of shape (T, D).
            key: A random key for the latent variable; its mean is taken without one.

        Returns:
            The means (T, D) and covariances (T, D, D); row t is the distribution of x[t + 1].

        Raises:
            ValueError: If `x` has another shape.
            TypeError: If `x` does not hold real numbers.
        """
        outputs = self.recurrent(x).outputs
        with jax.numpy_dtype_promotion("standard"):
            center, deviation = jnp.split(jnp.tanh(self.latent(outputs)), 2, axis=-1)
            latent = center
            if key is not None:
                latent += deviation * jax.random.normal(key, center.shape, center.dtype)
            mean, factor = self.mean(latent), self.factor(latent)
        square = factor.reshape(-1, self.in_features, self.in_features)
        eye = jnp.eye(self.in_features, dtype=square.dtype)[None]
        scales = jax.nn.softplus((square * eye).sum(-1, keepdims=True))
        lower = jnp.tril(square, -1) + eye * (scales + jnp.asarray(_LEAST_SCALE, square.dtype))
        return NextStep(mean, jnp.einsum("tij,tkj->tik", lower, lower))


class TrainedGenerator(NamedTuple):
    """The result of `fit_generator`.

    Attributes:
        generator: the trained copy.
        losses: the loss of each gradient step, in nats per feature.
    """

    generator: FeatureGenerator
    losses: Float[Array, " steps"]


def fit_generator(
    generator: FeatureGenerator,
    xs: Float[ArrayLike, "B T D"],
    *,
    key: Shaped[Array, "..."],
    lengths: Integer[ArrayLike, " B"] | None = None,
    num_epochs: int = 300,
    batch_size: int = 32,
    optimizer: optax.GradientTransformation | None = None,
) -> TrainedGenerator:
    """Train a generator of the next time step by maximum likelihood.

    The loss is the mean negative log-likelihood of every step after the first, given the steps
    before it, for one draw of the latent variable. All gradient steps are one compiled program.
    Draws batches and latent variables.

    Args:
        generator: The generator; it is not changed.
        xs: The series, of shape (B, T, D).
        key: A random key.
        lengths: Number of valid steps of each series, padded on the right. No padding by default.
        num_epochs: How often each series is read; the rest of a last incomplete batch is left out
            of an epoch.
        batch_size: Number of series for a gradient step, at most B.
        optimizer: Any optax optimiser; `optax.adam(1e-3)` by default.

    Returns:
        The trained copy, and the loss of each gradient step.

    Raises:
        ValueError: If `xs` has another shape, holds fewer than two steps, or a count is below 1.

    Reference:
        Tonekaboni et al. 2020, What went wrong and when? arXiv:2003.02821.

    Examples:
        >>> import jax
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> generator = ja.models.FeatureGenerator(2, hidden_features=8, rngs=nnx.Rngs(0))
        >>> xs = jax.random.normal(jax.random.key(0), (16, 5, 2))
        >>> trained, losses = ja.models.fit_generator(
        ...     generator, xs, key=jax.random.key(1), num_epochs=3, batch_size=8
        ... )
        >>> losses.shape
        (6,)
    """
    series = jnp.asarray(xs)
    if series.ndim != 3 or series.shape[1] < 2 or series.shape[2] != generator.in_features:
        raise ValueError(
            f"`xs` must have shape (B, T, {generator.in_features}) with T of at least 2, got "
            f"{series.shape}."
        )
    check_sizes(num_epochs=num_epochs, batch_size=batch_size)
    if batch_size > series.shape[0]:
        raise ValueError(
            f"`batch_size` must be at most the number of series, {series.shape[0]}, got "
            f"{batch_size}."
        )
    counts = jnp.full(series.shape[0], series.shape[1]) if lengths is None else jnp.asarray(lengths)
    valid = nn.valid_steps(counts, series.shape[1])
    rule = optax.adam(1e-3) if optimizer is None else optimizer
    graph, *states = nnx.split(generator, nnx.Param, ...)
    params, rest = states
    of_batches, of_latents = jax.random.split(key)
    epochs = jax.random.split(of_batches, num_epochs)
    per_epoch = series.shape[0] // batch_size

    def loss(params: PyTree, x: Array, seen: Array, keys: Array) -> Array:
        model = nnx.merge(graph, params, rest)

        def of_series(x: Array, seen: Array, key: Array) -> tuple[Array, Array]:
            step = model(x, key)
            each = _negative_log_likelihood(step, x)
            return jnp.where(seen[1:], each, 0).sum(), seen[1:].sum()

        totals, numbers = jax.vmap(of_series)(x, seen, keys)
        most = jnp.maximum(numbers.sum() * x.shape[-1], 1)
        return totals.sum() / most.astype(totals.dtype)

    @jax.jit
    def train(params: PyTree) -> tuple[PyTree, Array]:
        orders = jax.vmap(lambda key: jax.random.permutation(key, series.shape[0]))(epochs)
        batches = orders[:, : per_epoch * batch_size].reshape(-1, batch_size)
        keys = jax.random.split(of_latents, batches.shape)

        def step(state: tuple[PyTree, PyTree], batch: tuple[Array, Array]) -> tuple[PyTree, Array]:
            params, moments = state
            rows, keys = batch
            value, slopes = jax.value_and_grad(loss)(params, series[rows], valid[rows], keys)
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by its step count
                updates, moments = rule.update(slopes, moments, params)
                params = optax.apply_updates(params, updates)
            return (params, moments), value

        (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), (batches, keys))
        return params, losses

    trained, losses = train(params)
    return TrainedGenerator(nnx.merge(graph, trained, rest), losses)


def _negative_log_likelihood(step: NextStep, x: Float[Array, "T D"]) -> Float[Array, " T-1"]:
    """Return that of every step after the first."""
    factor = jnp.linalg.cholesky(step.covariance[:-1])
    gap = (x[1:] - step.mean[:-1])[..., None]
    whitened = jax.scipy.linalg.solve_triangular(factor, gap, lower=True)[..., 0]
    scales = jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(-1)
    constant = x.shape[-1] * jnp.log(2 * jnp.pi) / 2
    return jnp.square(whitened).sum(-1) / 2 + scales + constant.astype(x.dtype)
