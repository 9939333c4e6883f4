"""The report as a page: what it shows of a plan, hostile names, and how a browser lays it out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, find_browser
from tests.plan.plans import COLUMNS, alternatives, array, example
from xshard.mpmd.plan import PipelinePlan
from xshard.plan.page.bars import shares
from xshard.plan.plan import MemoryCurve, MemoryPart, Plan, Trial
from xshard.schedules import Times, build

HOSTILE = (
    "</script></style></title></svg><img src=x onerror=\"document.title='owned'\">"
    "<script>document.title='owned'</script>"
)
ROWS = ((0,), (1,))


def curve() -> MemoryCurve:
    """A step of four stretches whose peak is the example's."""
    kept = MemoryPart("kept for the backward pass", (0, 2_000_000, 4_654_321, 1_000_000))
    arguments = MemoryPart("arguments", (3_000_000,) * 4)
    phases = (("fwd", 0), ("bwd", 2_000_000), ("update", 4_000_000))
    starts = (0, 1_000_000, 2_000_000, 3_000_000)
    return MemoryCurve(starts, 4_785_567, (arguments, kept), phases)


def full(name: str = "up", **changes: Any) -> Plan:
    """The example in microbatches with all that a report draws; layers 4 to 7 are split twice."""
    layers = [
        array(f"args[0]['more'][{k}]['{name}']", (512, 2048), COLUMNS if k < 4 else ROWS)
        for k in range(8)
    ]
    trials = Trial(1, None, None), Trial(2, 5_000_000, 6_000_000), Trial(4, 4_785_567, 7_654_321)
    arguments = (*example().arguments, *layers)
    batch_dims = tuple(0 if a.path == "args[1]" else -1 for a in arguments)
    plan = example(arguments=arguments, memory=(curve(),), memory_limit=9_000_000, trials=trials,
                   microbatches=4, batch_dims=batch_dims)  # fmt: skip
    return replace(plan, **changes)


def html(plan: Plan, tmp_path: Path, **options: Any) -> str:
    plan.to_html(tmp_path / "report.html", **options)
    return (tmp_path / "report.html").read_text("utf-8")


def test_a_report_shows_all_that_the_plan_holds(tmp_path: Path):
    page = html(full(), tmp_path, against=example())
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Notes", "Time of a step", "Memory of a device", "Sharding map",
        "Communication by mesh axes", "Alternatives that lost", "The other plan", "All tables",
    ]  # fmt: skip
    for text in ("peak 7.65 MB", "limit 9 MB", "does not fit", "+214 µs (+4.5%)", "more/*/up"):
        assert f">{text}<" in page, text


def test_layers_that_are_sharded_alike_are_one_box(tmp_path: Path):
    page = html(full(), tmp_path)
    row = page[page.index(">more/*/up<") :]
    row = row[: row.index("<text><title>", 5)] if "<text><title>" in row[5:] else row
    boxes = re.findall(r"float32\[512, 2048\] (P\(.*?\)):", row)
    assert boxes[:2] == ["P(None, 'model')", "P('data', 'model')"]


def test_a_limit_far_above_the_peak_is_named_and_not_drawn(tmp_path: Path):
    page = html(full(memory_limit=10**9), tmp_path)
    assert "The limit of 1 GB is 131 times the peak: not drawn." in page and ">limit 1" not in page


def test_a_pipeline_shows_its_schedule_and_stages(tmp_path: Path):
    page = pipeline(tmp_path).read_text("utf-8")
    assert page.count(">group ") >= 3 and "waiting (" in page and ">stage 1<" in page
    assert page.count("live memory over the time of a step") == 2


def pipeline(tmp_path: Path) -> Path:
    """The page of two groups that run two stages each in turns."""
    schedule = build("interleaved", 2, 8, 2)
    times = Times.even(schedule, 50_000, fwd=1_000_000, bwd=2_000_000)
    plan = PipelinePlan(
        schedule, (3, 3, 3, 3), (0, 0, 0, 0), full().mesh, "cpu:2x8", times,
        (0, 100_000), (10**9, 2 * 10**9), {"stage 0": full(), HOSTILE: full(HOSTILE)},
    )  # fmt: skip
    assert "stage 3" in str(plan) and "waiting" in plan._repr_html_()
    plan.to_html(tmp_path / "pipeline.html")
    return tmp_path / "pipeline.html"


def test_time_is_split_without_rest():
    assert sum(share.time_ns for share in shares(full())) == full().objective_ns


def test_asked_alternatives_are_shown(tmp_path: Path):
    plan = full(_alternatives=alternatives([]))
    page = html(plan, tmp_path, explain=("args[1]",))
    assert "each row is the best plan with that sharding" in page


def test_nothing_is_fetched_or_run(tmp_path: Path):
    page = html(full(HOSTILE, notes=(HOSTILE,)), tmp_path, against=example())
    assert "default-src 'none'; style-src 'unsafe-inline'" in page
    assert not re.search(r"<(script|img|link|iframe)|https?:|url\(", page)


def test_a_notebook_gets_less(tmp_path: Path):
    shown = full()._repr_html_()
    assert "peak 7.65 MB" in shown and len(shown) < len(html(full(), tmp_path))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("there is no browser: make test installs one")
    with Browser(path, tmp_path_factory.mktemp("profile")) as started:
        yield started


OUTSIDE = """
[...document.querySelectorAll('svg text')].filter(text => {
  const t = text.getBoundingClientRect(), s = text.ownerSVGElement.getBoundingClientRect();
  const wide = t.left < s.left - 1 || t.right > s.right + 1;
  return wide || t.top < s.top - 1 || t.bottom > s.bottom + 1;
}).map(text => text.textContent)
"""
CONTRAST = """
(() => {
  const light = colour => colour.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 765;
  const text = getComputedStyle(document.querySelector('main')).color;
  return light(text) - light(getComputedStyle(document.body).backgroundColor);
})()
"""


def test_a_pipeline_in_a_browser(browser: Browser, tmp_path: Path):
    browser.look(1280, "light")
    browser.open(pipeline(tmp_path))
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.evaluate("document.querySelectorAll('img, script').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
    assert browser.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Browser, tmp_path: Path, scheme: str):
    html(full(HOSTILE, notes=(HOSTILE,)), tmp_path, against=example())
    browser.look(1280, scheme)
    browser.open(tmp_path / "report.html")
    assert browser.evaluate("document.title") == "xshard: data=2×model=4 on cpu:1x8"
    assert browser.evaluate("document.querySelectorAll('img, script').length") == 0
    assert browser.evaluate("performance.getEntriesByType('resource').length") == 0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1280
    assert browser.evaluate(OUTSIDE) == []
    contrast = browser.evaluate(CONTRAST)
    assert contrast > 0.7 if scheme == "dark" else contrast < -0.7
    assert browser.screenshot().startswith(b"\x89PNG")
