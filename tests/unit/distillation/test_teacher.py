"""A teacher has its own input size, normalization and class order."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.data.imagenet_info import ImageNetInfo

from deit.data.loader import Batch
from deit.distillation.teacher import Teacher
from deit.errors import NonFiniteOutputError, TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import LoadedClassifier
from deit.models.modeling import ViTForImageClassification
from deit.models.timm_classifier import TimmClassifier, new_timm_classifier
from tests.helpers import noise, pattern, randomized, tiny_vit

CLASSES = ("ant", "bee", "cat")
STUDENT = DeiTImageProcessor.for_size(32, 32)
ARCH = "test_resnet"


def _network(classes: tuple[str, ...] = CLASSES, processor: DeiTImageProcessor = STUDENT) -> TimmClassifier:
    return randomized(new_timm_classifier(ARCH, classes, processor, {}, seed=0), std=0.1)


def _loaded(network: TimmClassifier) -> LoadedClassifier:
    return LoadedClassifier(network, network.processor, network.classes)


def test_teacher_returns_its_logits() -> None:
    network, batch = _network(), noise(2, 3, 32, 32)
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    torch.testing.assert_close(teacher(batch), network(batch).logits)


def test_normalization_is_converted() -> None:
    own = DeiTImageProcessor.for_size(32, 32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    network = _network(processor=own)
    pixels = np.asarray(pattern(32, 32))[None]
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    seen = teacher(torch.from_numpy(STUDENT.normalize(pixels)))
    torch.testing.assert_close(seen, network(torch.from_numpy(own.normalize(pixels))).logits, rtol=1e-4, atol=1e-5)


def test_input_size_is_converted() -> None:
    model = randomized(ViTForImageClassification(tiny_vit(image_size=48).with_classes(CLASSES)))
    loaded = LoadedClassifier(model, DeiTImageProcessor.for_size(48, 48), CLASSES)
    assert Teacher(loaded, CLASSES, STUDENT, "t")(noise(2, 3, 32, 32)).shape == (2, 3)


def test_classes_are_matched_by_name() -> None:
    network, batch = _network(("cat", "ant", "bee")), noise(2, 3, 32, 32)
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    torch.testing.assert_close(teacher(batch), network(batch).logits[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (("ant", "bee"), "with 2 classes such as 'ant', does not fit: .* does not have, such as 'cat'"),
        (("ant", "bee", "dog"), "'cat'"),
    ],
)
def test_missing_classes_are_rejected_with_the_remedy(own: tuple[str, ...], message: str) -> None:
    with pytest.raises(TeacherError, match=message) as caught:
        Teacher(_loaded(_network(own)), CLASSES, STUDENT, "t")
    assert "deit teacher train DATA --arch" in str(caught.value)


def test_additional_classes_are_ignored() -> None:
    network, batch = _network(("dog", "cat", "ant", "bee")), noise(2, 3, 32, 32)
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    torch.testing.assert_close(teacher(batch), network(batch).logits[:, [2, 3, 1]])
    assert teacher.notes == ["The teacher t has 1 more classes than the data; their logits are ignored"]
    assert Teacher(_loaded(_network()), CLASSES, STUDENT, "t").notes == []
    torch.testing.assert_close(teacher.for_evaluation().model(batch).logits, network(batch).logits[:, [2, 3, 1]])
    with pytest.raises(TeacherError, match="several classes named 'ant'"):
        Teacher(_loaded(_network(("ant", "ant", "bee", "cat"))), CLASSES, STUDENT, "t")


def test_imagenet_classes_match_by_description_and_wordnet_id() -> None:
    described = tuple(ImageNetInfo().label_descriptions())
    network = _network(described)
    fish = ("n01443537", "n01440764")  # goldfish, tench: the names of ImageNet's folders
    teacher = Teacher(_loaded(network), fish, STUDENT, "t")
    batch = noise(2, 3, 32, 32)
    torch.testing.assert_close(teacher(batch), network(batch).logits[:, [1, 0]])
    assert Teacher(_loaded(network), ("tench, Tinca tinca",), STUDENT, "t")(batch).shape == (2, 1)
    with pytest.raises(TeacherError, match="'n01440764'"):  # in another order the IDs mean nothing
        Teacher(_loaded(_network(described[::-1])), fish[::-1], STUDENT, "t")


@pytest.mark.parametrize("own", [("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2"), ("class 1", "class 2", "class 3")])
def test_classes_without_names_are_matched_by_order_on_request(own: tuple[str, ...]) -> None:
    network, batch = _network(own), noise(2, 3, 32, 32)
    with pytest.raises(TeacherError, match=rf"have no names, only '{own[0]}' to '{own[2]}'.*'ant' to 'cat'.*order"):
        Teacher(_loaded(network), CLASSES, STUDENT, "t")
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t", "order")
    torch.testing.assert_close(teacher(batch), network(batch).logits)
    assert teacher.notes == [f"The classes of the teacher t are matched with the data's by order: {own[0]} is taken to be ant"]
    assert teacher.for_evaluation().classes == CLASSES
    for classes in (CLASSES[:2], (*CLASSES, "dog")):
        with pytest.raises(TeacherError, match="only one to one"):
            Teacher(_loaded(network), classes, STUDENT, "t", "order")


def test_names_in_another_order_are_not_matched_by_order() -> None:
    with pytest.raises(
        TeacherError, match=r"class 'ant' is number 0 in the data and 1 in the model: match the classes by name"
    ):
        Teacher(_loaded(_network(("cat", "ant", "bee"))), CLASSES, STUDENT, "t", "order")
    teacher = Teacher(_loaded(_network(("Ameise", "bee", "Katze"))), CLASSES, STUDENT, "t", "order")
    assert len(teacher.notes) == 1
    assert Teacher(_loaded(_network()), CLASSES, STUDENT, "t", "order").notes == []


def test_reduction_of_feature_maps_is_fitted_once() -> None:
    teacher = Teacher(_loaded(_network()), CLASSES, STUDENT, "a teacher")
    batch = Batch(noise(4, 3, *STUDENT.input_hw), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 3), torch.zeros(4, 3))
    empty = Batch(batch.pixel_values[:0], batch.labels[:0], batch.targets[:0], batch.samples[:0])
    reduction = teacher.feature_reduction([empty, batch], "these")
    assert [shape[0] for shape in reduction.shapes] == [
        min(channels, 16 if height > 8 else 64) for channels, height, _ in teacher.feature_shapes(*STUDENT.input_hw)
    ]
    assert teacher.feature_reduction([], "these") is reduction
    other = Batch(batch.pixel_values.square(), batch.labels, batch.targets, batch.samples)
    assert teacher.feature_reduction([other], "others").to_bytes() != reduction.to_bytes()


def test_feature_maps_that_are_not_finite_cannot_be_reduced() -> None:
    teacher = Teacher(_loaded(_network()), CLASSES, STUDENT, "a teacher")
    pixels = torch.full((2, 3, *STUDENT.input_hw), torch.nan)
    batch = Batch(pixels, torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(NonFiniteOutputError, match="feature maps hold NaN"):
        teacher.feature_reduction([batch], "these")


def test_fingerprint_depends_on_weights_preprocessing_and_classes() -> None:
    network = _network()
    one = Teacher(_loaded(network), CLASSES, STUDENT, "t").fingerprint()
    assert Teacher(_loaded(network), CLASSES, STUDENT, "another name").fingerprint() == one
    assert Teacher(_loaded(network), CLASSES[::-1], STUDENT, "t").fingerprint() != one
    other = LoadedClassifier(network, DeiTImageProcessor.for_size(32, 32, mean=(0.1, 0.2, 0.3)), CLASSES)
    assert Teacher(other, CLASSES, STUDENT, "t").fingerprint() != one
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] += 1
    assert Teacher(_loaded(network), CLASSES, STUDENT, "t").fingerprint() != one


def test_single_file_loads_as_teacher(tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(tiny_vit().with_classes(CLASSES)))
    model.save_pretrained(tmp_path)
    batch = noise(2, 3, 32, 32)
    torch.testing.assert_close(Teacher.load(tmp_path / "model.safetensors", CLASSES, STUDENT)(batch), model(batch).logits)


@pytest.mark.parametrize("name", ["facebook/deit-base-distilled-patch16-224", "deit-tiny-patch16-224", "someone/convnext"])
def test_hub_name_without_network_raises_one_clear_error(name: str) -> None:
    with pytest.raises(TeacherError, match=f"teacher {name} cannot be loaded.*not in the cache.*go online"):
        Teacher.load(name, CLASSES, STUDENT)


def test_teacher_loads_from_model_or_run_directory(tmp_path: Path) -> None:
    network, batch = _network(), noise(2, 3, 32, 32)
    network.save_pretrained(tmp_path / "a run" / "best")
    for path in (tmp_path / "a run" / "best", tmp_path / "a run"):
        teacher = Teacher.load(path, CLASSES, STUDENT)
        torch.testing.assert_close(teacher(batch), network(batch).logits)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_timm_teacher_loads_from_weights_file(tmp_path: Path, suffix: str) -> None:
    network = timm.create_model(ARCH, num_classes=3).eval()
    path = tmp_path / f"the weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    with pytest.raises(TeacherError, match=r"have no names, only 'LABEL_0' to 'LABEL_2'.*--teacher-classes order"):
        Teacher.load(ARCH, CLASSES, STUDENT, weights=path)
    teacher = Teacher.load(ARCH, CLASSES, STUDENT, weights=path, match="order")
    assert teacher(noise(1, 3, 160, 160)).shape == (1, 3)
    with pytest.raises(TeacherError, match=r"does not fit .*[^.]\.$"):
        Teacher.load(ARCH, (*CLASSES, "dog"), STUDENT, weights=path)
    _network().save_pretrained(tmp_path / "a teacher")
    with pytest.raises(TeacherError, match="has weights of its own: leave out --teacher-weights"):
        Teacher.load(tmp_path / "a teacher", CLASSES, STUDENT, weights=path)


@pytest.mark.parametrize("container", [None, "model_state_dict", "net"])
@pytest.mark.parametrize("prefix", ["module.", "model._orig_mod.", "backbone."])
def test_containers_and_prefixes_of_timm_teachers_do_not_matter(tmp_path: Path, container: str | None, prefix: str) -> None:
    network, batch = _network(), noise(1, 3, 32, 32)
    path = tmp_path / "teacher"
    network.save_pretrained(path)
    state = {prefix + name: tensor for name, tensor in load_file(path / "model.safetensors").items()}
    (path / "model.safetensors").unlink()
    content = state if container is None else {container: state, "optimizer": {"state": {}}, "epoch": 1}
    torch.save(content, path / "pytorch_model.bin")
    torch.testing.assert_close(Teacher.load(path, CLASSES, STUDENT)(batch), network(batch).logits)


def test_moving_average_beside_the_weights_of_a_teacher_is_mentioned(tmp_path: Path) -> None:
    state = _network().network.state_dict()
    torch.save({"model": state, "model_ema": {name: tensor * 0 for name, tensor in state.items()}}, tmp_path / "a.pth")
    teacher = Teacher.load(ARCH, CLASSES, STUDENT, weights=tmp_path / "a.pth", match="order")
    assert teacher.notes[0].startswith(f"The teacher {ARCH}: the checkpoint also has a moving average of the weights")
    assert teacher(noise(1, 3, 32, 32)).abs().max() > 0
    torch.save({"a": state, "b": state}, tmp_path / "a.pth")
    with pytest.raises(TeacherError, match="several models, under `a` and `b`"):
        Teacher.load(ARCH, CLASSES, STUDENT, weights=tmp_path / "a.pth")


def test_only_tensors_are_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    with pytest.raises(TeacherError):
        Teacher.load(ARCH, CLASSES, STUDENT, weights=path)
    assert not (tmp_path / "sprung").exists()


def test_classes_of_published_weights_are_checked_before_the_download() -> None:
    with pytest.raises(TeacherError, match=r"with 1,000 classes such as 'n01440764', does not fit: .*'ant'"):
        Teacher.load("regnety_160", CLASSES, STUDENT)


def test_unknown_architecture_suggests_the_closest() -> None:
    with pytest.raises(TeacherError, match="did you mean regnety_160"):
        Teacher.load("regnety_16O", CLASSES, STUDENT)
