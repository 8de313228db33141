"""Model cards: their content, what they keep private, and robustness against hostile names."""

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

from deit.checkpoints.model_card import MAX_LENGTH, _base_name, _one_line, _strip_folders, model_card
from deit.checkpoints.run_log import write_log
from deit.errors import DeiTError
from deit.system.files import write_json
from deit.variants import variant
from tests.unit.checkpoints.model_files import evaluation, log, make_model, make_run, make_timm_model, recipe

SECTIONS = ["Model", "Data", "Recipe", "Metrics", "Intended use and limitations", "How to use"]


def tokens(card: str) -> list[Token]:
    """Returns the Markdown tokens below the metadata, with inline tokens among them."""
    blocks = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    return [token for block in blocks for token in (block, *(block.children or ()))]


def metadata(card: str) -> Any:
    """Returns the metadata as huggingface_hub parses it."""
    return ModelCard(card).data


def headings(card: str) -> list[str]:
    parsed = tokens(card)
    return [parsed[i + 1].content for i, token in enumerate(parsed) if token.type == "heading_open" and token.tag == "h2"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a run")


def test_card_of_a_run_has_data_recipe_and_metrics(run: Path) -> None:
    card = model_card(run / "best", repo_id="me/photos", license="apache-2.0")
    assert headings(card) == SECTIONS
    for text in (
        "# me/photos",
        "30 parameters",
        "3 classes: `red`, `green`, `blue`.",
        "Data set: `holiday photos`",
        "120 train, 40 validation, 40 test",
        "the folder's own splits: train, val, test",
        "ab" * 32,
        "`small-data-distilled`, from labels and the teacher `a teacher` (hard distillation)",
        "after epoch 1.",
        "| batch size | 32 |",
        "| precision | `fp32` |",
        "on 40 images of the test split. They were not used",
        "| both heads (the prediction) | 75.00% | 0.5000 | 6.25% |",
        "| teacher | 80.00% |",
        "95% confidence interval of the top-1 accuracy of 75.0%: 59.8% to 85.8%.",
        "Classes with the lowest accuracy: `red` (50.0%), `blue` (75.0%).",
        "resized to 36 pixels on the shorter side",
        "center 32 x 32 pixels",
        "License: `apache-2.0`.",
    ):
        assert text in card, text


def test_metadata_is_read_by_the_hub(run: Path) -> None:
    data = metadata(model_card(run / "best", repo_id="me/photos", license="apache-2.0"))
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "image-classification", "apache-2.0")
    assert data.tags == ["deit", "vision", "distillation"]
    assert data.model_name == "photos"
    [result] = data.eval_results
    assert (result.dataset_name, result.dataset_type, result.dataset_split) == ("holiday photos", "imagefolder", "test")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("accuracy", "top-1 accuracy", 0.75)
    assert result.dataset_args == {"images": 40}


def test_top5_is_reported_for_more_than_five_classes(tmp_path: Path) -> None:
    card = model_card(make_run(tmp_path, classes=tuple("abcdefghijkl")) / "best")
    assert [result.metric_name for result in metadata(card).eval_results] == ["top-1 accuracy", "top-5 accuracy"]
    assert "| both heads (the prediction) | 75.00% | 100.00% | 0.5000 | 6.25% |" in card
    assert "The first of 12 classes: `a`, `b`, `c`, `d`, `e`, `f`, `g`, `h`, `i`, `j`." in card


def test_evaluation_is_reported_only_for_its_own_weights(run: Path) -> None:
    card = model_card(run / "last")
    assert "Not evaluated. Validation during training, after epoch 2: top-1 60.00%" in card
    assert "model-index" not in card
    write_json(run / "evaluation.json", {**evaluation(), "best_epoch": 2})
    assert "on 40 images of the test split" in model_card(run / "last")


def test_without_evaluation_the_log_is_reported(run: Path) -> None:
    (run / "evaluation.json").unlink()
    assert "Validation during training, after epoch 1: top-1 90.00%" in model_card(run / "best")
    (run / "log.jsonl").unlink()
    assert "Unknown, since the model has no evaluation." in model_card(run / "best")


