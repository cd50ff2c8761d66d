"""The code of the pages runs and prints what they show; the reference lists every public name."""

import ast
import re
import types
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

import jaxattn as ja
from docs.flowchart import svg
from docs.guides.__main__ import pages
from docs.pages import DOCS, PICTURE, numbers_and_text, run

QUICK = {"quick_start", "coming_from/pytorch"}
PAGES = pages()
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
DIRECTIVE = re.compile(r"^::: jaxattn\.([\w.]+)$", re.MULTILINE)
CODE = re.compile(r"^(```+).*?^\1$|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def public_names() -> set[str]:
    """Return all names of the API, those of its modules with the module: `gradient`, `nn.LSTM`."""
    names = set()
    for name in ja.__all__:
        value = getattr(ja, name)
        if isinstance(value, types.ModuleType):
            names |= {f"{name}.{each}" for each in value.__all__}
        else:
            names.add(name)
    return names


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page: its headings in the form that GitHub and mkdocs give them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_reference_lists_every_public_name_once():
    listed = [
        name for path in (DOCS / "api").glob("*.md") for name in DIRECTIVE.findall(path.read_text())
    ]
    assert sorted(listed) == sorted(public_names())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PAGES],
)
@pytest.mark.optimized
def test_code_of_the_page_prints_the_output_shown(name, tmp_path):
    """Blocks of a page share their variables, in an empty folder and with JAX's defaults."""
    text = PAGES[name].read_text("utf-8")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for printed, shown in run(text, f"{name}.md", tmp_path):
            (numbers, words), (expected, expected_words) = map(numbers_and_text, (printed, shown))
            assert words == expected_words
            assert numbers == pytest.approx(expected, abs=1e-3)
    pictures = {Path(shown).name for shown, _ in PICTURE.findall(text)}
    assert {path.stem for path in tmp_path.glob("*.png")} == pictures


@pytest.mark.parametrize("name", PAGES)
def test_page_shows_each_picture_at_half_its_size(name):
    text = PAGES[name].read_text("utf-8")
    saved = re.findall(r'savefig\("(\w+)\.png"', text)
    assert sorted(saved) == sorted(Path(shown).name for shown, _ in PICTURE.findall(text))
    for shown, width in PICTURE.findall(text):
        assert plt.imread(DOCS / "images" / f"{shown}.png").shape[1] // 2 == int(width)


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.stem)
def test_links_point_to_files_and_headings(path):
    text = CODE.sub("", path.read_text("utf-8"))
    for link in filter(None, (a or b for a, b in LINK.findall(text))):
        if re.match(r"https?:", link):
            continue
        target, _, heading = link.partition("#")
        place = (path.parent / target).resolve() if target else path
        made = {DOCS / "changelog.md", DOCS / "contributing.md"}  # from files outside of docs
        assert place.exists() or place in made, link
        if heading and place.suffix == ".md":
            assert heading in anchors(place), link


def test_tests_that_a_page_names_exist():
    named = re.findall(
        r"`(test_\w+\.py)::(test_\w+)`", (DOCS / "inside_a_layer.md").read_text("utf-8")
    )
    assert len(named) >= 20
    for file, test in named:
        tree = ast.parse((Path(__file__).parent / file).read_text("utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w/]+\.md)$", (DOCS.parent / "mkdocs.yml").read_text(), re.M))
    existing = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    methods = {f"methods/{path.name}" for path in (DOCS / "methods").glob("*.md")}
    assert existing - methods <= listed
    notebooks = {f"notebooks/{path.stem}.md" for path in DOCS.glob("notebooks/*.ipynb")}
    assert notebooks <= listed
    assert listed <= existing | notebooks | {"changelog.md", "contributing.md"}


def test_flowchart_has_a_box_for_each_node_and_a_line_for_each_edge():
    text = (DOCS / "architecture.md").read_text("utf-8")
    [chart] = re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)
    drawn = svg(chart)
    assert drawn.count('class="edge"') == chart.count("-->")
    nodes = set(re.findall(r"(\w+)\(?\[", chart))
    assert drawn.count("<rect") == len(nodes)
    assert "methods.occlusion" in drawn
