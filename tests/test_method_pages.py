"""Every method has a page with a picture, and the code of the page draws the picture."""

import ast
import re
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

import jaxattn as ja
from docs.methods.__main__ import FOLDER, IMAGES, block, draw, names, page
from docs.pages import PICTURE

METHODS = sorted(name for name, method in vars(ja).items() if hasattr(method, "traits"))
SECTIONS = [
    "What it computes", "Example", "When to use it", "Cost", "Guarantees", "Known failures",
    "Source",
]  # fmt: skip
LINK = re.compile(r"\]\(([\w/.]+\.md)\)")


def test_each_method_has_a_page():
    assert names() == METHODS


@pytest.mark.parametrize("name", METHODS)
def test_page_has_all_sections(name):
    title, *parts = re.split(r"^## ", page(name), flags=re.MULTILINE)
    assert title.startswith(f"# {name}\n")
    assert [part.splitlines()[0] for part in parts] == SECTIONS
    assert all(len(part) > 40 for part in parts)
    assert "```math\n" in parts[0]
    assert re.search(r"^\*\*How to read it\.\*\* \S", parts[1], re.MULTILINE)


@pytest.mark.parametrize("name", METHODS)
def test_page_shows_its_picture_at_half_its_size(name):
    [(shown, width)] = PICTURE.findall(page(name))
    path = IMAGES / f"{name}.png"
    assert shown == f"methods/{name}"
    assert plt.imread(path).shape[1] // 2 == int(width)
    assert path.stat().st_size < 100_000
    assert re.search(r' alt="[^"]{30,}">$', page(name), re.MULTILINE)


@pytest.mark.parametrize("name", METHODS)
def test_code_of_the_page_calls_the_method_and_saves_the_picture(name):
    code = block(name)
    called = {ast.unparse(node) for node in ast.walk(ast.parse(code))}
    assert f"ja.{name}" in called
    assert f'savefig("{name}.png")' in code
    assert len(code.splitlines()) <= 20


def test_index_and_table_link_to_each_page():
    index = LINK.findall((FOLDER / "README.md").read_text())
    assert sorted(Path(link).stem for link in index if "/" not in link) == METHODS
    table = LINK.findall((FOLDER.parent / "which_method.md").read_text())
    assert {f"methods/{name}.md" for name in METHODS} <= set(table)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_links_point_to_files(path):
    links = LINK.findall(path.read_text())
    assert [link for link in links if not (FOLDER / link).exists()] == []


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("name", METHODS)
def test_code_of_the_page_draws_a_picture(name, tmp_path):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        picture = plt.imread(draw(name, tmp_path))
    assert min(picture.shape[:2]) > 20
    assert picture.std() > 0.01
