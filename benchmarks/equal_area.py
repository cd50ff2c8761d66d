"""Compare rankings at the area of the learned mask: `python -m benchmarks.equal_area --help`.

In each digit, every method deletes as many of its highest-ranked pixels as the learned mask covers.
The remaining probability of the label measures the ranking; lower is better.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

import jaxattn as ja
from benchmarks import report
from examples import digits, explaining, training

RIVALS = (
    "saliency",
    "gradient",
    "input × gradient",
    "smooth grad",
    "integrated gradients",
    "occlusion",
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.equal_area", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--digits", type=report.positive, default=400, help="default: %(default)s")
    parser.add_argument("--epochs", type=report.positive, default=15, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for the numbers")
    arguments = parser.parse_args(argv)
    report.check_file(parser, "--json", arguments.json)
    xs, labels = digits.load()
    train, test = training.stratified_split(labels, 0.2, seed=0)
    model = ja.models.SequenceClassifier(28, 128, 10, bidirectional=True, rngs=nnx.Rngs(0))
    training.fit(model, xs[train], labels[train], epochs=arguments.epochs)
    accuracy = float((training.predict(model, xs[test]).argmax(1) == labels[test]).mean())

    some, classes = xs[test][: arguments.digits], labels[test][: arguments.digits]
    methods = explaining.every_method(model, window=(4, 4), stride=(2, 2), mask_steps=300)
    chosen = {name: methods[name] for name in ("learned mask", *RIVALS)}
    explained = explaining.explain_all(chosen, some, classes)
    values = explaining.feature_values(explained, classes, some.shape, 10)
    values["random"] = np.random.default_rng(0).normal(size=some.shape)
    area = explaining.at_equal_area(model, some, classes, values.pop("learned mask"), values)
    report.table(
        f"Probability of the label after {area.features:.0f} of {some[0].size} pixels are deleted",
        ("ranked by", "probability"),
        [(name, f"{score:.3f}") for name, score in area.after.items()],
        f"{len(some)} digits, before: {area.before:.3f}; accuracy {accuracy:.1%}",
    )
    report.write(arguments.json, {"digits": len(some), "accuracy": accuracy, **area._asdict()})


if __name__ == "__main__":
    main()
