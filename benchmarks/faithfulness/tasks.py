"""The tasks of the benchmark: their methods, their measures and what others publish."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.faithfulness import addition, classifier, planted, rare
from benchmarks.faithfulness.runs import Run

#: The numbers of a run, as they are written to a file.
Numbers = dict[str, Any]


class Task(NamedTuple):
    """Examples, and what is measured on them.

    Attributes:
        examples: their description.
        number: of the examples of a seed, if the command line does not name it.
        methods: the methods that apply.
        measures: the names of the measures.
        ranked_by: the measures in which a random attribution is at chance: a method that is no
            higher in one of them finds nothing.
        published: the first of `measures` that others publish, for some methods.
        quality: the function from a seed and a run to how good the explained network is.
        measured: the function from a method, a seed and a run to the measures.
    """

    examples: str
    number: int
    methods: Mapping[str, Any]
    measures: tuple[str, ...]
    ranked_by: tuple[str, ...]
    published: Mapping[str, tuple[float, ...]]
    quality: Callable[[int, Run], dict[str, float]]
    measured: Callable[[str, int, Run], dict[str, float]]


RARE = Task(
    f"series of {rare.STEPS} steps and {rare.FEATURES} features",
    rare.SERIES,
    rare.METHODS,
    rare.MEASURES,
    ("aup",),
    {
        "integrated_gradients": (1.0, 0.13),
        "occlusion": (1.0, 0.129),
        "dynamask": (0.93, 0.65),
        "extremal_mask": (0.993, 0.788),
    },
    quality=lambda seed, run: {},
    measured=functools.partial(rare.measured, task="feature"),
)
TASKS = {
    "rare-feature": RARE,
    "rare-time": RARE._replace(measured=functools.partial(rare.measured, task="time")),
    "state": Task(
        "series of 200 steps and 3 features",
        10,
        classifier.METHODS,
        classifier.MEASURES,
        ("auprc",),
        {
            "integrated_gradients": (0.918, 0.454, 0.936, 0.909),
            "deep_lift": (0.920, 0.454, 0.938, 0.912),
            "lime": (0.932, 0.438, 0.937, 0.912),
            "extremal_mask": (0.885, 0.781, 0.910, 0.883),
            "augmented_occlusion": (0.755, 0.388, 0.915, 0.830),
            "occlusion": (0.866, 0.393, 0.870, 0.817),
            "expected_gradients": (0.849, 0.414, 0.852, 0.798),
            "dynamask": (0.711, 0.763, 0.876, 0.695),
            "fit": (0.421, 0.549, 0.711, 0.463),
        },
        quality=classifier.quality,
        measured=classifier.measured,
    ),
    "addition": Task(
        f"sequences of {addition.SHORTEST} to {addition.LONGEST} numbers",
        2_500,
        addition.METHODS,
        addition.MEASURES,
        ("first", "second"),
        {},
        quality=addition.quality,
        measured=addition.measured,
    ),
    "planted": Task(
        f"digits of {planted.SIZE} x {planted.SIZE} pixels",
        400,
        planted.METHODS,
        planted.MEASURES,
        ("inside",),
        {},
        quality=planted.quality,
        measured=planted.measured,
    ),
}
