"""Replica groups: each form to device ids, device ids to mesh axes."""

import pytest

from xshard.verify.groups import (
    GROUPS,
    Groups,
    axes_of_groups,
    axes_of_pairs,
    parse_braces,
    parse_groups,
)

FORMS = {
    "{{0,1},{2,3}}": ((0, 1), (2, 3)),
    "{{0, 1}, {2, 3}}": ((0, 1), (2, 3)),
    "{}": (),
    "[2,4]<=[8]": ((0, 1, 2, 3), (4, 5, 6, 7)),
    "[4,2]<=[2,4]T(1,0)": ((0, 4), (1, 5), (2, 6), (3, 7)),
    "[4,2]<=[2,2,2]T(2,1,0)": ((0, 4), (2, 6), (1, 5), (3, 7)),
    "mesh['d'=2,'m'=4] {'d'}": ((0, 4), (1, 5), (2, 6), (3, 7)),
    "mesh['a'=2,'b'=2,'c'=2] {'c','a'}": ((0, 4, 1, 5), (2, 6, 3, 7)),
    "mesh['x'=1,'y'=2,'z'=4] {'y'}": ((0, 4), (1, 5), (2, 6), (3, 7)),
    "mesh['x'=8] {'x':(1)2}": ((0, 4), (1, 5), (2, 6), (3, 7)),
    "mesh['x'=8] {'x':(2)2}": ((0, 2), (1, 3), (4, 6), (5, 7)),
    "mesh['x'=8] {'x':(4)2,'x':(1)2}": ((0, 4, 1, 5), (2, 6, 3, 7)),
    "mesh['x'=8,'y'=1], device_ids=([2,4]T(1,0)) {'x'}": ((0, 4, 1, 5, 2, 6, 3, 7),),
    "mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}": ((0, 4), (1, 5), (2, 6), (3, 7)),
    "mesh['x'=2,'y'=2], device_ids=(0,3,1,2) {'y'}": ((0, 3), (1, 2)),
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form_is_found_in_a_line_and_parsed(text: str) -> None:
    line = f"  %x = f32[8] all-reduce(%y), channel_id=1, replica_groups={text}, dimensions={{0}}"
    match = GROUPS.search(line)
    assert match is not None
    assert match[1] == text
    assert parse_groups(text) == FORMS[text]


@pytest.mark.parametrize("text", ["mesh<a=2> {a}", "[2]<=8", "mesh[a=2] {:}"])
def test_an_unknown_form_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="unknown form"):
        parse_groups(text)


AXES = [
    (((0, 1, 2, 3), (4, 5, 6, 7)), (2, 4), (1,)),
    (((0, 4), (1, 5), (2, 6), (3, 7)), (2, 4), (0,)),
    (((5, 1), (0, 4), (6, 2), (3, 7)), (2, 4), (0,)),  # any order
    (((0, 1, 2, 3, 4, 5, 6, 7),), (2, 4), (0, 1)),
    ((), (2, 4), (0, 1)),  # all devices
    ((), (1, 8), (1,)),
    (((0, 4, 1, 5), (2, 6, 3, 7)), (2, 2, 2), (0, 2)),
    (((0,), (1,), (2,), (3,)), (2, 2), ()),
    (((0, 1, 2, 3), (4, 5, 6, 7)), (8,), (0,)),  # half an axis
    (((0, 1), (2, 3)), (2, 4), None),  # half the devices
    (((0, 5), (1, 4), (2, 7), (3, 6)), (2, 4), None),  # a twist
    (((0, 8),), (8,), None),  # another mesh
]


@pytest.mark.parametrize(("groups", "mesh_shape", "axes"), AXES)
def test_axes_of_groups(
    groups: Groups, mesh_shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> None:
    assert axes_of_groups(groups, mesh_shape) == axes


PAIRS = [
    ("{{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}", (2, 4), (1,)),
    ("{{0,4},{4,0}}", (2, 4), (0,)),
    ("{{0,0},{2,4},{4,2},{6,6},{1,1},{3,5},{5,3},{7,7}}", (2, 2, 2), (0, 1)),
    ("{{0,0},{1,1}}", (2,), ()),
]


@pytest.mark.parametrize(("text", "mesh_shape", "axes"), PAIRS)
def test_axes_of_pairs(text: str, mesh_shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    assert axes_of_pairs(parse_braces(text), mesh_shape) == axes
