"""Names that a user may ask for, and what the answer looks like."""

from __future__ import annotations

import dataclasses

import pytest

from tests.plan.plans import alternatives, example
from xshard.errors import PlanError, XshardError
from xshard.plan.plan import Plan

UP_1 = "args[0]['params']['layer_1']['mlp']['up']['kernel']"


@pytest.mark.parametrize(
    ("what", "key"),
    [
        (UP_1, UP_1),
        ('args[0]["params"]["layer_1"]["mlp"]["up"]["kernel"]', UP_1),
        ("params/layer_1/mlp/up/kernel", UP_1),
        ("params.layer_1.mlp.up.kernel", UP_1),
        ("params/layer_1", UP_1),  # a part that one path has
        ("params/layer_*/mlp/up/kernel", UP_1.replace("_1", "_0")),  # as print(plan) shows it
        ("step", "args[0]['step']"),
        ("args[1]", "args[1]"),
        ("loss", "result['loss']"),
        ("layer_0/mlp/up", "ops[0]"),
        ("up", "ops[0]"),
        ("model.py:31", "ops[0]"),  # the forward op of the line
        ("/home/me/model.py:31", "ops[0]"),
        ("model.py:40", "ops[1]"),
        ("eigh", "ops[1]"),
        ("ops[2]", "ops[2]"),
    ],
)
def test_names(what: str, key: str):
    asked: list[str] = []
    example(_alternatives=alternatives(asked)).explain(what)
    assert asked == [key]


def test_an_argument_goes_before_its_next_value_among_the_results():
    plan, asked = example(), list[str]()
    state = [
        dataclasses.replace(a, path=a.path.replace("args[0]", "result[0]")) for a in plan.arguments
    ]
    after = dataclasses.replace(plan, results=tuple(state), _alternatives=alternatives(asked))
    after.explain("params/layer_1/mlp/up/kernel")
    after.explain("result[0]/params/layer_1")
    assert asked == [UP_1, UP_1.replace("args", "result")]


def test_the_answer_is_a_table_with_the_chosen_one_marked():
    answer = example(_alternatives=alternatives([])).explain("params/layer_1")
    assert answer.chosen is not None and answer.chosen.extra_ns == 0
    assert str(answer).splitlines() == [
        UP_1,
        "    sharding              step time   more than chosen   peak memory",
        "─" * 68,
        "→   P(None, 'model')        4.79 ms                          7.65 MB",
        "    P()                        6 ms           +1.21 ms          9 MB",
        "    P('data', None)    does not fit",
        "each row is the best plan with that sharding",
    ]
    assert repr(answer) == f"Explanation({UP_1}: P(None, 'model') of 3 alternatives)"
    assert "does not fit" in answer._repr_html_()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("layer_1", f"'layer_1' names 2 things in the plan, say which one: {UP_1}; "
                    f"{UP_1.replace('params', 'mu')}"),
        ("layer_2/mlp/down", "the plan has no 'layer_2/mlp/down'; close are "),
        ("Params/layer_1", f"the plan has no 'Params/layer_1'; close are {UP_1}"),
        ("model.py:32", "the plan has no 'model.py:32'; close are model.py:31; model.py:40"),
        ("ops[3]", "the plan has no 'ops[3]'"),
        ("qzqz", "the plan has no 'qzqz'; print(plan) lists the names"),
        ("", "the plan has no ''"),
        ("'", 'the plan has no "\'"'),
    ],
)  # fmt: skip
def test_names_that_are_unknown_or_ambiguous(what: str, message: str):
    with pytest.raises(XshardError) as error:
        example(_alternatives=alternatives([])).explain(what)
    assert str(error.value).startswith(message)


def test_ambiguous_ops_are_listed_with_the_name_that_tells_them_apart():
    ops = example().ops
    twins = example(ops=(ops[0], dataclasses.replace(ops[0], rule="b o, o i -> b i")))
    with pytest.raises(
        XshardError, match=r"names 2 things.*: ops\[0\], dot_general fwd.*; ops\[1\]"
    ):
        twins.explain("model.py:31")


def test_a_plan_from_a_file_says_why_it_cannot_explain():
    with pytest.raises(
        PlanError, match=r"cannot explain 'step': it was read from a file.*plan again"
    ):
        Plan.from_json(example().to_json()).explain("step")
