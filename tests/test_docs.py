"""Generated pages are current, and links between pages lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("name", ["rules", "api"])
def test_generated_pages_are_current(name: str):
    page = runpy.run_path(str(ROOT / "docs" / f"make_{name}.py"))["page"]()
    current = (ROOT / "docs" / f"{name}.md").read_text("utf-8") == page
    assert current, f"run python docs/make_{name}.py"


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path):
    text = page.read_text("utf-8")
    links = [page.parent / to for to in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    paths = re.findall(r"`((?:xshard|models|tests|benchmarks|docs)/[\w./*]+)`", text)
    room = re.findall(r"`((?:ir|rules|cost|solve|plan|run|verify)/\w+\.py)`", text)
    found = [*links, *(ROOT / path for path in paths), *(ROOT / "xshard" / path for path in room)]
    assert [str(path) for path in found if not list(path.parent.glob(path.name))] == []
