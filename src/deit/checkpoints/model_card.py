"""A model directory -> its model card: metadata for the hub, and what stands behind the model in plain words.

Names on disk may come from anyone. In the text they stand as Markdown code alone, on one line and cut to a length; of a folder
the last part stays, so that a card tells nothing of the machine that it was written on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deit.checkpoints.metadata import ModelFacts, at, count, number, read_facts
from deit.system.files import BEST_NAME, LAST_NAME
from deit.system.files import CARD_NAME as CARD_NAME

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

LONGEST = 80  # characters of a name
NAMED_CLASSES, WORST_CLASSES = 10, 3
TOP5_CLASSES = 6  # from here on, the first five answers are not all there are
PIPE = r"\|"  # what divides a table's cells, even within code
Z_95 = 1.96  # standard deviations to either side that hold 95% of a normal distribution

HEAD_NAMES = {"class": "class token", "distillation": "distillation token", "both": "both, the model's answer"}
COLUMNS = {"top-1": "top1", "top-5": "top5", "loss": "loss", "calibration error": "calibration_error"}
TRAINED_PARTS = {"heads": "the heads", "attention": "attention, position embeddings and heads"}
CAUTIONS = {
    "test": "They took no part in training nor in choosing among checkpoints.",
    "validation": "The checkpoint was chosen by them too: the figures are slightly optimistic.",
}
SETTINGS = {
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
    "repeats of an image in an epoch": "augmentation.repeats",
    "decay of the weights' average": "average.decay",
    "precision": "precision",
    "seed": "seed",
}


def model_card(directory: Path, *, repo_id: str | None = None, license: str | None = None) -> str:
    """The text of ``README.md`` for a model directory.

    Args:
        directory: with ``config.json`` and weights. The ``best`` or ``last`` of a run knows its data, recipe and metrics.
        repo_id: its name on the hub, ``OWNER/NAME``; without it the text speaks of the folder that the card lies in.
        license: the hub's identifier of the licence; without it none is stated.

    Raises:
        CheckpointError: a file is missing or damaged.
        ConfigError: a model that cannot be.

    Example:
        text = model_card(Path("runs/photos/best"), repo_id="me/photos", license="apache-2.0")
    """
    facts = read_facts(directory)
    data = _data_name(facts)
    title = repo_id or (f"{_code(facts.shape)} trained on {_code(data)}" if data else _code(facts.shape))
    sections = {
        "The model": _model(facts),
        "Data": _data(facts),
        "Recipe": _recipe(facts),
        "Metrics": _metrics(facts),
        "Intended use and limits": _limits(facts, license),
        "How to use it": _usage(facts, repo_id),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"---\n{_metadata(facts, repo_id, license).to_yaml()}\n---\n\n# {title}\n\n{body}\n"


def _metadata(facts: ModelFacts, repo_id: str | None, license: str | None) -> ModelCardData:
    from huggingface_hub import ModelCardData

    results, ours = list(_results(facts)), facts.config is not None
    return ModelCardData(
        library_name="transformers" if ours else "timm",
        pipeline_tag="image-classification" if facts.classes else "image-feature-extraction",
        tags=["deit" if ours else "timm", "vision", *(["distillation"] if facts.distilled else [])],
        license=_plain(license) or None,
        metrics=["accuracy"] if results else None,
        model_name=(repo_id or _plain(facts.shape)).rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _results(facts: ModelFacts) -> Iterator[EvalResult]:
    """The accuracy of the model's answer, in the hub's format."""
    from huggingface_hub import EvalResult

    answer = list(facts.heads.values())[-1] if facts.heads else {}
    for column in ("top-1", "top-5") if len(facts.classes) >= TOP5_CLASSES else ("top-1",):
        if (value := number(answer, COLUMNS[column])) is not None:
            yield EvalResult(
                task_type="image-classification",
                dataset_type="digits" if _data_name(facts) == "digits" else "imagefolder",
                dataset_name=_plain(_data_name(facts)) or "unknown",
                dataset_split=facts.part,
                dataset_args={"images": count(facts.evaluation, "images")},
                metric_type="accuracy",
                metric_name=f"{column} accuracy",
                metric_value=value,
            )


def _model(facts: ModelFacts) -> str:
    texts = [f"A convolutional network of timm, {_code(facts.architecture)}, with {facts.parameters:,} parameters."]
    if (own := facts.config) is not None:
        token = " with a distillation token" if own.model_type == "deit" else ""
        (height, width), (down, across) = own.image_hw, own.patch_hw
        texts = [
            f"A vision transformer{token} ([DeiT](https://arxiv.org/abs/2012.12877)), {_code(facts.shape)}: images of "
            f"{height} x {width} pixels in patches of {down} x {across}, {own.num_hidden_layers} blocks of width "
            f"{own.hidden_size} with {own.num_attention_heads} heads each, {facts.parameters:,} parameters."
        ]
    if facts.distilled:
        texts.append("One head reads the class token, one the distillation token; the mean of their logits is the answer.")
    if names := facts.classes:
        some = f"{len(names):,} classes, of which the first are" if len(names) > NAMED_CLASSES else f"{len(names)} classes:"
        texts.append(f"{some} {', '.join(map(_code, names[:NAMED_CLASSES]))}.")
    return "\n\n".join(texts)


def _data(facts: ModelFacts) -> str:
    data, origin, mark = _data_name(facts), at(facts.evaluation, "data.origin"), facts.record.get("fingerprint")
    lines = [f"- Data set: {_code(data) if data else 'not known, since no run lies beside the model'}"]
    counts = {name: count(facts.evaluation, f"data.images.{name}") for name in ("train", "validation", "test")}
    if shown := [f"{images:,} {name}" for name, images in counts.items() if images]:
        lines.append(f"- Images: {', '.join(shown)}")
    if isinstance(origin, str):
        lines.append(f"- DatasetSplits: {_code(_without_folders(origin[: 9 * LONGEST]), 2 * LONGEST)}")
    if isinstance(mark, str) and re.fullmatch("[0-9a-f]{64}", mark):
        lines.append(f"- Fingerprint of its classes, labels and file names (SHA-256): `{mark}`")
    return "\n".join(lines)


def _recipe(facts: ModelFacts) -> str:
    if not facts.recipe:
        return "Not known, since no run lies beside the model."
    mode, teacher = at(facts.recipe, "distillation.mode"), _base(facts.run.get("teacher"))
    taught = "from the labels alone"
    if number(facts.recipe, "masking.ratio"):
        taught = "to fill in hidden patches; no label was looked at"
    elif mode in ("hard", "soft"):
        taught = f"from the labels and from a teacher, {_code(teacher)} ({mode} distillation)"
    lines = [f"Trained by the recipe {_code(facts.recipe.get('name'))}, {taught}.", ""]
    if start := _base(facts.run.get("init")):
        lines[0] += f" It started from {_code(start)}."
    if parts := TRAINED_PARTS.get(str(at(facts.recipe, "model.trainable"))):
        lines[0] += f" Of its weights, {parts} alone learned."
    if epoch := count(facts.row, "epoch"):
        lines[0] += f" These are the weights after epoch {epoch}."
    lines += ["| setting | value |", "|---|---:|"]
    batch = number(facts.recipe, "optimizer.reference_batch") or 512
    for name, place in SETTINGS.items():
        label = name.format(batch=batch)
        value, known = at(facts.recipe, place), number(facts.recipe, place)
        if isinstance(value, str):
            lines.append(f"| {label} | {_code(value).replace('|', PIPE)} |")
        elif known is not None:
            lines.append(f"| {label} | {known:g} |")
    return "\n".join(lines)


def _metrics(facts: ModelFacts) -> str:
    heads, images = facts.heads, count(facts.evaluation, "images")
    if not heads or not images:
        return _unmeasured(facts)
    rows = {HEAD_NAMES[name] if len(heads) > 1 else "the model": head for name, head in heads.items()}
    teacher = at(facts.evaluation, "teacher.heads")
    if isinstance(teacher, dict) and teacher:
        rows = {"its teacher": list(teacher.values())[-1], **rows}
    columns = {name: key for name, key in COLUMNS.items() if name != "top-5" or len(facts.classes) >= TOP5_CLASSES}
    lines = [
        f"Measured as by `deit evaluate`, in float32, on {images:,} images of the {facts.part} part. {CAUTIONS[facts.part]}",
        "",
        f"| head | {' | '.join(columns)} |",
        f"|---|{'---:|' * len(columns)}",
        *(f"| {label} | {' | '.join(_cell(head, key) for key in columns.values())} |" for label, head in rows.items()),
        "",
        "Loss: mean cross-entropy, in nats. Calibration error: expected difference of confidence and accuracy, over 15 bins.",
    ]
    top1 = number(list(heads.values())[-1], "top1")
    if top1 is not None and 0 <= top1 <= 1:
        low, high = _interval(top1, images)
        lines.append(
            f"By the number of images alone, the top-1 of {top1:.1%} may be anything from {low:.1%} to {high:.1%} (95%)."
        )
    return "\n".join([*lines, *_worst(facts)])


def _unmeasured(facts: ModelFacts) -> str:
    top1, loss = number(facts.row, "validation.top1"), number(facts.row, "validation.loss")
    if loss is not None and number(facts.recipe, "masking.ratio"):
        return f"On validation images, hidden pixels are {loss:.4f} off on average, after normalization."
    if top1 is None or loss is None:
        return "Not known, since no evaluation lies beside the model. `deit evaluate` makes one."
    seen = f"{top1:.2%} of the validation images right, loss {loss:.4f}"
    return f"Not measured by `deit evaluate`. While training, after epoch {count(facts.row, 'epoch')}: {seen}."


def _cell(head: object, key: str) -> str:
    value = number(head, key)
    return "-" if value is None else f"{value:.4f}" if key == "loss" else f"{value:.2%}"


def _worst(facts: ModelFacts) -> Iterator[str]:
    shares = facts.evaluation.get("per_class")
    known = {name: number(shares, name) for name in shares} if isinstance(shares, dict) else {}
    worst = sorted((share, name) for name, share in known.items() if share is not None and share < 1)
    if worst := worst[:WORST_CLASSES]:
        yield f"Least often right: {', '.join(f'{_code(name)} ({share:.1%})' for share, name in worst)}."


def _limits(facts: ModelFacts, license: str | None) -> str:
    known = f"Accuracy was measured on the {facts.part} part above alone" if facts.heads else "How accurate it is, is not known"
    lines = [
        f"{known}: nothing is claimed for images of other places, cameras or times.",
        *_view(facts),
        "Before anything depends on it, decisions about people above all, measure it on your own images.",
        f"Licence: {_code(license)}." if license else "No licence is stated.",
    ]
    if names := len(facts.classes):
        lines.insert(
            0, f"For images like those it learned from. Any other gets one of the {names:,} classes for an answer too."
        )
    return "\n".join(f"- {line}" for line in lines)


def _view(facts: ModelFacts) -> Iterator[str]:
    """What the preprocessing keeps of an image."""
    names = ("shortest_edge", "height", "width", "max_height", "max_width")
    edge, height, width, tallest, widest = (count(facts.processor, f"size.{name}") for name in names)
    if edge:
        yield f"An image is resized until its shorter side has {edge} pixels; its aspect is kept."
    elif height and width:
        yield f"An image is squashed to {height} x {width} pixels; its aspect is not kept."
    elif tallest and widest:
        yield f"An image is resized until the whole of it fits into {tallest} x {widest} pixels; the rest is filled up."
    rows, columns = (count(facts.processor, f"crop_size.{name}") for name in ("height", "width"))
    if rows and columns and facts.processor.get("do_center_crop") is True:
        yield f"The model sees the middle, {rows} x {columns} pixels of that: what lies further out plays no part."


def _usage(facts: ModelFacts, repo_id: str | None) -> str:
    where = json.dumps(repo_id or ".")
    blocks = []
    if facts.classes:
        call = f"predictor = deit.Predictor.from_pretrained({where})"
        blocks.append(["import deit", "", call, 'print(predictor(["photo.jpg"])[0].labels[0])'])
    if facts.config is None:
        place = json.dumps(f"hf-hub:{repo_id}" if repo_id else "local-dir:.")
        blocks.append(["import timm", "", f"model = timm.create_model({place}, pretrained=True)"])
    elif facts.classes:
        call = f'classify = pipeline("image-classification", model={where})'
        blocks.append(["from transformers import pipeline", "", call, 'print(classify("photo.jpg"))'])
    else:
        blocks.append(["from transformers import AutoModel", "", f"model = AutoModel.from_pretrained({where})"])
    text = "\n\n".join("\n".join(["```python", *lines, "```"]) for lines in blocks)
    return text if repo_id else f"`.` is the folder that this card lies in.\n\n{text}"


def _interval(share: float, images: int) -> tuple[float, float]:
    """Wilson's interval: where the true share lies when ``share`` of so many images was seen."""
    grown = Z_95**2 / images
    middle, spread = share + grown / 2, math.sqrt(grown * (share * (1 - share) + grown / 4))
    return max((middle - spread) / (1 + grown), 0.0), min((middle + spread) / (1 + grown), 1.0)


