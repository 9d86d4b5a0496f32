"""Class trees: the files, the groups, and where they are looked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dnc.darknet.layers.region import Region
from dnc.darknet.layers.softmax import Softmax
from dnc.darknet.layers.tree import group_sizes, softmax, tree_softmax
from dnc.darknet.network import Network
from dnc.errors import CfgError, DncWarning

NET = "[net]\ninputs=4\n[softmax]\ntree={}\n"


def test_groups_are_runs_of_one_parent() -> None:
    """read_tree starts a group wherever the parent changes, also back to one that was there before."""
    assert group_sizes((-1, -1, 0, 0, 0, 1)) == [2, 3, 1]
    assert group_sizes((-1, 0, 1, 0)) == [1, 1, 1, 1]
    assert group_sizes(()) == []


def test_softmax_of_each_group() -> None:
    x = np.random.default_rng(1).normal(0, 3, (2, 6)).astype(np.float32)
    y = tree_softmax(x, (-1, -1, 0, 0, 0, 1), temperature=2.0)
    expected = np.concatenate([softmax(part, 1, 2.0) for part in (x[:, :2], x[:, 2:5], x[:, 5:])], axis=1)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(y[:, 2:5].sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("folder", ["cfg", "."])
def test_beside_the_cfg_or_beside_its_folder(tmp_path: Path, folder: str) -> None:
    """Darknet's own cfg says tree=data/9k.tree, and Darknet runs in the folder that holds cfg/ and data/."""
    (tmp_path / "cfg").mkdir()
    (tmp_path / folder / "data").mkdir()
    (tmp_path / folder / "data" / "a.tree").write_text("a -1\n\nb -1\n aa 0 \nab 0 further words\n")
    (layer,) = Network.parse(NET.format("data/a.tree"), str(tmp_path / "cfg" / "a.cfg")).layers
    assert isinstance(layer, Softmax)
    assert layer.tree == (-1, -1, 0, 0)


def test_missing_file(tmp_path: Path) -> None:
    file = str(tmp_path / "a.cfg")
    with pytest.raises(CfgError) as caught:
        Network.parse(NET.format("data/a.tree"), file)
    assert str(caught.value) == (
        f"cannot read tree=data/a.tree\n  at {file}:4 [softmax] #0\n      4 | tree=data/a.tree\n"
        f"  hint: copy the file to {tmp_path / 'data' / 'a.tree'}; --lenient does without it"
    )
    with pytest.warns(DncWarning, match="cannot read tree"):
        (layer,) = Network.parse(NET.format("data/a.tree"), file, lenient=True).layers
    assert isinstance(layer, Softmax)
    assert layer.tree == ()


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("a -1\nb -1\n", "the tree has 2 nodes, classes are 4", "is it another data set's?"),
        ("a -1\nb 1\n", "line 2 of the tree is not 'name parent', parents first", "b 1"),
        ("a\n", "line 1 of the tree is not 'name parent', parents first", "a"),
        ("a -2\n", "line 1 of the tree is not 'name parent', parents first", "a -2"),
        ("a b\n", "line 1 of the tree is not 'name parent', parents first", "a b"),
        ("a \u00b2\n", "line 1 of the tree is not 'name parent', parents first", "a \u00b2"),
        ("a --1\n", "line 1 of the tree is not 'name parent', parents first", "a --1"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str, hint: str, refused: Callable[..., None]) -> None:
    (tmp_path / "a.tree").write_text(text, encoding="utf-8")
    line = f"tree={tmp_path / 'a.tree'}"
    refused(f"[softmax]\n{line}\n", message, line, hint, net="inputs=4")


REGION = "[region]\nclasses=3\nnum=1\nanchors=1,1\nmap={}\n"


def test_map(tmp_path: Path, refused: Callable[..., None]) -> None:
    net = "width=2\nheight=2\nchannels=8"
    path = tmp_path / "a.map"
    path.write_text("2\n0\n")
    (layer,) = Network.parse(f"[net]\n{net}\n{REGION.format(path)}").layers
    assert isinstance(layer, Region)
    assert layer.map == (2, 0)
    for text in ("2\n3\n", "2\nx\n", "2\n\u00b2\n"):
        path.write_text(text, encoding="utf-8")
        message = "line 2 of the map is not the number of a class"
        refused(REGION.format(path), message, f"map={path}", text[2], net=net)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero")
@pytest.mark.parametrize("section", ["softmax", "region"])
def test_a_tree_without_end_is_not_read(section: str) -> None:
    text = f"[net]\nwidth=2\nheight=2\nchannels=6\n[{section}]\nclasses=1\ntree=/dev/zero\nanchors=1,1\n"
    with pytest.raises(CfgError, match="cannot read tree=/dev/zero"):
        Network.parse(text)
