"""The cfg grammar: what option_list.c of Darknet reads, and where dnc asks rather than guesses."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnc.darknet.cfg import TRAINING_KEYS, Section, parse_cfg, read_cfg
from dnc.errors import CfgError, DncWarning


def section(options: str, lenient: bool = False) -> Section:
    """The section [x] with these options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return parse_cfg(f"[net]\n[x]\n{options}\n", "a.cfg", lenient)[1]


def error(text: str, lenient: bool = False) -> str:
    with pytest.raises(CfgError) as caught:
        parse_cfg(text, "a.cfg", lenient)
    return str(caught.value)


def test_sections_options_lines() -> None:
    net, first, second = parse_cfg("# a\n\n[net]\n width = 4 \n;b\n[ conv ]\nfilters=1\n\n[conv]\n", "a.cfg")
    assert (net.name, first.name, second.name) == ("net", "conv", "conv")
    assert (net.where.line, net.where.index) == (3, None)
    assert (first.where.line, first.where.index, second.where.index) == (6, 0, 1)
    option = net.options["width"]
    assert (option.key, option.value, option.line, option.text) == ("width", "4", 4, "width = 4")
    assert str(first.at("filters")) == "a.cfg:7 [conv] #0"
    assert first.at("filters").text == "filters=1"
    assert first.at("nothing") == first.where


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(end: str) -> None:
    sections = parse_cfg(end.join(["[net]", "a=1", "[x]", "b=2"]))
    assert [list(each.options) for each in sections] == [["a"], ["b"]]
    assert sections[1].options["b"].line == 4


def test_blanks_marks_and_ends_of_files() -> None:
    """Tabs, blanks of any kind inside a line, a byte order mark, DOS's end of file."""
    (net,) = parse_cfg("\ufeff[ n e t ]\n\tw i d t h\u00a0= 1 2\n\x1a")
    assert (net.name, net.integer("width", 0)) == ("net", 12)


def test_form_feeds_are_no_lines() -> None:
    """Editors count lines at line feeds alone, and so do the places of errors."""
    (net,) = parse_cfg("[net]\na=1\x0c\x0b\u2028\nb=2")
    assert net.options["b"].line == 3


def test_first_of_equal_keys_counts() -> None:
    with pytest.warns(DncWarning, match=r"'a' is given twice; line 2 counts\n  at a\.cfg:3\n      3 \| a=2"):
        (net,) = parse_cfg("[net]\na=1\na=2\n", "a.cfg")
    assert net.integer("a", 0) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_cfg("[net]\na=1\na=1\nbatch=1\nbatch=2\n")


def test_key_without_value_is_as_if_not_there() -> None:
    """Darknet passes `a=` over, so that a later `a=2` counts."""
    assert section("a=\na=2").integer("a", 7) == 2
    with pytest.raises(CfgError, match="a= has no value"):
        section("a=").integer("a", 7)
    with pytest.warns(DncWarning, match="a= has no value"):
        assert section("a=", lenient=True).integer("a", 7) == 7


@pytest.mark.parametrize(
    ("value", "number"),
    [("4", 4), ("-3", -3), ("+2", 2), ("007", 7), ("40 # 32", 40), ("40;32", 40), ("3.0", 3), ("3.", 3), ("3.00#x", 3)],
)
def test_integers(value: str, number: int) -> None:
    assert section(f"a={value}").integer("a", 99) == number


@pytest.mark.parametrize(
    ("value", "guess"),
    [("4x", 4), ("4.5", 4), ("1e3", 1), ("0x10", 0), ("x", 0), ("#4", 0), ("--1", 0), ("1_000", 1), ("\uff11", 0)],
)
def test_what_atoi_guesses(value: str, guess: int) -> None:
    with pytest.raises(CfgError, match=r"is not an integer\n(.*\n)*.*Darknet would read the leading digits, or 0"):
        section(f"a={value}").integer("a", 99)
    with pytest.warns(DncWarning, match="is not an integer"):
        assert section(f"a={value}", lenient=True).integer("a", 99) == guess


