"""Losses of captioning with soft and hard attention (Xu et al. 2015)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, Real

from jaxattn import nn
from jaxattn.models.captioner import END, Captioner, Reading


class CaptionLoss(NamedTuple):
    """A loss and its parts, averaged over images.

    Attributes:
        value: The loss to differentiate; with hard attention only its gradient is meaningful.
        log_likelihood: Log-likelihood of the caption.
        penalty: Doubly stochastic penalty; see `jaxattn.nn.doubly_stochastic_penalty`.
        entropy: Entropy of the attention weights, summed over the words.
    """

    value: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    penalty: Float[Array, ""]
    entropy: Float[Array, ""]


def word_mask(words: Integer[ArrayLike, "*batch T"]) -> Bool[Array, "*batch T"]:
    """Return the mask of the steps of a caption up to and including its first `END`."""
    ends = (jnp.asarray(words) == END).astype(jnp.int32)
    return jnp.cumsum(ends, axis=-1) == ends


def log_likelihood(
    logits: Float[Array, "*batch T V"], words: Integer[ArrayLike, "*batch T"]
) -> Float[Array, "*batch T"]:
    """Return the log-probability of each word of a caption; zero after its end."""
    words = jnp.asarray(words)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), words[..., None], -1)[..., 0]
    return jnp.where(word_mask(words), chosen, 0)


def soft_caption_loss(
    model: Captioner,
    images: Real[ArrayLike, "B H W C"],
    words: Integer[ArrayLike, "B T"],
    *,
    penalty: float = 1.0,
    key: PRNGKeyArray | None = None,
    hidden_dropout: Float[ArrayLike, ""] = 0.0,
) -> CaptionLoss:
    r"""Compute the loss $-\sum_t \log p_t + \lambda \sum_i (1 - \sum_t \alpha_{ti})^2$.

    Args:
        model: Captioner with soft attention.
        images: Images of shape `(B, H, W, C)`.
        words: Ids of their captions, shape `(B, T)`.
        penalty: $\lambda$, weight of the doubly stochastic penalty.
        key: Key of the dropout; no dropout by default.
        hidden_dropout: Probability of dropout; see `Captioner.read`.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: As `Captioner.read`.
        TypeError: As `Captioner.read`.

    Reference:
        Xu et al. 2015, Show, attend and tell: neural image caption generation with visual
        attention, arXiv:1502.03044.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.Captioner((8, 8, 3), 10, 5, channels=(4, 4), rngs=nnx.Rngs(0))
        >>> words = jnp.array([[3, 1, 0]])
        >>> ja.models.soft_caption_loss(model, jnp.ones((1, 8, 8, 3)), words).value.shape
        ()
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
    r"""Compute a loss whose gradient estimates that of the expected log-likelihood.

    With drawn places $s$ and the doubly stochastic penalty $P$, the gradient is the negative of
    $\nabla \log p(y|s) + \lambda_r (\log p(y|s) - b) \nabla \log p(s) + \lambda_e \nabla H -
    \lambda \nabla P$. It is an unbiased estimate for $\sum_s p(s) \log p(y|s)$ with any baseline if
    $\lambda_r = 1$ and $\lambda_e$, $\lambda$ and `expected_share` are 0.

    Args:
        model: Captioner with hard attention.
        images: Images of shape `(B, H, W, C)`.
        words: Ids of their captions, shape `(B, T)`.
        key: Key of the draws.
        baseline: $b$, the expected log-likelihood; see `moving_baseline`.
        score_weight: $\lambda_r$.
        entropy_weight: $\lambda_e$.
        expected_share: Probability with which an image is attended to softly, by the weights of all
            places, which reduces the variance.
        penalty: $\lambda$; see `soft_caption_loss`.
        hidden_dropout: Probability of dropout; see `Captioner.read`.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: As `Captioner.read`; if `model` has soft attention.
        TypeError: As `Captioner.read`.

    Reference:
        Xu et al. 2015, Show, attend and tell: neural image caption generation with visual
        attention, arXiv:1502.03044.

    Examples:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> model = ja.models.Captioner(
        ...     (8, 8, 3), 10, 5, attention="hard", channels=(4, 4), rngs=nnx.Rngs(0)
        ... )
        >>> images, words, key = jnp.ones((1, 8, 8, 3)), jnp.array([[3, 1, 0]]), jax.random.key(0)
        >>> ja.models.hard_caption_loss(model, images, words, key=key).value.shape
        ()
    """
    if not model.hard:
        raise ValueError("`model` must have hard attention, got soft.")
    draw, choose = jax.random.split(key)
    expected = jax.random.bernoulli(choose, expected_share, jnp.shape(images)[:-3])
    reading = model.read(images, words, key=draw, expected=expected, hidden_dropout=hidden_dropout)
    likelihood, cost, entropy = parts = _parts(reading, words)
    drawn = jnp.take_along_axis(reading.weights, reading.positions[..., None], -1)[..., 0]
    log_places = jnp.where(word_mask(words), _log(drawn), 0).sum(-1)
    advantage = jax.lax.stop_gradient(likelihood - jnp.asarray(baseline, likelihood.dtype))
    score = jnp.where(expected, 0, advantage * log_places)
    value = likelihood + score_weight * score + entropy_weight * entropy - penalty * cost
    return CaptionLoss(-value.mean(), *map(jnp.mean, parts))


def moving_baseline(
    baseline: Float[ArrayLike, ""], log_likelihood: Float[ArrayLike, ""], decay: float = 0.9
) -> Float[Array, ""]:
    r"""Compute the moving average of log-likelihoods, $b \leftarrow 0.9 b + 0.1 \log p$.

    Args:
        baseline: $b$, the previous average.
        log_likelihood: $\log p$, of the current batch.
        decay: Weight of the previous average.

    Returns:
        The next average, without a gradient for the log-likelihood.

    Examples:
        >>> import jaxattn as ja
        >>> print(ja.models.moving_baseline(-2.0, -4.0, decay=0.5))
        -3.0
    """
    return jnp.asarray(decay * baseline + (1 - decay) * jax.lax.stop_gradient(log_likelihood))


def _parts(reading: Reading, words: ArrayLike) -> tuple[Array, Array, Array]:
    """Return the log-likelihood, the penalty and the entropy of each image."""
    mask = word_mask(words)
    entropy = -(reading.weights * _log(reading.weights)).sum(-1)
    return (
        log_likelihood(reading.logits, words).sum(-1),
        nn.doubly_stochastic_penalty(reading.weights, mask),
        jnp.where(mask, entropy, 0).sum(-1),
    )


def _log(weights: Array) -> Array:
    # Where a softmax underflows to zero, the derivative of the logarithm times zero is NaN.
    return jnp.log(jnp.maximum(weights, jnp.finfo(weights.dtype).tiny))
