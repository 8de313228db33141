"""How often a model is right, how sure it is, and on which images that was found out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from deit.data.class_names import imagenet_ids, imagenet_names, imagenet_subset
from deit.data.datasets.folders import folder_source
from deit.data.loader import EvaluationSamples
from deit.data.opening import open_data
from deit.data.sources import ImageSource, ManyLabels
from deit.data.splits import DataRecord, read_record
from deit.errors import CheckpointError, DataError, ImageError
from deit.evaluation.evaluate import Evaluation, calibration_bins, calibration_error, evaluate, evaluate_source, evaluation_part
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassificationWithTeacher
from tests.conftest import CLASSES
from tests.helpers import MemorySource, pattern, randomized, tiny_deit
from tests.unit.data.layouts import WNIDS, cifar10, devkit, imagenet_flat, photo

CROPS: list[Any] = [None, "keep", "squash", "pad"]
PROCESSOR = DeiTImageProcessor.for_size(32, 32)


@dataclass
class Heads:
    heads: dict[str, torch.Tensor]


class Scripted(nn.Module):
    """Answers the n-th image with the n-th row."""

    def __init__(self, **heads: list[list[float]]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.rows = {name: torch.tensor(rows) for name, rows in heads.items()}
        self.next = 0
        self.modes: set[bool] = set()

    def forward(self, pixel_values: torch.Tensor) -> Heads:
        self.modes.add(self.training)
        here = slice(self.next, self.next + len(pixel_values))
        self.next += len(pixel_values)
        return Heads({name: rows[here] for name, rows in self.rows.items()})


def run(model: nn.Module, source: ImageSource, skip: bool = False, **options: object) -> Evaluation:
    return evaluate_source(model, EvaluationSamples(source, PROCESSOR, skip), workers=0, batch_size=2, quiet=True, **options)  # type: ignore[arg-type]


LN = [math.log(value) for value in (1, 2, 5)]


def test_the_figures_are_those_of_a_hand_computation() -> None:
    # softmaxes: (1, 2, 5) / 8, then its turns. Labels are 0, 1, 2, 0, 1.
    rows = [[LN[0], LN[1], LN[2]], [LN[0], LN[2], LN[1]], [LN[0], LN[1], LN[2]], [LN[2], LN[1], LN[0]], [LN[2], LN[0], LN[1]]]
    result = run(Scripted(**{"class": rows}), MemorySource(5))
    assert result.answer.top1 == pytest.approx(3 / 5)  # the first and the last are wrong
    assert result.answer.top5 == 1.0  # of three classes
    assert result.answer.loss == pytest.approx((2 * math.log(8) + 3 * math.log(8 / 5)) / 5)
    assert result.answer.calibration_error == pytest.approx(5 / 8 - 3 / 5, abs=1e-6)  # all in one bin
    assert result.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 1]]
    assert result.per_class == {"a": 0.5, "b": 0.5, "c": 1.0}
    assert result.probabilities[0].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    assert (result.labels.tolist(), result.indices.tolist()) == ([0, 1, 2, 0, 1], [0, 1, 2, 3, 4])
    assert result.most_confused(5) == [("a", "c", 1), ("b", "a", 1)]
    assert (result.images, result.skipped) == (5, 0)


def test_the_fifth_answer_counts_and_the_sixth_does_not() -> None:
    source = MemorySource(2, classes=tuple("abcdefg"))
    ranks = [[3.0, 9, 8, 7, 6, 5, 4], [9.0, 5, 8, 7, 6, 4, 3]]  # label 0 comes seventh, label 1 fifth
    assert run(Scripted(**{"class": ranks}), source).answer.top5 == 0.5


def test_a_class_without_images_has_no_figure() -> None:
    result = run(Scripted(**{"class": [[1.0, 0, 0], [1.0, 0, 0]]}), MemorySource(2))
    assert result.per_class == {"a": 1.0, "b": 0.0}


def test_each_head_is_judged_and_the_last_is_the_answer() -> None:
    one, other = [[1.0, 0, 0]] * 3, [[0, 1.0, 0]] * 3
    model = Scripted(**{"class": one, "distillation": other, "both": other})
    result = run(model, MemorySource(3, classes=("a", "b", "c")))
    assert [head.top1 for head in result.heads.values()] == pytest.approx([1 / 3] * 3)
    assert result.answer == result.heads["both"] == result.heads["distillation"]
    assert result.confusion[:, 1].tolist() == [1, 1, 1]


def test_two_heads_can_answer_with_the_sum_of_their_softmaxes() -> None:
    # By the mean of the logits b is likeliest: sqrt(.27 * .29) = .2798 against sqrt(.72 * .01) = .0849 and
    # sqrt(.01 * .70) = .0837; its share is .2798 / .4484 = .6241. By the sum it is a: .73 against .56 and .71.
    one = torch.tensor([[0.72, 0.27, 0.01]]).log()
    other = torch.tensor([[0.01, 0.29, 0.70]]).log()
    heads = {"class": one.tolist(), "distillation": other.tolist(), "both": ((one + other) / 2).tolist()}
    source = MemorySource(1)
    mean = run(Scripted(**heads), source)
    added = run(Scripted(**heads), source, combine="softmax")
    assert mean.probabilities[0, 1] == pytest.approx(0.6241, abs=1e-4)
    assert added.probabilities[0].tolist() == pytest.approx([0.365, 0.28, 0.355], abs=1e-6)
    assert (mean.answer.top1, added.answer.top1) == (0.0, 1.0)
    assert added.heads["class"] == mean.heads["class"]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_answers_in_evaluation_mode_and_is_put_back(training: bool) -> None:
    model = Scripted(**{"class": [[1.0, 0, 0]] * 2}).train(training)
    run(model, MemorySource(2))
    assert model.modes == {False}
    assert model.training == training


def test_unreadable_images_stop_or_are_counted() -> None:
    rows = {"class": [[1.0, 0, 0]] * 4}
    source = MemorySource(5, broken=frozenset({0, 1, 4}))
    with pytest.raises(ImageError, match="image 0 is broken"):
        run(Scripted(**rows), source)
    result = run(Scripted(**rows), source, skip=True)
    assert (result.images, result.skipped, result.indices.tolist()) == (2, 3, [2, 3])


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_readable_is_an_error(count: int) -> None:
    source = MemorySource(count, broken=frozenset(range(count)))
    with pytest.raises(DataError, match="No image of the data set is readable"):
        run(Scripted(**{"class": []}), source, skip=True)


def test_a_quiet_evaluation_prints_nothing_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deit.system.progress.PLAIN_INTERVAL", 0.0)
    run(Scripted(**{"class": [[1.0, 0, 0]] * 4}), MemorySource(4))
    assert capsys.readouterr() == ("", "")


def test_the_summary_for_programs_is_plain_json() -> None:
    summary = run(Scripted(**{"class": [[1.0, 0, 0]] * 4}), MemorySource(4)).to_dict()
    assert json.loads(json.dumps(summary))["heads"]["class"]["top1"] == 0.5
    assert summary["images_per_second"] == pytest.approx(4 / summary["seconds"])


def test_calibration_by_hand() -> None:
    # Bins of 1/15: 0.95 and 0.97 fall into the last, 0.55 into the ninth. Gaps: |0.96 - 1/2| and |0.55 - 1|.
    probabilities = np.array([[0.95, 0.05], [0.03, 0.97], [0.55, 0.45]])
    bins = calibration_bins(probabilities, np.array([0, 0, 0]))
    assert bins.shape == (15, 3)
    assert bins[14].tolist() == pytest.approx([2, 0.96, 0.5])
    assert bins[8].tolist() == pytest.approx([1, 0.55, 1.0])
    assert bins[:, 0].sum() == 3
    assert calibration_error(probabilities, np.array([0, 0, 0])) == pytest.approx((2 * 0.46 + 0.45) / 3)


def test_a_sure_model_is_calibrated_if_it_is_right() -> None:
    sure = np.eye(4)[[0, 1, 2, 3]]
    assert calibration_error(sure, np.array([0, 1, 2, 3])) == 0
    assert calibration_error(sure, np.array([1, 2, 3, 0])) == 1


@given(st.integers(1, 40), st.integers(1, 6), st.floats(0, 50), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_the_calibration_error_is_a_share(count: int, classes: int, sharpness: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((count, classes))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    labels = rng.integers(classes, size=count)
    bins = calibration_bins(probabilities.astype(np.float32), labels)
    assert bins[:, 0].sum() == count
    assert 0 <= calibration_error(probabilities.astype(np.float32), labels) <= 1


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    model = randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(CLASSES)), std=0.05)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_is_evaluated_on_a_folder(model_folder: Path, photo_folder: Path) -> None:
    result = evaluate(model_folder, photo_folder, workers=0, device="cpu")
    assert (result.images, list(result.heads)) == (24, ["class", "distillation", "both"])
    assert result.classes == CLASSES
    assert 0 <= result.answer.top1 <= result.answer.top5 == 1


def test_each_crop_sees_other_pixels(model_folder: Path, photo_folder: Path) -> None:
    losses = [evaluate(model_folder, photo_folder, device="cpu", workers=0, crop=crop).answer.loss for crop in CROPS]
    assert losses[0] == losses[1]  # the model's own
    assert len(set(losses)) == 3


def test_the_data_may_have_fewer_classes_in_another_order_than_the_model(tmp_path: Path, photo_folder: Path) -> None:
    names = ("zebra", *reversed(CLASSES))
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(names)), std=0.05).save_pretrained(tmp_path)
    result = evaluate(tmp_path, photo_folder, workers=0, device="cpu")
    assert result.confusion.sum(axis=1).tolist() == [0, 8, 8, 8]
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(names[:2]))).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="2 classes that the model does not know"):
        evaluate(tmp_path, photo_folder, workers=0, device="cpu")


def test_a_name_that_two_classes_share_tells_nothing(tmp_path: Path, photo_folder: Path) -> None:
    names = (*CLASSES, CLASSES[1])
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit().with_classes(names))).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=f"several classes called '{CLASSES[1]}'"):
        evaluate(tmp_path, photo_folder, workers=0, device="cpu")


def test_images_that_a_model_learned_from_are_not_taken_by_default(model_folder: Path, photo_folder: Path) -> None:
    splits = open_data(photo_folder, seed=7, validation_fraction=0.25)
    record = {"fingerprint": splits.fingerprint, "split_seed": 7, "validation_fraction": 0.25}
    (model_folder / "training.json").write_text(json.dumps(record))
    assert read_record(model_folder) == DataRecord(splits.fingerprint, 7, 0.25)
    assert evaluate(model_folder, photo_folder, workers=0, device="cpu").images == 6
    part = evaluation_part(photo_folder, record=read_record(model_folder))
    assert [part.name(i) for i in range(6)] == [splits.validation.name(i) for i in range(6)]
    assert evaluate(model_folder, photo_folder, part="all", workers=0, device="cpu").images == 24


def test_a_garbled_record_is_named(model_folder: Path) -> None:
    (model_folder / "training.json").write_text('{"fingerprint": "x"}')
    with pytest.raises(CheckpointError, match=r"training\.json lacks or garbles"):
        read_record(model_folder)


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    for part, count in (("train", 3), ("val", 2), ("test", 1)):
        for name in CLASSES:
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                pattern(9, 9, number).save(tmp_path / "data" / part / name / f"{number}.png")
    return tmp_path / "data"


def test_the_part_can_be_chosen(parted: Path) -> None:
    counts = {part: len(evaluation_part(parted, part).labels) for part in ("auto", "train", "validation", "test")}
    assert counts == {"auto": 3, "train": 9, "validation": 6, "test": 3}
    with pytest.raises(DataError, match="comes in parts: evaluate one of them"):
        evaluation_part(parted, "all")
    with pytest.raises(DataError, match="comes in parts"):
        evaluation_part("digits", "all")


def test_a_test_part_that_is_not_there_is_named(photo_folder: Path) -> None:
    with pytest.raises(DataError, match="has no test part: evaluate on --part validation"):
        evaluation_part(photo_folder, "test")


@pytest.mark.parametrize("part", ["auto", "all", "train"])
def test_a_data_folder_that_is_missing_is_named(part: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is no folder"):
        evaluation_part(tmp_path / "nowhere", part)  # type: ignore[arg-type]


def test_a_plain_folder_is_evaluated_whole(photo_folder: Path) -> None:
    assert len(evaluation_part(photo_folder).labels) == len(folder_source(photo_folder).labels) == 24


def test_any_of_several_right_classes_is_right() -> None:
    source = ManyLabels(MemorySource(4), ((0, 2), (0, 2), (0, 1), (1,)), ("a", "b", "c"))
    rows = [[LN[0], LN[1], LN[2]], [LN[0], LN[2], LN[1]], [LN[2], LN[1], LN[0]], [LN[2], LN[1], LN[0]]]
    result = run(Scripted(**{"class": rows}), source)
    # By the likeliest right class: c is right, of a and c the second place, a is right, b is the second place.
    assert result.labels.tolist() == [2, 2, 0, 1]
    assert result.answer.top1 == 0.5
    assert result.answer.loss == pytest.approx((2 * math.log(8 / 5) + 2 * math.log(8 / 2)) / 4)
    assert result.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert result.answer.calibration_error == pytest.approx(5 / 8 - 1 / 2, abs=1e-6)


def test_each_head_has_its_own_likeliest_class() -> None:
    source = ManyLabels(MemorySource(1), ((0, 1),), ("a", "b", "c"))
    result = run(Scripted(**{"class": [[3.0, 1, 0]], "distillation": [[1.0, 3, 0]]}), source)
    assert [head.top1 for head in result.heads.values()] == [1.0, 1.0]
    assert result.labels.tolist() == [1]


def test_other_classes_do_not_exist_where_the_answer_is_among_some() -> None:
    rows = {"class": [[LN[0], LN[2], LN[1]], [LN[2], LN[1], LN[0]]]}
    source = MemorySource(2, classes=("a", "b", "c"))
    free = run(Scripted(**rows), source)
    bound = run(Scripted(**rows), source, among=np.array([0, 1]))
    assert (free.among, bound.among) == (None, 2)
    assert free.probabilities[1].tolist() == pytest.approx([5 / 8, 2 / 8, 1 / 8])
    assert bound.probabilities[1].tolist() == pytest.approx([5 / 7, 2 / 7, 0])
    assert bound.answer.loss == pytest.approx((math.log(6) + math.log(7 / 2)) / 2)
    assert bound.to_dict()["answered_among"] == 2
    assert free.to_dict()["answered_among"] == 3
    assert run(Scripted(**rows), source, among=np.array([0, 2])).answer.top1 == 0.0


@pytest.mark.parametrize("combine", ["mean", "softmax"])
def test_both_heads_answer_among_the_same_classes(combine: str) -> None:
    one, other = torch.tensor([[0.1, 0.2, 0.7]]).log(), torch.tensor([[0.3, 0.1, 0.6]]).log()
    heads = {"class": one.tolist(), "distillation": other.tolist(), "both": ((one + other) / 2).tolist()}
    result = run(Scripted(**heads), MemorySource(1), among=np.array([0, 1]), combine=combine)
    shares = {"mean": (0.03**0.5, 0.02**0.5), "softmax": (1 / 3 + 3 / 4, 2 / 3 + 1 / 4)}[combine]
    assert result.probabilities[0].tolist() == pytest.approx([shares[0] / sum(shares), shares[1] / sum(shares), 0], abs=1e-6)
    assert not np.isnan(result.answer.loss)


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ImageNet's classes under the names of published models: two of them are called `crane`."""
    names = [name.partition(" (n")[0] for name in imagenet_names()]
    config = tiny_deit(num_labels=1000, id2label=dict(enumerate(names)))
    directory = tmp_path_factory.mktemp("published")
    randomized(DeiTForImageClassificationWithTeacher(config), std=0.05).save_pretrained(directory)
    return directory


