"""The documentation site is whole: every link leads somewhere, every public name of an API page is on it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
API = sorted((ROOT / "docs" / "api").glob("*.md"))
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "TS2_SITE" in os.environ:  # CI has built it already
        return Path(os.environ["TS2_SITE"])
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(  # not --quiet, which drops the warnings before --strict counts them
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory


def public_names(module: str) -> set[str]:
    """The classes and functions in `__all__` of a package; values and packages in it have no docstring of their own."""
    tree = ast.parse((ROOT / module.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    listed = next(
        set(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    sources = (file.read_text(encoding="utf-8") for file in (ROOT / module.replace(".", "/")).rglob("*.py"))
    return {name for source in sources for name in re.findall(r"^(?:class|def) (\w+)", source, re.M)} & listed


def test_links_in_markdown_lead_to_files() -> None:
    """As where the code is hosted: relative to the page that has them."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    wrong = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in pages
        for target in LINK.findall(re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S))
        if not (page.parent / target).exists()
    ]
    assert len(pages) > 10
    assert wrong == []


def test_links_of_the_site_lead_to_its_pages(site: Path) -> None:
    wrong, links = [], 0
    for page in site.rglob("*.html"):
        if page.name == "404.html":  # its links are from the root of the server
            continue
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8")):
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:|//", target):
                continue
            links += 1
            file = page.parent / target if target else page
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (
                anchor and file.suffix == ".html" and f'id="{anchor}"' not in file.read_text(encoding="utf-8")
            ):
                wrong.append(f"{page.relative_to(site)}: {link}")
    assert links > 100
    assert wrong == []


def test_lists_are_no_text(site: Path) -> None:
    """Python-Markdown is stricter than where code is hosted; what it does not take for a list stays in a paragraph."""
    paragraphs = {
        paragraph: page.parent.name
        for page in site.rglob("*.html")
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.S)
    }
    wrong = [page for text, page in paragraphs.items() if re.search(r"^\s*(- |\| |\d+\. |python cli)", text, re.M)]
    assert len(paragraphs) > 500
    assert wrong == []


@pytest.mark.parametrize("page", [page.stem for page in API if page.stem != "index"])
def test_an_api_page_has_every_public_name(site: Path, page: str) -> None:
    modules = re.findall(r"^::: ([\w.]+)", (ROOT / "docs" / "api" / f"{page}.md").read_text(encoding="utf-8"), re.M)
    html = (site / "api" / page / "index.html").read_text(encoding="utf-8")
    packages = [module for module in modules if (ROOT / module.replace(".", "/") / "__init__.py").is_file()]
    names = {name for module in packages for name in public_names(module)}
    assert names
    assert [name for name in sorted(names) if not re.search(rf'id="ts2_lightning\.[\w.]*\.{name}"', html)] == []
