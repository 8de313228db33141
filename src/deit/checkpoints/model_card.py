"""Writes model cards: metadata for the hub, and a description of model, data, recipe and metrics.

Names on disk may come from anyone. The text contains them only as Markdown code, on one line and truncated. Of a path, only the
last component is kept, so that a card reveals nothing about the machine it was written on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deit.checkpoints.metadata import ModelMetadata, get_count, get_number, get_value, read_metadata
from deit.system.files import BEST_NAME, LAST_NAME

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

MAX_LENGTH = 80  # characters of a name
LISTED_CLASSES, WORST_CLASSES = 10, 3
MIN_TOP5_CLASSES = 6  # with fewer classes, top-5 accuracy is always 100%
ESCAPED_PIPE = r"\|"  # a pipe ends the cell of a table, even within code

HEAD_NAMES = {"class": "class head", "distillation": "distillation head", "both": "both heads (the prediction)"}
COLUMNS = {"top-1": "top1", "top-5": "top5", "loss": "loss", "calibration error": "calibration_error"}
TRAINED_WEIGHTS = {"heads": "the heads", "attention": "attention, position embeddings and heads"}
CAUTIONS = {
    "test": "They were not used for training or for selecting the checkpoint.",
    "validation": "They were also used to select the checkpoint, so the metrics are slightly optimistic.",
}
SETTINGS = {  # label -> recipe key
    "epochs": "epochs",
    "batch size": "batch_size",
    "optimizer": "optimizer.name",
    "peak learning rate at a batch of {batch:g}": "optimizer.lr",
    "warm-up epochs": "optimizer.warmup_epochs",
    "weight decay": "optimizer.weight_decay",
    "stochastic depth": "model.drop_path",
    "label smoothing": "smoothing",
    "mixup": "mixing.mixup",
    "cutmix": "mixing.cutmix",
    "RandAugment, operations": "augmentation.randaugment.operations",
    "RandAugment, magnitude": "augmentation.randaugment.magnitude",
    "random erasing": "augmentation.erasing",
    "repeats per image": "augmentation.repeats",
    "EMA decay": "ema.decay",
    "precision": "precision",
    "seed": "seed",
}


def model_card(directory: Path, *, repo_id: str | None = None, license: str | None = None) -> str:
    """Returns the text of ``README.md`` for a model directory.

    Args:
        directory: model directory. Data, recipe and metrics are known only for the ``best`` or ``last`` of a run.
        repo_id: ``OWNER/NAME`` on the hub; without it, the examples load the model from the directory of the card.
        license: identifier of the license on the hub; without it, no license is stated.

    Raises:
        CheckpointError: a file is missing or corrupt.
        ConfigError: the model configuration is invalid.

    Example:
        text = model_card(Path("runs/photos/best"), repo_id="me/photos", license="apache-2.0")
    """
    metadata = read_metadata(directory)
    data = _data_name(metadata)
    title = repo_id or (f"{_code(metadata.shape)} trained on {_code(data)}" if data else _code(metadata.shape))
    sections = {
        "Model": _model_section(metadata),
        "Data": _data_section(metadata),
        "Recipe": _recipe_section(metadata),
        "Metrics": _metrics_section(metadata),
        "Intended use and limitations": _limitations_section(metadata, license),
        "How to use": _usage_section(metadata, repo_id),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"---\n{_card_data(metadata, repo_id, license).to_yaml()}\n---\n\n# {title}\n\n{body}\n"


def _card_data(metadata: ModelMetadata, repo_id: str | None, license: str | None) -> ModelCardData:
    from huggingface_hub import ModelCardData

    results, is_transformer = list(_eval_results(metadata)), metadata.config is not None
    return ModelCardData(
        library_name="transformers" if is_transformer else "timm",
        pipeline_tag="image-classification" if metadata.classes else "image-feature-extraction",
        tags=["deit" if is_transformer else "timm", "vision", *(["distillation"] if metadata.distilled else [])],
        license=_one_line(license) or None,
        metrics=["accuracy"] if results else None,
        model_name=(repo_id or _one_line(metadata.shape)).rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _eval_results(metadata: ModelMetadata) -> Iterator[EvalResult]:
    """Yields the accuracy of the model's predictions in the format of the hub."""
    from huggingface_hub import EvalResult

    main = list(metadata.heads.values())[-1] if metadata.heads else {}
    for column in ("top-1", "top-5") if len(metadata.classes) >= MIN_TOP5_CLASSES else ("top-1",):
        if (value := get_number(main, COLUMNS[column])) is not None:
            yield EvalResult(
                task_type="image-classification",
                dataset_type="digits" if _data_name(metadata) == "digits" else "imagefolder",
                dataset_name=_one_line(_data_name(metadata)) or "unknown",
                dataset_split=metadata.split,
                dataset_args={"images": get_count(metadata.evaluation, "images")},
                metric_type="accuracy",
                metric_name=f"{column} accuracy",
                metric_value=value,
            )


