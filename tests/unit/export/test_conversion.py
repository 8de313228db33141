"""Conversion: what is written gives the same logits in the program that it is for, or is not let out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers

import deit
from deit.checkpoints.writing import write_timm
from deit.errors import CheckpointError, UserError, WorkError
from deit.export import conversion
from deit.export.conversion import convert, logits_on_fixed_input
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import load_classifier
from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTForImageClassification,
    load_model,
)
from tests.helpers import noise, randomized, tiny_deit, tiny_vit

FORMATS = ["transformers", "timm", "authors"]
MAKERS: dict[str, Any] = {
    "plain": lambda **fields: ViTForImageClassification(tiny_vit(layer_norm_eps=1e-6, **fields)),
    "distilled": lambda **fields: DeiTForImageClassificationWithTeacher(tiny_deit(layer_norm_eps=1e-6, **fields)),
}
PROCESSOR = DeiTImageProcessor.for_size(32, 32, 0.8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop="squash")


def place(directory: Path, form: str) -> Path:
    return directory / ("model.pth" if form == "authors" else "model of mine")


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> Any:
    return randomized(MAKERS[request.param](num_labels=3, id2label={0: "a", 1: "b", 2: "ц"}), std=0.1)


@pytest.fixture
def source(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "source")
    PROCESSOR.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_gives_the_same_logits_in_its_own_program(source: Path, model: Any, tmp_path: Path, to: Any) -> None:
    result = convert(source, place(tmp_path, to), to)
    other = "transformers" if to == "transformers" else "timm"
    assert [name.split()[0] for name in result.differences] == ["deit", other]
    assert max(result.differences.values()) <= 1e-5
    assert result.largest == pytest.approx(model(noise(2, 3, 32, 32)).logits.abs().max().item(), rel=1e-5)
    assert (result.layout, result.format, result.epsilon_shift) == ("transformers", to, 0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["source", place(tmp_path, to).name])


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_any_format_becomes_any_other_without_losing_a_bit(
    source: Path, model: Any, tmp_path: Path, first: Any, second: Any
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    convert(source, place(tmp_path / "1", first), first)
    convert(place(tmp_path / "1", first), place(tmp_path / "2", second), second, num_attention_heads=3)
    back = load_model(place(tmp_path / "2", second), num_attention_heads=3)
    assert type(back) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    if "authors" not in (first, second):  # their files know no names
        assert back.config.classes == ("a", "b", "ц")


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_preprocessing_goes_along(source: Path, tmp_path: Path, to: Any) -> None:
    convert(source, tmp_path / "there", to)
    convert(tmp_path / "there", tmp_path / "back")
    assert DeiTImageProcessor.from_pretrained(tmp_path / "back") == PROCESSOR
    if to == "timm":
        settings = json.loads((tmp_path / "there" / "config.json").read_text())["pretrained_cfg"]
        assert (settings["crop_pct"], settings["crop_mode"], settings["mean"]) == (0.8, "squash", [0.1, 0.2, 0.3])


def test_timms_own_functions_open_it(source: Path, model: Any, tmp_path: Path) -> None:
    convert(source, tmp_path / "there", "timm")
    network: Any = timm.create_model(f"local-dir:{tmp_path / 'there'}", pretrained=True)
    images = noise(2, 3, 32, 32)
    assert torch.allclose(network.eval()(images), model(images).logits, atol=1e-5)


def test_the_automatic_classes_of_transformers_open_it(source: Path, model: Any, tmp_path: Path) -> None:
    convert(source, tmp_path / "timm", "timm")
    convert(tmp_path / "timm", tmp_path / "there")
    network = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "there")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "there")  # type: ignore[no-untyped-call]
    images = noise(2, 3, 32, 32)
    assert torch.allclose(network(images).logits, model(images).logits, atol=1e-5)
    assert dict(processor.crop_size) == {"height": 32, "width": 32}


def test_a_hidden_difference_of_epsilon_is_said(tmp_path: Path) -> None:
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit(layer_norm_eps=1e-12)), std=0.02).save_pretrained(
        tmp_path / "in"
    )
    result = convert(tmp_path / "in", tmp_path / "out", "timm")
    assert result.epsilon_shift > 0
    assert max(result.differences.values()) <= 1e-5


def test_a_difference_is_an_error_and_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(draft: Path, model: Any) -> torch.Tensor:
        return logits_on_fixed_input(load_model(draft), model) + 1e-3

    monkeypatch.setattr(conversion, "_read_ourselves", shifted)
    with pytest.raises(WorkError, match=r"deit answers the written model with logits up to 1\.00e-03 from ours"):
        convert(source, tmp_path / "there")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_logits_that_are_no_numbers_are_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_read_ourselves", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(WorkError, match="up to nan"):
        convert(source, tmp_path / "there")


def test_nothing_is_replaced_unless_it_is_asked_for(source: Path, tmp_path: Path) -> None:
    for to in FORMATS:
        path = place(tmp_path, to)
        convert(source, path, to, overwrite=True)  # type: ignore[arg-type]
        before = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
        with pytest.raises(UserError, match="is there already: choose another destination, or pass --overwrite"):
            convert(source, path, to)  # type: ignore[arg-type]
        convert(source, path, to, overwrite=True)  # type: ignore[arg-type]
        assert (sorted(file.name for file in path.iterdir()) if path.is_dir() else []) == before


@pytest.mark.parametrize(
    ("name", "to", "says"),
    [
        ("there", "keras", "no format 'keras': known are transformers, timm, authors"),
        ("there", "authors", "no ending of the authors' files: give it .pth"),
        ("there.pth", "timm", "looks like a file"),
        ("there.safetensors", None, "looks like a file"),
    ],
)
def test_a_wrong_destination_is_refused(source: Path, tmp_path: Path, name: str, to: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert(source, tmp_path / name, to)


def test_what_a_format_cannot_say_is_refused(tmp_path: Path) -> None:
    DeiTForImageClassification(tiny_deit()).save_pretrained(tmp_path / "one head")
    with pytest.raises(CheckpointError, match="a single `classifier`"):
        convert(tmp_path / "one head", tmp_path / "there", "timm")
    pruned = ViTForImageClassification(tiny_vit(layer_norm_eps=1e-6))
    pruned.prune_heads({0: [1]})
    pruned.save_pretrained(tmp_path / "pruned")
    with pytest.raises(CheckpointError, match="pruned"):
        convert(tmp_path / "pruned", tmp_path / "x.pth")
    assert list(convert(tmp_path / "pruned", tmp_path / "there").differences) == ["deit"]  # transformers 5 cannot prune
    assert not (tmp_path / "x.pth").exists()


def test_shape_and_distillation_change_on_the_way(source: Path, model: Any, tmp_path: Path) -> None:
    distilled = isinstance(model, DeiTForImageClassificationWithTeacher)
    result = convert(
        source, tmp_path / "there", image_size=(64, 48), distillation="drop" if distilled else "new", id2label={0: "x", 1: "y"}
    )
    assert result.architecture == ("ViTForImageClassification" if distilled else "DeiTForImageClassificationWithTeacher")
    assert "embeddings.position_embeddings" in result.report.resized
    loaded = load_model(tmp_path / "there")
    assert (loaded.config.image_hw, loaded.config.classes) == ((64, 48), ("x", "y"))
    assert deit.DeiTImageProcessor.from_pretrained(tmp_path / "there").input_hw == (64, 48)
    assert json.loads(json.dumps(result.to_dict()))["architecture"] == result.architecture


def test_nothing_but_a_model_is_replaced(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "photos").mkdir(parents=True)
    (run / "recipe.toml").touch()
    for destination, says in (
        (run, "run holds photos, which is no part of a model"),
        (source, "hold each other"),
        (source / "inner", "hold each other"),
    ):
        with pytest.raises(UserError, match=says):
            convert(source, destination, overwrite=True)
    source.rename(run / "best")
    for file in (run / "recipe.toml", run / "photos"):
        file.rename(tmp_path / file.name)
    with pytest.raises(UserError, match=r"holds best|hold each other"):
        convert(run / "best", run, overwrite=True)
    assert (run / "best" / "model.safetensors").is_file()


def test_the_record_of_the_data_goes_along(source: Path, tmp_path: Path) -> None:
    (source / "training.json").write_text('{"fingerprint": "x"}')
    convert(source, tmp_path / "a", "timm")
    convert(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "training.json").read_text()) == {"fingerprint": "x"}


def test_what_timm_reads_is_the_directory_with_its_configuration(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def garbled(directory: Path, *arguments: Any) -> None:
        write_timm(directory, *arguments)
        content = json.loads((directory / "config.json").read_text())
        content["model_args"]["act_layer"] = "relu"
        (directory / "config.json").write_text(json.dumps(content))

    monkeypatch.setattr(conversion, "write_timm", garbled)
    monkeypatch.setattr(conversion, "_read_ourselves", lambda _, model: logits_on_fixed_input(model, model))
    with pytest.raises(WorkError, match=r"timm .* answers the written model with logits up to"):
        convert(source, tmp_path / "there", "timm")


@pytest.mark.parametrize(
    "settings",
    [
        {"do_normalize": False},
        {"rescale_factor": 1 / 127},
        {"do_resize": False},
        {"size": {"shortest_edge": 40, "longest_edge": 50}},
        {"size": (40, 60)},
    ],
    ids=str,
)
def test_preprocessing_that_timm_cannot_do_is_refused(source: Path, tmp_path: Path, settings: Any) -> None:
    DeiTImageProcessor(**{"crop_size": 32, "size": 40, **settings}).save_pretrained(source)
    with pytest.raises(CheckpointError, match="timm has no words"):
        convert(source, tmp_path / "there", "timm")
    result = convert(source, tmp_path / "there", image_size=64)  # but another size is nothing to timm's words
    assert DeiTImageProcessor.from_pretrained(result.destination).crop_size == {"height": 64, "width": 64}


def test_a_link_is_followed_and_stays(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    result = convert(source, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert result.destination == tmp_path / "real"
    assert load_model(tmp_path / "link").config.classes == ("a", "b", "ц")


def test_somebody_elses_weights_are_not_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "lora.safetensors").touch()
    with pytest.raises(UserError, match=r"holds lora\.safetensors"):
        convert(source, tmp_path / "there", overwrite=True)


def test_a_model_that_answers_tuples_is_converted_and_asked_all_the_same(model: Any, tmp_path: Path) -> None:
    model.config.return_dict = False
    model.save_pretrained(tmp_path / "tuples")
    assert max(convert(tmp_path / "tuples", tmp_path / "there").differences.values()) == 0
    assert load_classifier(tmp_path / "tuples").model(noise(1, 3, 32, 32)).heads