def _data_name(facts: ModelFacts) -> str:
    return _base(facts.run.get("data"))


def _base(name: object) -> str:
    """A name of the hub or of timm as it is; of a path, the last part; of a data set's name and folder, the name."""
    text = name if isinstance(name, str) else ""
    if match := re.match(r"([a-z][a-z0-9-]+):[\\/](?![\\/])", text):
        return match[1]
    if re.fullmatch(r"([a-z]+:)?\w[\w.-]*(/\w[\w.-]*)?", text):
        return text
    parts = re.split(r"[\\/]+", text.rstrip("\\/"))
    if len(parts) > 1 and parts[-1] in (BEST_NAME, LAST_NAME):  # of a run, whose name says more
        parts.pop()
    return parts[-1]


def _without_folders(text: str) -> str:
    """A sentence without the folders of the paths in it."""
    return re.sub(r"(?<!\w)([A-Za-z]:|~\w*)?[\\/]+(?=[^\s\\/])[^,;:\"']*[\\/]", "", text)


def _plain(text: object, longest: int = LONGEST) -> str:
    """One line of printable characters, joiners of scripts and emoji among them; nothing of what is no string."""
    start = text[: 4 * longest] if isinstance(text, str) else ""
    shown = "".join(c if c.isprintable() or c in "\u200c\u200d" else " " for c in start)
    line = " ".join(shown.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _code(text: object, longest: int = LONGEST) -> str:
    """Markdown code, in which no character means anything."""
    line = _plain(text, longest) or "?"
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    pad = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{pad}{line}{pad}{fence}"
