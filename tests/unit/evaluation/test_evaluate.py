"""Evaluation of models: metrics of scripted logits, and which images a saved model is evaluated on."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deit.data.class_names import imagenet_ids, imagenet_names, imagenet_subset
from deit.data.datasets.folders import folder_source
from deit.data.loader import EvaluationSamples
from deit.data.opening import open_data
from deit.data.sources import ImageSource, MultiLabelSource
from deit.data.splits import DataRecord, read_record
from deit.errors import CheckpointError, DataError, ImageError, NonFiniteOutputError
from deit.evaluation.evaluate import SplitName, evaluate, evaluate_source, evaluation_split
from deit.evaluation.metrics import Evaluation
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.conftest import CLASSES
from tests.helpers import MemorySource, pattern, randomized, tiny_deit
from tests.unit.data.layouts import WNIDS, cifar10, devkit, image_files, imagenet_flat, photo

CROPS: list[Any] = [None, "keep", "squash", "pad"]
PROCESSOR = DeiTImageProcessor.for_size(32, 32)


@dataclass
class Heads:
    heads: dict[str, torch.Tensor]


class Scripted(nn.Module):
    """Returns the n-th row of logits for the n-th image."""

    def __init__(self, **heads: list[list[float]]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.rows = {name: torch.tensor(rows) for name, rows in heads.items()}
        self.next = 0
        self.modes: set[bool] = set()

    def forward(self, pixel_values: torch.Tensor) -> Heads:
        self.modes.add(self.training)
        batch = slice(self.next, self.next + len(pixel_values))
        self.next += len(pixel_values)
        return Heads({name: rows[batch] for name, rows in self.rows.items()})


def run(model: nn.Module, source: ImageSource, skip: bool = False, **options: object) -> Evaluation:
    return evaluate_source(model, EvaluationSamples(source, PROCESSOR, skip), workers=0, batch_size=2, quiet=True, **options)  # type: ignore[arg-type]


LN = [math.log(value) for value in (1, 2, 5)]


def test_metrics_match_a_computation_by_hand() -> None:
    # Softmaxes: permutations of (1, 2, 5) / 8. Labels are 0, 1, 2, 0, 1.
    rows = [[LN[0], LN[1], LN[2]], [LN[0], LN[2], LN[1]], [LN[0], LN[1], LN[2]], [LN[2], LN[1], LN[0]], [LN[2], LN[0], LN[1]]]
    result = run(Scripted(**{"class": rows}), MemorySource(5))
    assert result.main.top1 == pytest.approx(3 / 5)  # the first and the last prediction are wrong
    assert result.main.top5 == 1.0  # of three classes
    assert result.main.loss == pytest.approx((2 * math.log(8) + 3 * math.log(8 / 5)) / 5)
    assert result.main.calibration_error == pytest.approx(5 / 8 - 3 / 5, abs=1e-6)  # all in one bin
    assert result.confusion.to_array().tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert result.per_class == {"a": 0.5, "b": 0.5, "c": 1.0}
    assert result.predictions.tolist() == [2, 1, 2, 0, 0]
    assert result.confidence.tolist() == pytest.approx([5 / 8] * 5)
    assert (result.labels.tolist(), result.indices.tolist()) == ([0, 1, 2, 0, 1], [0, 1, 2, 3, 4])
    assert result.most_confused(5) == [("a", "c", 1), ("b", "a", 1)]
    assert (result.images, result.skipped) == (5, 0)


def test_top5_counts_rank_five_but_not_seven() -> None:
    source = MemorySource(2, classes=tuple("abcdefg"))
    ranks = [[3.0, 9, 8, 7, 6, 5, 4], [9.0, 5, 8, 7, 6, 4, 3]]  # label 0 has rank 7, label 1 has rank 5
    assert run(Scripted(**{"class": ranks}), source).main.top5 == 0.5


def test_class_without_images_has_no_accuracy() -> None:
    result = run(Scripted(**{"class": [[1.0, 0, 0], [1.0, 0, 0]]}), MemorySource(2))
    assert result.per_class == {"a": 1.0, "b": 0.0}


def test_each_head_is_evaluated_and_the_last_is_the_prediction() -> None:
    first, second = [[1.0, 0, 0]] * 3, [[0, 1.0, 0]] * 3
    model = Scripted(**{"class": first, "distillation": second, "both": second})
    result = run(model, MemorySource(3, classes=("a", "b", "c")))
    assert [head.top1 for head in result.heads.values()] == pytest.approx([1 / 3] * 3)
    assert result.main == result.heads["both"] == result.heads["distillation"]
    assert result.confusion.to_array()[:, 1].tolist() == [1, 1, 1]


def test_heads_can_be_combined_by_the_sum_of_softmaxes() -> None:
    # By the mean of the logits, b is the most likely: sqrt(.27 * .29) = .2798 against sqrt(.72 * .01) = .0849 and
    # sqrt(.01 * .70) = .0837; its probability is .2798 / .4484 = .6241. By the sum it is a: .73 against .56 and .71.
    first = torch.tensor([[0.72, 0.27, 0.01]]).log()
    second = torch.tensor([[0.01, 0.29, 0.70]]).log()
    heads = {"class": first.tolist(), "distillation": second.tolist(), "both": ((first + second) / 2).tolist()}
    source = MemorySource(1)
    mean = run(Scripted(**heads), source)
    softmax = run(Scripted(**heads), source, combine="softmax")
    assert (mean.predictions[0], mean.confidence[0]) == (1, pytest.approx(0.6241, abs=1e-4))
    assert (softmax.predictions[0], softmax.confidence[0]) == (0, pytest.approx(0.365, abs=1e-6))
    assert (mean.main.top1, softmax.main.top1) == (0.0, 1.0)
    assert softmax.heads["class"] == mean.heads["class"]


@pytest.mark.parametrize("training", [True, False])
def test_model_is_in_evaluation_mode_and_its_mode_is_restored(training: bool) -> None:
    model = Scripted(**{"class": [[1.0, 0, 0]] * 2}).train(training)
    run(model, MemorySource(2))
    assert model.modes == {False}
    assert model.training == training


def test_unreadable_images_raise_or_are_counted() -> None:
    rows = {"class": [[1.0, 0, 0]] * 4}
    source = MemorySource(5, broken=frozenset({0, 1, 4}))
    with pytest.raises(ImageError, match="image 0 is broken"):
        run(Scripted(**rows), source)
    result = run(Scripted(**rows), source, skip=True)
    assert (result.images, result.skipped, result.indices.tolist()) == (2, 3, [2, 3])


@pytest.mark.parametrize("count", [0, 3])
def test_no_readable_image_is_an_error(count: int) -> None:
    source = MemorySource(count, broken=frozenset(range(count)))
    with pytest.raises(DataError, match="No image of the data set is readable"):
        run(Scripted(**{"class": []}), source, skip=True)


def test_quiet_evaluation_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("deit.system.progress.PLAIN_INTERVAL", 0.0)
    run(Scripted(**{"class": [[1.0, 0, 0]] * 4}), MemorySource(4))
    assert capsys.readouterr() == ("", "")


def test_to_dict_is_valid_json() -> None:
    summary = run(Scripted(**{"class": [[1.0, 0, 0]] * 4}), MemorySource(4)).to_dict()
    assert json.loads(json.dumps(summary))["heads"]["class"]["top1"] == 0.5
    assert summary["images_per_second"] == pytest.approx(4 / summary["seconds"])


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.05)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_saved_model_is_evaluated_on_a_folder(model_folder: Path, photo_folder: Path) -> None:
    result = evaluate(model_folder, photo_folder, workers=0, device="cpu")
    assert (result.images, list(result.heads)) == (24, ["class", "distillation", "both"])
    assert result.classes == CLASSES
    assert 0 <= result.main.top1 <= result.main.top5 == 1


def test_each_crop_gives_different_pixels(model_folder: Path, photo_folder: Path) -> None:
    losses = [evaluate(model_folder, photo_folder, device="cpu", workers=0, crop=crop).main.loss for crop in CROPS]
    assert losses[0] == losses[1]  # the model's own crop
    assert len(set(losses)) == 3


def test_data_may_have_fewer_classes_in_another_order(tmp_path: Path, photo_folder: Path) -> None:
    names = ("zebra", *reversed(CLASSES))
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(names)), std=0.05).save_pretrained(tmp_path)
    result = evaluate(tmp_path, photo_folder, workers=0, device="cpu")
    assert result.confusion.totals.tolist() == [0, 8, 8, 8]
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(names[:2]))).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="2 classes that the model does not have"):
        evaluate(tmp_path, photo_folder, workers=0, device="cpu")


@pytest.mark.parametrize(
    "fields", [{}, {"id2label": {0: "0", 1: "1", 2: "2"}}, {"id2label": {0: "class 1", 1: "class 2", 2: "class 3"}}]
)
def test_model_without_class_names_is_evaluated_by_order_on_request(
    tmp_path: Path, photo_folder: Path, fields: dict[str, Any]
) -> None:
    config = tiny_deit(num_labels=3).with_classes(list(CLASSES))
    model = randomized(DeiTForImageClassificationWithTeacher(config))
    named, unnamed = tmp_path / "named", tmp_path / "unnamed"
    model.save_pretrained(named)
    model.config = config.replace(**(fields or {"num_labels": 3}))
    model.save_pretrained(unnamed)
    options: dict[str, Any] = {"device": "cpu", "workers": 0, "skip_unreadable": True}
    expected = evaluate(named, photo_folder, **options)
    with pytest.raises(DataError, match=r"have no names.*--match-classes order of deit evaluate"):
        evaluate(unnamed, photo_folder, **options)
    actual = evaluate(unnamed, photo_folder, match_classes="order", **options)
    assert (actual.classes, actual.main, actual.per_class) == (expected.classes, expected.main, expected.per_class)


def test_class_name_that_is_not_unique_is_an_error(tmp_path: Path, photo_folder: Path) -> None:
    names = (*CLASSES, CLASSES[1])
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(names))).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=f"several classes named '{CLASSES[1]}'"):
        evaluate(tmp_path, photo_folder, workers=0, device="cpu")


def test_malformed_record_is_an_error(model_folder: Path) -> None:
    (model_folder / "training.json").write_text('{"fingerprint": "x"}')
    with pytest.raises(CheckpointError, match=r"training\.json has a missing or invalid value"):
        read_record(model_folder)


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for name in CLASSES:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(count):
                pattern(9, 9, number).save(tmp_path / "data" / split / name / f"{number}.png")
    return tmp_path / "data"


def test_split_can_be_selected(split_folder: Path) -> None:
    counts = {split: len(evaluation_split(split_folder, split).labels) for split in ("auto", "train", "validation", "test")}
    assert counts == {"auto": 3, "train": 9, "validation": 6, "test": 3}
    with pytest.raises(DataError, match="has separate splits: evaluate one of them"):
        evaluation_split(split_folder, "all")
    with pytest.raises(DataError, match="has separate splits"):
        evaluation_split("digits", "all")


def test_missing_test_split_is_an_error(photo_folder: Path) -> None:
    with pytest.raises(DataError, match="has no test split: evaluate on --split validation"):
        evaluation_split(photo_folder, "test")


@pytest.mark.parametrize("split", ["auto", "all", "train"])
def test_missing_data_folder_is_an_error(split: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        evaluation_split(tmp_path / "nowhere", split)  # type: ignore[arg-type]


def test_folder_without_splits_is_evaluated_whole(photo_folder: Path) -> None:
    assert len(evaluation_split(photo_folder).labels) == len(folder_source(photo_folder).labels) == 24


def test_missing_split_is_set_aside_as_for_training(photo_folder: Path) -> None:
    splits = open_data(photo_folder, seed=7, validation_fraction=0.25)
    held_out = evaluation_split(photo_folder, "validation", DataRecord(splits.fingerprint, 7, 0.25))
    assert [held_out.name(i) for i in range(6)] == [splits.validation.name(i) for i in range(6)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("head", ["class", "both"])
def test_diverged_model_is_an_error(value: float, head: str) -> None:
    rows = {name: [[0.0, 1, 2], [0.0, 1, 2], [0.0, value if name == head else 1, 2]] for name in ("class", "both")}
    with pytest.raises(NonFiniteOutputError, match="The model predicts NaN or infinite values: it has diverged"):
        run(Scripted(**rows), MemorySource(3))


def test_infinite_loss_is_an_error() -> None:
    with pytest.raises(NonFiniteOutputError, match="The loss of the model is infinite"):
        run(Scripted(**{"class": [[-3e38, 3e38, 0]]}), MemorySource(1))


def test_equal_logits_are_one_prediction() -> None:
    result = run(Scripted(**{"class": [[0.0] * 7] * 14}), MemorySource(14, classes=tuple("abcdefg")))
    assert result.main.top1 == pytest.approx(1 / 7)
    assert result.correct == result.confusion.correct.sum() == 2  # the metric and the confusion matrix agree


def test_any_of_several_correct_classes_counts() -> None:
    source = MultiLabelSource(MemorySource(4), ((0, 2), (0, 2), (0, 1), (1,)), ("a", "b", "c"))
    rows = [[LN[0], LN[1], LN[2]], [LN[0], LN[2], LN[1]], [LN[2], LN[1], LN[0]], [LN[2], LN[1], LN[0]]]
    result = run(Scripted(**{"class": rows}), source)
    # The label is the correct class with the highest logit: c (predicted), c (second), a (predicted), b (second).
    assert result.labels.tolist() == [2, 2, 0, 1]
    assert result.main.top1 == 0.5
    assert result.main.loss == pytest.approx((2 * math.log(8 / 5) + 2 * math.log(8 / 2)) / 4)
    assert result.confusion.to_array().tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert result.main.calibration_error == pytest.approx(5 / 8 - 1 / 2, abs=1e-6)


def test_each_head_has_its_own_true_class() -> None:
    source = MultiLabelSource(MemorySource(1), ((0, 1),), ("a", "b", "c"))
    result = run(Scripted(**{"class": [[3.0, 1, 0]], "distillation": [[1.0, 3, 0]]}), source)
    assert [head.top1 for head in result.heads.values()] == [1.0, 1.0]
    assert result.labels.tolist() == [1]


def test_predictions_can_be_restricted_to_some_classes() -> None:
    rows = {"class": [[LN[0], LN[2], LN[1]], [LN[2], LN[1], LN[0]]]}
    source = MemorySource(2, classes=("a", "b", "c"))
    unrestricted = run(Scripted(**rows), source)
    restricted = run(Scripted(**rows), source, candidates=np.array([0, 1]))
    assert (unrestricted.num_classes_evaluated, restricted.num_classes_evaluated) == (None, 2)
    assert (unrestricted.predictions[1], unrestricted.confidence[1]) == (0, pytest.approx(5 / 8))
    assert (restricted.predictions[1], restricted.confidence[1]) == (0, pytest.approx(5 / 7))
    assert restricted.main.loss == pytest.approx((math.log(6) + math.log(7 / 2)) / 2)
    assert restricted.to_dict()["num_classes_evaluated"] == 2
    assert unrestricted.to_dict()["num_classes_evaluated"] == 3
    assert run(Scripted(**rows), source, candidates=np.array([0, 2])).main.top1 == 0.0


@pytest.mark.parametrize("combine", ["mean", "softmax"])
def test_both_heads_are_restricted_to_the_same_classes(combine: str) -> None:
    first, second = torch.tensor([[0.1, 0.2, 0.7]]).log(), torch.tensor([[0.3, 0.1, 0.6]]).log()
    heads = {"class": first.tolist(), "distillation": second.tolist(), "both": ((first + second) / 2).tolist()}
    result = run(Scripted(**heads), MemorySource(1), candidates=np.array([0, 1]), combine=combine)
    weights = {"mean": (0.03**0.5, 0.02**0.5), "softmax": (1 / 3 + 3 / 4, 2 / 3 + 1 / 4)}[combine]
    assert result.predictions[0] == (0 if weights[0] > weights[1] else 1)
    assert result.confidence[0] == pytest.approx(max(weights) / sum(weights), abs=1e-6)
    assert not np.isnan(result.main.loss)


@pytest.fixture(scope="module")
def published_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the ImageNet class names of published models, in which two classes are named `crane`."""
    names = [name.partition(" (n")[0] for name in imagenet_names()]
    config = tiny_deit(num_labels=1000, id2label=dict(enumerate(names)))
    directory = tmp_path_factory.mktemp("published")
    randomized(DeiTForImageClassificationWithTeacher(config), std=0.05).save_pretrained(directory)
    return directory


