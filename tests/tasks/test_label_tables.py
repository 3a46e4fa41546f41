"""Tables of labels: the layouts that people have, and every mistake in them by its row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.base.errors import InputError
from pipeline.recipe.data import ImageFolderData
from pipeline.recipe.input_shape import square
from pipeline.tasks.images.dataset import Dataset
from pipeline.tasks.images.tables import (
    label_names,
    labelled_dataset,
    labelled_places,
    split_labelled,
)

COLUMNS = "file,cat,dog\na.png,1,0\nb.png,1,1\nc.png,0,0\nd.png,0,1\n"
TEST = "file,cat,dog\nx.png,1,0\ny.png,0,1\n"


def photos(folder: Path, names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names.split()):
        Image.new("RGB", (9, 8), (10 * number, 0, 0)).save(folder / f"{name}.png")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder of both sets, each with its table."""
    photos(tmp_path / "photos" / "train", "a b c d")
    photos(tmp_path / "photos" / "test", "x y")
    (tmp_path / "photos" / "train" / "labels.csv").write_text(COLUMNS)
    (tmp_path / "photos" / "test" / "labels.csv").write_text(TEST)
    return tmp_path / "photos"


def load(folder: Path, **changes: object) -> Dataset:
    whole = {"path": folder, "calibration_images": 1, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = ImageFolderData.model_validate(whole | changes)
    return labelled_dataset(config, square(8), 0, None)


def every(dataset: Dataset) -> dict[int, list[int]]:
    """The labels of the training images, by the red of their pixels."""
    found = {}
    for images in (dataset.train, dataset.calibration):
        pixels = images.pixels(torch.arange(len(images)))
        reds = pixels[:, 0, 0, 0].tolist()
        found |= dict(zip(reds, images.labels.tolist(), strict=True))
    return dict(sorted(found.items()))


WANTED = {0: [1, 0], 10: [1, 1], 20: [0, 0], 30: [0, 1]}


@pytest.mark.parametrize(
    "table",
    [
        COLUMNS,
        "\ufeff" + COLUMNS.replace("\n", "\r\n"),
        "file, cat , dog\n./a.png,1 , 0\nb.png,1,1\n\nd.png,0,1\nc.png,0,0\n",
        "file,labels\na.png,cat\nb.png,cat dog\nc.png,\nd.png,dog\n",
        'file,labels\na.png,cat\nb.png,"cat,dog"\nc.png,\nd.png," dog "\n',
        "file,labels\na.png,cat\nb.png,dog|cat|\nc.png,\nd.png,dog\n",
        "file,labels\na.png,cat;cat\nb.png,dog; cat\nc.png,\nd.png,dog\n",
    ],
)
def test_tables_as_people_have_them(path: Path, table: str) -> None:
    (path / "train" / "labels.csv").write_text(table, newline="")
    found = load(path)
    assert found.classes == ("cat", "dog")
    assert every(found) == WANTED
    assert found.tests["test"].labels.tolist() == [[1, 0], [0, 1]]
    assert found.passed_over == {}, "a table is no file that is passed over"


def test_labels_of_several_words(path: Path) -> None:
    (path / "train" / "labels.csv").write_text(
        "file,labels\na.png,big cat\nb.png,big cat|small dog\nc.png,\nd.png,small dog\n"
    )
    (path / "test" / "labels.csv").write_text("file,labels\nx.png,big cat\ny.png,small dog\n")
    found = load(path)
    assert found.classes == ("big cat", "small dog")
    assert every(found) == WANTED
    assert found.tests["test"].labels.tolist() == [[1, 0], [0, 1]], "one separator for all tables"


def test_one_table_for_all_images(path: Path, tmp_path: Path) -> None:
    before = load(path)
    for part in ("train", "test"):
        (path / part / "labels.csv").unlink()
    whole = "file,cat,dog\n" + "".join(
        f"{part}{row}\n"
        for part, rows in (("train/", COLUMNS), ("", TEST))
        for row in rows.splitlines()[1:]
    )
    (path / "labels.csv").write_text(whole)
    found = load(path)
    assert found.sha256 == before.sha256, "the same images with the same labels"
    table = tmp_path / "elsewhere.csv"
    (path / "labels.csv").rename(table)
    table.write_text(whole.replace("train/", "photos\\train\\"))
    assert load(path, labels=table).sha256 == before.sha256
    given = {"path": None, "train": path / "train", "test": {"test": path / "test"}}
    assert load(path, labels=table, **given).sha256 == before.sha256


def test_two_sets_may_be_of_one_folder(path: Path) -> None:
    sets = {"one": path / "test", "two": path / "test"}
    found = load(path, path=None, train=path / "train", test=sets)
    assert found.tests["one"].labels.tolist() == found.tests["two"].labels.tolist()
    (path / "test" / "more").mkdir()
    (path / "test" / "y.png").rename(path / "test" / "more" / "y.png")
    (path / "test" / "more" / "labels.csv").write_text("file,cat,dog\ny.png,1,0\n")
    (path / "test" / "labels.csv").write_text(TEST.replace("y.png", "more/y.png"))
    sets["two"] = path / "test" / "more"
    with pytest.raises(InputError, match=r"row 2: file 'y\.png' is in row 3 of .*labels\.csv too"):
        load(path, path=None, train=path / "train", test=sets)


def test_names_come_without_an_image_read_and_caches_are_known(path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    config = ImageFolderData(path=path, calibration_images=1)
    needed = labelled_places(config, square(8), cache)
    assert len(needed) == 2 * 2, "two folders, decoded and indexed"
    labelled_dataset(config, square(8), 0, cache)
    assert {*cache.iterdir(), *(cache / ".index").iterdir()} >= needed
    (path / "train" / "a.png").write_bytes(b"no image")
    assert label_names(config) == ("cat", "dog")


def test_labels_that_are_given_need_no_training_images(path: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\ncat\nemu\n")
    photos(tmp_path / "some", "p q r")
    given = {
        "path": None,
        "test": {"test": path / "test"},
        "calibration": tmp_path / "some",
        "classes": tmp_path / "names.txt",
    }
    found = load(path, **given)
    assert found.classes == ("dog", "cat", "emu")
    assert found.tests["test"].labels.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert (len(found.train), len(found.calibration)) == (0, 1)


def test_a_column_that_no_image_has_is_no_label(path: Path) -> None:
    for part, table in (("train", COLUMNS), ("test", TEST)):
        lines = table.splitlines()
        wider = [f"{lines[0]},emu", *(f"{line},0" for line in lines[1:])]
        (path / part / "labels.csv").write_text("\n".join(wider))
    found = load(path)
    assert found.classes == ("cat", "dog")
    assert sum("no image has 'emu': no label" in note for note in found.notes) == 2


def test_calibration_leaves_an_image_with_every_label() -> None:
    labels = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    for seed in range(20):
        left, drawn = split_labelled(labels, 3, seed, "train")
        assert sorted([*left.tolist(), *drawn.tolist()]) == [0, 1, 2, 3, 4]
        assert labels[left].any(0).all()
        assert drawn.tolist() == split_labelled(labels, 3, seed, "train")[1].tolist()
    with pytest.raises(InputError, match=r"got 4; train has 5 images .* so at most 3"):
        split_labelled(labels, 4, 0, "train")


def test_damaged_images_are_skipped_with_their_labels(path: Path) -> None:
    (path / "train" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        load(path)
    found = load(path, damaged="skip", damaged_share=0.5)
    assert every(found) == {red: labels for red, labels in WANTED.items() if red}
    assert found.damaged == {"train": 1}


TRAIN_TABLE, TEST_TABLE = "train/labels.csv", "test/labels.csv"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {TRAIN_TABLE: COLUMNS + "zz.png,1,0\n"},
            r"data\.train: .*train/labels\.csv, row 6: file 'zz\.png' is none of the images in "
            r".*train; correct it \(it is a path from .*train\), or remove the row",
        ),
        (
            {TRAIN_TABLE: COLUMNS.replace("c.png,0,0\n", "")},
            r"data\.train: .*c\.png has no row in .*labels\.csv; add one \(`c\.png,0,0` is an "
            r"image without a label\), or remove the image",
        ),
        (
            {TEST_TABLE: "file,labels\nx.png,cat\ny.png,dog emu\n"},
            r"data\.test\.test: .*test/labels\.csv, row 3: file 'y\.png': label 'emu' is never "
            r"seen in training; correct it, add training images that have it, or name all",
        ),
        (
            {TEST_TABLE: "file,cat,dog,emu\nx.png,1,0,0\ny.png,0,1,1\n"},
            r"row 3: file 'y\.png': label 'emu' is never seen in training",
        ),
        (
            {TRAIN_TABLE: COLUMNS.replace("b.png,1,1", "b.png,1,yes")},
            r"train/labels\.csv, row 3: file 'b\.png': label 'dog' is 'yes'; must be 0 or 1",
        ),
        (
            {TRAIN_TABLE: COLUMNS.replace("b.png,1,1", "b.png,1,")},
            r"row 3: file 'b\.png': label 'dog' is ''; must be 0 or 1",
        ),
        (
            {TRAIN_TABLE: COLUMNS + "\n./b.png,1,1\n"},
            r"row 7: file '\./b\.png' is in row 3 too; remove one of them",
        ),
        (
            {TEST_TABLE: "file,cat\nx.png,1\ny.png,0\n"},
            r"test/labels\.csv, row 1: has no column for 'dog', which training images have; add",
        ),
        (
            {TRAIN_TABLE: COLUMNS.replace("b.png,1,1", "b.png,1")},
            r"row 3: has 2 cells, and the table 3 columns$",
        ),
        (
            {TRAIN_TABLE: "file,labels\na.png,cat,dog\n"},
            r"row 2: has 3 cells, and the table 2 columns; put several labels in quotes",
        ),
        (
            {TRAIN_TABLE: "file,labels\na.png,cat|dog\nb.png,cat;dog\nc.png,\nd.png,cat\n"},
            r"row 3: has ';' between labels, and row 2 of .* has '\|'; separate all by the same",
        ),
        (
            {TRAIN_TABLE: "image,cat\na.png,1\n"},
            r"row 1: got 'image,cat'; the first column must be `file`, .* begin the table with",
        ),
        ({TRAIN_TABLE: "file;cat\na.png;1\n"}, r"row 1: got 'file;cat'; the first column must"),
        ({TRAIN_TABLE: "file\na.png\n"}, r"row 1: got 'file'; there are no labels \(columns are"),
        ({TRAIN_TABLE: "file,cat,\na.png,1,0\n"}, r"row 1: .*; column 3 has no name"),
        ({TRAIN_TABLE: "file,cat,cat\na.png,1,0\n"}, r"more than one column is named 'cat'"),
        ({TRAIN_TABLE: ""}, r"row 1: got ''; the first column must be `file`"),
        ({TRAIN_TABLE: 'file,cat\n"a.png,1\n'}, r"labels\.csv: cannot be read \(.*as UTF-8 text"),
        (
            {TRAIN_TABLE: "file,cat,dog\na.png,0,0\nb.png,0,0\nc.png,0,0\nd.png,0,0\n"},
            r"data\.train: .*labels\.csv gives no training image a label; add some",
        ),
        (
            {TEST_TABLE: TEST.replace("1", "0")},
            r"data\.test\.test: none of its 2 images has a label",
        ),
        ({TRAIN_TABLE: None}, r"data\.train: .*train holds no labels\.csv; put a table of labels"),
        ({"labels.csv": COLUMNS}, r"data\.path: .*is a table of all images, and there are others"),
    ],
)
def test_what_is_wrong_is_said_with_file_row_and_value(
    path: Path, files: dict[str, str | None], message: str
) -> None:
    for name, content in files.items():
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load(path)


def test_a_name_of_two_images_is_refused(path: Path) -> None:
    photos(path / "test", "a")
    table = path / "all.csv"
    table.write_text("file,cat\na.png,1\n")
    with pytest.raises(
        InputError, match=r"row 2: file 'a\.png' may be .*a\.png or .*a\.png; write"
    ):
        load(path, labels=table)


def test_a_label_that_is_not_given_is_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\n")
    with pytest.raises(InputError, match=r"row 3: .* 'dog' is not in .*names\.txt \(data\.classes"):
        load(path, classes=tmp_path / "names.txt")


def test_of_many_mistakes_ten_are_said(path: Path) -> None:
    rows = "".join(f"{number}.png,1,0\n" for number in range(15))
    (path / "train" / "labels.csv").write_text(COLUMNS + rows)
    with pytest.raises(InputError) as refused:
        load(path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 11
    assert "and 5 more such rows" in lines[-1]
    photos(path / "train", " ".join(map(str, range(15))))
    (path / "train" / "labels.csv").write_text(COLUMNS)
    with pytest.raises(InputError, match="and 5 more images without a row"):
        load(path)


def test_folders_without_tables_say_what_a_folder_must_hold(tmp_path: Path) -> None:
    photos(tmp_path / "photos" / "training", "a")
    with pytest.raises(InputError, match=r"it must hold train/ and test/ \(or val/\) with images"):
        load(tmp_path / "photos")