def test_validation_metrics_are_called_optimistic(run: Path) -> None:
    write_json(run / "evaluation.json", {**evaluation(), "split": "validation"})
    assert "on 40 images of the validation split. They were also used to select the checkpoint" in model_card(run / "best")


def test_without_a_run_data_recipe_and_metrics_are_unknown(tmp_path: Path) -> None:
    card = model_card(make_model(tmp_path / "elsewhere"))
    assert headings(card) == SECTIONS
    assert card.count("Unknown, since") == 2
    assert "- Data set: unknown" in card
    assert "The accuracy is unknown" in card
    assert "No license is stated." in card
    data = metadata(card).to_dict()
    assert set(data) == {"library_name", "pipeline_tag", "tags"}


def test_model_of_another_name_is_not_that_of_the_run(run: Path) -> None:
    (run / "best").rename(run / "mine")
    assert "holiday" not in model_card(run / "mine")


def test_card_of_a_timm_model(tmp_path: Path) -> None:
    card = model_card(make_timm_model(tmp_path / "network"), repo_id="me/teacher")
    data = metadata(card)
    assert (data.library_name, data.tags) == ("timm", ["timm", "vision"])
    assert "`resnet10t`, with 7 parameters" in card
    assert 'timm.create_model("hf-hub:me/teacher", pretrained=True)' in card


def test_card_of_a_model_without_head(tmp_path: Path) -> None:
    card = model_card(make_model(tmp_path / "trunk", architectures=["DeiTModel"]))
    assert metadata(card).pipeline_tag == "image-feature-extraction"
    assert "classes" not in card.partition("## Data")[0]


@pytest.mark.parametrize(
    ("processor", "present", "absent"),
    [
        ({"size": {"height": 36, "width": 72}, "do_center_crop": False}, "squashed to 36 x 72 pixels", "the center"),
        ({"size": {"max_height": 32, "max_width": 32}, "do_center_crop": False}, "fit into 32 x 32 pixels", "the center"),
        ({"crop_size": {"height": 32, "width": 16}, "do_center_crop": True}, "the center 32 x 16 pixels", "resized"),
    ],
)
def test_preprocessing_is_described(tmp_path: Path, processor: dict[str, Any], present: str, absent: str) -> None:
    write_json(make_model(tmp_path) / "preprocessor_config.json", processor)
    card = model_card(tmp_path)
    assert present in card
    assert absent not in card


def test_published_shape_has_the_name_of_the_variant(tmp_path: Path) -> None:
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
def test_other_shape_has_a_generic_name(tmp_path: Path, fields: dict[str, Any]) -> None:
    shape = {**variant("deit-tiny-distilled-patch16-224").shape, "patch_size": 16, "num_hidden_layers": 12}
    assert "# `deit-width192-depth12`" in model_card(make_model(tmp_path, **shape | fields))


@pytest.mark.parametrize("repo_id", [None, "me/photos"])
def test_code_examples_are_valid_python(run: Path, tmp_path: Path, repo_id: str | None) -> None:
    for directory in (
        run / "best",
        make_timm_model(tmp_path / "network"),
        make_model(tmp_path / "m", architectures=["DeiTModel"]),
    ):
        blocks = [token for token in tokens(model_card(directory, repo_id=repo_id)) if token.type == "fence"]
        assert blocks
        for block in blocks:
            ast.parse(block.content)
            assert (f'"{repo_id}"' if repo_id else '"."') in block.content.replace("hf-hub:", "").replace("local-dir:", "")


@pytest.mark.parametrize("name", ["/home/alice/holiday photos", "C:\\Users\\alice\\holiday photos", "../alice/holiday photos/"])
def test_card_reveals_no_local_folder(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "a run", data=name)
    write_json(
        run / "evaluation.json", {**evaluation(), "data": {"origin": f"split 60 / 40, packed from {name}/train by seed 0"}}
    )
    for directory in (run / "best", run / "last"):
        card = model_card(directory)
        assert "Data set: `holiday photos`" in card
        assert "alice" not in card
        assert str(tmp_path) not in card
    assert "split 60 / 40, packed from" in model_card(run / "best")


def test_names_of_the_hub_and_of_timm_are_kept() -> None:
    names = ["digits", "regnety_160", "uoft-cs/cifar10", "hf:uoft-cs/cifar10"]
    assert [_base_name(name) for name in names] == names
    assert _strip_folders("from ~bob/x/y, then \\\\server\\z/w: and/or") == "from y, then w: and/or"


