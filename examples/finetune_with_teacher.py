"""Fine-tunes a published DeiT on a folder of photos, with a teacher that was trained on the same photos.

    python examples/finetune_with_teacher.py PHOTOS [--model facebook/deit-tiny-distilled-patch16-224] [--teacher runs/teacher]

Both heads are newly initialized for the classes of the photos; ``model.load_report`` and the first lines of the run say what
was taken from the checkpoint. Without ``--teacher``, a convolutional teacher is trained first.
"""

import argparse
from pathlib import Path

import deit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder with one folder of images per class")
    parser.add_argument("--model", default="facebook/deit-tiny-distilled-patch16-224", help="hub name or local checkpoint")
    parser.add_argument("--teacher", help="run directory of a teacher for these classes")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--teacher-arch", default="regnety_004", help="timm architecture of a teacher that is trained here")
    parser.add_argument("--teacher-image-size", type=int, default=224)
    parser.add_argument("--out", type=Path, default=Path("runs/finetuned"))
    options = parser.parse_args()

    settings = {"epochs": str(options.epochs), "batch_size": str(options.batch_size)}
    teacher = options.teacher
    if teacher is None:
        network = {"model.architecture": options.teacher_arch, "model.image_size": str(options.teacher_image_size)}
        teacher = deit.train(options.photos, "convnet", out=options.out / "teacher", settings=settings | network).directory

    result = deit.train(
        options.photos,
        "finetune-small-data-distilled",
        init=options.model,
        teacher=teacher,
        out=options.out / "student",
        settings=settings,
    )
    for head, metrics in result.evaluation.heads.items():
        print(f"{head}: {metrics.top1:.1%} of the {result.split} images")
    if result.teacher is not None:
        print(f"teacher: {result.teacher.main.top1:.1%}")
    print(f"Model: {result.directory / 'best'}")


if __name__ == "__main__":
    main()
