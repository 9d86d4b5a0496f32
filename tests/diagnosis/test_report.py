from __future__ import annotations

import json
from typing import Any

import pytest

from dnc.diagnosis.report import Box, Diagnosis, Kept, RangeUse
from dnc.errors import DncError
from tests.diagnosis.made_up import made_up


def test_json_and_back() -> None:
    found = made_up()
    assert Diagnosis.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_is_added_later_is_passed_over_and_what_is_missing_has_its_default() -> None:
    values = made_up().to_json()
    values["layers"][0]["later"] = 1
    del values["notes"]
    assert Diagnosis.from_json(values).notes == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "version 2"),
        ({"layers": [{"number": 1}]}, "no diagnosis"),
        ({"layers": 3}, "3 is not"),
        ({"images": 1.5}, "1.5 is not"),
        ({"seconds": float("nan")}, "nan is not"),
        ({"engine": []}, "no object"),
        ({"culprits": ["12"]}, "'12' is not"),
    ],
)
def test_what_is_none(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DncError, match=said):
        Diagnosis.from_json({**made_up().to_json(), **change})
    with pytest.raises(DncError, match="no diagnosis"):
        Diagnosis.from_json([])


def test_a_place_is_one_of_three() -> None:
    values = made_up().to_json()
    values["changes"][0]["engine"][0]["place"] = "lost"
    with pytest.raises(DncError, match="'lost' is not"):
        Diagnosis.from_json(values)


def test_what_follows_from_the_fields() -> None:
    assert RangeUse(-1, 3, -0.5, 1.5, 0.1).used == 0.5
    assert RangeUse(0, 1, -5, 9, 0.1).used == 1
    assert RangeUse(0, 0, 0, 1, 0.1).used == 0
    assert Kept((12, 40), 1.0, measured=True).option == "--keep 12,40"
    (change, _) = made_up().changes
    assert (change.gone, change.come) == (2, 1)
    assert Box("a", 0, 1.0, 0, 0, 0, 0).place == "both"
    assert made_up().layer(-1).section == "input"
    with pytest.raises(KeyError):
        made_up().layer(99)
