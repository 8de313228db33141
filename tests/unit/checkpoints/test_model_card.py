"""The model card: what it tells, what it keeps to itself, and that nothing on disk can garble it."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from deit.checkpoints.model_card import LONGEST, _base, _interval, _plain, _without_folders, model_card
from deit.errors import DeiTError
from deit.system.files import write_json
from deit.variants import variant
from tests.unit.checkpoints.model_files import evaluation, log, make_model, make_network, make_run, recipe

SECTIONS = ["The model", "Data", "Recipe", "Metrics", "Intended use and limits", "How to use it"]


def tokens(card: str) -> list[Token]:
    """The Markdown below the header, as a browser of the hub reads it; inline tokens stand among the others."""
    found = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    return [token for block in found for token in (block, *(block.children or ()))]


def metadata(card: str) -> Any:
    """The header, as the hub's own library reads it."""
    return ModelCard(card).data


def headings(card: str) -> list[str]:
    found = tokens(card)
    return [found[place + 1].content for place, token in enumerate(found) if token.type == "heading_open" and token.tag == "h2"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a run")


def test_the_best_model_of_a_run_tells_data_recipe_and_metrics(run: Path) -> None:
    card = model_card(run / "best", repo_id="me/photos", license="apache-2.0")
    assert headings(card) == SECTIONS
    for words in (
        "# me/photos",
        "30 parameters",
        "3 classes: `red`, `green`, `blue`.",
        "Data set: `holiday photos`",
        "120 train, 40 validation, 40 test",
        "the folder's own parts: train, val, test",
        "ab" * 32,
        "`small-data-distilled`, from the labels and from a teacher, `a teacher` (hard distillation)",
        "after epoch 1.",
        "| batch size | 32 |",
        "| precision | `fp32` |",
        "on 40 images of the test part. They took no part",
        "| both, the model's answer | 75.00% | 0.5000 | 6.25% |",
        "| its teacher | 80.00% |",
        "Least often right: `red` (50.0%), `blue` (75.0%).",
        "shorter side has 36 pixels",
        "32 x 32 pixels of that: what lies further out plays no part",
        "Licence: `apache-2.0`.",
    ):
        assert words in card, words


def test_the_metadata_are_those_that_the_hub_reads(run: Path) -> None:
    data = metadata(model_card(run / "best", repo_id="me/photos", license="apache-2.0"))
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-classification", "apache-2.0")
    assert data.tags == ["deit", "vision", "distillation"]
    assert data.model_name == "photos"
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("holiday photos", "imagefolder", "test")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("accuracy", "top-1 accuracy", 0.75)
    assert result.dataset_args == {"images": 40}


def test_top_5_is_told_where_there_are_more_classes(tmp_path: Path) -> None:
    card = model_card(make_run(tmp_path, classes=tuple("abcdefghijkl")) / "best")
    assert [result.metric_name for result in metadata(card).eval_results] == ["top-1 accuracy", "top-5 accuracy"]
    assert "| both, the model's answer | 75.00% | 100.00% | 0.5000 | 6.25% |" in card
    assert "12 classes, of which the first are `a`, `b`, `c`, `d`, `e`, `f`, `g`, `h`, `i`, `j`." in card


def test_the_evaluation_is_told_of_the_model_that_it_was_made_of(run: Path) -> None:
    card = model_card(run / "last")
    assert "Not measured by `deit evaluate`. While training, after epoch 2: 60.00% of the validation images right" in card
    assert "model-index" not in card
    write_json(run / "evaluation.json", {**evaluation(), "best_epoch": 2})
    assert "on 40 images of the test part" in model_card(run / "last")


def test_a_run_without_an_evaluation_tells_its_log(run: Path) -> None:
    (run / "evaluation.json").unlink()
    assert "While training, after epoch 1: 90.00% of the validation images right" in model_card(run / "best")
    (run / "log.jsonl").unlink()
    assert "Not known, since no evaluation lies beside the model." in model_card(run / "best")


def test_the_validation_part_is_said_to_be_slightly_optimistic(run: Path) -> None:
    write_json(run / "evaluation.json", {**evaluation(), "part": "validation"})
    assert "on 40 images of the validation part. The checkpoint was chosen by them too" in model_card(run / "best")


def test_without_a_run_data_recipe_and_metrics_are_said_to_be_unknown(tmp_path: Path) -> None:
    card = model_card(make_model(tmp_path / "elsewhere"))
    assert headings(card) == SECTIONS
    assert card.count("Not known") == 2
    assert "- Data set: not known" in card
    assert "How accurate it is, is not known" in card
    assert "No licence is stated." in card
    data = metadata(card).to_dict()
    assert set(data) == {"library_name", "pipeline_tag", "tags"}


def test_a_copy_beside_a_stranger_is_not_taken_for_its_model(run: Path) -> None:
    (run / "best").rename(run / "mine")
    assert "holiday" not in model_card(run / "mine")


def test_a_network_of_timm_opens_there(tmp_path: Path) -> None:
    card = model_card(make_network(tmp_path / "network"), repo_id="me/teacher")
    data = metadata(card)
    assert (data.library_name, data.tags) == ("timm", ["timm", "vision"])
    assert "`resnet10t`, with 7 parameters" in card
    assert 'timm.create_model("hf-hub:me/teacher", pretrained=True)' in card


def test_a_model_without_a_head_is_no_classifier(tmp_path: Path) -> None:
    card = model_card(make_model(tmp_path / "trunk", architectures=["DeiTModel"]))
    assert metadata(card).pipeline_tag == "image-feature-extraction"
    assert "classes" not in card.partition("## Data")[0]


@pytest.mark.parametrize(
    ("processor", "seen", "unseen"),
    [
        ({"size": {"height": 36, "width": 72}, "do_center_crop": False}, "squashed to 36 x 72 pixels", "the middle"),
        ({"size": {"max_height": 32, "max_width": 32}, "do_center_crop": False}, "fits into 32 x 32 pixels", "the middle"),
        ({"crop_size": {"height": 32, "width": 16}, "do_center_crop": True}, "the middle, 32 x 16 pixels", "resized"),
    ],
)
def test_what_the_model_sees_of_an_image_is_said(tmp_path: Path, processor: dict[str, Any], seen: str, unseen: str) -> None:
    write_json(make_model(tmp_path) / "preprocessor_config.json", processor)
    card = model_card(tmp_path)
    assert seen in card
    assert unseen not in card


def test_a_published_shape_is_called_by_its_name(tmp_path: Path) -> None:
    shape = {**variant("deit-tiny-distilled-patch16-224").shape, "patch_size": 16, "num_hidden_layers": 12}
    assert "# `deit-tiny-distilled-patch16-224`" in model_card(make_model(tmp_path / "tiny", **shape))
    assert "# `deit-tiny-distilled-patch16-224`" in model_card(
        make_model(tmp_path / "pair", **shape | {"image_size": [224, 224]})
    )
    assert "# `deit-width24-depth2`" in model_card(make_model(tmp_path / "other"))


@pytest.mark.parametrize(
    "fields",
    [
        {"intermediate_size": 700},
        {"num_attention_heads": 6},
        {"num_channels": 1},
        {"qkv_bias": False},
        {"patch_size": 14},
        {"image_size": [112, 448]},
        {"pruned_heads": {"0": [1]}},
    ],
)
def test_a_shape_that_was_never_published_has_no_such_name(tmp_path: Path, fields: dict[str, Any]) -> None:
    shape = {**variant("deit-tiny-distilled-patch16-224").shape, "patch_size": 16, "num_hidden_layers": 12}
    assert "# `deit-width192-depth12`" in model_card(make_model(tmp_path, **shape | fields))


@pytest.mark.parametrize("repo_id", [None, "me/photos"])
def test_the_code_in_it_is_python(run: Path, tmp_path: Path, repo_id: str | None) -> None:
    for directory in (
        run / "best",
        make_network(tmp_path / "network"),
        make_model(tmp_path / "m", architectures=["DeiTModel"]),
    ):
        blocks = [token for token in tokens(model_card(directory, repo_id=repo_id)) if token.type == "fence"]
        assert blocks
        for block in blocks:
            ast.parse(block.content)
            assert (f'"{repo_id}"' if repo_id else '"."') in block.content.replace("hf-hub:", "").replace("local-dir:", "")


@pytest.mark.parametrize("name", ["/home/alice/holiday photos", "C:\\Users\\alice\\holiday photos", "../alice/holiday photos/"])
def test_no_folder_of_the_machine_is_told(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "a run", data=name)
    write_json(
        run / "evaluation.json", {**evaluation(), "data": {"origin": f"cut 60 / 40, packed from {name}/train by seed 0"}}
    )
    for directory in (run / "best", run / "last"):
        card = model_card(directory)
        assert "Data set: `holiday photos`" in card
        assert "alice" not in card
        assert str(tmp_path) not in card
    assert "cut 60 / 40, packed from" in model_card(run / "best")


def test_names_of_the_hub_and_of_timm_stay_whole() -> None:
    names = ["digits", "regnety_160", "uoft-cs/cifar10", "hf:uoft-cs/cifar10"]
    assert [_base(name) for name in names] == names
    assert _without_folders("from ~bob/x/y, then \\\\server\\z/w: and/or") == "from y, then w: and/or"


def test_a_data_set_by_name_keeps_it_and_not_its_folder() -> None:
    assert _base("cifar10:/home/me/some data") == _base("cifar10") == "cifar10"
    assert _base("imagenet-v2:/data/v2") == "imagenet-v2"
    assert _base("hf:me/photos") == "hf:me/photos"


TEXTS = st.text(min_size=1, max_size=100)
HOSTILE = "x|y`` `\n---\n# <img src=x onerror=alert(1)> [a](javascript:b) **c** &lt; $d$ {{e}}\u202e\ud800\x00\\|"


@given(TEXTS, TEXTS, TEXTS, TEXTS)
@example(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
@example("---", "```", "</code>", "- a: b")
@settings(max_examples=25)
def test_no_name_can_garble_it(
    tmp_path_factory: pytest.TempPathFactory, class_name: str, data: str, recipe_name: str, origin: str
) -> None:
    run = make_run(tmp_path_factory.mktemp("run"), data=data, classes=(class_name, f"{class_name} 2"))
    content = recipe().replace(name="safe", precision="fp32").to_toml()
    (run / "recipe.toml").write_text(content.replace('"safe"', _toml(recipe_name)).replace('"fp32"', _toml(recipe_name)))
    per_class = {class_name: 0.5}
    write_json(run / "evaluation.json", {**evaluation(), "per_class": per_class, "data": {"origin": origin}})

    card = model_card(run / "best")
    assert headings(card) == SECTIONS
    found = tokens(card)
    assert not [token for token in found if token.type.startswith("html") or token.type in ("image", "strong_open", "em_open")]
    assert [token.attrs["href"] for token in found if token.type == "link_open"] == ["https://arxiv.org/abs/2012.12877"]
    assert (_plain(class_name) or "?") in [token.content for token in found if token.type == "code_inline"]
    cells = [sum(token.type in ("th_open", "td_open") for token in row) for row in _rows(found)]
    assert set(cells) == {2, 4}
    card.encode()
    assert len(card) < 8000
    data_read = metadata(card)
    assert set(data_read.to_dict()) == {"library_name", "pipeline_tag", "tags", "metrics", "model-index"}
    assert data_read.eval_results[0].dataset_name == (_plain(_base(data)) or "unknown")
    assert len(data_read.eval_results[0].dataset_name) <= LONGEST


def _toml(text: str) -> str:
    """A string of TOML; it has no surrogates."""
    return json.dumps(text.encode(errors="replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")


def _rows(found: list[Token]) -> list[list[Token]]:
    starts = [place for place, token in enumerate(found) if token.type == "tr_open"]
    ends = [place for place, token in enumerate(found) if token.type == "tr_close"]
    return [found[start:end] for start, end in zip(starts, ends, strict=True)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(evaluation())) | TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)
PLACES = (
    *(("evaluation.json", key) for key in evaluation()),
    *(("run.json", key) for key in ("data", "teacher")),
    *(("log.jsonl", key) for key in ("epoch", "validation")),
    *(("best/training.json", key) for key in ("fingerprint", "split_seed")),
    *(("best/preprocessor_config.json", key) for key in ("size", "crop_size")),
    *(("best/config.json", key) for key in ("architectures", "architecture", "pretrained_cfg", "id2label")),
)


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=25)
def test_a_value_of_another_kind_is_unknown_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[str, str], value: Any
) -> None:
    run = make_run(tmp_path_factory.mktemp("run"))
    file, key = place
    path = run / file
    path.write_text(json.dumps({**(log()[0] if file == "log.jsonl" else json.loads(path.read_text())), key: value}))
    try:
        card = model_card(run / "best")
    except DeiTError:
        return
    assert headings(card) == SECTIONS
    metadata(card).to_dict()


@pytest.mark.parametrize(
    ("share", "images", "expected"),
    [(0.0, 10, (0.0, 0.2775)), (1.0, 10, (0.7225, 1.0)), (2 / 6, 6, (0.0968, 0.7000)), (0.5, 100, (0.4038, 0.5962))],
)
def test_the_interval_is_wilsons(share: float, images: int, expected: tuple[float, float]) -> None:
    assert _interval(share, images) == pytest.approx(expected, abs=1e-4)
