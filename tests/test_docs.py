"""Generated pages are current, and links between pages lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_page_of_rules_is_current():
    page = runpy.run_path(str(ROOT / "docs" / "make_rules.py"))["page"]()
    assert (ROOT / "docs" / "rules.md").read_text("utf-8") == page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path):
    text = page.read_text("utf-8")
    links = [page.parent / to for to in re.findall(r"\]\((?!https?:)([^)#]+)", text)]
    paths = re.findall(r"`((?:xshard|models|tests|benchmarks|docs)/[\w./*]+)`", text)
    room = re.findall(r"`((?:ir|rules|cost|solve|plan|run|verify)/\w+\.py)`", text)
    found = [*links, *(ROOT / path for path in paths), *(ROOT / "xshard" / path for path in room)]
    assert [str(path) for path in found if not list(path.parent.glob(path.name))] == []