def test_a_published_model_is_evaluated_on_imagenet(thousand: Path, tmp_path: Path) -> None:
    imagenet_flat(tmp_path / "val")
    devkit(tmp_path)
    result = evaluate(thousand, f"imagenet:{tmp_path}", workers=0, device="cpu")
    assert (result.images, result.among) == (6, None)
    assert sorted(result.labels.tolist()) == [0, 0, 134, 134, 517, 517]
    named = evaluate(thousand, f"imagenet:{tmp_path}", part="validation", workers=0, device="cpu")
    assert named.heads == result.heads
    with pytest.raises(DataError, match="ImageNet has no train in"):
        evaluate(thousand, f"imagenet:{tmp_path}", part="train", workers=0, device="cpu")


def test_a_plain_folder_of_word_net_ids_is_imagenet_to_a_published_model(thousand: Path, tmp_path: Path) -> None:
    for number, wnid in enumerate(WNIDS):
        photo(tmp_path / wnid / "a.jpg", number)
    result = evaluate(thousand, tmp_path, workers=0, device="cpu")
    assert (result.labels.tolist(), result.among) == ([0, 134, 517], None)
    bound = evaluate(thousand, tmp_path, workers=0, device="cpu", classes="data")
    assert bound.among == 3
    assert set(np.flatnonzero(bound.probabilities.any(axis=0)).tolist()) == {0, 134, 517}
    assert bound.answer.top1 >= result.answer.top1
    assert bound.answer.top5 == 1.0


