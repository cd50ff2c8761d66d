"""Teaches a captioner, lets it speak, and measures where it looked."""

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
from examples.scenes import COLOURS, NAMES, Scenes, Vocabulary, cells
from examples.training import bar

KINDS = ("soft", "hard")
# Of a place that is not read. With 1, as published for long captions of photographs, all places
# would be read alike: a caption of 3 to 8 words leaves most of 64 places unread.
PENALTY = 0.01
SCORE_WEIGHT, EXPECTED_SHARE = 0.1, 0.5  # of hard attention: see `ja.models.hard_caption_loss`
LOOK_FIRST = 0.4  # of the steps of soft attention: see `teach`
QUICK = {"channels": (16, 32, 96, 96), "hidden_features": 128, "attention_units": 64}
FULL = {
    "channels": (64, 128, 512, 512), "hidden_features": 512, "embedding_features": 256,
    "attention_units": 512,
}  # fmt: skip
Pointing = dict[str, tuple[float, float, float, int]]
Rows = tuple[list[str], list[list[str]], str]  # a table: its columns, rows, and how to read it


class Loss(NamedTuple):
    """What became of the loss: its parts, (steps,), and the baseline of hard attention."""

    log_likelihood: np.ndarray
    penalty: np.ndarray
    entropy: np.ndarray
    baseline: np.ndarray


def ink(images: Any) -> jax.Array:
    """Pictures as the network sees them, from integers: 0 where they are white, 1 where black."""
    return 1 - jnp.asarray(images, jnp.float32) / 255


def teach(
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
    look_first: float = LOOK_FIRST,
    seed: int = 0,
) -> Loss:
    """Learns captions of pictures, integers up to 255, by Adam; updates the model in place.

    For the share `look_first` of the steps words are scored by what is read for them alone, and
    then every other word is. Else the LSTM learns to read a thing's name along with its colour, and
    to look elsewhere when it says it.
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
    def step(state, moments, baseline, images, ids, key, drop):
        slope, loss = jax.grad(loss_of, has_aux=True)(state, ink(images), ids, key, baseline, drop)
        updates, moments = optimizer.update(slope, moments, state)
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
            drop = 1.0 if i < look_first * steps else 0.5
            state, moments, baseline, loss = step(
                state, moments, baseline, images[rows], ids[rows], key, drop
            )
            history.append((*loss[1:], baseline))
            progress.advance(task)
            if i % 20 == 19:
                recent = np.mean([h[0] for h in history[-20:]])
                progress.update(task, note=f"log p {recent:.2f}")
    nnx.update(model, state)
    return Loss(*np.array(history, np.float32).T)


class Said(NamedTuple):
    """Captions that a network says, and where it looked for every word (B, T, h, w)."""

    captions: list[list[str]]
    weights: np.ndarray


def say(
    model: ja.models.Captioner, images: np.ndarray, vocabulary: Vocabulary, *, width: int = 1
) -> Said:
    """The best caption of each picture, by a beam search."""

    @nnx.jit
    def best(model, images):
        found = ja.models.beam_captions(model, ink(images), width=width)
        return found.words[:, 0], found.weights[:, 0]

    parts = [best(model, images[i : i + 100]) for i in range(0, len(images), 100)]
    words, weights = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Said(vocabulary.decode(words), weights.reshape(*weights.shape[:2], *model.grid))


def look(model: ja.models.Captioner, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where the network looks for every word of given captions, (B, T, h, w)."""
    read = nnx.jit(lambda model, images, ids: model.read(ink(images), ids).weights)
    weights = np.concatenate(
        [read(model, images[i : i + 100], ids[i : i + 100]) for i in range(0, len(images), 100)]
    )
    return weights.reshape(*weights.shape[:2], *model.grid)


def bleu(said: Sequence[Sequence[str]], truths: Sequence[Sequence[str]]) -> float:
    """BLEU of captions against one reference each, from 0 to 100."""
    return sacrebleu.corpus_bleu(list(map(" ".join, said)), [list(map(" ".join, truths))]).score


def exact(said: Sequence[Sequence[str]], truths: Sequence[Sequence[str]]) -> float:
    """The share of captions of which every word is right."""
    return float(np.mean([a == b for a, b in zip(said, truths, strict=True)]))


class Taught(NamedTuple):
    """A network, what it says of the test pictures, and how its loss went."""

    model: ja.models.Captioner
    said: Said
    loss: Loss


