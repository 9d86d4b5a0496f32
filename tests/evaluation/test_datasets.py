"""Datasets: .data files, lists, where labels are, what they may say, and the classes of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnc.errors import DatasetError, DncWarning, ImageError
from dnc.evaluation.datasets import Entry, images, read_data, read_dataset
from dnc.evaluation.truth import class_truth, label_path, read_annotations, read_labels, read_truth


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Darknet's layout: data/obj.data, data/train.txt and data/obj/0.jpg to 4.jpg, seen from another folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "data/obj").mkdir(parents=True)
    for number in range(5):
        (tmp_path / f"data/obj/{number}.jpg").touch()
    lines = "".join(f"data/obj/{number}.jpg\r\n" for number in (3, 1, 4, 0, 2))
    (tmp_path / "data/train.txt").write_text(f"\ufeff{lines}\n", encoding="utf-8")
    (tmp_path / "data/obj.data").write_text(
        "# a comment\nclasses = 2\n train= data/train.txt\nvalid =data/none.txt\nclasses=7\nnames = data/obj.names\n",
        encoding="utf-8",
    )
    return tmp_path


def _names(paths: list[Path]) -> str:
    return "".join(path.stem for path in paths)


def test_data_file(folder: Path) -> None:
    """The first of two options counts, and paths that Darknet had from its own folder are found."""
    data = read_data(folder / "data/obj.data")
    assert (data.classes, data.options["train"]) == (2, "data/train.txt")
    assert data.find("train") == folder / "data/train.txt"
    assert data.find("results") is None
    with pytest.raises(DatasetError, match=r"no such file\n  at .*obj\.data:4\n +4 \| valid =data/none\.txt"):
        data.find("valid")


def test_images_of_a_data_file_keep_the_order_of_the_list(folder: Path) -> None:
    assert _names(images(folder / "data/obj.data", key="train")) == "31402"
    dataset = read_dataset(folder / "data/obj.data", key="train")
    assert str(dataset) == f"5 images of {folder}/data/train.txt, the first of which is {folder}/data/obj/3.jpg"
    assert str(dataset.entries[1].where) == f"{folder}/data/train.txt:2"


def test_the_current_folder_comes_first(folder: Path) -> None:
    """As in Darknet, which knows no other."""
    here = Path("data/obj/3.jpg")
    here.parent.mkdir(parents=True)
    here.touch()
    assert images(folder / "data/train.txt")[:2] == [here, folder / "data/obj/1.jpg"]


def test_folders_globs_and_images(folder: Path) -> None:
    assert _names(images(folder / "data/obj")) == "01234"
    # Nothing but folders is inside, as with a folder for each class.
    assert _names(images(folder / "data")) == "01234"
    assert _names(images(str(folder / "data/obj/[13].jpg"))) == "13"
    assert _names(images([folder / "data/obj/2.jpg", folder / "data/train.txt"])) == "231402"
    with pytest.raises(ImageError, match="no images in the folder"):
        images(folder / "elsewhere")
    with pytest.raises(ImageError, match="there is no such image"):
        images(folder / "none.jpg")


def test_limit_takes_the_first_or_a_sample(folder: Path) -> None:
    source = folder / "data/train.txt"
    assert _names(images(source, limit=2)) == "31"
    samples = {_names(images(source, limit=3, seed=seed)) for seed in range(20)}
    assert len(samples) > 1
    assert images(source, limit=3, seed=5) == images(source, limit=3, seed=5)
    assert all("".join(sorted(sample, key="31402".index)) == sample for sample in samples)
    assert _names(images(source, limit=5, seed=0)) == "31402"
    for seed in (None, 0):
        with pytest.warns(DncWarning, match="6 images are wanted, but there are 5"):
            assert _names(images(source, limit=6, seed=seed)) == "31402"
    with pytest.raises(DatasetError, match="0 images are wanted"):
        images(source, limit=0)


def test_bad_lists(folder: Path) -> None:
    source = folder / "list.txt"
    source.write_text("\n \n", encoding="utf-8")
    with pytest.raises(DatasetError, match="there are no images in this list"):
        images(source)
    source.write_text("data/obj/0.jpg\ndata/obj/8.jpg\n\ndata/obj/9.jpg\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"no such image; nor are 1 others of this list\n  at .*list\.txt:2\n"):
        images(source)
    with pytest.warns(DncWarning, match=r"list\.txt:2"):
        assert _names(images(source, skip_bad=True)) == "0"
    source.write_text("data/obj\n.\n", encoding="utf-8")  # folders
    with pytest.raises(DatasetError, match=r"no such image; nor are 1 others of this list\n  at .*list\.txt:1\n"):
        images(source)
    source.write_bytes(b"\0\1")
    with pytest.raises(DatasetError, match="no text file"):
        images(source)
    with pytest.raises(DatasetError, match="cannot read the file: No such file"):
        images(folder / "none.txt")
    (folder / "a.data").write_text("train data/train.txt", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"no option\n  at .*a\.data:1"):
        images(folder / "a.data")
    (folder / "a.data").write_text("classes=x\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="it has no `valid`"):
        images(folder / "a.data")
    with pytest.raises(DatasetError, match="classes is a number"):
        _ = read_data(folder / "a.data").classes


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("/coco/images/val2017/1.jpg", "/coco/labels/val2017/1.txt"),
        ("coco/images/train2014/COCO_1.jpg", "coco/labels/train2014/COCO_1.txt"),
        # Darknet wants the slash before it.
        ("images/val2017/1.jpg", "images/val2017/1.txt"),
        ("/VOC2012/JPEGImages/1.jpg", "/VOC2012/labels/1.txt"),
        ("/JPEGImages/JPEGImages/1.jpg", "/labels/JPEGImages/1.txt"),
        ("C:\\coco\\images\\val2017\\1.PNG", "C:\\coco\\labels\\val2017\\1.txt"),
        ("data/obj/x.jpg.jpeg", "data/obj/x.jpg.txt"),
        ("/data/images/1.bmp", "/data/images/1.txt"),
    ],
)
def test_label_path_is_darknets(image: str, labels: str) -> None:
    assert label_path(image) == labels


def test_label_path_of_an_unknown_suffix() -> None:
    with pytest.raises(DatasetError, match=r"'\.webp'"):
        label_path("a.webp")


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "1.txt"
    path.write_text("1 0.5 0.25 1 .5\r\n\n  0\t1e-1 0 0 1\n", encoding="utf-8")
    truth = read_labels(path, 2)
    assert truth.class_ids.tolist() == [1, 0]
    np.testing.assert_array_equal(truth.boxes, np.array([[0.5, 0.25, 1, 0.5], [0.1, 0, 0, 1]], np.float32))
    assert not truth.ignored.any()
    path.write_text("", encoding="utf-8")
    assert read_labels(path, 2).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 .1", "a label is a class"),
        ("0.0 .5 .5 .1 .1", "a label is a class"),
        ("0 .5 .5 .1 .1 .2 .2", "polygons are no boxes"),
        ("2 .5 .5 .1 .1", "class 2 of 2"),
        ("-1 .5 .5 .1 .1", "class -1 of 2"),
        ("0 120 80 30 30", "fractions"),
        ("0 nan .5 .1 .1", "fractions"),
        ("0 .5 .5 -.1 .1", "fractions"),
    ],
)
def test_bad_labels_name_the_line(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "1.txt"
    path.write_text(f"0 .5 .5 .1 .1\n{line}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=said) as caught:
        read_labels(path, 2)
    assert f"{path}:2\n" in str(caught.value)


def test_where_labels_are(tmp_path: Path) -> None:
    """In the folder given; where Darknet has them; in `labels` beside `images`, as others have them."""
    image = tmp_path / "images/val/1.jpg"
    text = "0 .5 .5 .1 .1\n"
    listed = [Entry(image)]
    for place, options, count in (
        ("labels/val/1.txt", {}, 1),
        ("images/val/1.txt", {}, 2),
        ("own/1.txt", {"labels": tmp_path / "own"}, 3),
    ):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text * count, encoding="utf-8")
        assert len(read_truth(listed, 1, **options)[0].class_ids) == count  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match="no such folder of labels"):
        read_truth(listed, 1, labels=tmp_path / "none")


def test_missing_labels(tmp_path: Path) -> None:
    listed = [Entry(tmp_path / f"{number}.jpg") for number in range(3)]
    with pytest.raises(DatasetError, match="3 of 3 images have no labels"):
        read_truth(listed, 1, allow_unlabelled=True)
    (tmp_path / "1.txt").write_text("0 .5 .5 .1 .1", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"2 of 3 images have no labels; the first is .*0\.jpg\n  at .*0\.txt"):
        read_truth(listed, 1)
    assert [len(truth.class_ids) for truth in read_truth(listed, 1, allow_unlabelled=True)] == [0, 1, 0]


def test_difficult_objects(folder: Path) -> None:
    """A second list, line by line; of its images, only the labels are read."""
    source = folder / "data/obj.data"
    source.write_text("valid=data/train.txt\ndifficult=data/difficult.txt\n", encoding="utf-8")
    (folder / "data/difficult.txt").write_text("\n".join(f"{folder}/hard/{n}.jpg" for n in range(5)), encoding="utf-8")
    (folder / "hard").mkdir()
    (folder / "hard/1.txt").write_text("1 .5 .5 .2 .2\n", encoding="utf-8")
    for number in range(5):
        (folder / f"data/obj/{number}.txt").write_text("0 .5 .5 .1 .1\n", encoding="utf-8")
    truths = read_truth(read_dataset(source).entries, 2)
    assert [truth.ignored.tolist() for truth in truths] == [[False], [False, True], [False], [False], [False]]
    assert truths[1].class_ids.tolist() == [0, 1]
    (folder / "data/difficult.txt").write_text("a.jpg\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="1 images, but 5 in"):
        read_dataset(source)


_COCO: dict[str, Any] = {
    "categories": [{"id": 7, "name": "train"}, {"id": 1, "name": "person"}],
    "images": [
        {"id": 40, "file_name": "a.jpg", "width": 200, "height": 100},
        {"id": 3, "file_name": "val/b.jpg", "width": 10, "height": 10},
    ],
    "annotations": [
        {"image_id": 40, "category_id": 7, "bbox": [20, 10, 40, 50], "area": 900.0, "iscrowd": 0},
        {"image_id": 40, "category_id": 1, "bbox": [0, 0, 200, 100], "iscrowd": 1},
    ],
}


def test_coco_annotations(tmp_path: Path) -> None:
    """Categories by ascending id; boxes from corners in pixels to centers in fractions; crowds are ignored."""
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(_COCO), encoding="utf-8")
    annotations = read_annotations(path)
    assert annotations.names == ("person", "train")
    truth, empty = read_truth([Entry(Path("x/a.jpg")), Entry(Path("b.jpg"))], 2, annotations=path)
    assert truth.class_ids.tolist() == [1, 0]
    assert truth.ignored.tolist() == [False, True]
    assert truth.areas.tolist() == [900, 20000]
    np.testing.assert_array_equal(truth.boxes, np.array([[0.2, 0.35, 0.2, 0.5], [0.5, 0.5, 1, 1]], np.float32))
    assert len(empty.class_ids) == 0
    with pytest.raises(DatasetError, match="2 categories for 80 classes"):
        read_truth([Entry(Path("a.jpg"))], 80, annotations=path)
    with pytest.raises(DatasetError, match=r"1 of 2 images are not annotated; the first is c\.jpg"):
        read_truth([Entry(Path("a.jpg")), Entry(Path("c.jpg"))], 2, annotations=path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("images"),
        lambda content: content["annotations"][0].update(image_id=1),
        lambda content: content["annotations"][0].update(category_id=2),
        lambda content: content["annotations"][0].update(bbox=[1, 2, 3]),
        lambda content: content["images"][0].update(width=0),
        lambda content: content.update(annotations=4),
    ],
)
def test_bad_annotations(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "instances.json"
    content = json.loads(json.dumps(_COCO))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DatasetError, match="no COCO annotations"):
        read_annotations(path)
    path.write_text("[", encoding="utf-8")
    with pytest.raises(DatasetError, match="no COCO annotations"):
        read_annotations(path)
    with pytest.raises(DatasetError, match="cannot read the annotations"):
        read_annotations(tmp_path / "none.json")


def _listed(*paths: str) -> list[Entry]:
    return [Entry(Path(path)) for path in paths]


def test_class_truth() -> None:
    """The five ways."""
    assert class_truth([Entry(Path("n/a.jpg"), class_id=2), Entry(Path("b.jpg"), class_id=0)], 3) == [2, 0]
    # Darknet's: the first label in the order of the labels, wherever it stands.
    with pytest.warns(DncWarning, match=r"in 1 of 2 paths several labels occur"):
        assert class_truth(_listed("x/elephant_1.jpg", "cat/2.jpg"), 3, labels=("ant", "elephant", "cat")) == [0, 2]
    assert class_truth(_listed("0007_n01514668.jpg", "x/0001_n01443537.JPEG"), 8) == [7, 1]
    assert class_truth(_listed("v/dog/1.jpg", "v/cat/1.jpg"), 3, names=("cat", "cow", "dog")) == [2, 0]
    assert class_truth(_listed("v/2/1.jpg", "v/0/1.jpg"), 3) == [2, 0]
    assert class_truth(_listed("v/n2/1.jpg", "v/n1/1.jpg", "v/n2/2.jpg"), 2) == [1, 0, 1]


def test_bad_class_truth() -> None:
    with pytest.raises(DatasetError, match="nothing says the class"):
        class_truth(_listed("v/n2/1.jpg", "v/n1/1.jpg"), 3)
    with pytest.raises(DatasetError, match=r"none of the labels occurs in this path\n  at b\.jpg"):
        class_truth(_listed("cat.jpg", "b.jpg"), 1, labels=["cat"])
    with pytest.raises(DatasetError, match="class 7 of 5"):
        class_truth(_listed("0007_n01514668.jpg"), 5)


def test_lists_of_path_and_index(tmp_path: Path) -> None:
    for name in ("a b 1.jpg", "c.jpg", "d.jpg 3"):
        (tmp_path / name).touch()
    source = tmp_path / "list.txt"
    source.write_text("a b 1.jpg 12\nc.jpg\t0\nd.jpg 3\n", encoding="utf-8")
    listed = read_dataset(source).entries
    # A number that belongs to the name is no class.
    expected = [("a b 1.jpg", 12), ("c.jpg", 0), ("d.jpg 3", None)]
    assert [(entry.path.name, entry.class_id) for entry in listed] == expected


def test_annotations_whose_names_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    image = {"id": 1, "file_name": ["a", 1], "width": 4, "height": 3}
    path.write_text(json.dumps({"images": [image], "categories": [], "annotations": []}), encoding="utf-8")
    assert list(read_annotations(path).truths) == ["['a', 1]"]


def test_labels_that_occur_in_each_other() -> None:
    """The first counts, as in Darknet, and it is said how often that was a choice."""
    listed = [Entry(Path("x/notphone_1.jpg")), Entry(Path("x/phone_2.jpg"))]
    with pytest.warns(DncWarning, match=r"in 1 of 2 paths several labels occur; in the first phone, notphone"):
        assert class_truth(listed, 2, labels=["phone", "notphone"]) == [0, 0]
