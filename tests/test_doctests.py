"""Test the examples in the docstrings of the public API."""

import ast
import doctest
import inspect
import re
import sys
import types

import matplotlib.pyplot as plt
import pytest

import jaxattn as ja

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

# Values, which have no docstring of their own.
UNDOCUMENTED = {"END", "LRP_PRESETS", "Padding"}

# Results, states and base classes; the functions that return them have examples.
WITHOUT_EXAMPLE = set(
    """
    jaxattn.AttributionWarning jaxattn.Benchmark jaxattn.ConvergenceWarning
    jaxattn.introspect.FiniteReport jaxattn.introspect.GRUGates jaxattn.introspect.GateGradients
    jaxattn.introspect.GateValues jaxattn.introspect.History jaxattn.introspect.LSTMGates
    jaxattn.introspect.LayerInfo jaxattn.introspect.MemoryReach jaxattn.introspect.NonFinite
    jaxattn.introspect.RNNGates jaxattn.introspect.Saturation
    jaxattn.introspect.StateJacobians jaxattn.introspect.States jaxattn.introspect.Weights
    jaxattn.metrics.Comparison jaxattn.metrics.Curve jaxattn.metrics.Properties
    jaxattn.metrics.Randomisation jaxattn.models.Caption jaxattn.models.CaptionLoss
    jaxattn.models.GlimpseLoss jaxattn.models.Glimpses jaxattn.models.NextStep
    jaxattn.models.Reading jaxattn.models.TrainedGenerator jaxattn.nn.Attended
    jaxattn.nn.Decoded jaxattn.nn.DecoderState jaxattn.nn.DecoderWeights jaxattn.nn.Fixation
    jaxattn.nn.GRUWeights jaxattn.nn.LSTMState jaxattn.nn.LSTMWeights jaxattn.nn.Located
    jaxattn.nn.Padding jaxattn.nn.RNNWeights jaxattn.nn.Recurrence jaxattn.nn.Recurrent
    jaxattn.nn.SpatialAttention jaxattn.nn.SpatialWeights
    """.split()
)


def public_objects():
    """Yield the name and the object of every public function and class."""
    packages = {"jaxattn": ja} | {
        f"jaxattn.{name}": getattr(ja, name)
        for name in ("groups", "introspect", "metrics", "models", "nn", "plot")
    }
    for prefix, package in packages.items():
        for name in package.__all__:
            value = getattr(package, name)
            if not isinstance(value, types.ModuleType) and callable(value):
                yield f"{prefix}.{name}", value


PUBLIC = dict(public_objects())


def examples(name):
    """Return the examples of a docstring as doctests."""
    parser = doctest.DocTestParser()
    return parser.get_doctest(inspect.getdoc(PUBLIC[name]) or "", {}, name, None, 0)


WITH_EXAMPLE = [name for name in PUBLIC if examples(name).examples]


def tier(name):
    """Leave the examples of metrics, layers, networks and plots to the full tier."""
    packages = ("introspect", "metrics", "models", "nn", "plot")
    slow = name.startswith(tuple(f"jaxattn.{package}" for package in packages))
    return pytest.param(name, marks=pytest.mark.slow) if slow else name


class UnsignedZeros(doctest.OutputChecker):
    """Compare outputs without the sign of a zero: rounding -1e-9 prints it on some processors."""

    def check_output(self, want, got, optionflags):
        want, got = map(self.unsigned, (want, got))
        return super().check_output(want, got, optionflags)

    @staticmethod
    def unsigned(text):
        unsigned = re.sub(r"(?<![\w.])-(?=0(\.0*)?(?![\d.e]))", "", text)
        return re.sub(r"\[ +", "[", unsigned)  # numpy pads a column of numbers with a sign


@pytest.mark.parametrize("name", [tier(name) for name in WITH_EXAMPLE])
def test_docstring_example_runs(name):
    report: list[str] = []
    runner = doctest.DocTestRunner(UnsignedZeros(), optionflags=FLAGS)
    runner.run(examples(name), out=report.append)
    plt.close("all")
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize(
    ("got", "equal"),
    [
        ("[-0.  -0.   1.   0.5  0.5] 2", True),
        ("[ 0.  -0.   1.   0.5  0.5] 2", True),
        ("[0. 0. 1. 0.5 -0.5] 2", False),
        ("[-0.1 0. 1. 0.5 0.5] 2", False),
    ],
)
def test_outputs_are_compared_without_the_sign_of_a_zero(got, equal):
    checker = UnsignedZeros()
    assert checker.check_output("[0.  0.  1.  0.5 0.5] 2\n", got + "\n", FLAGS) == equal
    assert not checker.check_output("0.01\n", "-0.01\n", FLAGS)


def test_every_public_function_has_an_example():
    missing = PUBLIC.keys() - WITH_EXAMPLE
    assert sorted(missing - WITHOUT_EXAMPLE) == []
    assert sorted(WITHOUT_EXAMPLE - missing) == [], "these have an example"


@pytest.mark.parametrize("package", [ja, ja.introspect, ja.metrics, ja.models, ja.nn, ja.plot])
def test_public_names_are_in_all(package):
    assert all(
        getattr(package, name).__doc__ for name in package.__all__ if name not in UNDOCUMENTED
    )
    source = ast.parse(inspect.getsource(sys.modules[package.__name__]))
    imported = {
        alias.asname or alias.name
        for node in source.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("jaxattn")
        for alias in node.names
    }
    assert imported <= set(package.__all__)


def test_dir_of_the_package_lists_public_names_only():
    assert set(dir(ja)) == {*ja.__all__, "__version__"}
    assert "plot" in dir(ja)