def teach_both(
    out: str | Path,
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    tests: np.ndarray,
    vocabulary: Vocabulary,
    steps: int,
    sizes: Mapping[str, Any],
) -> dict[str, Taught]:
    """A network of each kind of attention, its weights saved, and what it says of the test.

    Hard attention goes on, for half as many steps, from what soft attention has learnt.
    """
    ids = vocabulary.encode(captions)
    taught: dict[str, Taught] = {}
    for kind in KINDS:
        model = ja.models.Captioner(
            images.shape[1:], len(vocabulary.words), vocabulary.max_length,
            attention=kind, rngs=nnx.Rngs(0), **sizes,
        )  # fmt: skip
        if taught:
            learnt = nnx.to_pure_dict(nnx.state(taught["soft"].model))
            learnt["attention"] = {
                name: weight for name, weight in learnt["attention"].items() if "gate" not in name
            }
            state = nnx.state(model)
            nnx.replace_by_pure_dict(state, learnt)
            nnx.update(model, state)
        loss = teach(
            model, images, ids, penalty=PENALTY, steps=-(-steps // 2) if taught else steps,
            look_first=0.0 if taught else LOOK_FIRST, learning_rate=1e-3 if taught else 3e-3,
        )  # fmt: skip
        checkpoints.save(model, Path(out) / kind)
        taught[kind] = Taught(model, say(model, tests, vocabulary), loss)
    return taught


def how_taught(steps: int) -> str:
    """How `teach_both` departs from the published training."""
    return (
        f"Soft attention learns for {steps:,} steps of 32 pictures, of its penalty λ = {PENALTY:g} "
        "times (published: 1). Hard attention does not learn from nothing: it starts from the "
        f"weights of soft attention and goes on for {-(-steps // 2):,} steps, in which a caption's "
        f"places are with probability {EXPECTED_SHARE:g} not drawn but all read by their weights, "
        f"and the reward for drawn ones counts {SCORE_WEIGHT:g} times. Nor is it as published that "
        f"for the first {LOOK_FIRST:.0%} of the steps of soft attention words are scored by what "
        "is read for them alone, without what the LSTM remembers, and in all other steps about "
        "every other word is."
    )


def loss_rows(taught: Mapping[str, Taught]) -> Rows:
    rows = []
    for kind, (_, _, loss) in taught.items():
        tenth = max(1, len(loss.penalty) // 10)
        for when, part in (("first", np.s_[:tenth]), ("last", np.s_[-tenth:])):
            means = [f"{np.mean(values[part]):.2f}" for values in loss]
            rows.append([f"{kind}, {when} tenth", *means])
    return (
        ["attention, steps", "log p", "penalty", "entropy", "baseline"],
        rows,
        "Means of a caption in nats, over the first and the last tenth of the steps: its "
        "log-likelihood; the doubly stochastic penalty, which is the number of places if nothing "
        f"is read, and of which the loss of soft attention has {PENALTY:g} times; the entropy of "
        "the weights, which hard attention is paid 0.002 times to keep; and the baseline, by which "
        "hard attention tells luck from merit. In the first tenth of soft attention no word is "
        "scored with what the LSTM remembers, in the others every other word is.",
    )


class Wrong(NamedTuple):
    """A wrong word: of which picture, at which step, what it should name, and who misled it.

    Attributes:
        picture: its row.
        step: which word of the caption.
        word: what was said.
        meant: the index of the thing that it should name.
        masses: how much of each thing in the picture was read for it.
    """

    picture: int
    step: int
    word: str
    meant: int
    masses: list[float]


def wrong_words(scenes: Scenes, said: Said) -> list[Wrong]:
    """Words that name a thing, or its colour, and not the one that is in their turn."""
    found = []
    for i, (words, things) in enumerate(zip(said.captions, scenes.things, strict=True)):
        count = sum(thing.colour in COLOURS for thing in things)
        for kind, right in (NAMES, "name"), (COLOURS, "colour"):
            steps = [t for t, word in enumerate(words) if word in kind]
            for meant, t in enumerate(steps[:count]):
                if words[t] != getattr(things[meant], right):
                    masses = [float(said.weights[i, t][thing.cells].sum()) for thing in things]
                    found.append(Wrong(i, t, words[t], meant, masses))
    return found


def pointing(scenes: Scenes, weights: np.ndarray, rows: Sequence[int]) -> Pointing:
    """How well the words of the captions by the rule point at what they name.

    Returns:
        for colours and for names: the mean share of the weights on the cells of the thing; the
        share of these cells, which is chance; how often the largest weight is there; and the number
        of words.
    """
    table = {}
    for kind, words in {"colours": COLOURS, "names": NAMES}.items():
        found = [
            (w[here].sum(), here.mean(), here.flat[w.argmax()])
            for i in rows
            for word, here, w in zip(
                scenes.truths[i], cells(scenes.things[i], scenes.truths[i]), weights[i],
                strict=False,
            )
            if word in words and here is not None
        ]  # fmt: skip
        table[kind] = (*map(float, np.mean(found, axis=0)), len(found))
    return table