def _model_section(metadata: ModelMetadata) -> str:
    paragraphs = [f"A convolutional network of timm, {_code(metadata.architecture)}, with {metadata.parameters:,} parameters."]
    if (config := metadata.config) is not None:
        token = " with a distillation token" if config.model_type == "deit" else ""
        (height, width), (patch_height, patch_width) = config.image_hw, config.patch_hw
        paragraphs = [
            f"A vision transformer{token} ([DeiT](https://arxiv.org/abs/2012.12877)), {_code(metadata.shape)}: input of "
            f"{height} x {width} pixels, patches of {patch_height} x {patch_width}, {config.num_hidden_layers} blocks of width "
            f"{config.hidden_size} with {config.num_attention_heads} heads each, {metadata.parameters:,} parameters."
        ]
    if metadata.distilled:
        paragraphs.append(
            "It has a head on the class token and one on the distillation token. The mean of their logits is the prediction."
        )
    if names := metadata.classes:
        listed = ", ".join(map(_code, names[:LISTED_CLASSES]))
        subject = f"The first of {len(names):,} classes" if len(names) > LISTED_CLASSES else f"{len(names)} classes"
        paragraphs.append(f"{subject}: {listed}.")
    return "\n\n".join(paragraphs)


def _data_section(metadata: ModelMetadata) -> str:
    data, origin = _data_name(metadata), get_value(metadata.evaluation, "data.origin")
    fingerprint = metadata.record.get("fingerprint")
    lines = [f"- Data set: {_code(data) if data else 'unknown, since the model is not in the directory of a run'}"]
    counts = {split: get_count(metadata.evaluation, f"data.images.{split}") for split in ("train", "validation", "test")}
    if images := [f"{count:,} {split}" for split, count in counts.items() if count]:
        lines.append(f"- Images: {', '.join(images)}")
    if isinstance(origin, str):
        lines.append(f"- Splits: {_code(_strip_folders(origin[: 9 * MAX_LENGTH]), 2 * MAX_LENGTH)}")
    if isinstance(fingerprint, str) and re.fullmatch("[0-9a-f]{64}", fingerprint):
        lines.append(f"- SHA-256 of classes, labels and file names: `{fingerprint}`")
    return "\n".join(lines)


def _recipe_section(metadata: ModelMetadata) -> str:
    if not metadata.recipe:
        return "Unknown, since the model is not in the directory of a run."
    mode, teacher = get_value(metadata.recipe, "distillation.mode"), _base_name(metadata.run.get("teacher"))
    supervision = "from labels only"
    if get_number(metadata.recipe, "masking.ratio"):
        supervision = "by masked image modeling, without labels"
    elif mode in ("hard", "soft"):
        supervision = f"from labels and the teacher {_code(teacher)} ({mode} distillation)"
    sentences = [f"Trained with the recipe {_code(metadata.recipe.get('name'))}, {supervision}."]
    if init := _base_name(metadata.run.get("init")):
        sentences.append(f"Initialized from {_code(init)}.")
    if weights := TRAINED_WEIGHTS.get(str(get_value(metadata.recipe, "model.trainable"))):
        sentences.append(f"Only {weights} were trained.")
    if epoch := get_count(metadata.log_row, "epoch"):
        sentences.append(f"These are the weights after epoch {epoch}.")
    lines = [" ".join(sentences), "", "| setting | value |", "|---|---:|"]
    batch = get_number(metadata.recipe, "optimizer.reference_batch") or 512
    for setting, path in SETTINGS.items():
        label = setting.format(batch=batch)
        value, number = get_value(metadata.recipe, path), get_number(metadata.recipe, path)
        if isinstance(value, str):
            lines.append(f"| {label} | {_code(value).replace('|', ESCAPED_PIPE)} |")
        elif number is not None:
            lines.append(f"| {label} | {number:g} |")
    return "\n".join(lines)