@pytest.mark.parametrize("letter", ["a", "r"])
def test_a_and_r_are_answered_among_their_classes(thousand: Path, tmp_path: Path, letter: str) -> None:
    places = imagenet_subset(letter)
    for place in places[:3]:
        photo(tmp_path / imagenet_ids()[place] / "a.jpg", place)
    result = evaluate(thousand, f"imagenet-{letter}:{tmp_path}", workers=0, device="cpu")
    assert (result.among, result.labels.tolist()) == (200, list(places[:3]))
    answered = np.flatnonzero(result.probabilities.any(axis=0))
    assert set(answered.tolist()) <= set(places)
    everything = evaluate(thousand, f"imagenet-{letter}:{tmp_path}", workers=0, device="cpu", classes="all")
    assert everything.among is None
    assert everything.answer.loss > result.answer.loss


def test_v2_and_real_are_answered_among_all(thousand: Path, tmp_path: Path) -> None:
    for place in (3, 700):
        photo(tmp_path / "v2" / str(place) / "a.jpg", place)
    result = evaluate(thousand, f"imagenet-v2:{tmp_path / 'v2'}", workers=0, device="cpu")
    assert (result.among, sorted(result.labels.tolist())) == (None, [3, 700])
    imagenet_flat(tmp_path / "val")
    devkit(tmp_path)
    every = [list(range(1000)), [], [1, 2], [5], [6], [7]]
    (tmp_path / "real.json").write_text(json.dumps(every))
    real = evaluate(thousand, f"imagenet-real:{tmp_path}", workers=0, device="cpu")
    assert real.images == 5
    assert real.labels[0] == real.probabilities[0].argmax()  # whatever it says of the first is right
    assert real.labels[1] in (1, 2)


