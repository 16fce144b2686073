"""What mkdocs does not do by itself: pages from files at the root, links out of `docs/`, lists after a line of text.

Links in Markdown are relative, so that they work where the code is hosted. On the site a link to a file outside `docs/`
leads to a copy of it under `files/`; one to README.md, CONTRIBUTING.md or CHANGELOG.md to its page. A link to
nothing stays as it is, and `mkdocs build --strict` refuses it.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])([^)#\s]+)")
LIST = re.compile(r"^((?![-*|#\s]).+| {8}\S.*)\n(?=- )", re.MULTILINE)
CODE_OF_ITEM = re.compile(r"(?<=\n\n) {6}(?=\S)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages made from files at the root, and every file outside `docs/` that a page links to."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for page in [file for file in files if file.is_documentation_page()]:
        source = source_of(page.src_uri)
        for target in LINK.findall(without_code(page.content_string)):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            outside = not path.startswith(("docs/", "..")) and path not in PAGES
            if outside and (ROOT / path).is_file() and files.get_file_from_path(f"files/{path}") is None:
                files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's Markdown with links of the site, and with lists as Python-Markdown knows them.

    Where code is hosted, a list may follow a line of text, and code in an item begins six spaces in. Python-Markdown
    needs an empty line, and eight spaces.
    """
    here = page.file.src_uri
    folder = posixpath.dirname(source_of(here))

    def rewritten(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        inside = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, f"files/{path}")
        return posixpath.relpath(inside, posixpath.dirname(here) or ".")

    def adapted(text: str) -> str:
        return LIST.sub(r"\1\n\n", CODE_OF_ITEM.sub(" " * 8, LINK.sub(rewritten, text)))

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else adapted(part) for part in parts)


def source_of(page: str) -> str:
    """The path in the repository of a page of the site: `index.md` -> `README.md`, `data.md` -> `docs/data.md`."""
    return {made: name for name, made in PAGES.items()}.get(page, f"docs/{page}")


def without_code(markdown: str) -> str:
    return FENCE.sub("", markdown)
