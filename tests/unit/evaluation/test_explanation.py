"""Explanations: relevance as the papers define it, any shape and format of a transformer, figures, and the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from deit.cli.main import app
from deit.errors import ImageError, MissingExtraError, UserError
from deit.evaluation.explanation import METHODS, Explainer, Explanation, explain, explainable
from deit.evaluation.explanation_figure import figure_name, write_attention, write_explanation
from deit.export.conversion import convert
from deit.export.export import export_model
from deit.images.processor import DeiTImageProcessor
from deit.inference.predictor import Prediction, Predictor
from deit.models.auto import LoadedClassifier
from deit.models.modeling import DeiTForImageClassificationWithTeacher, ViTForImageClassification
from deit.models.timm_classifier import new_timm_classifier
from tests.helpers import pattern, randomized, tiny_deit, tiny_vit

CLASSES = ("a cat", "dog", "$x_1$", "鳥", "<b>")


def classifier(distilled: bool = True, **fields: Any) -> LoadedClassifier:
    labels = dict(enumerate(CLASSES))
    model: DeiTForImageClassificationWithTeacher | ViTForImageClassification
    if distilled:
        model = DeiTForImageClassificationWithTeacher(tiny_deit(id2label=labels, **fields))
    else:
        model = ViTForImageClassification(tiny_vit(id2label=labels, **fields))
    randomized(model, 0).eval()
    return LoadedClassifier(model, DeiTImageProcessor.for_size(*model.config.image_hw), CLASSES)


@pytest.fixture(scope="module")
def explained() -> Explanation:
    return Explainer(classifier(), "cpu")(pattern(50, 40), "photo.png")


def reference_relevance(model: Any, values: Tensor, head: str, target: int, method: str) -> np.ndarray:
    """Returns the rows of the papers' matrices, which are computed whole."""
    output = model(values.requires_grad_(), output_attentions=True)
    weights = [layer[0] for layer in output.attentions]
    token, tokens = ("class", "distillation").index(head), weights[0].shape[-1]
    matrix = torch.eye(tokens)
    if method == "gradient":  # rollout of heads that are weighted by the positive part of attention times gradient
        importance = []
        for attention, gradient in zip(
            weights, torch.autograd.grad(output.heads[head][0, target], output.attentions), strict=True
        ):
            of_heads = (attention * gradient[0]).clamp(min=0).sum(dim=(1, 2), keepdim=True)
            importance.append(of_heads / of_heads.sum())
        matrix = torch.zeros(tokens, tokens)
        quarters = [side // 4 for side in model.config.patch_hw]
        for move in itertools.product((-1, 0, 1), repeat=2):  # of the image, in quarters of a patch
            rows, columns = (
                (np.arange(size) + number * quarter).clip(0, size - 1)
                for size, number, quarter in zip(model.config.image_hw, move, quarters, strict=True)
            )
            product = torch.eye(tokens)
            moved = values.detach()[..., rows, :][..., columns]
            for attention, of_heads in zip(model(moved, output_attentions=True).attentions, importance, strict=True):
                product = product + (attention[0] * of_heads).sum(dim=0) @ product
            matrix = matrix + product
        matrix = matrix.square()
    elif method == "rollout":  # equation 1 of arXiv 2005.00928
        for attention in weights:
            matrix = (0.5 * attention.mean(dim=0) + 0.5 * torch.eye(tokens)) @ matrix
    else:
        matrix = weights[-1].mean(dim=0)
    row: np.ndarray = matrix[token, model.config.PREFIX_TOKENS :].reshape(model.config.grid).detach().numpy()
    return np.asarray(row / row.max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("distilled", "fields"),
    [
        (True, {}),
        (False, {}),
        (True, {"image_size": (32, 48)}),
        (False, {"num_attention_heads": 2}),
        (True, {"patch_size": 2, "image_size": 8}),
    ],
)
def test_relevance_is_that_of_the_papers(method: Any, distilled: bool, fields: dict[str, Any]) -> None:
    loaded = classifier(distilled, **fields)
    found = Explainer(loaded, "cpu")(pattern(60, 40), method=method, target="dog")
    values = torch.from_numpy(loaded.processor.normalize(loaded.processor.pixels(pattern(60, 40))))[None]
    assert [head.head for head in found.heads] == ["class", "distillation"][: 1 + distilled]
    for head in found.heads:
        expected = reference_relevance(loaded.model, values.clone(), head.head, CLASSES.index("dog"), method)
        assert head.relevance.shape == expected.shape
        np.testing.assert_allclose(head.relevance, expected, atol=1e-5)
        assert head.relevance.max() == 1


def test_predictions_similarity_and_attention() -> None:
    loaded = classifier()
    found = Explainer(loaded, "cpu")(pattern(50, 40), top=2)
    values = torch.from_numpy(loaded.processor.normalize(loaded.processor.pixels(pattern(50, 40))))[None]
    with torch.no_grad():
        output = loaded.model(values, output_attentions=True, output_hidden_states=True)
    for head, logits in zip(found.heads, (output.cls_logits, output.distillation_logits), strict=True):
        assert head.labels == tuple(CLASSES[index] for index in logits[0].topk(2).indices)
        assert head.probabilities == pytest.approx(logits[0].softmax(0).topk(2).values.tolist(), rel=1e-4)
        assert head.target == found.label == CLASSES[int(output.logits[0].argmax())]
    states = [torch.nn.functional.normalize(state[0, :2], dim=1) for state in output.hidden_states]
    assert found.similarity == pytest.approx([float(state[0] @ state[1]) for state in states], abs=1e-5)
    assert found.heads_agree == (found.heads[0].labels[0] == found.heads[1].labels[0])
    config: Any = loaded.model.config
    for layer, weights in zip(found.attention, output.attentions, strict=True):
        assert layer.shape == (config.num_attention_heads, 2, *config.grid)
        np.testing.assert_allclose(layer, weights[0, :, :2, 2:].unflatten(-1, config.grid), atol=1e-6)


def test_model_is_left_as_it_was() -> None:
    loaded = classifier()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    Explainer(loaded, "cpu")(pattern(50, 40))
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_logit_that_does_not_depend_on_the_image() -> None:
    loaded = classifier()
    torch.nn.init.zeros_(loaded.model.cls_classifier.weight)  # type: ignore[union-attr, arg-type]
    found = Explainer(loaded, "cpu")(pattern(50, 40))
    assert not found.heads[0].relevance.any()
    assert found.heads[1].relevance.max() == 1


@pytest.mark.parametrize("target", ["timm", "transformers"])
def test_other_formats_give_the_same_maps(tmp_path: Path, target: Any) -> None:
    loaded = classifier()
    loaded.model.save_pretrained(tmp_path / "ours")  # type: ignore[operator]
    loaded.processor.save_pretrained(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", target)
    pattern(50, 40).save(tmp_path / "photo.png")
    ours, theirs = (explain(tmp_path / name, [tmp_path / "photo.png"], device="cpu")[0] for name in ("ours", "theirs"))
    assert ours.image == str(tmp_path / "photo.png")
    for first, second in zip(ours.heads, theirs.heads, strict=True):
        np.testing.assert_allclose(first.relevance, second.relevance, atol=1e-5)


def test_mistakes() -> None:
    explainer = Explainer(classifier(), "cpu")
    with pytest.raises(UserError, match="no class 'cow'"):
        explainer(pattern(50, 40), target="cow")
    with pytest.raises(UserError, match="no method 'lime'"):
        explainer(pattern(50, 40), method="lime")  # type: ignore[arg-type]
    with pytest.raises(ImageError):
        explainer(np.zeros(3))
    network = new_timm_classifier("resnet18", CLASSES, DeiTImageProcessor.for_size(32, 32), {}, 0)
    with pytest.raises(UserError, match="no attention to patches"):
        Explainer(LoadedClassifier(network, DeiTImageProcessor.for_size(32, 32), CLASSES), "cpu")


def test_json_values(explained: Explanation) -> None:
    content = json.loads(json.dumps(explained.to_dict()))
    assert content["image"] == "photo.png"
    assert np.allclose(content["heads"][1]["relevance"], explained.heads[1].relevance)
    assert len(content["similarity"]) == len(explained.attention) + 1


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_figures(tmp_path: Path, distilled: bool, size: tuple[int, int]) -> None:
    found = Explainer(classifier(distilled, image_size=size), "cpu")(pattern(50, 40), "a $photo$ of\x07 鳥.png", target="$x_1$")
    for draw, name in ((write_explanation, "map.png"), (write_attention, "layers.png")):
        draw(tmp_path / name, found)
        with Image.open(tmp_path / name) as figure:
            assert figure.width > 200 and figure.height > 100
            assert len(figure.convert("RGB").getcolors(2**24) or ()) > 50


@pytest.mark.parametrize(
    ("name", "expected"), [("a cat.JPG", "0007-a cat.png"), ("../x:y?.png", "0007-x_y_.png"), ("鳥.png", "0007-鳥.png")]
)
def test_names_of_figures(name: str, expected: str) -> None:
    assert figure_name(7, name) == expected


def saved(path: Path) -> Path:
    loaded = classifier()
    loaded.model.save_pretrained(path)  # type: ignore[operator]
    loaded.processor.save_pretrained(path)
    return path


def run(*arguments: object) -> tuple[str, int]:
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)], catch_exceptions=False)
    return result.stdout, result.exit_code


