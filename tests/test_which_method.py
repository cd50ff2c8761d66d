"""The page that helps to choose a method names each of them."""

import re
from pathlib import Path

import pytest

import jaxattn as ja

PAGE = (Path(__file__).parents[1] / "docs" / "which_method.md").read_text()
METHODS = [name for name, method in vars(ja).items() if hasattr(method, "traits")]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_named(name):
    assert re.search(rf"`(ja\.)?{name}\b", PAGE)


def test_every_name_exists():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    names = {name for row in rows for name in re.findall(r"`(\w+)[`(]", row.split(" | ")[1])}
    assert len(names) >= 40
    assert all(hasattr(ja, name) for name in names), names - set(dir(ja))
