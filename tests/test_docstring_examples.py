"""The examples in the docstrings of methods and metrics run, and print what they show."""

import doctest

import pytest

import jaxattn as ja

METHODS = {
    n: f
    for n, f in vars(ja).items()
    if callable(f) and (hasattr(f, "evaluations") or hasattr(f, "traits"))
}
METRICS = {n: getattr(ja.metrics, n) for n in ("completeness", "deletion", "insertion")}
DOCUMENTED = METHODS | METRICS | {"fit_patterns": ja.fit_patterns, "LRPRule": ja.LRPRule}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_runs(name, capsys):
    example = doctest.DocTestParser().get_doctest(
        DOCUMENTED[name].__doc__, globs={}, name=name, filename=None, lineno=None
    )
    assert example.examples
    failed, _ = doctest.DocTestRunner(verbose=False).run(example)
    assert not failed, capsys.readouterr().out
