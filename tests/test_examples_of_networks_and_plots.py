"""Test that all public names of `nn`, `models` and `plot` have docstring examples that run."""

import doctest
import inspect

import matplotlib.pyplot as plt
import pytest

from jaxattn import models, nn, plot

DOCUMENTED = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (nn, models, plot)
    for name in package.__all__
    if inspect.isroutine(getattr(package, name)) or inspect.isclass(getattr(package, name))
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_examples_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    public = DOCUMENTED[name]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder(recurse=False).find(public, name, globs={}):
        runner.run(test)
    plt.close("all")
    assert not runner.failures
    results = issubclass(public, tuple) if inspect.isclass(public) else False
    assert runner.tries or results or public in (nn.Recurrent, nn.SpatialAttention)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", [nn, models, plot])
def test_package_docstring_lists_public_names(package):
    words = set(package.__doc__.replace("`", " ").replace(",", " ").replace(":", " ").split())
    names = {name.rstrip(".;") for name in words}
    assert set(package.__all__) <= names