def test_named_data_set_loses_its_folder() -> None:
    assert _base_name("cifar10:/home/me/some data") == _base_name("cifar10") == "cifar10"
    assert _base_name("imagenet-v2:/data/v2") == "imagenet-v2"
    assert _base_name("hf:me/photos") == "hf:me/photos"


TEXTS = st.text(min_size=1, max_size=100)
HOSTILE = "x|y`` `\n---\n# <img src=x onerror=alert(1)> [a](javascript:b) **c** &lt; $d$ {{e}}\u202e\ud800\x00\\|"


@given(TEXTS, TEXTS, TEXTS, TEXTS)
@example(HOSTILE, HOSTILE, HOSTILE, HOSTILE)
@example("---", "```", "</code>", "- a: b")
@settings(max_examples=25)
def test_no_name_can_break_the_card(
    tmp_path_factory: pytest.TempPathFactory, class_name: str, data: str, recipe_name: str, origin: str
) -> None:
    run = make_run(tmp_path_factory.mktemp("run"), data=data, classes=(class_name, f"{class_name} 2"))
    content = recipe().replace(name="safe", precision="fp32").to_toml()
    hostile = toml_string(recipe_name)
    (run / "recipe.toml").write_text(content.replace('"safe"', hostile).replace('"fp32"', hostile))
    per_class = {class_name: 0.5}
    write_json(run / "evaluation.json", {**evaluation(), "per_class": per_class, "data": {"origin": origin}})

    card = model_card(run / "best")
    assert headings(card) == SECTIONS
    parsed = tokens(card)
    assert not [token for token in parsed if token.type.startswith("html") or token.type in ("image", "strong_open", "em_open")]
    assert [token.attrs["href"] for token in parsed if token.type == "link_open"] == ["https://arxiv.org/abs/2012.12877"]
    assert (_one_line(class_name) or "?") in [token.content for token in parsed if token.type == "code_inline"]
    cells = [sum(token.type in ("th_open", "td_open") for token in row) for row in table_rows(parsed)]
    assert set(cells) == {2, 4}
    card.encode()
    assert len(card) < 8000
    card_data = metadata(card)
    assert set(card_data.to_dict()) == {"library_name", "pipeline_tag", "tags", "metrics", "model-index"}
    assert card_data.eval_results[0].dataset_name == (_one_line(_base_name(data)) or "unknown")
    assert len(card_data.eval_results[0].dataset_name) <= MAX_LENGTH


def toml_string(text: str) -> str:
    """Returns a TOML string, which cannot contain surrogates."""
    return json.dumps(text.encode(errors="replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")


def table_rows(parsed: list[Token]) -> list[list[Token]]:
    starts = [index for index, token in enumerate(parsed) if token.type == "tr_open"]
    ends = [index for index, token in enumerate(parsed) if token.type == "tr_close"]
    return [parsed[start:end] for start, end in zip(starts, ends, strict=True)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(evaluation())) | TEXTS, inner, max_size=4)
    ),
    max_leaves=12,
)
ENTRIES = (  # file, key
    *(("evaluation.json", key) for key in evaluation()),
    *(("run.json", key) for key in ("data", "teacher")),
    *(("log.jsonl", key) for key in ("epoch", "validation")),
    *(("best/training.json", key) for key in ("fingerprint", "split_seed")),
    *(("best/preprocessor_config.json", key) for key in ("size", "crop_size")),
    *(("best/config.json", key) for key in ("architectures", "architecture", "pretrained_cfg", "id2label")),
)


@given(st.sampled_from(ENTRIES), JSON)
@settings(max_examples=25)
def test_value_of_another_type_is_unknown_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, entry: tuple[str, str], value: Any
) -> None:
    run = make_run(tmp_path_factory.mktemp("run"))
    file, key = entry
    path = run / file
    if file == "log.jsonl":
        write_log(run, [{**log()[0], key: value}])
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    try:
        card = model_card(run / "best")
    except DeiTError:
        return
    assert headings(card) == SECTIONS
    metadata(card).to_dict()