def _metrics_section(metadata: ModelMetadata) -> str:
    heads, images, split = metadata.heads, get_count(metadata.evaluation, "images"), metadata.split
    if not heads or not images:
        return _metrics_from_log(metadata)
    rows = {HEAD_NAMES[name] if len(heads) > 1 else "model": metrics for name, metrics in heads.items()}
    teacher = get_value(metadata.evaluation, "teacher.heads")
    if isinstance(teacher, dict) and teacher:
        rows = {"teacher": list(teacher.values())[-1], **rows}
    columns = {name: key for name, key in COLUMNS.items() if name != "top-5" or len(metadata.classes) >= MIN_TOP5_CLASSES}
    lines = [
        f"Measured as by `deit evaluate`, in float32, on {images:,} images of the {split} split. {CAUTIONS[split]}",
        "",
        f"| head | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
        *(f"| {label} | {' | '.join(_cell(metrics, key) for key in columns.values())} |" for label, metrics in rows.items()),
        "",
        "Loss: mean cross-entropy, in nats. Calibration error: expected difference of confidence and accuracy, over 15 bins.",
    ]
    top1 = get_number(list(heads.values())[-1], "top1")
    low, high = (get_number(metadata.evaluation, f"top1_interval.{end}") for end in ("low", "high"))
    if top1 is not None and low is not None and high is not None:
        lines.append(f"95% confidence interval of the top-1 accuracy of {top1:.1%}: {low:.1%} to {high:.1%}.")
    return "\n".join([*lines, *_worst_classes(metadata)])


def _metrics_from_log(metadata: ModelMetadata) -> str:
    top1, loss = get_number(metadata.log_row, "validation.top1"), get_number(metadata.log_row, "validation.loss")
    if loss is not None and get_number(metadata.recipe, "masking.ratio"):
        return f"Mean absolute error of masked pixels on validation images, after normalization: {loss:.4f}."
    if top1 is None or loss is None:
        return "Unknown, since the model has no evaluation. `deit evaluate` computes them."
    epoch = get_count(metadata.log_row, "epoch")
    return f"Not evaluated. Validation during training, after epoch {epoch}: top-1 {top1:.2%}, loss {loss:.4f}."


def _cell(metrics: object, key: str) -> str:
    value = get_number(metrics, key)
    return "-" if value is None else f"{value:.4f}" if key == "loss" else f"{value:.2%}"


def _worst_classes(metadata: ModelMetadata) -> Iterator[str]:
    per_class = metadata.evaluation.get("per_class")
    accuracies = {name: get_number(per_class, name) for name in per_class} if isinstance(per_class, dict) else {}
    worst = sorted((accuracy, name) for name, accuracy in accuracies.items() if accuracy is not None and accuracy < 1)
    if worst := worst[:WORST_CLASSES]:
        yield f"Classes with the lowest accuracy: {', '.join(f'{_code(name)} ({value:.1%})' for value, name in worst)}."


