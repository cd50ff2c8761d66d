"""Series whose observations are replaced by draws of a generator, and predictions for them."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxattn._types import RandomKey, check_count
from jaxattn.engine.batch import chunked_map, wide
from jaxattn.engine.callable import as_function
from jaxattn.engine.perturb import is_floating
from jaxattn.jaxpr.readout import ends_in_softmax
from jaxattn.methods.prefixes import Prefixes

#: `generator(x, key)` returns the mean (T, D) and the covariance (T, D, D) of the step after each
#: step of a series.
Generator: TypeAlias = Callable[[Array, Any], tuple[Array, Array]]


class Draw(NamedTuple):
    """The noise of one sample: for the generator, and of each feature in each time step."""

    key: Array
    noise: Float[Array, "T D"]


class DrawnSeries(NamedTuple):
    """A series whose observations are replaced by draws.

    Attributes:
        x: the series.
        prefixes: the classifier, cut after any step.
        generator: the distribution of the next step.
        batch_size: how many evaluations are in flight.
    """

    x: Float[Array, "T D"]
    prefixes: Prefixes
    generator: Generator
    batch_size: int | None

    @classmethod
    def of(
        cls,
        x: PyTree,
        prefixes: Prefixes,
        generator: Generator | None,
        batch_size: int | None,
    ) -> "DrawnSeries":
        """Check the series, its classifier and its generator.

        Raises:
            TypeError: for a generator that cannot be called, or a series of integers.
            ValueError: if it is missing, or for a series of another shape, an output that is no
                vector of logits, and a generator of another shape.
        """
        leaves = jax.tree.leaves(x)
        if len(leaves) != 1 or leaves[0].ndim != 2:
            shapes = [leaf.shape for leaf in leaves]
            raise ValueError(f"`x` must be one series of shape (T, D), got shapes {shapes}.")
        (series,) = leaves
        if not is_floating(series):
            raise TypeError(f"`x` must hold floating-point numbers, got {series.dtype}.")
        if generator is None:
            raise ValueError(
                "`generator` is missing: give a function such as a trained "
                "jaxattn.models.FeatureGenerator."
            )
        if not callable(generator):
            raise TypeError(f"`generator` must be callable, got {type(generator).__name__}.")
        generator, key = as_function(generator), jax.random.key(0)
        mean, covariance = jax.eval_shape(lambda x: tuple(generator(x, key)), series)
        size = series.shape[1]
        if mean.shape != series.shape or covariance.shape != (*series.shape, size):
            raise ValueError(
                f"`generator` must return arrays of shapes {series.shape} and "
                f"{(*series.shape, size)}, got {mean.shape} and {covariance.shape}."
            )
        if ends_in_softmax(prefixes.fn, x, *prefixes.args):
            raise ValueError(
                "`fn` must return logits, got the output of a softmax or a sigmoid: pass "
                "jaxattn.without_softmax(fn)."
            )
        return cls(series, prefixes, generator, batch_size)

    @property
    def steps(self) -> Int[Array, " T"]:
        """The time steps."""
        return self.prefixes.every_step

    def logits(self, x: Array) -> Float[Array, "T K"]:
        """Return the logits of every prefix."""
        causal = self.prefixes.causal
        if causal is not None:
            return class_logits(self.prefixes.fn(x, *self.prefixes.args), per_step=True)
        logits: Array = chunked_map(lambda t: self.logits_at(x, t), self.steps, self.batch_size)
        return logits

    def logits_at(self, x: Array, t: Int[Array, ""]) -> Float[Array, " K"]:
        """Return the logits of the prefix that ends with step `t`."""
        return class_logits(self.prefixes.output(x, t))

    def draws(self, key: RandomKey, num_samples: int) -> Draw:
        """Return the noise of all samples."""

        def draw(key: Array) -> Draw:
            of_generator, of_noise = jax.random.split(key)
            noise = jax.random.normal(of_noise, self.x.shape, wide(self.x.dtype))
            return Draw(of_generator, noise)

        return jax.vmap(draw)(jax.random.split(key, num_samples))


def class_logits(output: PyTree, *, per_step: bool = False) -> Float[Array, "... K"]:
    """Return logits, two of them for a single one: those of the negative and the positive class."""
    leaves = jax.tree.leaves(output)
    if len(leaves) != 1 or leaves[0].ndim - per_step > 1:
        shapes = [leaf.shape for leaf in leaves]
        raise ValueError(
            "`fn` must return a vector of logits for each prefix, or a single one, got an output "
            f"of shapes {shapes}."
        )
    (logits,) = leaves
    if logits.ndim - per_step == 0:
        logits = logits[..., None]
    if logits.shape[-1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
    return logits


def kl_divergence(logits: Float[Array, "... K"], others: Float[Array, "... K"]) -> Array:
    """Return the Kullback-Leibler divergence of the distribution of others from that of logits."""
    exact = wide(logits.dtype)
    first, second = (jax.nn.log_softmax(z.astype(exact), -1) for z in (logits, others))
    return (jnp.exp(first) * (first - second)).sum(-1)


def gaussian_draws(mean: Array, covariance: Array, noise: Array) -> Array:
    """Return draws of Gaussian distributions, from standard normal noise."""
    factor = jnp.linalg.cholesky(covariance.astype(noise.dtype))
    return mean.astype(noise.dtype) + jnp.einsum("...ij,...j->...i", factor, noise)


def members_in_flight(series: DrawnSeries, *, inner: int) -> int | None:
    """Return how many members are in flight, each with `inner` evaluations."""
    return series.batch_size and max(1, series.batch_size // inner)


def evaluations_of_draws(x: PyTree, output: PyTree, options: dict[str, Any]) -> int:
    """Return the number of evaluations, one for each draw of the features other than one."""
    samples = check_count("num_samples", options.get("num_samples", 10))
    sizes = [leaf.size for leaf in jax.tree.leaves(x)]
    return sum(sizes) * samples + 1
