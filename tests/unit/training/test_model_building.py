"""What training starts with: every form of a checkpoint, other classes, another resolution, with a token or without."""

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

from deit.checkpoints.position_embeddings import resample
from deit.checkpoints.reading import open_checkpoint
from deit.config import ViTConfig
from deit.errors import DeiTError, InterruptedWorkError, RecipeError, TeacherError
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import TimmClassifier, fresh_network
from deit.models.modeling import DeiTForImageClassification, DeiTForImageClassificationWithTeacher, ViTForImageClassification
from deit.recipes.presets import get_recipe
from deit.recipes.run_settings import RunSettings
from deit.recipes.schema import Recipe
from deit.training import loop
from deit.training.model_building import start
from deit.training.run import pretrain, train, train_on
from tests.helpers import TINY, memory_splits, randomized, tiny_deit, tiny_vit

CLASSES = ("a", "b", "c")
OTHERS = ("x", "y", "z")
HEADS = ("classifier", "cls_classifier", "distillation_classifier")
PLAIN, DISTILLED = "finetune-small-data", "finetune-small-data-distilled"


def _recipe(name: str = PLAIN, **model: Any) -> Recipe:
    """A recipe that starts from a checkpoint, small enough to run."""
    return get_recipe(name).replace(epochs=2, batch_size=16, micro_batch_size=16, precision="fp32", model=model)


def _saved(path: Path, distilled: bool = False, classes: tuple[str, ...] = CLASSES, **fields: Any) -> Path:
    """One of our own checkpoints, with a normalization of its own."""
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
    """Every tensor is the checkpoint's to the bit, but those of the named parts, which are not."""
    stored, mine = open_checkpoint(path).read(), _canonical(model)
    for name, value in mine.items():
        if name.startswith(but):
            assert name not in stored or not torch.equal(value, stored[name].float()) or not value.any(), name
        else:
            assert torch.equal(value, stored[name].float()), name


@pytest.mark.parametrize("distilled", [False, True])
def test_a_published_checkpoint_starts_training_with_new_heads_alone(tmp_path: Path, distilled: bool) -> None:
    torch.manual_seed(0)
    fields = {**TINY, "num_labels": 7}
    kinds: Any = transformers
    theirs = (
        kinds.DeiTForImageClassificationWithTeacher(kinds.DeiTConfig(**fields))
        if distilled
        else kinds.ViTForImageClassification(kinds.ViTConfig(**fields))
    )
    theirs.save_pretrained(tmp_path / "their model")
    begun = start(_recipe(DISTILLED if distilled else PLAIN), CLASSES, str(tmp_path / "their model"))
    assert isinstance(begun.model, DeiTForImageClassificationWithTeacher if distilled else ViTForImageClassification)
    _same(begun.model, tmp_path / "their model", HEADS)
    assert isinstance(begun.model.config, ViTConfig)
    assert begun.model.config.classes == CLASSES
    assert begun.model.training
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in begun.model.parameters())
    assert "Position embeddings" not in " ".join(begun.notes)


def test_a_checkpoint_of_timm_starts_training(tmp_path: Path) -> None:
    theirs: Any = randomized(timm.create_model("deit_tiny_distilled_patch16_224", depth=1, num_classes=4), std=0.05)
    torch.save(theirs.state_dict(), tmp_path / "of timm.pth")
    begun = start(_recipe(DISTILLED), CLASSES, str(tmp_path / "of timm.pth"))
    _same(begun.model, tmp_path / "of timm.pth", HEADS)
    assert begun.recipe.image_hw == (224, 224)


