"""Captum's methods of feature groups, and its GradientSHAP, with the draws of jaxattn.

KernelSHAP and LIME of Captum explain one example after the other, so each has its own coalitions.
The permutations of its Shapley sampling are the same for all examples of a call. Its time is that
of one call with the permutations of the first example; the values that are compared come from one
call for each example, which has the permutations that jaxattn draws for it.
"""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cells import Cell, Work
from jaxattn.methods.coalition_draws import kernel_coalitions

#: The methods, and the number of evaluations for one example that can be in one call of a network.
METHODS: dict[str, Callable[[Cell], int]] = {
    "shapley_value_sampling": lambda cell: groups(cell),
    "kernel_shap": lambda cell: cell.options["num_samples"] + 2,
    "lime": lambda cell: cell.options["num_samples"] + 1,
    "feature_ablation": lambda cell: groups(cell),
    "expected_gradients": lambda cell: 1,
}
_LARGE = 1e6  # Captum's weight of the empty and the full coalition


def groups(cell: Cell) -> int:
    """Return the number of groups."""
    return int(cell.groups().max()) + 1


def _keys(work: Work) -> Iterator[jax.Array]:
    """Yield the key of each example."""
    return (jax.random.fold_in(work.options["key"], i) for i in range(work.cell.batch))


def permutations(work: Work) -> np.ndarray:
    """Return the permutations that jaxattn draws for each example (B, samples, groups)."""
    shape = work.cell.options["num_samples"], groups(work.cell)
    drawn = [jax.random.bits(key, shape, jnp.uint32) for key in _keys(work)]
    places = np.asarray(jnp.argsort(jnp.stack(drawn), -1))
    return np.argsort(places, -1)


def coalitions(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Return the coalitions of each example (B, samples, groups), and their weights."""
    samples, number = work.cell.options["num_samples"], groups(work.cell)
    if work.cell.method == "kernel_shap":
        drawn = [kernel_coalitions(key, number, samples) for key in _keys(work)]
        ends = np.stack([np.zeros(number, bool), np.ones(number, bool)])
        members = [np.concatenate([ends, each.members]) for each in drawn]
        weights = [each.weights / each.weights.mean() for each in drawn]
        return np.stack(members), np.stack([np.append([_LARGE] * 2, w) for w in weights])
    drawn = [jax.random.bernoulli(key, 0.5, (samples, number)) for key in _keys(work)]
    members = np.stack([np.concatenate([np.ones((1, number), bool), each]) for each in drawn])
    far = 1 - np.sqrt(members.mean(-1))
    return members, np.exp(-np.square(far / 0.25))


def points(work: Work) -> np.ndarray:
    """Return the positions on the paths of GradientSHAP (B, samples)."""

    def point(key: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.split(key, 3)[1])

    of_sample = jax.vmap(point)
    each = [of_sample(jax.random.split(k, work.cell.options["num_samples"])) for k in _keys(work)]
    return np.stack(each)


def explanation(work: Work, model: Any, xs: Any, targets: Any, chunk: int) -> Callable[[], Any]:
    """Return a function that explains all examples with `chunk` evaluations of each in a call."""
    import torch
    from captum import attr

    cell = work.cell
    shared = {"target": targets}
    if cell.method == "expected_gradients":
        drawn = points(work).ravel()  # the samples of an example are next to each other
        explainer = attr.GradientShap(model)
        options = {"n_samples": cell.options["num_samples"], "stdevs": 0.0, **shared}
        background = torch.tensor(work.options["background"], device=xs.device)

        def expected_gradients() -> Any:
            with mock.patch("numpy.random.uniform", lambda *_: drawn):
                return explainer.attribute(xs, background, **options)

        return expected_gradients
    mask = torch.tensor(work.options["groups"], device=xs.device).long()[None]
    shared |= {"feature_mask": mask, "perturbations_per_eval": chunk}
    if cell.method == "feature_ablation":
        return lambda: attr.FeatureAblation(model).attribute(xs, **shared)
    shared["n_samples"] = cell.options["num_samples"]
    if cell.method == "shapley_value_sampling":
        drawn = permutations(work)[0]
        explainer = attr.ShapleyValueSampling(model)
        explainer.permutation_generator = lambda features, samples: iter(drawn.tolist())
        return lambda: explainer.attribute(xs, **shared)
    return _surrogate(work, model, xs, shared)


def example_by_example(work: Work, model: Any, xs: Any, targets: Any) -> Callable[[], Any] | None:
    """Return a function to the values with the permutations of each example; else `None`."""
    if work.cell.method != "shapley_value_sampling":
        return None
    import torch
    from captum import attr

    def explain() -> Any:
        explainer = attr.ShapleyValueSampling(model)
        rows = []
        for i, drawn in enumerate(permutations(work)):
            explainer.permutation_generator = lambda f, s, drawn=drawn: iter(drawn.tolist())
            rows.append(
                explainer.attribute(
                    xs[i : i + 1],
                    target=targets[i : i + 1],
                    feature_mask=torch.tensor(work.options["groups"]).long()[None].to(xs.device),
                    perturbations_per_eval=groups(work.cell),
                    n_samples=len(drawn),
                )
            )
        return torch.cat(rows)

    return explain


def _surrogate(work: Work, model: Any, xs: Any, shared: dict[str, Any]) -> Callable[[], Any]:
    """Return KernelSHAP or LIME with given coalitions."""
    import torch
    from captum import attr
    from captum._utils.models.linear_model import SkLearnRidge

    members, weights = map(torch.tensor, coalitions(work))
    members, weights = members.to(xs.device).long(), weights.to(xs.device).float()
    shared = shared | {"n_samples": members.shape[1]}

    def explain() -> Any:
        examples = iter(range(len(members)))
        similarities: Iterator[Any] = iter(())

        def perturb(inputs: Any, **options: Any) -> Iterator[Any]:
            nonlocal similarities
            example = next(examples)
            similarities = iter(weights[example])
            yield from members[example, :, None]

        def similarity(*arguments: Any, **options: Any) -> Any:
            return next(similarities)

        if work.cell.method == "kernel_shap":
            explainer = attr.KernelShap(model)
            explainer.perturb_func, explainer.similarity_func = perturb, similarity
        else:
            explainer = attr.Lime(model, SkLearnRidge(alpha=1.0), similarity, perturb)
        return explainer.attribute(xs, **shared)

    return explain
