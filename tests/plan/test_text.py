"""What a user sees of a plan: the golden report, its figures, and names that are not markup."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.plan.plans import COLUMNS, MESH, WHOLE, array, example
from xshard.plan.units import change, duration, optimality, size, spec_text, strategy_text

GOLDEN = Path(__file__).with_name("golden.txt")


def test_a_plan_prints_as_specified():
    assert f"{example()}\n" == GOLDEN.read_text("utf-8")


def test_a_line_is_never_wider_than_the_page():
    assert max(map(len, str(example()).splitlines())) <= 110


def test_repr_is_one_line():
    assert repr(example()) == (
        "Plan(data=2×model=4 on cpu:1x8: 4.79 ms a step, 7.65 MB a device, "
        "proven optimal under this cost model)"
    )


def test_a_long_name_is_folded_and_never_cut():
    name = "args[0]['" + "x" * 200 + "']"
    text = str(example(arguments=(array(name, (8, 8), WHOLE),)))
    assert text.count("x") - str(example()).count("x") >= 200


@pytest.mark.parametrize("place", ["result[0]", "result"])
def test_results_that_are_the_next_state_are_not_listed_again(place: str):
    plan = example()
    state = [replace(a, path=a.path.replace("args[0]", place)) for a in plan.arguments[:-1]]
    moved = replace(state[0], spec=WHOLE)
    text = str(replace(plan, results=(moved, *state[1:], *plan.results)))
    results = text[text.index("Results") : text.index("Main ops")]
    assert f"{place}['params']['layer_0']" in results and "['mu']" not in results
    assert "2 arrays, 1.05 MB a device; 6 others are as the arguments of the same name" in results


@pytest.mark.parametrize(
    "name", ["args[0]['[bold red]']", "args[0]['<b>&x']", "args[0][':smile:']"]
)
def test_names_are_shown_as_they_are(name: str):
    plan = example(arguments=(array(name, (8, 8), COLUMNS),))
    assert name in str(plan)
    seen: list[str] = []
    parser = HTMLParser()
    parser.handle_data = lambda data: seen.append(data)
    parser.feed(plan._repr_html_())
    assert name in seen
    assert "<b>" not in plan._repr_html_()


def test_a_page_is_written(tmp_path: Path):
    example().to_html(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text("utf-8")
    assert page.startswith("<!doctype html>") and "all-reduce data" in page


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0 ns"), (850, "850 ns"), (999.4, "999 ns"), (999.6, "1 µs"), (12_345, "12.3 µs"),
     (1_500_000, "1.5 ms"), (59_950_000_000, "60 s"), (4_000_000_000_000, "4000 s")],
)  # fmt: skip
def test_durations(ns: float, text: str):
    assert duration(ns) == text


@pytest.mark.parametrize(("nbytes", "text"), [(4, "4 B"), (30e9, "30 GB"), (32 * 2**30, "34.4 GB")])
def test_sizes(nbytes: float, text: str):
    assert size(nbytes) == text


@pytest.mark.parametrize(
    ("objective", "bound", "text"),
    [
        (100, 100, "proven optimal under this cost model"),
        (105, 100, "within 5.0% of the best under this cost model"),
        (1_000_001, 1_000_000, "within 0.1% of the best under this cost model"),
        (100, 0, "no bound is known: the best plan may be faster"),
    ],
)
def test_the_gap_in_words(objective: int, bound: int, text: str):
    assert optimality(objective, bound) == text


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ((), "P()"),
        (WHOLE, "P()"),
        (((0,), ()), "P('data', None)"),
        (((), (0, 1)), "P(None, ('data', 'model'))"),
    ],
)
def test_specs_read_as_partition_specs(spec, text: str):
    assert spec_text(spec, MESH.names) == text


@pytest.mark.parametrize(
    ("factors", "text"),
    [((None, None), "whole"), (("b", "k"), "b→data, k→model"), (("b", "b"), "b→data×model")],
)
def test_strategies_in_words(factors: tuple[str | None, ...], text: str):
    assert strategy_text(factors, MESH.names) == text


def test_changes_carry_their_sign():
    assert change(100, 150, size) == "+50 B (+50.0%)"
    assert change(150, 100, size) == "-50 B (-33.3%)"
    assert change(0, 100, size) == "+100 B"
    assert change(7, 7, size) == "none"