def test_half_precision_weights_are_trained_in_single(tmp_path: Path) -> None:
    model = randomized(ViTForImageClassification(tiny_vit(num_labels=3).with_classes(CLASSES)))
    model.half().save_pretrained(tmp_path / "half")
    begun = start(_recipe(), CLASSES, str(tmp_path / "half"))
    assert {parameter.dtype for parameter in begun.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("distilled", [False, True])
def test_the_same_classes_keep_their_heads_to_the_bit_and_others_get_new_ones(tmp_path: Path, distilled: bool) -> None:
    path, recipe = _saved(tmp_path / "m", distilled), _recipe(DISTILLED if distilled else PLAIN)
    kept = start(recipe, CLASSES, str(path))
    _same(kept.model, path)
    assert not any("New" in note for note in kept.notes)
    for classes in (OTHERS, CLASSES[::-1]):  # as many, but others or in another order
        new = start(recipe, classes, str(path))
        _same(new.model, path, HEADS)
        assert isinstance(new.model.config, ViTConfig)
        assert new.model.config.classes == classes
        assert any(note.startswith("New, with fresh weights: ") and "classifier" in note for note in new.notes)


def test_heads_are_kept_or_made_anew_on_demand(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m")
    _same(start(_recipe(head="keep"), OTHERS, str(path)).model, path)
    _same(start(_recipe(head="new"), CLASSES, str(path)).model, path, HEADS)
    with pytest.raises(RecipeError, match="knows 3 classes and the data has 2"):
        start(_recipe(head="keep"), ("a", "b"), str(path))


def test_heads_that_are_not_there_cannot_be_kept(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m")
    ViTForImageClassification.from_pretrained(path).base_model.save_pretrained(tmp_path / "trunk")
    with pytest.raises(RecipeError, match="has no heads"):
        start(_recipe(head="keep"), CLASSES, str(tmp_path / "trunk"))
    begun = start(_recipe(), CLASSES, str(tmp_path / "trunk"))
    _same(begun.model, tmp_path / "trunk", HEADS)


@pytest.mark.parametrize("size", [64, (48, 32), 24])
def test_another_resolution_resamples_the_positions_alone(tmp_path: Path, size: Any) -> None:
    path = _saved(tmp_path / "m", distilled=True)
    begun = start(_recipe(DISTILLED, image_size=size), CLASSES, str(path))
    _same(begun.model, path, ("embeddings.position_embeddings",))
    height, width = (size, size) if isinstance(size, int) else size
    assert begun.recipe.image_hw == (height, width)
    grid = height // 8, width // 8
    positions = open_checkpoint(path).read()["embeddings.position_embeddings"]
    assert torch.equal(_canonical(begun.model)["embeddings.position_embeddings"], resample(positions, 2, (4, 4), grid))
    assert f"Position embeddings are resampled from 4 x 4 patches to {grid[0]} x {grid[1]}" in begun.notes


def test_a_size_that_patches_do_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeiTError, match="is not divisible"):
        start(_recipe(image_size=36), CLASSES, str(_saved(tmp_path / "m")))


def test_a_distilled_checkpoint_goes_on_plain_with_its_class_head(tmp_path: Path) -> None:
    path = _saved(tmp_path / "m", distilled=True)
    begun = start(_recipe(), CLASSES, str(path))
    stored, mine = open_checkpoint(path).read(), _canonical(begun.model)
    assert torch.equal(mine["classifier.weight"], stored["cls_classifier.weight"])
    positions = stored["embeddings.position_embeddings"]
    assert torch.equal(mine["embeddings.position_embeddings"], torch.cat([positions[:, :1], positions[:, 2:]], dim=1))
    notes = " ".join(begun.notes)
    assert "not used: distillation_classifier, distillation_token" in notes
    assert "resampled" not in notes


@pytest.mark.parametrize("token", [False, True])
def test_a_checkpoint_with_one_head_gets_a_distillation_head(tmp_path: Path, token: bool) -> None:
    path = _saved(tmp_path / "m")
    if token:  # as transformers' DeiTForImageClassification is saved
        randomized(DeiTForImageClassification(tiny_deit(num_labels=3).with_classes(CLASSES))).save_pretrained(path)
    begun = start(_recipe(DISTILLED), CLASSES, str(path))
    assert isinstance(begun.model, DeiTForImageClassificationWithTeacher)
    stored, mine = open_checkpoint(path).read(), _canonical(begun.model)
    assert torch.equal(mine["cls_classifier.weight"], stored["classifier.weight"])
    [new] = [note for note in begun.notes if note.startswith("New")]
    assert new.endswith(": distillation_classifier" + ("" if token else ", distillation_token"))
    if token:
        assert torch.equal(mine["embeddings.distillation_token"], stored["embeddings.distillation_token"])


def test_the_normalization_is_the_checkpoint_s(tmp_path: Path) -> None:
    begun = start(_recipe(), OTHERS, str(_saved(tmp_path / "m")))
    assert (begun.recipe.mean, begun.recipe.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert begun.recipe.processor().rgb_statistics == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_new_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    path = str(_saved(tmp_path / "m"))
    for recipe in (_recipe(DISTILLED), get_recipe("deit-distilled").tiny(), get_recipe("pretrain-mim").tiny()):
        init = path if recipe.model.kind == "transformer" and recipe.model.variant is None else None
        states: list[dict[str, Tensor]] = []
        for seed in (0, 0, 1):
            torch.manual_seed(len(states))  # of no account
            states.append(_canonical(start(recipe.replace(seed=seed), OTHERS, init).model))
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_recipe_s_own_shape_has_no_effect_on_a_checkpoint_and_that_is_said(tmp_path: Path) -> None:
    recipe = get_recipe("small-data").tiny().replace(model={"image_size": None})
    begun = start(recipe, CLASSES, str(_saved(tmp_path / "m")))
    assert isinstance(begun.model.config, ViTConfig)
    assert begun.model.config.hidden_size == TINY["hidden_size"]
    [note] = [note for note in begun.notes if "no effect" in note]
    assert "variant, patch_size, hidden_size" in note


def test_what_cannot_be_begun_with_is_refused(tmp_path: Path) -> None:
    network = fresh_network("test_resnet", CLASSES, DeiTImageProcessor.for_size(32, 32), {}, 0)
    network.save_pretrained(tmp_path / "net")
    student = _saved(tmp_path / "student")
    with pytest.raises(RecipeError, match="is a convolutional network"):
        start(_recipe(), CLASSES, str(tmp_path / "net"))
    with pytest.raises(TeacherError, match="is a transformer"):
        start(get_recipe("convnet").tiny(), CLASSES, str(student))
    with pytest.raises(RecipeError, match="pass --init MODEL"):
        start(_recipe(), CLASSES)
    with pytest.raises(DeiTError, match="does not exist"):
        start(_recipe(), CLASSES, str(tmp_path / "gone"))


def test_a_teacher_goes_on_from_another_with_its_head_where_the_classes_are_its_own(tmp_path: Path) -> None:
    network = fresh_network("test_resnet", CLASSES, DeiTImageProcessor.for_size(48, 48, 0.9, (0.5,) * 3, (0.25,) * 3), {}, 0)
    network.save_pretrained(tmp_path / "net")
    recipe = get_recipe("convnet").tiny()
    same = start(recipe, CLASSES, str(tmp_path / "net"))
    assert isinstance(same.model, TimmClassifier)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in same.model.state_dict().items())
    assert (same.recipe.mean, same.recipe.std) == ((0.5,) * 3, (0.25,) * 3)
    assert same.recipe.model.kind == "convnet"
    assert same.recipe.model.architecture == "test_resnet"
    other = [start(recipe, ("p", "q", "r", "s"), str(tmp_path / "net")).model for _ in range(2)]
    assert all(isinstance(model, TimmClassifier) and model.classes == ("p", "q", "r", "s") for model in other)
    changed = {name for name, value in other[0].state_dict().items() if value.shape != state[name].shape}
    assert changed == {"network.fc.weight", "network.fc.bias"}
    assert all(torch.equal(value, other[1].state_dict()[name]) for name, value in other[0].state_dict().items())


def _interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends as by Ctrl-C after so many steps."""
    import os
    import signal

    original: Any = loop.train_step  # type: ignore[attr-defined]
    taken = iter(range(10**6))

    def counted(*arguments: Any) -> Tensor:
        if next(taken) == step:
            os.kill(os.getpid(), signal.SIGINT)
        result: Tensor = original(*arguments)
        return result

    monkeypatch.setattr(loop, "train_step", counted)


def _weights(directory: Path) -> list[bytes]:
    return [(directory / name / "model.safetensors").read_bytes() for name in ("best", "last")]


RESUMED: dict[str, dict[str, Any]] = {
    "as the recipe has it": {},
    "lamb": {"optimizer": {"name": "lamb", "layer_decay": 1.0}},
    "sgd": {"optimizer": {"name": "sgd", "clip_norm": None}},
    "layer scale": {
        "model": {
            "variant": "deit-tiny-patch16-224",
            **{k: v for k, v in TINY.items() if k != "intermediate_size"},
            "layer_scale": 0.1,
        }
    },
    "heads alone": {"model": {"trainable": "heads"}},
    "attention alone, in evaluation mode": {"model": {"trainable": "attention", "evaluation_mode": True}},
}


@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_ends_with_the_same_weights_though_its_checkpoint_is_gone(
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


def test_a_resumed_teacher_needs_its_first_checkpoint_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh_network("test_resnet", OTHERS, DeiTImageProcessor.for_size(32, 32), {}, 0).save_pretrained(tmp_path / "net")
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


def test_a_pretrained_model_is_a_start_and_an_interrupted_pretraining_names_its_verb(
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
        begun = start(_recipe(name), CLASSES, str(tmp_path / "whole"))
        if name == DISTILLED:
            _same(begun.model, tmp_path / "whole" / "best", HEADS)
        [note] = [note for note in begun.notes if "not used" in note]
        assert set(note.partition(": ")[2].split(", ")) == left
    with pytest.raises(RecipeError, match="has no heads"):
        start(_recipe(head="keep"), CLASSES, str(tmp_path / "whole"))


def test_what_is_frozen_stays_to_the_bit_and_the_rest_moves(tmp_path: Path) -> None:
    init = _saved(tmp_path / "m", classes=OTHERS)
    recipe = _recipe(trainable="attention").replace(optimizer={"warmup_epochs": 0})
    before = start(recipe, CLASSES, str(init)).model
    result = train_on(
        memory_splits(16), recipe, RunSettings("memory", init=str(init)), tmp_path / "run", device="cpu", workers=0
    )
    after = ViTForImageClassification.from_pretrained(result.directory / "last").state_dict()
    for name, parameter in before.named_parameters():
        moved = not torch.equal(parameter, after[name])
        assert moved == (".attention." in name or "classifier" in name or "position_embeddings" in name), name
        assert parameter.requires_grad == moved


def test_a_card_and_a_report_say_what_a_run_started_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init = _saved(tmp_path / "secret folder" / "a start" / "best", classes=OTHERS)
    run = replace(RunSettings("memory"), init=str(init))
    recipe = _recipe(trainable="heads")
    result = train_on(memory_splits(16), recipe, run, tmp_path / "run", device="cpu", workers=0)
    said = capsys.readouterr().err
    assert f"vit-width24-depth2, from {init}, at 32 x 32" in said
    assert "of which 75 learn" in said
    card = (result.directory / "best" / "README.md").read_text()
    assert "It started from `a start`. Of its weights, the heads alone learned." in card
    assert "secret folder" not in card
    assert f"from {init}" in (result.directory / "report.html").read_text()


def test_each_verb_takes_the_recipes_of_its_kind(tmp_path: Path, photo_folder: Path) -> None:
    with pytest.raises(RecipeError, match="learns labels: deit train takes it"):
        pretrain(photo_folder, "deit", out=tmp_path / "run")
    with pytest.raises(RecipeError, match="learns no labels: deit pretrain takes it"):
        train(photo_folder, "pretrain-mim", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
