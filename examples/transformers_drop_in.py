"""Code written for transformers, with its import changed to ``deit``: processor, model, classification, saving and loading.

    python examples/transformers_drop_in.py [IMAGE ...] [--model facebook/deit-tiny-distilled-patch16-224] [--out saved]

Without ``--model`` a small model with random weights is used, and without images a gray one. The saved directory is what
transformers writes, so that it opens there, and ``transformers.Trainer`` trains these classes as they are.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from deit import DeiTConfig, DeiTForImageClassificationWithTeacher, DeiTImageProcessor  # was: from transformers import ...

LABELS = {0: "cat", 1: "dog", 2: "bird"}


def classify(
    model: DeiTForImageClassificationWithTeacher, processor: DeiTImageProcessor, images: list[Image.Image], top_k: int = 3
) -> list[list[dict[str, object]]]:
    """Returns what ``pipeline("image-classification")`` of transformers returns: labels and scores, best first."""
    inputs = processor(images, return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)
    scores, indices = probabilities.topk(min(top_k, probabilities.shape[1]))
    return [
        [{"label": model.config.id2label[index], "score": score} for index, score in zip(*row, strict=True)]
        for row in zip(indices.tolist(), scores.tolist(), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, nargs="*")
    parser.add_argument("--model", help="hub name or local checkpoint")
    parser.add_argument("--out", type=Path, default=Path("saved"))
    options = parser.parse_args()

    if options.model:
        processor = DeiTImageProcessor.from_pretrained(options.model)
        model = DeiTForImageClassificationWithTeacher.from_pretrained(options.model)
    else:
        config = DeiTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192, id2label=LABELS)
        processor, model = DeiTImageProcessor(), DeiTForImageClassificationWithTeacher(config)
    model.eval()

    images = [Image.open(path).convert("RGB") for path in options.images] or [Image.new("RGB", (320, 240), "gray")]
    results = classify(model, processor, images)
    for result in results:
        print(", ".join(f"{row['label']} {row['score']:.3f}" for row in result))

    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    reloaded = DeiTForImageClassificationWithTeacher.from_pretrained(options.out).eval()
    assert classify(reloaded, DeiTImageProcessor.from_pretrained(options.out), images) == results
    print(f"Saved to {options.out}; the reloaded model predicts the same")


if __name__ == "__main__":
    main()
