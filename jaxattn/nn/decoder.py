"""A recurrent decoder with additive attention over annotations (Bahdanau et al. 2015)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Shaped

from jaxattn.jaxpr.capture import tag
from jaxattn.nn.attending import checked_mask, masked_softmax
from jaxattn.nn.attention_layer import check_sizes


class DecoderWeights(NamedTuple):
    """Weights of an attention decoder with m annotation features, n units and K labels.

    The names are those of the paper. `W` is multiplied by the previous label, `U` by the previous
    state and `C` by the context, except for `W_a` (the previous state) and `U_a` and `W_s` (the
    annotations). The suffix r is the reset gate, z the update gate, p the proposed state, o the
    output, a the alignment and s the initial state.
    """

    W_a: Float[Array, "n n"]
    U_a: Float[Array, "m n"]
    b_a: Float[Array, " n"]
    V_a: Float[Array, " n"]
    W_r: Float[Array, "K n"]
    U_r: Float[Array, "n n"]
    C_r: Float[Array, "m n"]
    b_r: Float[Array, " n"]
    W_z: Float[Array, "K n"]
    U_z: Float[Array, "n n"]
    C_z: Float[Array, "m n"]
    b_z: Float[Array, " n"]
    W_p: Float[Array, "K n"]
    U_p: Float[Array, "n n"]
    C_p: Float[Array, "m n"]
    b_p: Float[Array, " n"]
    W_o: Float[Array, "K K"]
    U_o: Float[Array, "n K"]
    C_o: Float[Array, "m K"]
    b_o: Float[Array, " K"]
    W_s: Float[Array, "m n"]


class DecoderState(NamedTuple):
    """The state of an attention decoder: its hidden state and the previous label."""

    hidden: Float[Array, " n"]
    label: Float[Array, " K"]


class Decoded(NamedTuple):
    """The result of an attention decoder.

    Attributes:
        logits: Scores of the labels at each output step, before the softmax.
        weights: Attention weights of each output step over the annotations; rows sum to 1.
    """

    logits: Float[Array, "*steps K"]
    weights: Float[Array, "*steps T_in"]

    @property
    def probabilities(self) -> Float[Array, "*steps K"]:
        """The softmax of the logits."""
        return jax.nn.softmax(self.logits)


def attention_decoder_step(
    weights: DecoderWeights,
    state: DecoderState,
    annotations: Float[Array, "T_in m"],
    *,
    projected: Float[Array, "T_in n"] | None = None,
    mask: Bool[Array, " T_in"] | None = None,
    name: str = "attention",
) -> tuple[DecoderState, Decoded]:
    r"""Advance an attention decoder by one output step.

    The attention weights are
    $\alpha = \mathrm{softmax}_j\, V_a \cdot \tanh(s W_a + h_j U_a + b_a)$, the context is
    $c = \sum_j \alpha_j h_j$, the gates are $r, z = \sigma(y W + s U + c C + b)$, each with its own
    weights, and the next state is $s' = (1 - z) \odot s + z \odot \tilde s$ with
    $\tilde s = \tanh(y W_p + (r \odot s) U_p + c C_p + b_p)$. The logits are
    $y W_o + s U_o + c C_o + b_o$; the next label $y'$ is their softmax.

    Args:
        weights: Weights of m, n and K features.
        state: Hidden state `(n,)` and label `(K,)` of the previous step.
        annotations: Annotations `(T_in, m)` of one example; vectorise with `jax.vmap`.
        projected: `annotations @ weights.U_a`, which is the same at every step; computed by
            default.
        mask: True at annotations that may be attended to, shape `(T_in,)`. All by default.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.

    Returns:
        The next state, and the logits `(K,)` with the attention weights `(T_in,)`.

    Reference:
        Bahdanau, Cho and Bengio 2015, Neural machine translation by jointly learning to align and
        translate, arXiv:1409.0473.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> weights = ja.nn.AttentionDecoder(8, 4, 3, rngs=nnx.Rngs(0)).weights()
        >>> state = ja.nn.DecoderState(jnp.zeros(4), jnp.zeros(3))
        >>> state, decoded = ja.nn.attention_decoder_step(weights, state, jnp.ones((5, 8)))
        >>> decoded.logits.shape, decoded.weights.shape
        ((3,), (5,))
    """
    w, (s, y) = weights, state
    if projected is None:
        projected = annotations @ w.U_a
    scores = jnp.tanh((s @ w.W_a + w.b_a)[None] + projected) @ w.V_a
    attention = tag(masked_softmax(scores, mask), name)
    c = attention @ annotations
    r = jax.nn.sigmoid(y @ w.W_r + s @ w.U_r + c @ w.C_r + w.b_r)
    z = jax.nn.sigmoid(y @ w.W_z + s @ w.U_z + c @ w.C_z + w.b_z)
    proposed = jnp.tanh(y @ w.W_p + (r * s) @ w.U_p + c @ w.C_p + w.b_p)
    logits = y @ w.W_o + s @ w.U_o + c @ w.C_o + w.b_o
    following = DecoderState((1 - z) * s + z * proposed, jax.nn.softmax(logits))
    return following, Decoded(logits, attention)


class AttentionDecoder(nnx.Module):
    r"""Recurrent decoder with additive attention (Bahdanau et al. 2015).

    It decodes from $y_0 = 0$ and $s_0 = \tanh(h_1 W_s)$, where $h_1$ is the first unmasked
    annotation; the equations of a step are those of `attention_decoder_step`. The previous label is
    the decoder's own prediction, a vector of probabilities. Matrices are drawn by Glorot's uniform
    initialiser, recurrent ones are orthogonal, and biases start at 0.

    Args:
        in_features: m, size of each annotation.
        hidden_features: n, number of units.
        num_classes: K, number of labels.
        name: Tag of the attention weights for `jaxattn.capture` and `jaxattn.intervene`.
        param_dtype: Dtype of the weights.
        rngs: Random streams; weights are drawn from `params`.

    Raises:
        ValueError: If a size is below 1.
        TypeError: If a size is not an integer, or `param_dtype` is not floating.

    Reference:
        Bahdanau, Cho and Bengio 2015, Neural machine translation by jointly learning to align and
        translate, arXiv:1409.0473.

    Examples:
        >>> import jax.numpy as jnp
        >>> import jaxattn as ja
        >>> from flax import nnx
        >>> decoder = ja.nn.AttentionDecoder(8, 4, 3, rngs=nnx.Rngs(0))
        >>> decoder(jnp.ones((5, 8)), output_length=6).logits.shape
        (6, 3)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        num_classes: int,
        *,
        name: str = "attention",
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.num_classes = num_classes
        self.name = name
        check_sizes(
            in_features=in_features, hidden_features=hidden_features, num_classes=num_classes
        )
        if not jnp.issubdtype(param_dtype, jnp.floating):
            raise TypeError(f"`param_dtype` must be floating, got {param_dtype}.")
        # An orthogonal draw takes a QR decomposition, which half precision lacks.
        dtype = jnp.float32 if jnp.finfo(param_dtype).bits < 32 else param_dtype
        m, n, k = in_features, hidden_features, num_classes
        rows = {"W": k, "U": n, "C": m}
        glorot = initializers.glorot_uniform()
        for field in DecoderWeights._fields:
            kind, part = field.split("_")
            columns = k if part == "o" else n
            if kind == "b":
                drawn = jnp.zeros(columns, dtype)
            elif kind == "V":
                drawn = glorot(rngs.params(), (n, 1), dtype)[:, 0]
            else:
                shape = ({"W_a": n, "U_a": m, "W_s": m}.get(field, rows[kind]), columns)
                recurrent = kind == "U" and part in "rzp"
                drawn = (initializers.orthogonal() if recurrent else glorot)(
                    rngs.params(), shape, dtype
                )
            setattr(self, field, nnx.Param(drawn.astype(param_dtype)))

    def weights(self) -> DecoderWeights:
        """Return the weights for `attention_decoder_step`."""
        return DecoderWeights(*(getattr(self, field)[...] for field in DecoderWeights._fields))

    def __call__(
        self,
        annotations: Shaped[ArrayLike, "*batch T_in m"],
        mask: Bool[ArrayLike, "..."] | None = None,
        *,
        output_length: int | None = None,
        teacher: Shaped[ArrayLike, "*batch T_out K"] | None = None,
    ) -> Decoded:
        """Decode a sequence.

        Masked annotations, NaN included, do not affect the result and have a gradient of zero. If
        all are masked, weights and contexts are zero.

        Args:
            annotations: Annotations of shape `(T_in, m)`, or a batch `(..., T_in, m)`; integers are
                converted.
            mask: True at annotations that may be attended to, shape `(..., T_in)`; leading axes may
                be 1 or missing. All by default.
            output_length: T_out; by default the length of `teacher`, or T_in.
            teacher: One-hot labels of shape `(..., T_out, K)`, which replace the decoder's
                predictions as previous labels (teacher forcing); the last one is not used.

        Returns:
            Logits `(..., T_out, K)`, `probabilities` of the same shape, and attention weights
            `(..., T_out, T_in)`.

        Raises:
            ValueError: If an array has another shape, or `output_length` is below 1 or differs from
                the length of `teacher`.
            TypeError: If `mask` is not boolean, or another array does not hold real numbers.
        """
        h = _as_real("annotations", annotations)
        if h.ndim < 2 or h.shape[-1] != self.in_features or not h.shape[-2]:
            raise ValueError(
                f"`annotations` must have shape (..., T_in, {self.in_features}) with T_in at least "
                f"1, got {h.shape}."
            )
        *batch, length, _ = h.shape
        if mask is not None:
            mask = checked_mask(mask, h.shape[:-1])
        if teacher is not None:
            teacher = _as_real("teacher", teacher)
            steps = teacher.shape[-2] if teacher.ndim > 1 else 0
            if teacher.shape != (*batch, output_length or steps, self.num_classes):
                shape = ", ".join(map(str, (*batch, output_length or "T_out", self.num_classes)))
                raise ValueError(f"`teacher` must have shape ({shape}), got {teacher.shape}.")
            length = steps
        length = length if output_length is None else output_length
        check_sizes(output_length=length)
        weights = self.weights()
        with jax.numpy_dtype_promotion("standard"):
            dtype = jnp.promote_types(h.dtype, weights.W_a.dtype)
        weights = jax.tree.map(lambda w: w.astype(dtype), weights)
        if teacher is not None:
            teacher = teacher.astype(dtype)

        def run(h: Array, mask: Array | None, teacher: Array | None) -> Decoded:
            return _decode(weights, h, mask, teacher, length=length, name=self.name)

        for _ in batch:
            run = jax.vmap(run)
        return run(h.astype(dtype), mask, teacher)


def _as_real(name: str, values: ArrayLike) -> Array:
    array = jnp.asarray(values)
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(f"`{name}` must be real numbers, got dtype {array.dtype}.")
    return array


# A scan compiles at every eager call unless it is inside of a jitted function that persists.
@partial(jax.jit, static_argnames=("length", "name"))
def _decode(
    weights: DecoderWeights,
    h: Array,
    mask: Array | None,
    teacher: Array | None,
    *,
    length: int,
    name: str,
) -> Decoded:
    """Decode one example `(T_in, m)`."""
    first = h[0]
    if mask is not None:
        h = jnp.where(mask[:, None], h, 0)
        first = h[jnp.argmax(mask)]
    projected = h @ weights.U_a

    def advance(state: DecoderState, label: Array | None) -> tuple[DecoderState, Decoded]:
        state, decoded = attention_decoder_step(
            weights, state, h, projected=projected, mask=mask, name=name
        )
        return (state if label is None else state._replace(label=label)), decoded

    label = jnp.zeros(weights.b_o.shape, h.dtype)
    state = DecoderState(jnp.tanh(first @ weights.W_s), label)
    return jax.lax.scan(advance, state, teacher, length=length)[1]