def test_command(tmp_path: Path) -> None:
    model, photos, out = saved(tmp_path / "a model"), tmp_path / "the photos", tmp_path / "the maps"
    photos.mkdir()
    for number in range(2):
        pattern(50, 40, number).save(photos / f"{number}.png")
    (photos / "2.png").write_bytes(b"not an image")
    text, code = run(model, photos, "--out", out, "--layers", "--json")
    rows = json.loads(text)
    assert code == 1
    assert [row["image"] for row in rows] == [str(photos / f"{number}.png") for number in range(3)]
    assert "error" in rows[2]
    names = [f"000{number}-{number}{part}.png" for number in range(2) for part in ("", "-class-layers", "-distillation-layers")]
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    assert [row["figure"] for row in rows[:2]] == [str(out / f"000{number}-{number}.png") for number in range(2)]
    with pytest.raises(UserError, match="exists already"):
        run(model, photos, "--out", out)
    text, code = run(model, photos / "0.png", "--out", tmp_path / "one", "--method", "rollout", "--target", "dog", "--csv")
    assert code == 0
    assert text.splitlines()[0] == "image,prediction,class head,distillation head,figure"
    with pytest.raises(UserError, match="no class 'cow'"):
        run(model, photos, "--out", tmp_path / "other", "--target", "cow")
    assert not (tmp_path / "other").exists()