@pytest.mark.parametrize("value", ["2147483648", "-2147483649", "9" * 30, "9" * 9000])
def test_integers_beyond_an_int(value: str) -> None:
    for lenient in (False, True):
        with pytest.raises(CfgError, match="is too large"):
            section(f"a={value}", lenient).integer("a", 0)


def test_integer_bounds() -> None:
    assert section("a=5").integer("a", 0, low=5, high=5) == 5
    with pytest.raises(CfgError, match="a=5 must be at least 6"):
        section("a=5").integer("a", 0, low=6)
    with pytest.raises(CfgError, match="a=5 must be from 1 to 4"):
        section("a=5").integer("a", 0, low=1, high=4)


@pytest.mark.parametrize(
    ("value", "number"),
    [("0.5", 0.5), (".5", 0.5), ("5.", 5), ("-1e-3", -0.001), ("+2E2", 200), ("7", 7), ("0.1#x", 0.1), ("1e-999", 0)],
)
def test_numbers(value: str, number: float) -> None:
    assert section(f"a={value}").number("a", 99) == number


@pytest.mark.parametrize(("value", "guess"), [("0.5x", 0.5), ("1,2", 1), ("1e", 1), ("x", 0), (".", 0)])
def test_what_atof_guesses(value: str, guess: float) -> None:
    with pytest.raises(CfgError, match="is not a number"):
        section(f"a={value}").number("a", 99)
    with pytest.warns(DncWarning, match="is not a number"):
        assert section(f"a={value}", lenient=True).number("a", 99) == guess


@pytest.mark.parametrize("value", ["nan", "-inf", "Infinity", "0x10", "1e999", "3.5e38", "-1e39"])
def test_numbers_that_are_no_float(value: str) -> None:
    """atof would take them: nothing good comes of it."""
    for lenient in (False, True):
        with pytest.raises(CfgError, match="is not a finite decimal number"):
            section(f"a={value}", lenient).number("a", 0)


def test_booleans() -> None:
    values = section("a=1\nb=0\nc=-1\nd=2")
    assert [values.boolean(key) for key in "abcd"] == [True, False, True, True]
    assert values.boolean("e") is False
    assert values.boolean("e", True) is True


def test_lists() -> None:
    values = section("a=1,2, -3\nb=0.5, 2,\nc=1,2#,3")
    assert values.integers("a") == (1, 2, -3)
    assert values.numbers("b") == (0.5, 2)
    assert values.integers("c") == (1, 2)
    assert values.integers("d") is None
    assert values.numbers("d") is None


def test_commas_in_comments() -> None:
    """layers= and from= are split at the commas of their comments as well; mask= and anchors= end at the #."""
    assert section("a=-1,-4 # two layers").integers("a", whole=True) == (-1, -4)
    with pytest.raises(CfgError, match="a= has a comma in its comment"):
        section("a=-1 # this, 2").integers("a", whole=True)
    with pytest.warns(DncWarning, match="a= has a comma in its comment"):
        assert section("a=-1 # this, 2", lenient=True).integers("a", whole=True) == (-1, 2)


def test_nothing_between_commas() -> None:
    """atoi reads 0: `mask=0,1,` are three anchors in Darknet."""
    for value in ("1,,2", "1,2,", ",1", ","):
        with pytest.raises(CfgError, match=r"has nothing between two commas.*\n(.*\n)*.*Darknet reads a 0 there"):
            section(f"a={value}").integers("a")
    with pytest.warns(DncWarning):
        assert section("a=1,,2,", lenient=True).integers("a") == (1, 0, 2, 0)
    with pytest.raises(CfgError, match="has nothing between two commas"):
        section("a=1,,2").numbers("a")


