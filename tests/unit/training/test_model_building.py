"""Building models from every kind of checkpoint, for other classes and resolutions, plain or distilled; and resuming."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor

from deit.checkpoints.key_maps import HEADS
from deit.checkpoints.position_embeddings import resample_position_embeddings
from deit.checkpoints.reading import open_checkpoint
from deit.config import ViTConfig
from deit.errors import DeiTError, InterruptedWorkError, RecipeError, TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.modeling import DeiTForImageClassification, DeiTForImageClassificationWithTeacher, ViTForImageClassification
from deit.models.timm_classifier import TimmClassifier, new_timm_classifier
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training import loop
from deit.training.model_building import build_model
from deit.training.run import pretrain, train, train_on
from tests.helpers import TINY, memory_splits, randomized, tiny_deit, tiny_vit

CLASSES = ("a", "b", "c")
OTHERS = ("x", "y", "z")
PLAIN, DISTILLED = "finetune-small-data", "finetune-small-data-distilled"


def _recipe(name: str = PLAIN, **model: Any) -> Recipe:
    """A recipe that starts from a checkpoint, small enough to run."""
    return get_recipe(name).replace(epochs=2, batch_size=16, micro_batch_size=16, precision="fp32", model=model)


def _saved(path: Path, distilled: bool = False, classes: tuple[str, ...] = CLASSES, **fields: Any) -> Path:
    """A checkpoint of this package with its own normalization."""
    if distilled:
        model: Any = DeiTForImageClassificationWithTeacher(tiny_deit(num_labels=len(classes), **fields).with_classes(classes))
    else:
        model = ViTForImageClassification(tiny_vit(num_labels=len(classes), **fields).with_classes(classes))
    randomized(model, std=0.1).save_pretrained(path)
    DeiTImageProcessor.for_size(32, 32, 0.875, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).save_pretrained(path)
    return path


def _canonical(model: Any) -> dict[str, Tensor]:
    return dict(model.canonical_state())


def _same(model: Any, path: Path, but: tuple[str, ...] = ()) -> None:
    """Asserts that every tensor equals the checkpoint's, except those of the modules ``but``, which differ."""
    stored, mine = open_checkpoint(path).read(), _canonical(model)
    for name, value in mine.items():
        if name.startswith(but):
            assert name not in stored or not torch.equal(value, stored[name].float()) or not value.any(), name
        else:
            assert torch.equal(value, stored[name].float()), name


@pytest.mark.parametrize("distilled", [False, True])
def test_published_checkpoint_gets_only_new_heads(tmp_path: Path, distilled: bool) -> None:
    torch.manual_seed(0)
    fields = {**TINY, "num_labels": 7}
    kinds: Any = transformers
    theirs = (
        kinds.DeiTForImageClassificationWithTeacher(kinds.DeiTConfig(**fields))
        if distilled
        else kinds.ViTForImageClassification(kinds.ViTConfig(**fields))
    )
    theirs.save_pretrained(tmp_path / "their model")
    built = build_model(_recipe(DISTILLED if distilled else PLAIN), CLASSES, str(tmp_path / "their model"))
    assert isinstance(built.model, DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification)
    _same(built.model, tmp_path / "their model", HEADS)
    assert isinstance(built.model.config, ViTConfig)
    assert built.model.config.classes == CLASSES
    assert built.model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in built.model.parameters())
    assert "Position embeddings" not in " ".join(built.notes)


def test_timm_checkpoint(tmp_path: Path) -> None:
    theirs: Any = randomized(timm.create_model("deit_tiny_distilled_patch16_224", depth=1, num_classes=4), std=0.05)
    torch.save(theirs.state_dict(), tmp_path / "of timm.pth")
    built = build_model(_recipe(DISTILLED), CLASSES, str(tmp_path / "of timm.pth"))
    _same(built.model, tmp_path / "of timm.pth", HEADS)
    assert built.recipe.image_hw == (224, 224)


