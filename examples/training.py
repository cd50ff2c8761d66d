"""Train a classifier with optax and a progress bar."""

from time import monotonic
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Bar(Progress):
    """A progress bar that prints a line every ten seconds if the output is not a terminal."""

    def __init__(self, *columns: ProgressColumn):
        super().__init__(*columns)
        self.last_line = monotonic()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count steps as done."""
        super().advance(task_id, advance)
        self._print_line(task_id)

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Change the fields of a task."""
        super().update(task_id, **fields)
        self._print_line(task_id)

    def _print_line(self, task_id: TaskID) -> None:
        if self.console.is_terminal or monotonic() - self.last_line < 10:
            return
        self.last_line = monotonic()
        task = self.tasks[task_id]
        note = task.fields.get("note", "")
        done = f"{task.completed:.0f}/{task.total:.0f} ... {task.elapsed or 0:.0f} s"
        print(f"{task.description} {done} {note}".rstrip(), flush=True)


def bar() -> Bar:
    """Return a progress bar with a description, a count, the elapsed time and a note."""
    columns = TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn()
    return Bar(*columns, TimeElapsedColumn(), TextColumn("{task.fields[note]}"))


def stratified_split(
    labels: np.ndarray, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return shuffled training and test rows with the same class frequencies."""
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    sizes = [round(test_fraction * len(rows)) for rows in members]
    test_rows = np.concatenate([rows[:n] for rows, n in zip(members, sizes, strict=True)])
    train_rows = np.concatenate([rows[n:] for rows, n in zip(members, sizes, strict=True)])
    return rng.permutation(train_rows), rng.permutation(test_rows)


def repeated(labels: np.ndarray, rows: np.ndarray, min_fraction: float) -> np.ndarray:
    """Repeat the rows of rare classes until each class is at least this fraction of `rows`."""
    members = [rows[labels[rows] == label] for label in np.unique(labels[rows])]
    return np.concatenate(
        [np.resize(m, max(len(m), round(min_fraction * len(rows)))) for m in members]
    )


def fit(
    model: nnx.Module,
    xs: np.ndarray,
    labels: np.ndarray,
    *,
    epochs: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Minimize the cross-entropy by Adam with a cosine schedule; update the model in place."""
    graph, state = nnx.split(model)
    batches = len(xs) // batch_size
    schedule = optax.cosine_decay_schedule(learning_rate, epochs * batches)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def loss(state, x, label):
        logits = nnx.merge(graph, state)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    @jax.jit
    def step(state, moments, x, label):
        value, gradients = jax.value_and_grad(loss)(state, x, label)
        updates, moments = optimizer.update(gradients, moments, state)
        return optax.apply_updates(state, updates), moments, value

    moments = optimizer.init(state)
    rng = np.random.default_rng(seed)
    with bar() as progress:
        task = progress.add_task("training", total=epochs * batches, note="")
        for epoch in range(epochs):
            losses = []
            for rows in rng.permutation(len(xs))[: batches * batch_size].reshape(batches, -1):
                state, moments, value = step(state, moments, xs[rows], labels[rows])
                losses.append(value)
                progress.advance(task)
            note = f"epoch {epoch + 1}/{epochs}, loss {jnp.stack(losses).mean():.3f}"
            progress.update(task, note=note)
    nnx.update(model, state)


def trained(
    model: nnx.Module,
    xs: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    *,
    noun: str,
    min_accuracy: float,
    console: Console,
    **options: Any,
) -> np.ndarray:
    """Train on the rows `train` and return the class probabilities of the rows `test`.

    Raises:
        SystemExit: If the test accuracy is below `min_accuracy`.
    """
    fit(model, xs[train], labels[train], **options)
    probabilities = predict(model, xs[test])
    accuracy = float((probabilities.argmax(1) == labels[test]).mean())
    console.print(f"accuracy on {len(test):,} test {noun}: [bold]{accuracy:.1%}")
    if accuracy < min_accuracy:
        raise SystemExit(f"test accuracy {accuracy:.1%} is below {min_accuracy:.0%}")
    return probabilities


def predict(model: nnx.Module, xs: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Return the class probabilities, (B, K)."""
    parts = [model(xs[i : i + batch_size]) for i in range(0, len(xs), batch_size)]
    return np.asarray(jax.nn.softmax(jnp.concatenate(parts), -1))
