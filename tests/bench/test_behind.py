"""Sections that any engine computes together are compared together; what there is most to win comes first."""

from __future__ import annotations

from dnc.bench.behind import behind
from dnc.bench.layers import MADE, Layer, Layers
from dnc.bench.report import Report, behind_report


def layers(engine: str, *rows: tuple[str, float, tuple[str, ...]]) -> Layers:
    """An engine whose sections take these microseconds, and compute others as well."""
    made = tuple(
        Layer(
            f"a.cfg:3 [convolutional] {place}" if "#" in place else place, 9, 0, 0, 0, "", 0, also, least=taken * 1e-6
        )
        for place, taken, also in rows
    )
    return Layers(engine, made, 1e-3, 0.0, (), None)


def test_joined_differently() -> None:
    """#0 with #1 in one engine, #1 with #2 in the other: all three are one row. #10 comes after #9."""
    ours = layers("ours", ("#0", 5, ("#1",)), ("#2", 4, ()), ("#9", 8, ()), ("#10", 1, ()))
    theirs = layers("theirs", ("#0", 3, ()), ("#1", 3, ("#2",)), ("#9", 2, ()), ("#10", 2, ()), (MADE, 1, ()))
    found = behind([ours, theirs])
    assert [one.where.rpartition("] ")[2] for one in found] == ["#9", "#0 + #1 + #2", "#10", MADE]
    assert [round(one.lost * 1e6) for one in found] == [6, 3, -1, -1]


def test_a_section_without_a_time_is_in_the_one_before() -> None:
    ours = layers("ours", ("#0", 5, ()), ("#1", 4, ()), ("#2", 1, ()))
    theirs = layers("theirs", ("#0", 7, ()), ("#2", 2, ()))
    third = layers("third", ("#0", 3, ()), ("#1", 3, ()), ("#2", 3, ()))
    first, second = behind([ours, theirs, third])
    assert (first.where, first.best) == ("a.cfg:3 [convolutional] #0 + #1", "third")
    assert [round(taken * 1e6) for taken in first.seconds] == [9, 7, 6]
    assert (second.where, second.best) == ("a.cfg:3 [convolutional] #2", "theirs")


def test_report() -> None:
    """Rows where it leads are left out; shares are of the first engine's time."""
    tables = [layers("ours", ("#0", 5, ()), ("#1", 3, ())), layers("theirs", ("#0", 3, ()), ("#1", 4, ()))]
    report = Report()
    behind_report(tables, behind(tables), report)
    text = report.markdown()
    assert "Where ours is behind theirs" in text
    assert "| a.cfg:3 [convolutional] #0 | 5.0 | 3.0 | 2.0 | 25.0% |" in text
    assert "behind in 1 of 2, by 2.0 µs, 25.0%; least times, which add up to ours 8.0, theirs 7.0 µs" in text
    assert "#1" not in text
