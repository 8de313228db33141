"""Trains a convolutional teacher on a folder of photos, distills a DeiT from it, evaluates the DeiT and classifies images.

    python examples/own_photos.py PHOTOS [IMAGE ...] [--minutes 10] [--out runs/photos]

PHOTOS has one folder of images per class. ``--tiny`` trains tiny networks for an epoch, which takes seconds on a CPU.
"""

import argparse
from pathlib import Path

import deit

TINY_TEACHER = {"model.architecture": "test_resnet", "model.image_size": "32", "epochs": "1", "batch_size": "16"}
TINY_STUDENT = {
    "model.image_size": "32",
    "model.patch_size": "8",
    "model.hidden_size": "48",
    "model.num_hidden_layers": "2",
    "model.num_attention_heads": "3",
    "epochs": "1",
    "batch_size": "16",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder with one folder of images per class")
    parser.add_argument("images", type=Path, nargs="*", help="images to classify after training")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for teacher and student together")
    parser.add_argument("--out", type=Path, default=Path("runs/photos"))
    parser.add_argument("--tiny", action="store_true", help="try the script: tiny networks, one epoch")
    options = parser.parse_args()

    teacher_settings = TINY_TEACHER if options.tiny else {"minutes": str(0.3 * options.minutes)}
    teacher = deit.train(options.photos, "convnet", out=options.out / "teacher", settings=teacher_settings)
    print(f"Teacher: {teacher.evaluation.main.top1:.1%} of the {teacher.split} images")

    student = deit.train(
        options.photos,
        "small-data-distilled",
        teacher=teacher.directory,
        out=options.out / "student",
        settings=TINY_STUDENT if options.tiny else {"minutes": str(0.7 * options.minutes)},
    )

    evaluation = deit.evaluate(student.directory, options.photos)  # on the images that were held out from training
    for head, metrics in evaluation.heads.items():
        print(f"Student, {head}: {metrics.top1:.1%}")

    if options.images:
        predictor = deit.Predictor.from_pretrained(student.directory)
        for prediction in predictor(options.images):
            if prediction.error:
                print(f"{prediction.image}: {prediction.error}")
            else:
                print(f"{prediction.image}: {prediction.labels[0]} ({prediction.probabilities[0]:.0%})")


if __name__ == "__main__":
    main()