def _limitations_section(metadata: ModelMetadata, license: str | None) -> str:
    known = f"was measured only on the {metadata.split} split above" if metadata.heads else "is unknown"
    lines = [
        f"The accuracy {known}. Images from other places, cameras or times may be classified less accurately.",
        *_preprocessing(metadata),
        "Evaluate it on your own images before you rely on it, above all for decisions about people.",
        f"License: {_code(license)}." if license else "No license is stated.",
    ]
    if classes := len(metadata.classes):
        lines.insert(0, f"Any image is assigned to one of the {classes:,} classes, even if it is unlike the training images.")
    return "\n".join(f"- {line}" for line in lines)


def _preprocessing(metadata: ModelMetadata) -> Iterator[str]:
    names = ("shortest_edge", "height", "width", "max_height", "max_width")
    edge, height, width, max_height, max_width = (get_count(metadata.processor, f"size.{name}") for name in names)
    if edge:
        yield f"Images are resized to {edge} pixels on the shorter side, which keeps the aspect ratio."
    elif height and width:
        yield f"Images are squashed to {height} x {width} pixels, which changes the aspect ratio."
    elif max_height and max_width:
        yield f"Images are resized to fit into {max_height} x {max_width} pixels, and padded."
    rows, columns = (get_count(metadata.processor, f"crop_size.{name}") for name in ("height", "width"))
    if rows and columns and metadata.processor.get("do_center_crop") is True:
        yield f"Images are cropped to the center {rows} x {columns} pixels. The rest does not influence the prediction."


def _usage_section(metadata: ModelMetadata, repo_id: str | None) -> str:
    name = json.dumps(repo_id or ".")
    blocks = []
    if metadata.classes:
        call = f"predictor = deit.Predictor.from_pretrained({name})"
        blocks.append(["import deit", "", call, 'print(predictor("photo.jpg").labels[0])'])
    if metadata.config is None:
        timm_name = json.dumps(f"hf-hub:{repo_id}" if repo_id else "local-dir:.")
        blocks.append(["import timm", "", f"model = timm.create_model({timm_name}, pretrained=True)"])
    elif metadata.classes:
        call = f'classify = pipeline("image-classification", model={name})'
        blocks.append(["from transformers import pipeline", "", call, 'print(classify("photo.jpg"))'])
    else:
        blocks.append(["from transformers import AutoModel", "", f"model = AutoModel.from_pretrained({name})"])
    text = "\n\n".join("\n".join(["```python", *lines, "```"]) for lines in blocks)
    return text if repo_id else f"`.` is the directory of this card.\n\n{text}"


def _data_name(metadata: ModelMetadata) -> str:
    return _base_name(metadata.run.get("data"))


def _base_name(name: object) -> str:
    """Returns the last component of a path, the name of a named data set in a folder, and other names unchanged."""
    text = name if isinstance(name, str) else ""
    if match := re.match(r"([a-z][a-z0-9-]+):[\\/](?![\\/])", text):
        return match[1]
    if re.fullmatch(r"([a-z]+:)?\w[\w.-]*(/\w[\w.-]*)?", text):
        return text
    components = re.split(r"[\\/]+", text.rstrip("\\/"))
    if len(components) > 1 and components[-1] in (BEST_NAME, LAST_NAME):  # of a run: its own name says more
        components.pop()
    return components[-1]


def _strip_folders(text: str) -> str:
    """Removes the folders of all paths in a text."""
    return re.sub(r"(?<!\w)([A-Za-z]:|~\w*)?[\\/]+(?=[^\s\\/])[^,;:\"']*[\\/]", "", text)


def _one_line(text: object, max_length: int = MAX_LENGTH) -> str:
    """Returns a string as one line of printable characters, including joiners; empty for any other type."""
    start = text[: 4 * max_length] if isinstance(text, str) else ""
    printable = "".join(c if c.isprintable() or c in "\u200c\u200d" else " " for c in start)
    line = " ".join(printable.split())
    return line if len(line) <= max_length else f"{line[: max_length - 1]}…"


def _code(text: object, max_length: int = MAX_LENGTH) -> str:
    """Returns a string as Markdown code, in which no character has a special meaning."""
    line = _one_line(text, max_length) or "?"
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    padding = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{padding}{line}{padding}{fence}"
