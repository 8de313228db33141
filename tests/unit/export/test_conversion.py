"""Conversion: a result is written only if it gives the same logits in the library of its format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

import deit
from deit.checkpoints.reading import open_checkpoint
from deit.checkpoints.writing import write_timm
from deit.errors import CheckpointError, UserError, WorkError
from deit.export import conversion
from deit.export.conversion import convert, convert_adapter, logits_on_fixed_input
from deit.images.processor import DeiTImageProcessor
from deit.models.auto import load_classifier
from deit.models.modeling import (
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTForImageClassification,
    load_model,
)
from deit.system.files import write_json
from deit.system.replacing import draft_directory
from tests.helpers import TINY, noise, randomized, tiny_deit, tiny_vit

FORMATS = ["transformers", "timm", "authors"]
MAKERS: dict[str, Any] = {
    "plain": lambda **fields: ViTForImageClassification(tiny_vit(layer_norm_eps=1e-6, **fields)),
    "distilled": lambda **fields: DeiTForImageClassificationWithTeacher(tiny_deit(layer_norm_eps=1e-6, **fields)),
}
PROCESSOR = DeiTImageProcessor.for_size(32, 32, 0.8, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), crop="squash").replace(
    crop_rounding="even"  # as timm crops
)


def destination(directory: Path, output_format: str) -> Path:
    return directory / ("model.pth" if output_format == "authors" else "my model")


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> Any:
    return randomized(MAKERS[request.param](num_labels=3, id2label={0: "a", 1: "b", 2: "ц"}), std=0.1)


@pytest.fixture
def source(model: Any, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "source")
    PROCESSOR.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_gives_the_same_logits_in_its_library(source: Path, model: Any, tmp_path: Path, to: Any) -> None:
    result = convert(source, destination(tmp_path, to), to)
    library = "transformers" if to == "transformers" else "timm"
    assert [name.split()[0] for name in result.differences] == ["deit", library]
    assert max(result.differences.values()) <= 1e-5
    assert result.largest_logit == pytest.approx(model(noise(2, 3, 32, 32)).logits.abs().max().item(), rel=1e-5)
    assert (result.layout, result.format, result.epsilon_shift) == ("transformers", to, 0.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["source", destination(tmp_path, to).name])


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_conversion_between_any_two_formats_is_lossless(
    source: Path, model: Any, tmp_path: Path, first: Any, second: Any
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    convert(source, destination(tmp_path / "first", first), first)
    convert(destination(tmp_path / "first", first), destination(tmp_path / "second", second), second, num_attention_heads=3)
    converted = load_model(destination(tmp_path / "second", second), num_attention_heads=3)
    assert type(converted) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], tensor), name
    if "authors" not in (first, second):  # files of the authors have no class names
        assert converted.config.classes == ("a", "b", "ц")


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_preprocessing_is_converted(source: Path, tmp_path: Path, to: Any) -> None:
    convert(source, tmp_path / "result", to)
    convert(tmp_path / "result", tmp_path / "back")
    assert DeiTImageProcessor.from_pretrained(tmp_path / "back") == PROCESSOR
    if to == "timm":
        settings = json.loads((tmp_path / "result" / "config.json").read_text())["pretrained_cfg"]
        assert (settings["crop_pct"], settings["crop_mode"], settings["mean"]) == (0.8, "squash", [0.1, 0.2, 0.3])


def test_timm_loads_the_result(source: Path, model: Any, tmp_path: Path) -> None:
    convert(source, tmp_path / "result", "timm")
    network: Any = timm.create_model(f"local-dir:{tmp_path / 'result'}", pretrained=True)
    images = noise(2, 3, 32, 32)
    assert torch.allclose(network.eval()(images), model(images).logits, atol=1e-5)


def test_auto_classes_of_transformers_load_the_result(source: Path, model: Any, tmp_path: Path) -> None:
    convert(source, tmp_path / "timm", "timm")
    convert(tmp_path / "timm", tmp_path / "result")
    network = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "result")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "result")  # type: ignore[no-untyped-call]
    images = noise(2, 3, 32, 32)
    assert torch.allclose(network(images).logits, model(images).logits, atol=1e-5)
    assert dict(processor.crop_size) == {"height": 32, "width": 32}


def test_change_of_the_layer_norm_epsilon_is_reported(tmp_path: Path) -> None:
    randomized(DeiTForImageClassificationWithTeacher(tiny_deit(layer_norm_eps=1e-12)), std=0.02).save_pretrained(
        tmp_path / "in"
    )
    result = convert(tmp_path / "in", tmp_path / "out", "timm")
    assert result.epsilon_shift > 0
    assert max(result.differences.values()) <= 1e-5


def test_different_logits_are_an_error_and_nothing_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(draft: Path, model: Any) -> torch.Tensor:
        return logits_on_fixed_input(load_model(draft), model) + 1e-3

    monkeypatch.setattr(conversion, "_read_with_deit", shifted)
    with pytest.raises(WorkError, match=r"The logits of the result in deit differ by up to 1\.00e-03"):
        convert(source, tmp_path / "result")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_nan_logits_are_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "_read_with_deit", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(WorkError, match="up to nan"):
        convert(source, tmp_path / "result")


def test_overwrite_is_required_to_replace_a_model(source: Path, tmp_path: Path) -> None:
    for to in FORMATS:
        path = destination(tmp_path, to)
        convert(source, path, to, overwrite=True)  # type: ignore[arg-type]
        before = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
        with pytest.raises(UserError, match="already exists: choose another destination, or pass --overwrite"):
            convert(source, path, to)  # type: ignore[arg-type]
        convert(source, path, to, overwrite=True)  # type: ignore[arg-type]
        assert (sorted(file.name for file in path.iterdir()) if path.is_dir() else []) == before


def test_draft_of_a_killed_conversion_is_removed(source: Path, tmp_path: Path) -> None:
    for to in FORMATS:
        path = destination(tmp_path, to)
        (draft_directory(path) / "half").touch()
        convert(source, path, to, overwrite=True)  # type: ignore[arg-type]
        assert not list(tmp_path.glob(f".{path.name}*"))


@pytest.mark.parametrize(
    ("name", "to", "message"),
    [
        ("result", "keras", "no format 'keras': choose from transformers, timm, authors"),
        ("result", "authors", "does not end like a file of the authors' format: name it .pth"),
        ("result.pth", "timm", "looks like a file"),
        ("result.safetensors", None, "looks like a file"),
    ],
)
def test_unsuitable_destination_is_an_error(source: Path, tmp_path: Path, name: str, to: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(source, tmp_path / name, to)


def test_model_that_a_format_cannot_express_is_an_error(tmp_path: Path) -> None:
    DeiTForImageClassification(tiny_deit()).save_pretrained(tmp_path / "one head")
    with pytest.raises(CheckpointError, match="a single `classifier`"):
        convert(tmp_path / "one head", tmp_path / "result", "timm")
    pruned = ViTForImageClassification(tiny_vit(layer_norm_eps=1e-6))
    pruned.prune_heads({0: [1]})
    pruned.save_pretrained(tmp_path / "pruned")
    with pytest.raises(CheckpointError, match="pruned"):
        convert(tmp_path / "pruned", tmp_path / "result.pth")
    assert list(convert(tmp_path / "pruned", tmp_path / "result").differences) == ["deit"]  # transformers 5 cannot prune
    assert not (tmp_path / "result.pth").exists()


def test_shape_and_distillation_can_change(source: Path, model: Any, tmp_path: Path) -> None:
    distilled = isinstance(model, DeiTForImageClassificationWithTeacher)
    result = convert(
        source, tmp_path / "result", image_size=(64, 48), distillation="drop" if distilled else "new", id2label={0: "x", 1: "y"}
    )
    assert result.architecture == ("ViTForImageClassification" if distilled else "DeiTForImageClassificationWithTeacher")
    assert "embeddings.position_embeddings" in result.report.resized
    loaded = load_model(tmp_path / "result")
    assert (loaded.config.image_hw, loaded.config.classes) == ((64, 48), ("x", "y"))
    assert deit.DeiTImageProcessor.from_pretrained(tmp_path / "result").input_hw == (64, 48)
    assert json.loads(json.dumps(result.to_dict()))["architecture"] == result.architecture


def test_only_a_model_is_replaced(source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "photos").mkdir(parents=True)
    (run / "recipe.toml").touch()
    for path, message in (
        (run, "run contains photos, which is not part of a model"),
        (source, "contain each other"),
        (source / "inner", "contain each other"),
    ):
        with pytest.raises(UserError, match=message):
            convert(source, path, overwrite=True)
    source.rename(run / "best")
    for file in (run / "recipe.toml", run / "photos"):
        file.rename(tmp_path / file.name)
    with pytest.raises(UserError, match=r"contains best|contain each other"):
        convert(run / "best", run, overwrite=True)
    assert (run / "best" / "model.safetensors").is_file()


def test_record_of_the_training_data_is_copied(source: Path, tmp_path: Path) -> None:
    (source / "training.json").write_text('{"fingerprint": "x"}')
    convert(source, tmp_path / "a", "timm")
    convert(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "b" / "training.json").read_text()) == {"fingerprint": "x"}


def test_timm_is_run_with_the_configuration_of_the_result(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_wrong_activation(directory: Path, *arguments: Any) -> None:
        write_timm(directory, *arguments)
        content = json.loads((directory / "config.json").read_text())
        content["model_args"]["act_layer"] = "relu"
        (directory / "config.json").write_text(json.dumps(content))

    monkeypatch.setattr(conversion, "write_timm", with_wrong_activation)
    monkeypatch.setattr(conversion, "_read_with_deit", lambda _, model: logits_on_fixed_input(model, model))
    with pytest.raises(WorkError, match=r"The logits of the result in timm .* differ by up to"):
        convert(source, tmp_path / "result", "timm")


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
def test_preprocessing_that_timm_cannot_express_is_an_error(source: Path, tmp_path: Path, settings: Any) -> None:
    DeiTImageProcessor(**{"crop_size": 32, "size": 40, **settings}).save_pretrained(source)
    with pytest.raises(CheckpointError, match="timm's pretrained_cfg cannot express"):
        convert(source, tmp_path / "result", "timm")
    result = convert(source, tmp_path / "result", image_size=64)  # transformers supports another size
    assert DeiTImageProcessor.from_pretrained(result.destination).crop_size == {"height": 64, "width": 64}


def test_symbolic_link_is_followed_and_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    result = convert(source, tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert result.destination == tmp_path / "real"
    assert load_model(tmp_path / "link").config.classes == ("a", "b", "ц")


def test_directory_with_other_weights_is_not_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "lora.safetensors").touch()
    with pytest.raises(UserError, match=r"contains lora\.safetensors"):
        convert(source, tmp_path / "result", overwrite=True)


def test_model_with_return_dict_false_is_converted(model: Any, tmp_path: Path) -> None:
    model.config.return_dict = False
    model.save_pretrained(tmp_path / "tuples")
    assert max(convert(tmp_path / "tuples", tmp_path / "result").differences.values()) == 0
    assert load_classifier(tmp_path / "tuples").model(noise(1, 3, 32, 32)).heads


@pytest.mark.parametrize("to", ["transformers", "timm", "authors"])
def test_adapter_is_merged_into_every_format(tmp_path: Path, to: Any) -> None:
    base, path, name = tmp_path / "base", adapter(tmp_path / "adapter"), "model.pth" if to == "authors" else "model"
    fields: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 1, "layer_norm_eps": 1e-6}
    randomized(ViTForImageClassification(tiny_vit(**fields)), std=0.1).save_pretrained(base)
    result = convert(path, tmp_path / name, to, base=base)
    assert result.report.notes == (f"The adapter is merged into {base}",)
    state = open_checkpoint(tmp_path / name).read()
    assert torch.equal(state["layers.0.mlp.fc2.weight"], open_checkpoint(path, base=base).read()["layers.0.mlp.fc2.weight"])


def test_adapter_is_renamed_or_refused(tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter")
    result = convert_adapter(path, tmp_path / "renamed", "peft-transformers-4")
    assert result.to_dict()["difference"] == 0
    names = load_file(tmp_path / "renamed" / "adapter_model.safetensors")
    assert list(names) == [f"base_model.model.vit.encoder.layer.0.output.dense.lora_{letter}.weight" for letter in "AB"]
    with pytest.raises(UserError, match="already exists"):
        convert_adapter(path, tmp_path / "renamed", "peft-deit")
    convert_adapter(path, tmp_path / "renamed", "peft-deit", overwrite=True)
    assert "vit.layers.0.mlp.fc2" in (tmp_path / "renamed" / "adapter_config.json").read_text()
    with pytest.raises(UserError, match=r"is not the directory of an adapter: it has no adapter_config\.json"):
        convert_adapter(tmp_path, tmp_path / "x", "peft-deit")
    with pytest.raises(UserError, match="is a format of adapters"):
        convert(path, tmp_path / "x", "peft-deit")  # type: ignore[arg-type]


def adapter(directory: Path) -> Path:
    """Writes a LoRA adapter of the second linear layer of an MLP, as PEFT does."""
    directory.mkdir()
    module = "base_model.model.vit.layers.0.mlp.fc2"
    tensors = {f"{module}.lora_A.weight": noise(2, TINY["intermediate_size"]), f"{module}.lora_B.weight": noise(64, 2)}
    save_file(tensors, directory / "adapter_model.safetensors")
    write_json(directory / "adapter_config.json", {"peft_type": "LORA", "lora_alpha": 4, "r": 2})
    return directory
