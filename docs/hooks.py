"""Lets links of the pages lead to the same places in the site as in the repository; `mkdocs.yml` names this file.

Pages link to files beside `docs/` (`../README.md`, `../benchmarks/NOTES.md`) and to folders (`studies`), as a page that
shows the repository has them. A site has neither: so README, CONTRIBUTING and CHANGELOG become pages, every other file
that a page points to becomes a page with its text, and every folder one that lists its files.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
#: Files of the repository's root that are pages of the site.
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
#: What stands between code, which is left alone, and a link's target.
_LINK = re.compile(r"```.*?^```|`[^`\n]*`|(?<=\]\()(?P<target>[^)\s]+)(?=\))", re.DOTALL | re.MULTILINE)


def links(text: str) -> Iterator[str]:
    """The targets of all inline links and images of a page, those in code left out."""
    yield from (found["target"] for found in _LINK.finditer(text) if found["target"])


def resolved(page: str, target: str) -> tuple[str, str] | None:
    """Where the link `target` of `page` leads: a path in the repository, and an anchor with its #; None if elsewhere.

    `page` is a path in the repository (`docs/data.md`), with slashes.
    """
    if re.match(r"[a-z]+:", target):
        return None
    place, hash_, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), place)) if place else page
    return path, hash_ + anchor


def site_path(path: str) -> str:
    """The page or file of the site, as a path in its sources, for a file or folder of the repository."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    inside = path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{inside}/README.md" if (ROOT / path / "README.md").exists() else f"{inside}/index.md"
    return inside if path.startswith("docs/") else f"source/{path}.md"


def with_site_links(page: str, text: str) -> str:
    """`text` of `page` with every link to the repository as one inside the site."""
    start = posixpath.dirname(site_path(page))

    def replaced(found: re.Match[str]) -> str:
        target = found["target"]
        place = resolved(page, target) if target else None
        if place is None or not (ROOT / place[0]).exists():
            return found[0]
        return os.path.relpath(site_path(place[0]), start or ".").replace(os.sep, "/") + place[1]

    return _LINK.sub(replaced, text)


def source_page(path: str) -> str:
    """The page of a file beside `docs/`, or of a folder."""
    place = ROOT / path
    if place.is_dir():
        rows = (f"- [{entry.name}]({entry.name})" for entry in sorted(place.iterdir()) if entry.is_file())
        return f"# {path}\n\n" + "\n".join(rows) + "\n"
    text = place.read_text(encoding="utf-8")
    return text if place.suffix == ".md" else f"# {path}\n\n````{place.suffix[1:]}\n{text}````\n"


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the pages that no file of `docs/` is."""
    from mkdocs.structure.files import File, InclusionLevel

    waiting = [*ROOT_PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    while waiting:
        page = waiting.pop()
        if files.get_file_from_path(site_path(page)) is None:
            text = with_site_links(page, source_page(page))
            in_nav = InclusionLevel.INCLUDED if page in ROOT_PAGES else InclusionLevel.NOT_IN_NAV
            files.append(File.generated(config, site_path(page), content=text, inclusion=in_nav))
        if page.endswith(".md"):
            places = (resolved(page, target) for target in links((ROOT / page).read_text(encoding="utf-8")))
            waiting += [
                path
                for path, _ in filter(None, places)
                if (ROOT / path).exists() and files.get_file_from_path(site_path(path)) is None
            ]
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Rewrite the links of a page that lies in `docs/`; the others have been rewritten."""
    if page.file.generated_by is not None:
        return markdown
    return with_site_links(f"docs/{page.file.src_uri}", markdown)
