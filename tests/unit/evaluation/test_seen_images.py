"""An evaluation leaves out the images that the model was trained on, whatever they are named and wherever they are."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deit.data.datasets.folders import folder_source
from deit.data.image_hashes import ImageHashes, SeenImages
from deit.data.opening import open_data
from deit.data.sources import ImageSource, MultiLabelSource, subset
from deit.errors import CheckpointError, DataError
from deit.evaluation.evaluate import evaluate
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.conftest import CLASSES
from tests.helpers import pattern, randomized, tiny_deit

HASHES = "training_images.bin"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of five images."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(5):
            pattern(20, 20 + number, 10 * label + number).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A model that records four training images and one validation image of each class of ``photos``."""
    directory = tmp_path_factory.mktemp("model")
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.05).save_pretrained(directory)
    splits = open_data(photos)
    (directory / HASHES).write_bytes(ImageHashes.of(splits.train, splits.validation).to_bytes())
    return directory


def seen(model: Path, data: Path | str, split: str = "auto") -> tuple[int, SeenImages | None]:
    result = evaluate(model, data, split=split, workers=0, device="cpu")  # type: ignore[arg-type]
    return result.images, result.seen


def training_image(photos: Path) -> Path:
    splits = open_data(photos)
    return photos / splits.train.name(0)


def same(photos: Path, _: Path) -> Path:
    return photos


def without_one_image(photos: Path, folder: Path) -> Path:
    shutil.copytree(photos, folder / "copy")
    (folder / "copy" / training_image(photos).relative_to(photos)).unlink()
    return folder / "copy"


def renamed(photos: Path, folder: Path) -> Path:
    for number, path in enumerate(sorted(photos.rglob("*.png"), reverse=True)):
        target = folder / "copy" / path.parent.name / "other" / f"IMG_{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder / "copy"


def as_manifest(photos: Path, folder: Path) -> Path:
    lines = [f'"{path}",{path.parent.name}' for path in photos.rglob("*.png")]
    (folder / "list.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    return folder / "list.csv"


def as_test_split(photos: Path, folder: Path) -> Path:
    shutil.copytree(photos, folder / "data" / "test")
    for name in CLASSES:
        (folder / "data" / "train" / name).mkdir(parents=True)
        pattern(8, 8, len(name)).save(folder / "data" / "train" / name / "new.png")
    return folder / "data"


@pytest.mark.parametrize(
    ("layout", "left_out"), [(same, 12), (without_one_image, 11), (renamed, 12), (as_manifest, 12), (as_test_split, 12)]
)
def test_training_images_are_left_out(
    model: Path, photos: Path, tmp_path: Path, layout: Callable[[Path, Path], Path], left_out: int
) -> None:
    assert seen(model, layout(photos, tmp_path)) == (3, SeenImages(left_out=left_out, measured=0, validation=3))


def test_new_images_are_evaluated(model: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "copy")
    pattern(9, 9, 99).save(tmp_path / "copy" / CLASSES[0] / "new.png")
    assert seen(model, tmp_path / "copy") == (4, SeenImages(left_out=12, measured=0, validation=3))


def test_classes_may_be_fewer(model: Path, photos: Path, tmp_path: Path) -> None:
    for name in CLASSES[:2]:
        shutil.copytree(photos / name, tmp_path / name)
    assert seen(model, tmp_path) == (2, SeenImages(left_out=8, measured=0, validation=2))


def test_hugging_face_data_set_of_the_same_files(model: Path, photos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = sorted(photos.rglob("*.png"))
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    labels = [CLASSES.index(path.parent.name) for path in paths]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features).save_to_disk(tmp_path / "saved")
    assert seen(model, tmp_path / "saved") == (3, SeenImages(left_out=12, measured=0, validation=3))


@pytest.mark.parametrize(("split", "images", "counts"), [("all", 15, (0, 12, 3)), ("train", 12, (0, 12, 0))])
def test_training_images_are_measured_on_request(
    model: Path, photos: Path, split: str, images: int, counts: tuple[int, int, int]
) -> None:
    assert seen(model, photos, split) == (images, SeenImages(*counts))


def test_only_training_images_is_an_error(model: Path, photos: Path, tmp_path: Path) -> None:
    for index in range(12):
        path = photos / (train := open_data(photos).train).name(index)
        (tmp_path / train.classes[train.labels[index]]).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / train.classes[train.labels[index]])
    with pytest.raises(DataError, match=r"The model was trained on all 12 images of .*--split all"):
        evaluate(model, tmp_path, workers=0, device="cpu")
    assert seen(model, tmp_path, "all") == (12, SeenImages(0, 12, 0))


def test_unknown_training_images(photos: Path, tmp_path: Path) -> None:
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.05).save_pretrained(tmp_path)
    assert seen(tmp_path, photos) == (15, None)
    (tmp_path / HASHES).write_bytes(b"DEITIMG1")
    with pytest.raises(CheckpointError, match=r"training_images\.bin is damaged"):
        evaluate(tmp_path, photos, workers=0, device="cpu")


def test_images_with_several_labels_keep_them(model: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = folder_source(photos)
    correct = tuple((int(label), 2) if label != 2 else (2,) for label in base.labels)
    source: ImageSource = MultiLabelSource(subset(base, np.arange(15)), correct, CLASSES)
    monkeypatch.setattr("deit.evaluation.evaluate.evaluation_split", lambda *_: source)
    result = evaluate(model, photos, workers=0, device="cpu")
    assert (result.images, result.seen) == (3, SeenImages(12, 0, 3))
    assert set(result.labels.tolist()) <= {0, 1, 2}
