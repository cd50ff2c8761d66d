"""Hooks of `mkdocs build`: formulas, flowcharts, and pages of files that lie outside of docs/."""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

from docs import notebook_runs
from docs.flowchart import svg

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
CHART = re.compile(r'<pre class="mermaid"><code>(.*?)</code></pre>', re.DOTALL)
# Pages made of files that lie beside docs/, where readers of a repository look for them.
OUTSIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages made of other files, and the files of the repository that pages link to."""
    for name, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    for name in notebook_runs.names():
        page = f"notebooks/{name}.md"
        files.append(File.generated(config, page, content=notebook_runs.markdown(name)))
    for file in list(files.documentation_pages()):
        for _, link in LINK.findall(file.content_string):
            path = _outside(link, file.src_uri)
            if path and (ROOT / path).is_file() and not files.get_file_from_path(path):
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to files of the repository point to their copies in the site."""

    def copied(match: re.Match[str]) -> str:
        path = _outside(match[2], page.file.src_uri)
        if path is None:
            return match[0]
        return match[1] + posixpath.relpath(path, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(copied, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Replace formulas by MathML and flowcharts by SVG, which browsers draw without a script."""

    def drawn(match: re.Match[str]) -> str:
        display = "block" if match[1] == "div" else "inline"
        mathml = convert(html.unescape(match[2]).strip(), display=display)
        return f'<div class="formula">{mathml}</div>' if display == "block" else mathml

    content = CHART.sub(lambda match: svg(html.unescape(match[1])), content)
    return FORMULA.sub(drawn, content)


def _outside(link: str, page: str) -> str | None:
    """Return the path of a file of the repository that a page links to, or None for a page."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith(("docs/", "..")) else path
