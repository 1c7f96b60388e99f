"""The pages of the docs: their links, in the repository and in the site, and what the API reference names."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]

_spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)

PAGES = [
    *hooks.ROOT_PAGES,
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
    *("benchmarks/NOTES.md",),
]
API = sorted((ROOT / "docs" / "api").glob("*.md"))


@functools.cache
def anchors(path: Path) -> frozenset[str]:
    """What links may name behind # on a page: its headings in lower case, without punctuation, spaces as hyphens."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain)


def broken(page: str) -> list[str]:
    """The links of a page that lead nowhere in the repository."""
    found = []
    for target in hooks.links((ROOT / page).read_text(encoding="utf-8")):
        place = hooks.resolved(page, target)
        if place is None:
            continue
        path, anchor = ROOT / place[0], place[1].removeprefix("#")
        if not path.exists() or (anchor and anchor not in anchors(path)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    assert broken(page) == []


def test_a_link_to_nothing_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "other.md").write_text("# One, two\n\n```\n# code\n```\n")
    text = "[a](other.md#one-two) [b](other.md#code) [c](gone.md) `[d](gone.md)` [e](https://gone.md)\n"
    (tmp_path / "page.md").write_text(text)
    assert broken("page.md") == ["other.md#code", "gone.md"]


@pytest.mark.parametrize(
    ("page", "link", "in_site"),
    [
        ("docs/data.md", "networks.md#x", "networks.md#x"),
        ("docs/results/how.md", "../../README.md", "../index.md"),
        ("docs/results/how.md", "studies", "studies/index.md"),
        ("docs/user-guide.md", "../benchmarks/NOTES.md", "source/benchmarks/NOTES.md.md"),
        ("README.md", "docs/decisions", "decisions/README.md"),
        ("README.md", "docs/images/ui-run.png", "images/ui-run.png"),
        ("CONTRIBUTING.md", "docs/architecture.md#the-rooms", "architecture.md#the-rooms"),
        ("docs/data.md", "https://mlflow.org", "https://mlflow.org"),
    ],
)
def test_a_link_of_the_repository_becomes_one_of_the_site(page, link, in_site):
    assert hooks.with_site_links(page, f"[text]({link})") == f"[text]({in_site})"


def test_links_in_code_stay():
    text = "`[a](README.md)`\n\n```md\n[b](../README.md)\n```\n"
    assert hooks.with_site_links("docs/data.md", text) == text


def test_lists_and_what_lies_in_them_are_taken_for_such_by_both_kinds_of_markdown():
    """The site's takes a list or table behind a paragraph for a part of it, and less than 4 spaces for none."""
    wrong = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        before, nested = "", False
        for line in text.splitlines():
            starts = re.match(r"([-*]|\d+\.) |\|", line)
            if not before.strip():
                nested = line.startswith("    ")
                if re.match(r" {1,3}\S", line):
                    wrong.append((page, line))
            elif starts and (nested or not re.match(r"\s|([-*]|\d+\.) |\|", before)):
                wrong.append((page, line))
            before = line
    assert wrong == []


def documented(page: Path) -> dict[str, list[str] | None]:
    """The modules that a page of the API reference names, each with its members, None for all."""
    blocks = re.findall(r"^::: (\S+)\n((?:    .*\n?)*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {module: (yaml.safe_load(text) or {}).get("options", {}).get("members") for module, text in blocks}


def defined(module: str) -> tuple[set[str], set[str]]:
    """(names at the top of a module, those that it hands on from others), by reading it."""
    path = ROOT.joinpath(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))
    handed_on = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fnostab.")
        for alias in node.names
    }
    own = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return own, handed_on


@pytest.mark.parametrize("page", [page for page in API if page.name != "README.md"], ids=lambda page: page.name)
def test_the_api_reference_has_every_name_that_a_package_hands_on_and_none_that_is_not_there(page):
    modules = documented(page)
    assert modules
    for module, members in modules.items():
        own, handed_on = defined(module)
        assert set(members or ()) <= own | handed_on, module
        if not own:  # a package that only hands on
            assert set(members) == handed_on, module


def test_the_site_fetches_nothing_from_the_network():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert config["strict"] is True
    assert {"extra_javascript", "repo_url"} & config.keys() == set()
    assert all((ROOT / "docs" / name).is_file() for name in config["extra_css"])


def test_what_the_site_is_made_with_is_at_its_place():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    (plugin,) = (one for one in config["plugins"] if isinstance(one, dict))
    options = plugin["mkdocstrings"]["handlers"]["python"]["options"]
    named = [*config["hooks"], *(name for name in options["extensions"] if isinstance(name, str))]
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert {Path(name).name for name in named} <= set(config["exclude_docs"].split())