def test_a_sister_has_one_part(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        with pytest.raises(DataError, match=f"imagenet-v2 has no {part} part"):
            evaluation_part(f"imagenet-v2:{tmp_path}", part)
    with pytest.raises(DataError, match="switched off by HF_HUB_OFFLINE"):
        evaluation_part(f"imagenet-v2:{tmp_path}")


def test_every_part_of_a_named_data_set_can_be_chosen(tmp_path: Path) -> None:
    data = f"cifar10:{cifar10(tmp_path, 20)}"
    counts = {part: len(evaluation_part(data, part).labels) for part in ("auto", "train", "validation", "test")}
    assert counts == {"auto": 20, "train": 90, "validation": 10, "test": 20}
    with pytest.raises(DataError, match="comes in parts"):
        evaluation_part(data, "all")


def test_a_manifest_that_a_model_learned_from_gives_what_was_set_aside(photo_folder: Path, tmp_path: Path) -> None:
    source = folder_source(photo_folder)
    lines = [f'"{source.path(index)}",{source.classes[label]}' for index, label in enumerate(source.labels)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *lines]), encoding="utf-8")
    splits = open_data(tmp_path / "list.csv", seed=7, validation_fraction=0.25)
    assert len(evaluation_part(tmp_path / "list.csv").labels) == 24
    part = evaluation_part(tmp_path / "list.csv", record=DataRecord(splits.fingerprint, 7, 0.25))
    assert [part.name(i) for i in range(6)] == [splits.validation.name(i) for i in range(6)]
