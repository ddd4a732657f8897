from __future__ import annotations

import json
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remora.scheduler.placeholders import (
    Expander,
    Layer,
    UnresolvableText,
    formatted_time,
    names,
    unsupported_times,
)

NOW = datetime(2026, 3, 1, 4, 5, 6)  # noqa: DTZ001 -- only its digits count


def expander(*layers, literal=None, otherwise=lambda name: None):
    made = [Layer(values=values) for values in layers]
    if literal is not None:
        made.append(Layer(values=literal, literal=True))
    return Expander(made, NOW, otherwise)


def test_a_name_is_replaced_by_its_value():
    assert expander({"a": "1"}).expand("x${a}y${a}") == "x1y1"


def test_an_unknown_name_is_left_as_it_is():
    assert expander({"a": "1"}).expand("${b} ${a${b}} ${a}") == "${b} ${a${b}} 1"


def test_names_may_be_made_of_values():
    assert expander({"stage": "prod", "model_prod": "m1"}).expand("${model_${stage}}") == "m1"


def test_values_may_hold_placeholders():
    assert expander({"a": "<${b}>", "b": "[${c}]", "c": "x"}).expand("${a}") == "<[x]>"


def test_the_first_layer_that_has_a_name_wins():
    assert expander({"a": "start"}, {"a": "local", "b": "local"}, {"b": "global"}).expand("${a} ${b}") == "start local"


def test_a_value_may_name_what_it_hides():
    assert expander({"n": "${n}-local"}, {"n": "global"}).expand("${n}") == "global-local"


def test_values_that_name_each_other_in_a_circle_are_told_with_the_circle():
    with pytest.raises(UnresolvableText, match=r"\$\{a\} -> \$\{b\} -> \$\{a\}.* circle"):
        expander({"a": "${b}", "b": "${a}"}).expand("${a}")


def test_a_value_that_names_itself_is_a_circle():
    with pytest.raises(UnresolvableText, match="circle"):
        expander({"a": "${a}"}).expand("${a}")


def test_literal_values_are_not_expanded_again():
    assert expander({"a": "1"}, literal={"out": "${a} $[yyyy]"}).expand("${out}") == "${a} $[yyyy]"


def test_names_that_no_layer_has_are_asked_for():
    assert expander({}, otherwise={"train.arn": "arn:x"}.get).expand("${train.arn} ${other}") == "arn:x ${other}"


def test_values_that_double_each_other_are_refused_in_time():
    doubling = {f"x{number}": f"${{x{number + 1}}}" * 2 for number in range(60)}
    with pytest.raises(UnresolvableText, match="more than 10000"):
        expander({**doubling, "x60": ""}).expand("${x0}")


def test_a_result_that_is_longer_than_parameters_may_be_is_refused():
    with pytest.raises(UnresolvableText, match="longer than 262144 bytes"):
        expander({"a": "x" * 100_000}).expand("${a}${a}${a}")


@pytest.mark.parametrize("text", ["${" * 50_000, "${" * 5_000 + "}" * 5_000, "${a", "$", "${}", "${", "$[", "$[]"])
def test_what_is_no_placeholder_is_left_or_refused_in_time(text):
    try:
        assert expander({"a": "1"}).expand(text) == text
    except UnresolvableText as error:
        assert "more than 10000" in str(error) or "nested too deeply" in str(error)  # noqa: PT017


def test_in_json_a_value_is_escaped_inside_a_string_and_raw_outside():
    text = '{"Name": "${n}", "Count": ${n}, "${n}": "\\"${q}"}'
    expanded = expander({"n": "3", "q": 'say "hi"\n'}).expand(text, is_json=True)
    assert json.loads(expanded) == {"Name": "3", "Count": 3, "3": '"say "hi"\n'}


def test_a_json_value_may_be_inserted_whole_outside_a_string():
    expanded = expander({"list": '[1, {"a": "b"}]'}).expand('{"x": ${list}}', is_json=True)
    assert json.loads(expanded) == {"x": [1, {"a": "b"}]}


@settings(deadline=None)
@given(value=st.text(), before=st.text(), after=st.text())
def test_no_value_breaks_out_of_its_json_string(value, before, after):
    before, after = before.replace("$", ""), after.replace("$", "")
    text = json.dumps({"key": f"{before}${{v}}{after}", "other": "${v}"})
    expanded = Expander([Layer(values={"v": value}, literal=True)], NOW).expand(text, is_json=True)
    assert json.loads(expanded) == {"key": before + value + after, "other": value}


@settings(deadline=None)
@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10))
def test_json_without_known_names_stays_as_it_is(value):
    text = json.dumps(value)
    assert Expander([], NOW).expand(text.replace("$[", "["), is_json=True) == text.replace("$[", "[")


@settings(deadline=None)
@given(st.text(alphabet='${}[]ab\\"yM+-1 '))
def test_any_text_is_expanded_or_refused_and_never_fails_otherwise(text):
    made = expander({"a": text, "b": "1"})
    for is_json in (False, True):
        try:
            assert isinstance(made.expand(text, is_json=is_json), str)
        except UnresolvableText:
            continue


def test_texts_inside_a_json_value_are_expanded_and_stay_texts():
    value = {"n": "${n}", "list": ["${n}", 1, None, True], "deep": {"x": "a${n}"}}
    assert expander({"n": "3"}).expand_value(value) == {
        "n": "3",
        "list": ["3", 1, None, True],
        "deep": {"x": "a3"},
    }


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("yyyyMMdd", "20260301"),
        ("yyyy-MM-dd HH:mm:ss", "2026-03-01 04:05:06"),
        ("yyyy-MM-dd'T'HH:mm:ss", "2026-03-01T04:05:06"),
        ("yyMMdd", "260301"),
        ("yyyy/MM/dd", "2026/03/01"),
        ("yyyyMMdd-1", "20260228"),
        ("yyyyMMdd+31", "20260401"),
        ("yyyy-MM-dd-1", "2026-02-28"),
        ("HHmmss+1/24", None),
        ("add_months(yyyyMMdd,1)", None),
        ("this_day(yyyyMMdd)", None),
        ("yyyyMMdd+99999999", None),
        ("yyyyMMdd-99999", "17520517"),
        ("0", None),
        ("-1", None),
        ("", None),
    ],
)
def test_times_are_formatted_as_java_does(expression, expected):
    assert formatted_time(expression, NOW) == expected


def test_time_expressions_in_a_text_are_expanded_and_others_left():
    text = "$[yyyyMMdd]/$[month_begin(yyyyMMdd,1)]/$['x'].$[0]"
    assert expander({}).expand(text) == "20260301/$[month_begin(yyyyMMdd,1)]/$['x'].$[0]"
    assert list(unsupported_times(text, NOW)) == ["$[month_begin(yyyyMMdd,1)]"]


def test_names_in_a_text_are_listed_without_made_up_ones():
    assert list(names("${a} ${b${c}} ${train.x} $[yyyy] ${")) == ["a", "train.x"]