def test_choices() -> None:
    names = ("relu", "leaky")
    assert section("a=leaky").choice("a", "relu", names) == "leaky"
    assert section("").choice("a", "relu", names) == "relu"
    with pytest.raises(CfgError, match=r"a=leakey is unknown\n(.*\n)*  hint: did you mean 'leaky'\?"):
        section("a=leakey").choice("a", "relu", names)
    with pytest.raises(CfgError, match=r"hint: one of: relu, leaky"):
        section("a=x").choice("a", "relu", names)
    with pytest.raises(CfgError, match=r"give the comment a line of its own: .* reads relu"):
        section("a=leaky # or mish").choice("a", "leaky", names, fallback="relu")
    with pytest.warns(DncWarning, match="Darknet takes leaky; did you mean 'relu'"):
        assert section("a=relo", lenient=True).choice("a", "relu", names, fallback="leaky") == "leaky"
    with pytest.warns(DncWarning, match="Darknet takes relu"):
        assert section("a=relo", lenient=True).choice("a", "relu", names) == "relu"


def test_unread_options() -> None:
    """Nearly right is an error, far away a warning, training is silent, and all in the order of the file."""
    values = section("filter=1\nzzz=1\nmomentum=1")
    values.integer("filters", 1)
    with pytest.raises(CfgError, match=r"nothing in \[x\] reads 'filter'\n.*\n.*\n  hint: did you mean 'filters'\?"):
        values.finish()
    values = section("zzz=1\nyyy=1\nfilter=1\nmomentum=1\nxxx=1", lenient=True)
    values.integer("filters", 1)
    with pytest.warns(DncWarning) as caught:
        values.finish()
    assert [str(each.message).split("'")[1] for each in caught] == ["zzz", "yyy", "filter", "xxx"]


def test_training_keys_are_keys() -> None:
    assert {"momentum", "learning_rate", "ignore_thresh", "jitter", "mosaic"} <= TRAINING_KEYS
    assert not TRAINING_KEYS & {"filters", "size", "activation", "width", "mask", "anchors", "classes", "from"}


def test_junk() -> None:
    assert error("[net]\nhello\n") == (
        "a line that is neither [section], key=value nor comment\n  at a.cfg:2\n      2 | hello\n"
        "  hint: is this a .cfg file? Darknet passes the line over"
    )
    assert "neither" in error("[net]\n=1\n")
    assert "'a' stands before any section" in error("a=1\n", lenient=True)
    assert "neither" in error("hello\n", lenient=True)
    with pytest.warns(DncWarning, match="neither"):
        assert list(parse_cfg("[net]\nhello\na=1\n", lenient=True)[0].options) == ["a"]


@pytest.mark.parametrize("line", ["[net", "[]", "[", "[net]x", "[net] # x"])
def test_bad_section(line: str) -> None:
    assert f"'{line.replace(' ', '')}' is not a section" in error(f"{line}\n")


def test_nothing_obeys_what_the_file_says() -> None:
    """Controls that a terminal would obey never reach a message; long lines are cut."""
    text = error("[net]\na\u009b31mb\u202ec" + "d" * 1000)
    assert text.replace("\n", "").isprintable()
    assert len(text) < 500
    assert "holds binary data" in error("[net]\n\x1b[31m=1")


@given(st.text(max_size=200), st.booleans())
def test_any_text(text: str, lenient: bool) -> None:
    """Sections, or a CfgError whose text can be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sections = parse_cfg(text, "a.cfg", lenient)
        except CfgError as caught:
            shown = str(caught)
        else:
            shown = "".join(each.name + "".join(each.options) for each in sections)
    assert shown.replace("\n", "").isprintable()


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.from_regex(r"[a-z0-9.,-]{1,8}", fullmatch=True)),
    st.sampled_from(["", " ", "\t", "  "]),
)
def test_options_survive(options: dict[str, str], blank: str) -> None:
    text = "[net]\n" + "".join(f"{blank}{key}{blank}={blank}{value}{blank}\n" for key, value in options.items())
    (net,) = parse_cfg(text)
    assert {key: option.value for key, option in net.options.items()} == options


def test_read_returns_the_bytes(tmp_path: Path) -> None:
    """Read once: a pipe cannot be read again, and a file may change."""
    path = tmp_path / "a.cfg"
    path.write_bytes(b"[net]\r\na=1 # \xff\r\n")
    sections, data = read_cfg(path)
    assert data == path.read_bytes()
    assert sections[0].integer("a", 0) == 1
    assert sections[0].where.file == str(path)