def test_votes_are_those_of_the_explanation() -> None:
    explainer = Explainer(classifier(), "cpu")
    explanation = explainer(pattern(50, 40))
    assert explainer.votes(pattern(50, 40)) == {head.head: head.labels[0] for head in explanation.heads}


def test_only_disagreements_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, photos = saved(tmp_path / "a model"), tmp_path / "the photos"
    photos.mkdir()
    for number in range(6):
        pattern(50, 40, number).save(photos / f"{number}.png")

    def votes(_explainer: Explainer, image: Path) -> dict[str, str]:
        return {"class": "dog", "distillation": "dog" if int(image.stem) % 3 else "鳥"}

    monkeypatch.setattr(Explainer, "votes", votes)
    text, code = run(model, photos, "--out", tmp_path / "some", "--disagreements", "--json")
    assert ([Path(row["image"]).name for row in json.loads(text)], code) == (["0.png", "3.png"], 0)
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["0000-0.png", "0003-3.png"]
    monkeypatch.setattr(Predictor, "__call__", lambda _self, image, _top: Prediction(str(image), ("a cat",), (1.0,)))
    text, _ = run(model, photos, "--out", tmp_path / "all", "--disagreements", "--teacher", model, "--json")
    assert [row["teacher"] for row in json.loads(text)] == ["a cat"] * 6


def test_bundle_is_explained_by_its_model(tmp_path: Path) -> None:
    model, bundle = saved(tmp_path / "a model"), tmp_path / "a bundle"
    export_model(model, bundle, "torch")
    assert explainable(str(model)) == str(model)
    assert explainable(str(bundle)) == str(model)
    model.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="pass the model that it was exported from"):
        explainable(str(bundle))


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"report"):
        run("a model", "a.png", "--out", tmp_path / "maps")