def test_half_precision_weights_are_trained_in_float32(tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(tiny_vit(num_labels=3).with_classes(CLASSES)))
    model.half().save_pretrained(tmp_path / "half")
    built = build_model(_recipe(), CLASSES, str(tmp_path / "half"))
    assert {parameter.dtype for parameter in built.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("distilled", [False, True])
def test_heads_are_kept_for_the_same_classes_only(tmp_path: Path, distilled: bool) -> None:
    path, recipe = _saved(tmp_path / "m", distilled), _recipe(DISTILLED if distilled else PLAIN)
    kept = build_model(recipe, CLASSES, str(path))
    _same(kept.model, path)
    assert not any("Newly" in note for note in kept.notes)
    for classes in (OTHERS, CLASSES[::-1]):  # as many, but others or in another order
        new = build_model(recipe, classes, str(path))
        _same(new.model, path, HEADS)
        assert isinstance(new.model.config, ViTConfig)
        assert new.model.config.classes == classes
        assert any(note.startswith("Newly initialized: ") and "classifier" in note for note in new.notes)


def test_head_setting_keeps_or_replaces_heads(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m")
    _same(build_model(_recipe(head="keep"), OTHERS, str(path)).model, path)
    _same(build_model(_recipe(head="new"), CLASSES, str(path)).model, path, HEADS)
    with pytest.raises(RecipeError, match="has 3 classes and the data has 2"):
        build_model(_recipe(head="keep"), ("a", "b"), str(path))


def test_missing_heads_cannot_be_kept(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m")
    ViTForImageClassification.from_pretrained(path).base_model.save_pretrained(tmp_path / "trunk")
    with pytest.raises(RecipeError, match="has no heads"):
        build_model(_recipe(head="keep"), CLASSES, str(tmp_path / "trunk"))
    built = build_model(_recipe(), CLASSES, str(tmp_path / "trunk"))
    _same(built.model, tmp_path / "trunk", HEADS)


@pytest.mark.parametrize("size", [64, (48, 32), 24])
def test_other_resolution_resamples_only_position_embeddings(tmp_path: Path, size: Any) -> None:
    path = _saved(tmp_path / "m", distilled=True)
    built = build_model(_recipe(DISTILLED, image_size=size), CLASSES, str(path))
    _same(built.model, path, ("embeddings.position_embeddings",))
    height, width = (size, size) if isinstance(size, int) else size
    assert built.recipe.image_hw == (height, width)
    grid = height // 8, width // 8
    positions = open_checkpoint(path).read()["embeddings.position_embeddings"]
    resampled = resample_position_embeddings(positions, 2, (4, 4), grid)
    assert torch.equal(_canonical(built.model)["embeddings.position_embeddings"], resampled)
    assert f"Position embeddings are resampled from 4 x 4 to {grid[0]} x {grid[1]} patches" in built.notes


def test_indivisible_image_size_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DeiTError, match="is not divisible"):
        build_model(_recipe(image_size=36), CLASSES, str(_saved(tmp_path / "m")))


def test_distilled_checkpoint_without_teacher_keeps_its_class_head(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m", distilled=True)
    built = build_model(_recipe(), CLASSES, str(path))
    stored, mine = open_checkpoint(path).read(), _canonical(built.model)
    assert torch.equal(mine["classifier.weight"], stored["cls_classifier.weight"])
    positions = stored["embeddings.position_embeddings"]
    assert torch.equal(mine["embeddings.position_embeddings"], torch.cat([positions[:, :1], positions[:, 2:]], dim=1))
    notes = " ".join(built.notes)
    assert "Not used from the checkpoint: distillation_classifier, distillation_token" in notes
    assert "resampled" not in notes


@pytest.mark.parametrize("token", [False, True])
def test_checkpoint_with_one_head_gets_a_distillation_head(tmp_path: Path, token: bool) -> None:
    path = _saved(tmp_path / "m")
    if token:  # as transformers' DeiTForImageClassification is saved
        randomized(DeiTForImageClassification(tiny_deit(num_labels=3).with_classes(CLASSES))).save_pretrained(path)
    built = build_model(_recipe(DISTILLED), CLASSES, str(path))
    assert isinstance(built.model, DeiTForImageClassificationWithTeacher)
    stored, mine = open_checkpoint(path).read(), _canonical(built.model)
    assert torch.equal(mine["cls_classifier.weight"], stored["classifier.weight"])
    [new] = [note for note in built.notes if note.startswith("Newly initialized")]
    assert new.endswith(": distillation_classifier" + ("" if token else ", distillation_token"))
    if token:
        assert torch.equal(mine["embeddings.distillation_token"], stored["embeddings.distillation_token"])


def test_normalization_is_taken_from_the_checkpoint(tmp_path: Path) -> None:
    built = build_model(_recipe(), OTHERS, str(_saved(tmp_path / "m")))
    assert (built.recipe.mean, built.recipe.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert built.recipe.processor().rgb_statistics == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_new_weights_depend_only_on_the_seed(tmp_path: Path) -> None:
    path = str(_saved(tmp_path / "m"))
    for recipe in (_recipe(DISTILLED), get_recipe("deit-distilled").tiny(), get_recipe("pretrain-mim").tiny()):
        init = path if recipe.model.kind == "transformer" and recipe.model.variant is None else None
        states: list[dict[str, Tensor]] = []
        for seed in (0, 0, 1):
            torch.manual_seed(len(states))  # has no effect
            states.append(_canonical(build_model(recipe.replace(seed=seed), OTHERS, init).model))
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_shape_of_the_recipe_is_ignored_with_a_note(tmp_path: Path) -> None:
    recipe = get_recipe("small-data").tiny().replace(model={"image_size": None})
    built = build_model(recipe, CLASSES, str(_saved(tmp_path / "m")))
    assert isinstance(built.model.config, ViTConfig)
    assert built.model.config.hidden_size == TINY["hidden_size"]
    [note] = [note for note in built.notes if "no effect" in note]
    assert "variant, patch_size, hidden_size" in note


def test_unusable_initial_checkpoints_are_rejected(tmp_path: Path) -> None:
    network = new_timm_classifier("test_resnet", CLASSES, DeiTImageProcessor.for_size(32, 32), {}, 0)
    network.save_pretrained(tmp_path / "net")
    student = _saved(tmp_path / "student")
    with pytest.raises(RecipeError, match="is a convolutional network"):
        build_model(_recipe(), CLASSES, str(tmp_path / "net"))
    with pytest.raises(TeacherError, match="is a transformer"):
        build_model(get_recipe("convnet").tiny(), CLASSES, str(student))
    with pytest.raises(RecipeError, match="pass --init MODEL"):
        build_model(_recipe(), CLASSES)
    with pytest.raises(DeiTError, match="does not exist"):
        build_model(_recipe(), CLASSES, str(tmp_path / "gone"))


def test_convnet_starts_from_another_and_keeps_its_head_for_the_same_classes(tmp_path: Path) -> None:
    network = new_timm_classifier(
        "test_resnet", CLASSES, DeiTImageProcessor.for_size(48, 48, 0.9, (0.5,) * 3, (0.25,) * 3), {}, 0
    )
    network.save_pretrained(tmp_path / "net")
    recipe = get_recipe("convnet").tiny()
    same = build_model(recipe, CLASSES, str(tmp_path / "net"))
    assert isinstance(same.model, TimmClassifier)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in same.model.state_dict().items())
    assert (same.recipe.mean, same.recipe.std) == ((0.5,) * 3, (0.25,) * 3)
    assert same.recipe.model.kind == "convnet"
    assert same.recipe.model.architecture == "test_resnet"
    other = [build_model(recipe, ("p", "q", "r", "s"), str(tmp_path / "net")).model for _ in range(2)]
    assert all(isinstance(model, TimmClassifier) and model.classes == ("p", "q", "r", "s") for model in other)
    changed = {name for name, value in other[0].state_dict().items() if value.shape != state[name].shape}
    assert changed == {"network.fc.weight", "network.fc.bias"}
    assert all(torch.equal(value, other[1].state_dict()[name]) for name, value in other[0].state_dict().items())


def _interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer ends as by Ctrl-C after so many steps."""
    import os
    import signal

    original: Any = loop.train_step  # type: ignore[attr-defined]
    taken = iter(range(10**6))

    def counted(*arguments: Any) -> dict[str, Tensor]:
        if next(taken) == step:
            os.kill(os.getpid(), signal.SIGINT)
        result: dict[str, Tensor] = original(*arguments)
        return result

    monkeypatch.setattr(loop, "train_step", counted)


def _weights(directory: Path) -> list[bytes]:
    return [(directory / name / "model.safetensors").read_bytes() for name in ("best", "last")]


RESUMED: dict[str, dict[str, Any]] = {
    "recipe defaults": {},
    "lamb": {"optimizer": {"name": "lamb", "layer_decay": 1.0}},
    "sgd": {"optimizer": {"name": "sgd", "clip_norm": None}},
    "layer scale": {
        "model": {
            "variant": "deit-tiny-patch16-224",
            **{k: v for k, v in TINY.items() if k != "intermediate_size"},
            "layer_scale": 0.1,
        }
    },
    "heads only": {"model": {"trainable": "heads"}},
    "attention only, in evaluation mode": {"model": {"trainable": "attention", "eval_mode": True}},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_resumed_run_gives_the_same_weights_without_its_initial_checkpoint(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, init = _recipe().replace(**changes), _saved(tmp_path / "a checkpoint", classes=OTHERS)
    fresh = recipe.model.kind == "transformer" and recipe.model.variant is not None
    run = RunSettings("memory", init=None if fresh else str(init))
    splits = memory_splits(48)
    train_on(splits, recipe, run, tmp_path / "whole", device="cpu", workers=0)
    with monkeypatch.context() as patch:
        _interrupted_at(4, patch)
        with pytest.raises(InterruptedWorkError, match="deit train --resume"):
            train_on(splits, recipe, run, tmp_path / "parts", device="cpu", workers=0)
    shutil.rmtree(init)
    saved = Recipe.load(tmp_path / "parts" / "recipe.toml")
    train_on(splits, saved, run, tmp_path / "parts", device="cpu", workers=0)
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")


def test_resumed_teacher_does_not_need_its_initial_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_timm_classifier("test_resnet", OTHERS, DeiTImageProcessor.for_size(32, 32), {}, 0).save_pretrained(tmp_path / "net")
    recipe, run = get_recipe("convnet").tiny().replace(batch_size=16), RunSettings("memory", init=str(tmp_path / "net"))
    splits = memory_splits(32)
    train_on(splits, recipe, run, tmp_path / "whole", device="cpu", workers=0)
    with monkeypatch.context() as patch:
        _interrupted_at(2, patch)
        with pytest.raises(InterruptedWorkError):
            train_on(splits, recipe, run, tmp_path / "parts", device="cpu", workers=0)
    shutil.rmtree(tmp_path / "net")
    train_on(splits, Recipe.load(tmp_path / "parts" / "recipe.toml"), run, tmp_path / "parts", device="cpu", workers=0)
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")


def test_pretraining_resumes_and_its_model_can_be_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo_folder: Path
) -> None:
    recipe = get_recipe("pretrain-mim").tiny().replace(batch_size=8, micro_batch_size=8)
    arguments: dict[str, Any] = {"device": "cpu", "workers": 0}
    with monkeypatch.context() as patch:
        _interrupted_at(1, patch)
        with pytest.raises(InterruptedWorkError, match='deit pretrain --resume "'):
            pretrain(photo_folder, recipe, out=tmp_path / "parts", **arguments)
    result = pretrain(resume=tmp_path / "parts", **arguments)
    whole = pretrain(photo_folder, recipe, out=tmp_path / "whole", **arguments)
    assert (result.epoch, result.loss) == (whole.epoch, whole.loss)
    assert _weights(tmp_path / "parts") == _weights(tmp_path / "whole")
    for name, left in (
        (PLAIN, {"decoder", "mask_token", "distillation_token"}),
        (DISTILLED, {"decoder", "mask_token"}),
    ):
        built = build_model(_recipe(name), CLASSES, str(tmp_path / "whole"))
        if name == DISTILLED:
            _same(built.model, tmp_path / "whole" / "best", HEADS)
        [note] = [note for note in built.notes if "Not used" in note]
        assert set(note.partition(": ")[2].split(", ")) == left
    with pytest.raises(RecipeError, match="has no heads"):
        build_model(_recipe(head="keep"), CLASSES, str(tmp_path / "whole"))


def test_frozen_parameters_do_not_change(tmp_path: Path) -> None:
    init = _saved(tmp_path / "m", classes=OTHERS)
    recipe = _recipe(trainable="attention").replace(optimizer={"warmup_epochs": 0})
    before = build_model(recipe, CLASSES, str(init)).model
    result = train_on(
        memory_splits(16), recipe, RunSettings("memory", init=str(init)), tmp_path / "run", device="cpu", workers=0
    )
    after = ViTForImageClassification.from_pretrained(result.directory / "last").state_dict()
    for name, parameter in before.named_parameters():
        moved = not torch.equal(parameter, after[name])
        assert moved == (".attention." in name or "classifier" in name or "position_embeddings" in name), name
        assert parameter.requires_grad == moved


def test_card_and_report_name_the_initial_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init = _saved(tmp_path / "secret folder" / "a start" / "best", classes=OTHERS)
    run = replace(RunSettings("memory"), init=str(init))
    recipe = _recipe(trainable="heads")
    result = train_on(memory_splits(16), recipe, run, tmp_path / "run", device="cpu", workers=0)
    said = capsys.readouterr().err
    assert f"vit-width24-depth2, from {init}, at 32 x 32" in said
    assert "75 of them trainable" in said
    card = (result.directory / "best" / "README.md").read_text()
    assert "Initialized from `a start`. Only the heads were trained." in card
    assert "secret folder" not in card
    assert f"from {init}" in (result.directory / "report.html").read_text()


def test_commands_reject_recipes_of_the_other_kind(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(RecipeError, match="trains on labels: use deit train"):
        pretrain(photo_folder, "deit", out=tmp_path / "run")
    with pytest.raises(RecipeError, match="does not use labels: use deit pretrain"):
        train(photo_folder, "pretrain-mim", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
