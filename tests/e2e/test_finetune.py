"""Fine-tuning from a published checkpoint, and pretraining on images without labels, with the program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from deit.checkpoints.model_card import model_card
from deit.errors import CheckpointError
from deit.models.auto import load_classifier
from tests.e2e.conftest import CLASSES, Deit

SHORT = ("--epochs", "1", "--batch-size", "16", "--device", "cpu", "--workers", "0", "--set", "precision=fp32")


@pytest.fixture(scope="module")
def work(deit: Deit, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher and two models of seven classes in the published format, ``distilled`` and ``plain``."""
    import transformers

    library: Any = transformers
    root = tmp_path_factory.mktemp("my work")
    teacher = deit(
        *("teacher", "train", photos, "--arch", "test_resnet", "--image-size", "64", "--out", root / "a teacher", *SHORT)
    )
    assert teacher.returncode == 0, teacher.stderr
    torch.manual_seed(0)
    shape = {"image_size": 64, "patch_size": 16, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
    shape |= {"intermediate_size": 192, "num_labels": 7}
    library.DeiTForImageClassificationWithTeacher(library.DeiTConfig(**shape)).save_pretrained(root / "distilled")
    library.ViTForImageClassification(library.ViTConfig(**shape)).save_pretrained(root / "plain")
    return root


def test_fine_tuning_with_a_teacher_at_another_resolution(deit: Deit, work: Path, photos: Path) -> None:
    done = deit(
        *("train", photos, "--init", work / "distilled", "--teacher", work / "a teacher"),
        *("--recipe", "finetune-small-data-distilled", "--image-size", "96", "--out", work / "tuned", "--json", *SHORT),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["heads"]) == {"class", "distillation", "both"}
    assert result["teacher"]["images"] == 6
    for text in (
        f"deit-width48-depth2, from {work / 'distilled'}, at 96 x 96",
        "hard distillation",
        "Newly initialized: cls_classifier, distillation_classifier.",
        "resampled from 4 x 4 to 6 x 6 patches.",
        "1 epoch, made for 30",
        "Batch size 16, made for 64",
    ):
        assert text in done.stderr, done.stderr
    card = (work / "tuned" / "best" / "README.md").read_text()
    assert "Initialized from `distilled`." in card
    assert str(work) not in card
    picture = next((photos / CLASSES[0]).rglob("*.jpg"))
    predicted = deit("predict", work / "tuned", picture, "--json")
    assert {row["label"] for row in json.loads(predicted.stdout)[0]["predictions"]} == set(CLASSES)
    resumed = deit("train", "--resume", work / "tuned", "--device", "cpu")
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed from" in resumed.stderr
    assert "Newly initialized" not in resumed.stderr


def test_fine_tuning_of_the_class_head_only(deit: Deit, work: Path, photos: Path) -> None:
    done = deit(
        *("train", photos, "--init", work / "distilled", "--out", work / "classic", "--set", "model.trainable=heads"),
        *("--set", "model.eval_mode=true", "--set", "optimizer.warmup_epochs=0", *SHORT),
    )
    assert done.returncode == 0, done.stderr
    assert "Not used from the checkpoint: cls_classifier, distillation_classifier, distillation_token." in done.stderr
    assert "147 of them trainable" in done.stderr
    from deit import ViTForImageClassification
    from deit.checkpoints.reading import open_checkpoint

    before = open_checkpoint(work / "distilled").read()
    after = ViTForImageClassification.from_pretrained(work / "classic" / "last").canonical_state()
    shared = {name for name in after if name in before and before[name].shape == after[name].shape}
    assert all(torch.equal(after[name], before[name]) for name in shared)
    assert after.keys() - shared == {"classifier.weight", "classifier.bias", "embeddings.position_embeddings"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "{photos}", "--init", "no such model"), "check the path"),
        (("train", "{photos}", "--init", "plain", "--model", "deit-tiny-patch16-224"), "--init and --model both set the shape"),
        (("train", "{photos}", "--init", "plain", "--set", "model.head=keep"), "has 7 classes and the data has 3"),
        (("teacher", "train", "{photos}", "--init", "a teacher", "--arch", "resnet18"), "leave one of them out"),
        (("pretrain", "{photos}", "--set", "model.trainable=heads"), "trains the whole model"),
        (("pretrain", "--resume", "a teacher", "--recipe", "deit"), "pass --resume without another"),
    ],
)
def test_wrong_use_is_a_one_line_error(deit: Deit, work: Path, photos: Path, arguments: tuple[str, ...], message: str) -> None:
    done = deit(*(str(photos) if argument == "{photos}" else argument for argument in arguments), cwd=work)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr, done.stderr
    assert done.stderr.startswith("deit: ")
    assert done.stderr.count("\n") == 1
    assert not (work / "runs").exists()


def test_pretraining_can_be_interrupted_resumed_and_fine_tuned(deit: Deit, work: Path, photos: Path) -> None:
    sizes = ("--set", "model.hidden_size=48", "--set", "model.num_hidden_layers=2", "--image-size", "64", "--batch-size", "4")
    options = (*sizes, "--epochs", "8", "--device", "cpu", "--workers", "0", "--set", "precision=fp32")
    command = [Path(sys.executable).with_name("deit"), "pretrain", photos, *options, "--out", work / "mim run"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    log = work / "mim run" / "log.jsonl"
    while not log.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert f'deit pretrain --resume "{work / "mim run"}"' in stderr
    assert "Traceback" not in stderr
    assert "not used" in stderr

    resumed = deit("pretrain", "--resume", work / "mim run", "--device", "cpu", "--json")
    assert resumed.returncode == 0, resumed.stderr
    uninterrupted = deit("pretrain", photos, *options, "--out", work / "uninterrupted", "--json")
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    first, second = json.loads(resumed.stdout), json.loads(uninterrupted.stdout)
    assert (first["epoch"], first["loss"]) == (second["epoch"], second["loss"])
    for name in ("last/model.safetensors", "best/model.safetensors"):
        assert (work / "mim run" / name).read_bytes() == (work / "uninterrupted" / name).read_bytes(), name

    done = deit("train", photos, "--init", work / "mim run", "--out", work / "after mim", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "Newly initialized: classifier." in done.stderr
    assert "Not used from the checkpoint: decoder, distillation_token, mask_token." in done.stderr
    card = model_card(work / "mim run" / "best")
    assert "by masked image modeling, without labels" in card
    assert f"These are the weights after epoch {second['epoch']}." in card
    with pytest.raises(CheckpointError, match="train one with `deit train --init`"):
        load_classifier(work / "mim run")