def test_published_model_is_evaluated_on_imagenet(published_model: Path, tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val")
    devkit(tmp_path)
    result = evaluate(published_model, f"imagenet:{tmp_path}", workers=0, device="cpu")
    assert (result.images, result.num_classes_evaluated) == (6, None)
    assert sorted(result.labels.tolist()) == [0, 0, 134, 134, 517, 517]
    validation = evaluate(published_model, f"imagenet:{tmp_path}", split="validation", workers=0, device="cpu")
    assert validation.heads == result.heads
    with pytest.raises(DataError, match="ImageNet has no train in"):
        evaluate(published_model, f"imagenet:{tmp_path}", split="train", workers=0, device="cpu")


def test_folder_of_wordnet_ids_matches_the_classes_of_a_published_model(published_model: Path, tmp_path: Path) -> None:
    for number, wnid in enumerate(WNIDS):
        photo(tmp_path / wnid / "a.jpg", number)
    result = evaluate(published_model, tmp_path, workers=0, device="cpu")
    assert (result.labels.tolist(), result.num_classes_evaluated) == ([0, 134, 517], None)
    restricted = evaluate(published_model, tmp_path, workers=0, device="cpu", classes="data")
    assert restricted.num_classes_evaluated == 3
    assert set(restricted.predictions.tolist()) <= {0, 134, 517}
    assert restricted.main.top1 >= result.main.top1
    assert restricted.main.top5 == 1.0


@pytest.mark.parametrize("letter", ["a", "r"])
def test_imagenet_a_and_r_restrict_predictions_to_their_classes(published_model: Path, tmp_path: Path, letter: str) -> None:
    classes = imagenet_subset(letter)
    for label in classes[:3]:
        photo(tmp_path / imagenet_ids()[label] / "a.jpg", label)
    result = evaluate(published_model, f"imagenet-{letter}:{tmp_path}", workers=0, device="cpu")
    assert (result.num_classes_evaluated, result.labels.tolist()) == (200, list(classes[:3]))
    assert set(result.predictions.tolist()) <= set(classes)
    unrestricted = evaluate(published_model, f"imagenet-{letter}:{tmp_path}", workers=0, device="cpu", classes="all")
    assert unrestricted.num_classes_evaluated is None
    assert unrestricted.main.loss > result.main.loss


def test_imagenet_v2_and_real_allow_all_classes(published_model: Path, tmp_path: Path) -> None:
    for label in (3, 700):
        photo(tmp_path / "v2" / str(label) / "a.jpg", label)
    result = evaluate(published_model, f"imagenet-v2:{tmp_path / 'v2'}", workers=0, device="cpu")
    assert (result.num_classes_evaluated, sorted(result.labels.tolist())) == (None, [3, 700])
    imagenet_flat(tmp_path / "val")
    devkit(tmp_path)
    correct_classes = [list(range(1000)), [], [1, 2], [5], [6], [7]]
    (tmp_path / "real.json").write_text(json.dumps(correct_classes))
    real = evaluate(published_model, f"imagenet-real:{tmp_path}", workers=0, device="cpu")
    assert real.images == 5
    assert real.labels[0] == real.predictions[0]  # every class is correct for the first image
    assert real.labels[1] in (1, 2)


def test_imagenet_variant_has_one_split(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        with pytest.raises(DataError, match=f"imagenet-v2 has no {split} split"):
            evaluation_split(f"imagenet-v2:{tmp_path}", split)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE disables downloads"):
        evaluation_split(f"imagenet-v2:{tmp_path}")


def test_every_split_of_a_named_data_set_can_be_selected(tmp_path: Path) -> None:
    data = f"cifar10:{cifar10(tmp_path, 20)}"
    counts = {split: len(evaluation_split(data, split).labels) for split in ("auto", "train", "validation", "test")}
    assert counts == {"auto": 20, "train": 90, "validation": 10, "test": 20}
    with pytest.raises(DataError, match="has separate splits"):
        evaluation_split(data, "all")


@pytest.mark.parametrize(
    ("folders", "split", "count", "classes"),
    [
        ("test/cat test/dog", "auto", 4, ("cat", "dog")),
        ("Val/cat Val/dog Testing/cat", "auto", 2, ("cat", "dog")),
        ("Val/cat Val/dog Testing/cat", "validation", 4, ("cat", "dog")),
        ("cat", "auto", 2, ("cat",)),
        ("Testing/cat", "auto", 2, ("cat",)),
        ("train/cat train/dog", "auto", 4, ("cat", "dog")),
        ("cat/2020 cat/2021", "auto", 4, ("cat",)),
        ("photos/cat", "auto", 2, ("photos",)),
    ],
)
def test_folders_of_one_split_or_one_class(
    tmp_path: Path, folders: str, split: SplitName, count: int, classes: tuple[str, ...]
) -> None:
    for folder in folders.split():
        image_files(tmp_path / folder, 2)
    source = evaluation_split(tmp_path, split, known_classes=("cat", "dog"))
    assert (len(source.labels), source.classes) == (count, classes)


def test_split_that_a_folder_without_training_images_lacks(tmp_path: Path) -> None:
    image_files(tmp_path / "test" / "cat", 2)
    splits: tuple[SplitName, ...] = ("train", "validation")
    for split in splits:
        with pytest.raises(DataError, match=f"has no {split} split: evaluate on --split test"):
            evaluation_split(tmp_path, split)
    assert len(evaluation_split(tmp_path, "all").labels) == 2
    image_files(tmp_path / "val" / "cat", 1)
    with pytest.raises(DataError, match="has separate splits: evaluate on one of them: --split validation or test"):
        evaluation_split(tmp_path, "all")


def test_notes_on_the_data_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image_files(tmp_path / "cat", 2)
    (tmp_path / "cat" / "clip.mp4").touch()
    evaluation_split(tmp_path)
    assert "Note: Not read: 1 video (cat/clip.mp4)." in capsys.readouterr().err
