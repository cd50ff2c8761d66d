"""How captioners learn: the losses of soft and of hard attention (Xu et al. 2015)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, Real

from jaxattn import nn
from jaxattn.models.captioner import END, Captioner, Reading


class CaptionLoss(NamedTuple):
    """A loss, averaged over pictures, and its parts.

    Attributes:
        value: what to differentiate; of hard attention only its gradient has a meaning.
        log_likelihood: of the whole caption.
        penalty: see `nn.doubly_stochastic_penalty`.
        entropy: of the weights, summed over the words.
    """

    value: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    penalty: Float[Array, ""]
    entropy: Float[Array, ""]


def spoken(words: Integer[ArrayLike, "*batch T"]) -> Bool[Array, "*batch T"]:
    """Mark the steps of a caption up to its first `END`, that included."""
    ends = (jnp.asarray(words) == END).astype(jnp.int32)
    return jnp.cumsum(ends, axis=-1) == ends


def log_likelihood(
    logits: Float[Array, "*batch T V"], words: Integer[ArrayLike, "*batch T"]
) -> Float[Array, "*batch T"]:
    """The log-probability of each word of a caption; zero after its end."""
    words = jnp.asarray(words)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), words[..., None], -1)[..., 0]
    return jnp.where(spoken(words), chosen, 0)


def soft_caption_loss(
    model: Captioner,
    images: Real[ArrayLike, "B H W C"],
    words: Integer[ArrayLike, "B T"],
    *,
    penalty: float = 1.0,
    key: PRNGKeyArray | None = None,
    hidden_dropout: Float[ArrayLike, ""] = 0.0,
) -> CaptionLoss:
    r"""The loss of soft attention, $-\sum_t \log p_t + \lambda \sum_i (1 - \sum_t \alpha_{ti})^2$.

    Args:
        model: the network.
        images: pictures.
        words: their captions.
        penalty: $\lambda$.
        key: draws what is dropped. None: nothing is.
        hidden_dropout: see `Captioner.read`.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: as `Captioner.read`.
        TypeError: as `Captioner.read`.
    """
    reading = model.read(images, words, key=key, hidden_dropout=hidden_dropout)
    likelihood, cost, _ = parts = _parts(reading, words)
    return CaptionLoss((penalty * cost - likelihood).mean(), *map(jnp.mean, parts))


def hard_caption_loss(
    model: Captioner,
    images: Real[ArrayLike, "B H W C"],
    words: Integer[ArrayLike, "B T"],
    *,
    key: PRNGKeyArray,
    baseline: ArrayLike = 0.0,
    score_weight: float = 1.0,
    entropy_weight: float = 0.002,
    expected_share: float = 0.5,
    penalty: float = 0.0,
    hidden_dropout: Float[ArrayLike, ""] = 0.0,
) -> CaptionLoss:
    r"""A loss whose gradient estimates that of hard attention's expected log-likelihood.

    With places s drawn, the estimate is $\nabla \log p(y|s) + \lambda_r (\log p(y|s) - b) \nabla
    \log p(s) + \lambda_e \nabla H - \lambda \nabla P$, all negated, with the doubly stochastic
    penalty P. With $\lambda_r = 1$, $\lambda_e = \lambda = 0$ and no share of expected places it is
    unbiased for $\sum_s p(s) \log p(y|s)$, whatever the baseline.

    Args:
        model: a network with hard attention.
        images: pictures.
        words: their captions.
        key: draws the places.
        baseline: b, what to expect of the log-likelihood; see `moving_baseline`.
        score_weight: $\lambda_r$.
        entropy_weight: $\lambda_e$.
        expected_share: the probability with which a picture's places are all read by their weights
            instead, which lowers the variance.
        penalty: $\lambda$, of the weights at the places drawn before; see `soft_caption_loss`.
        hidden_dropout: see `Captioner.read`.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: as `Captioner.read`; a network with soft attention.
        TypeError: as `Captioner.read`.
    """
    if not model.hard:
        raise ValueError("model must have hard attention, got soft")
    draw, choose = jax.random.split(key)
    expected = jax.random.bernoulli(choose, expected_share, jnp.shape(images)[:-3])
    reading = model.read(images, words, key=draw, expected=expected, hidden_dropout=hidden_dropout)
    likelihood, cost, entropy = parts = _parts(reading, words)
    drawn = jnp.take_along_axis(reading.weights, reading.positions[..., None], -1)[..., 0]
    log_places = jnp.where(spoken(words), _log(drawn), 0).sum(-1)
    advantage = jax.lax.stop_gradient(likelihood - jnp.asarray(baseline, likelihood.dtype))
    score = jnp.where(expected, 0, advantage * log_places)
    value = likelihood + score_weight * score + entropy_weight * entropy - penalty * cost
    return CaptionLoss(-value.mean(), *map(jnp.mean, parts))


def moving_baseline(
    baseline: Float[ArrayLike, ""], log_likelihood: Float[ArrayLike, ""], decay: float = 0.9
) -> Float[Array, ""]:
    r"""The running mean of log-likelihoods, $b \leftarrow 0.9 b + 0.1 \log p$."""
    return jnp.asarray(decay * baseline + (1 - decay) * jax.lax.stop_gradient(log_likelihood))


def _parts(reading: Reading, words: ArrayLike) -> tuple[Array, Array, Array]:
    """Each picture's log-likelihood, penalty, and entropy of the weights."""
    mask = spoken(words)
    entropy = -(reading.weights * _log(reading.weights)).sum(-1)
    return (
        log_likelihood(reading.logits, words).sum(-1),
        nn.doubly_stochastic_penalty(reading.weights, mask),
        jnp.where(mask, entropy, 0).sum(-1),
    )


def _log(weights: Array) -> Array:
    # A softmax may underflow to zero, where the logarithm's slope times zero is NaN.
    return jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
