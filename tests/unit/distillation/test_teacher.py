"""A teacher owns its size, its normalization and its order of classes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data.imagenet_info import ImageNetInfo

from deit.distillation.teacher import Teacher
from deit.errors import TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import LoadedClassifier, TimmClassifier, fresh_network
from deit.models.modeling import ViTForImageClassification
from tests.helpers import noise, pattern, randomized, tiny_vit

CLASSES = ("ant", "bee", "cat")
STUDENT = DeiTImageProcessor.for_size(32, 32)
ARCH = "test_resnet"


def _network(classes: tuple[str, ...] = CLASSES, processor: DeiTImageProcessor = STUDENT) -> TimmClassifier:
    return randomized(fresh_network(ARCH, classes, processor, {}, seed=0), std=0.1)


def _loaded(network: TimmClassifier) -> LoadedClassifier:
    return LoadedClassifier(network, network.processor, network.classes)


def test_a_teacher_answers_with_its_own_logits() -> None:
    network, batch = _network(), noise(2, 3, 32, 32)
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    torch.testing.assert_close(teacher(batch), network(batch).logits)


def test_the_student_s_normalization_is_exchanged_for_the_teacher_s() -> None:
    own = DeiTImageProcessor.for_size(32, 32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    network = _network(processor=own)
    pixels = np.asarray(pattern(32, 32))[None]
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    seen = teacher(torch.from_numpy(STUDENT.normalize(pixels)))
    torch.testing.assert_close(seen, network(torch.from_numpy(own.normalize(pixels))).logits, rtol=1e-4, atol=1e-5)


def test_another_size_is_the_teacher_s_own_business() -> None:
    model = randomized(ViTForImageClassification(tiny_vit(image_size=48).with_classes(CLASSES)))
    loaded = LoadedClassifier(model, DeiTImageProcessor.for_size(48, 48), CLASSES)
    assert Teacher(loaded, CLASSES, STUDENT, "t")(noise(2, 3, 32, 32)).shape == (2, 3)


def test_another_order_of_classes_is_mapped_by_name() -> None:
    network, batch = _network(("cat", "ant", "bee")), noise(2, 3, 32, 32)
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    torch.testing.assert_close(teacher(batch), network(batch).logits[:, [1, 2, 0]])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (("ant", "bee"), "of 2 classes such as 'ant', does not fit: .* not know, such as 'cat'"),
        (("ant", "bee", "dog"), "'cat'"),
    ],
)
def test_other_classes_are_refused_with_the_remedy(own: tuple[str, ...], message: str) -> None:
    with pytest.raises(TeacherError, match=message) as caught:
        Teacher(_loaded(_network(own)), CLASSES, STUDENT, "t")
    assert "deit teacher train DATA --arch" in str(caught.value)


def test_a_teacher_that_knows_more_answers_about_the_data_s_classes_alone() -> None:
    network, batch = _network(("dog", "cat", "ant", "bee")), noise(2, 3, 32, 32)
    teacher = Teacher(_loaded(network), CLASSES, STUDENT, "t")
    torch.testing.assert_close(teacher(batch), network(batch).logits[:, [2, 3, 1]])
    assert teacher.notes == ["The teacher t knows 1 classes more than the data has; their logits are left out"]
    assert Teacher(_loaded(_network()), CLASSES, STUDENT, "t").notes == []
    torch.testing.assert_close(teacher.evaluated()(batch).logits, network(batch).logits[:, [2, 3, 1]])
    with pytest.raises(TeacherError, match="several classes called 'ant'"):
        Teacher(_loaded(_network(("ant", "ant", "bee", "cat"))), CLASSES, STUDENT, "t")


def test_imagenet_s_classes_are_known_by_description_and_by_number() -> None:
    described = tuple(ImageNetInfo().label_descriptions())
    network = _network(described)
    fish = ("n01443537", "n01440764")  # goldfish, tench: the names of ImageNet's folders
    teacher = Teacher(_loaded(network), fish, STUDENT, "t")
    batch = noise(2, 3, 32, 32)
    torch.testing.assert_close(teacher(batch), network(batch).logits[:, [1, 0]])
    assert Teacher(_loaded(network), ("tench, Tinca tinca",), STUDENT, "t")(batch).shape == (2, 1)
    with pytest.raises(TeacherError, match="'n01440764'"):  # in another order the numbers mean nothing
        Teacher(_loaded(_network(described[::-1])), fish[::-1], STUDENT, "t")


def test_the_fingerprint_tells_weights_preprocessing_and_classes_apart() -> None:
    network = _network()
    one = Teacher(_loaded(network), CLASSES, STUDENT, "t").fingerprint()
    assert Teacher(_loaded(network), CLASSES, STUDENT, "another name").fingerprint() == one
    assert Teacher(_loaded(network), CLASSES[::-1], STUDENT, "t").fingerprint() != one
    other = LoadedClassifier(network, DeiTImageProcessor.for_size(32, 32, mean=(0.1, 0.2, 0.3)), CLASSES)
    assert Teacher(other, CLASSES, STUDENT, "t").fingerprint() != one
    with torch.no_grad():
        next(network.parameters())[0, 0, 0, 0] += 1
    assert Teacher(_loaded(network), CLASSES, STUDENT, "t").fingerprint() != one


def test_a_single_file_of_ours_teaches(tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(tiny_vit().with_classes(CLASSES)))
    model.save_pretrained(tmp_path)
    batch = noise(2, 3, 32, 32)
    torch.testing.assert_close(Teacher.load(tmp_path / "model.safetensors", CLASSES, STUDENT)(batch), model(batch).logits)


@pytest.mark.parametrize("name", ["facebook/deit-base-distilled-patch16-224", "deit-tiny-patch16-224", "someone/convnext"])
def test_a_name_on_the_hub_is_one_clear_word_without_a_network(name: str) -> None:
    with pytest.raises(TeacherError, match=f"teacher {name} cannot be loaded.*not in the cache.*go online"):
        Teacher.load(name, CLASSES, STUDENT)


def test_a_teacher_comes_from_its_directory_or_its_run(tmp_path: Path) -> None:
    network, batch = _network(), noise(2, 3, 32, 32)
    network.save_pretrained(tmp_path / "a run" / "best")
    for path in (tmp_path / "a run" / "best", tmp_path / "a run"):
        teacher = Teacher.load(path, CLASSES, STUDENT)
        torch.testing.assert_close(teacher(batch), network(batch).logits)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_timm_teacher_comes_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    network = timm.create_model(ARCH, num_classes=3).eval()
    path = tmp_path / f"the weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    teacher = Teacher.load(ARCH, CLASSES, STUDENT, weights=path)
    assert teacher(noise(1, 3, 160, 160)).shape == (1, 3)
    with pytest.raises(TeacherError, match="does not fit"):
        Teacher.load(ARCH, (*CLASSES, "dog"), STUDENT, weights=path)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    with pytest.raises(TeacherError):
        Teacher.load(ARCH, CLASSES, STUDENT, weights=path)
    assert not (tmp_path / "sprung").exists()


def test_published_weights_are_checked_before_they_are_fetched() -> None:
    with pytest.raises(TeacherError, match=r"of 1,000 classes such as 'n01440764', does not fit: .*'ant'"):
        Teacher.load("regnety_160", CLASSES, STUDENT)


def test_an_unknown_architecture_names_the_nearest() -> None:
    with pytest.raises(TeacherError, match="did you mean regnety_160"):
        Teacher.load("regnety_16O", CLASSES, STUDENT)
