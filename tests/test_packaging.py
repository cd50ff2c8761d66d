"""The metadata of the package, and the limits of its linter."""

import tomllib
from pathlib import Path

import jaxattn as ja
from tests import mutants

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_version_has_one_source():
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    source = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{ja.__version__}"' in source.read_text().splitlines()
    assert source == Path(ja.__file__)
    assert f"## {ja.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_lint_limits_the_size_of_functions():
    lint = PROJECT["tool"]["ruff"]["lint"]
    assert {"C901", "PLR0915"} <= set(lint["select"])
    assert lint["mccabe"]["max-complexity"] <= 12
    assert lint["pylint"]["max-statements"] <= 60


def test_new_names_of_the_changelog_are_public():
    for name in ("LRPRule", "LRP_PRESETS", "method"):
        assert name in ja.__all__


def test_mutants_occur_in_the_library():
    assert mutants.check(ROOT, range(1, len(mutants.MUTANTS) + 1)) == 0
