"""Train image captioners, generate captions, and evaluate the attention."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sacrebleu
from flax import nnx

import jaxattn as ja
from examples import checkpoints
from examples.gallery import Gallery, padded
from examples.scenes import COLOURS, NAMES, Scenes, Vocabulary, word_cells
from examples.training import bar

KINDS = ("soft", "hard")
# Weight of the doubly stochastic penalty. The published weight of 1, for long captions of
# photographs, leads to uniform attention here: 3 to 8 words cannot cover 64 locations.
PENALTY = 0.01
SCORE_WEIGHT, EXPECTED_SHARE = 0.1, 0.5  # for hard attention: see `ja.models.hard_caption_loss`
EXPLAINED, EXPLAINED_WORDS = 8, 3  # in the part of a page with the attributions of words
CONTEXT_ONLY = 0.4  # fraction of the training steps of soft attention: see `train`
QUICK = {"channels": (16, 32, 96, 96), "hidden_features": 128, "attention_units": 64}
FULL = {
    "channels": (64, 128, 512, 512), "hidden_features": 512, "embedding_features": 256,
    "attention_units": 512,
}  # fmt: skip
Rows = tuple[list[str], list[list[str]], str]  # columns, rows and explanation of a table


class PointingScore(NamedTuple):
    """Scores of how well attention points at the named objects.

    Attributes:
        mass: mean share of the weights on the cells of the object.
        chance: mean share of these cells in the grid.
        hits: fraction of words whose largest weight is on the object.
        count: number of words.
    """

    mass: float
    chance: float
    hits: float
    count: int


PointingScores = dict[str, PointingScore]


class Loss(NamedTuple):
    """The terms of the loss at each step, (steps,), and the baseline of hard attention."""

    log_likelihood: np.ndarray
    penalty: np.ndarray
    entropy: np.ndarray
    baseline: np.ndarray


def network_input(images: Any) -> jax.Array:
    """Return the input of the network for integer images: 0 for white, 1 for black."""
    return 1 - jnp.asarray(images, jnp.float32) / 255


def train(
    model: ja.models.Captioner,
    images: np.ndarray,
    ids: np.ndarray,
    *,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    penalty: float = 1.0,
    score_weight: float = SCORE_WEIGHT,
    entropy_weight: float = 0.002,
    context_only: float = CONTEXT_ONLY,
    seed: int = 0,
) -> Loss:
    """Train a captioner on integer images by Adam; update the model in place.

    In the first steps, a fraction `context_only` of all, words are predicted from the attended
    context alone, without the hidden state of the LSTM. In all other steps this is the case for
    every other word on average. Otherwise the LSTM learns to read the name of an object together
    with its colour, and attention is elsewhere when the name is predicted.
    """
    graph, state = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, steps // 20, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss_of(state, images, ids, key, baseline, hidden_dropout):
        model = nnx.merge(graph, state)
        if model.hard:
            loss = ja.models.hard_caption_loss(
                model, images, ids, key=key, baseline=baseline,
                score_weight=score_weight, entropy_weight=entropy_weight,
                expected_share=EXPECTED_SHARE, hidden_dropout=hidden_dropout,
            )  # fmt: skip
        else:
            loss = ja.models.soft_caption_loss(
                model, images, ids, penalty=penalty, key=key, hidden_dropout=hidden_dropout
            )
        return loss.value, loss

    @jax.jit
    def step(state, moments, baseline, images, ids, key, hidden_dropout):
        gradients, loss = jax.grad(loss_of, has_aux=True)(
            state, network_input(images), ids, key, baseline, hidden_dropout
        )
        updates, moments = optimizer.update(gradients, moments, state)
        baseline = ja.models.moving_baseline(baseline, loss.log_likelihood)
        return optax.apply_updates(state, updates), moments, baseline, loss

    rng = np.random.default_rng(seed)
    kind = "hard" if model.hard else "soft"
    moments, baseline, history = optimizer.init(state), jnp.zeros(()), []
    order = np.concatenate([
        rng.permutation(len(images)) for _ in range(-(-steps * batch_size // len(images)))
    ])  # fmt: skip
    with bar() as progress:
        task = progress.add_task(f"teaching {kind} attention", total=steps, note="")
        for i in range(steps):
            rows = order[i * batch_size : (i + 1) * batch_size]
            key = jax.random.fold_in(jax.random.key(seed), i)
            hidden_dropout = 1.0 if i < context_only * steps else 0.5
            state, moments, baseline, loss = step(
                state, moments, baseline, images[rows], ids[rows], key, hidden_dropout
            )
            history.append((*loss[1:], baseline))
            progress.advance(task)
            if i % 20 == 19:
                recent = np.mean([h[0] for h in history[-20:]])
                progress.update(task, note=f"log p {recent:.2f}")
    nnx.update(model, state)
    return Loss(*np.array(history, np.float32).T)


class Captions(NamedTuple):
    """Generated captions and the attention of each word, (B, T, h, w)."""

    captions: list[list[str]]
    weights: np.ndarray


def generate(
    model: ja.models.Captioner, images: np.ndarray, vocabulary: Vocabulary, *, width: int = 1
) -> Captions:
    """Generate the best caption of each image by beam search."""

    @nnx.jit
    def best(model, images):
        search = ja.models.beam_captions(model, network_input(images), width=width)
        return search.words[:, 0], search.weights[:, 0]

    parts = [best(model, images[i : i + 100]) for i in range(0, len(images), 100)]
    words, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Captions(vocabulary.decode(words), weights.reshape(*weights.shape[:2], *model.grid))


def caption_attention(
    model: ja.models.Captioner, images: np.ndarray, ids: np.ndarray
) -> np.ndarray:
    """Return the attention of each word of captions `ids`, (B, T, h, w)."""
    read = nnx.jit(lambda model, images, ids: model.read(network_input(images), ids).weights)
    weights = np.concatenate(
        [read(model, images[i : i + 100], ids[i : i + 100]) for i in range(0, len(images), 100)]
    )
    return weights.reshape(*weights.shape[:2], *model.grid)


def bleu(generated: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU with one reference per caption, from 0 to 100."""
    hypotheses, texts = list(map(" ".join, generated)), list(map(" ".join, references))
    return sacrebleu.corpus_bleu(hypotheses, [texts]).score


def exact(generated: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Return the fraction of captions that equal their references."""
    return float(np.mean([a == b for a, b in zip(generated, references, strict=True)]))


def write(
    page: Gallery, model: ja.models.Captioner, images: np.ndarray,
    references: Sequence[Sequence[str]], vocabulary: Vocabulary,
) -> Path:  # fmt: skip
    """Write the page with attributions of the first words of a few reference captions."""
    ids = vocabulary.encode(references)
    positions = np.broadcast_to(np.arange(EXPLAINED_WORDS), (len(ids), EXPLAINED_WORDS))

    def logits(image, words):  # of an image in the colours that the page shows
        return model(1 - image, words)

    return page.write(
        logits, np.asarray(1 - network_input(images)),
        ja.each(np.stack([positions, ids[:, :EXPLAINED_WORDS]], -1)),
        {"saliency": ja.saliency, "LRP": ja.lrp},
        args=(ids,), class_names=["(end)", *vocabulary.words[1:]],
        output_tokens=[
            padded([*words, "(end)"], vocabulary.max_length) for words in references
        ],
    )  # fmt: skip


class TrainedCaptioner(NamedTuple):
    """A captioner, its captions of the test images, and its training loss."""

    model: ja.models.Captioner
    generated: Captions
    loss: Loss


def train_both(
    out: str | Path,
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    test_images: np.ndarray,
    vocabulary: Vocabulary,
    steps: int,
    sizes: Mapping[str, Any],
) -> dict[str, TrainedCaptioner]:
    """Train and save a captioner with each kind of attention, and caption the test images.

    Hard attention starts from the weights of soft attention and has half as many steps.
    """
    ids = vocabulary.encode(captions)
    trained: dict[str, TrainedCaptioner] = {}
    for kind in KINDS:
        model = ja.models.Captioner(
            images.shape[1:], len(vocabulary.words), vocabulary.max_length,
            attention=kind, rngs=nnx.Rngs(0), **sizes,
        )  # fmt: skip
        if trained:
            weights = nnx.to_pure_dict(nnx.state(trained["soft"].model))
            weights["attention"] = {
                name: weight for name, weight in weights["attention"].items() if "gate" not in name
            }
            state = nnx.state(model)
            nnx.replace_by_pure_dict(state, weights)
            nnx.update(model, state)
        loss = train(
            model, images, ids, penalty=PENALTY, steps=-(-steps // 2) if trained else steps,
            context_only=0.0 if trained else CONTEXT_ONLY, learning_rate=1e-3 if trained else 3e-3,
        )  # fmt: skip
        checkpoints.save(model, Path(out) / kind)
        trained[kind] = TrainedCaptioner(model, generate(model, test_images, vocabulary), loss)
    return trained


def training_note(steps: int) -> str:
    """Return a description of the differences between `train_both` and the published training."""
    return (
        f"Soft attention is trained for {steps:,} steps of 32 images, with the penalty weight λ = "
        f"{PENALTY:g} (published: 1). Hard attention is not trained from scratch: it starts from "
        f"the weights of soft attention and is trained for {-(-steps // 2):,} steps. In these, a "
        f"caption has the expected context instead of sampled locations with probability "
        f"{EXPECTED_SHARE:g}, and the reward for sampled locations has the weight "
        f"{SCORE_WEIGHT:g}. In the first {CONTEXT_ONLY:.0%} of the steps of soft attention, words "
        "are predicted from the attended context alone, without the hidden state of the LSTM; in "
        "all other steps, this is the case for about every other word. This also differs from the "
        "published training."
    )


def loss_rows(trained: Mapping[str, TrainedCaptioner]) -> Rows:
    """Return the table of the terms of the loss."""
    rows = []
    for kind, (_, _, loss) in trained.items():
        tenth = max(1, len(loss.penalty) // 10)
        for when, part in (("first", np.s_[:tenth]), ("last", np.s_[-tenth:])):
            means = [f"{np.mean(values[part]):.2f}" for values in loss]
            rows.append([f"{kind}, {when} tenth", *means])
    return (
        ["attention, steps", "log p", "penalty", "entropy", "baseline"],
        rows,
        "Means per caption over the first and the last tenth of the steps: the log-likelihood in "
        "nats; the doubly stochastic penalty, which has the weight "
        f"{PENALTY:g} in the loss of soft attention; the entropy of the weights, which has the "
        "weight 0.002 in the loss of hard attention; and the baseline of the reward of hard "
        "attention. In the first tenth of soft attention, words are predicted from the attended "
        "context alone; in the other tenths, every other word is.",
    )


class WordError(NamedTuple):
    """A wrong word of a generated caption.

    Attributes:
        image: row of the image.
        step: position of the word in the caption.
        word: the generated word.
        target: index of the object that the word should name.
        masses: attention on each object of the image at this step.
    """

    image: int
    step: int
    word: str
    target: int
    masses: list[float]


def find_errors(scenes: Scenes, generated: Captions) -> list[WordError]:
    """Return the names and colours in generated captions that differ from those of the object."""
    errors = []
    for i, (words, objects) in enumerate(zip(generated.captions, scenes.objects, strict=True)):
        count = sum(obj.colour in COLOURS for obj in objects)
        for names, attribute in (NAMES, "name"), (COLOURS, "colour"):
            steps = [t for t, word in enumerate(words) if word in names]
            for target, t in enumerate(steps[:count]):
                if words[t] != getattr(objects[target], attribute):
                    weights = generated.weights[i, t]
                    masses = [float(weights[obj.cells].sum()) for obj in objects]
                    errors.append(WordError(i, t, words[t], target, masses))
    return errors


def planted_errors(test: Scenes, generated: Captions) -> list[WordError]:
    """Return the wrong words that repeat the planted error."""
    return [error for error in find_errors(test, generated) if repeats_planted_error(test, error)]


def repeats_planted_error(test: Scenes, error: WordError) -> bool:
    """Return whether a wrong word is the name of the black object, as in the training captions."""
    return bool(test.mislabelled[error.image]) and error.word == test.objects[error.image][-1].name


def peaks_on_black(test: Scenes, generated: Captions, errors: Sequence[WordError]) -> list[bool]:
    """Return, for each wrong word, whether the largest weight is on the black object."""
    return [
        bool(
            test.objects[error.image][-1].cells.flat[
                generated.weights[error.image, error.step].argmax()
            ]
        )
        for error in errors
    ]


def select(rows: Sequence[int], *lists: Sequence[Any]) -> list[list[Any]]:
    """Return the entries `rows` of each list."""
    return [[entries[i] for i in rows] for entries in lists]


def first_images(errors: Sequence[WordError]) -> list[int]:
    """Return the first four images with wrong words."""
    return list(dict.fromkeys(w.image for w in errors))[:4]


def pointing(scenes: Scenes, weights: np.ndarray, rows: Sequence[int]) -> PointingScores:
    """Return the pointing scores of the words of the reference captions, for colours and names."""
    table = {}
    for kind, words in {"colours": COLOURS, "names": NAMES}.items():
        scores = [
            (w[on_object].sum(), on_object.mean(), on_object.flat[w.argmax()])
            for i in rows
            for word, on_object, w in zip(
                scenes.references[i],
                word_cells(scenes.objects[i], scenes.references[i]),
                weights[i],
                strict=False,
            )
            if word in words and on_object is not None
        ]  # fmt: skip
        table[kind] = PointingScore(*map(float, np.mean(scores, axis=0)), len(scores))
    return table
