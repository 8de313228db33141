"""Exports a model for fast inference and serves predictions: for the images of a folder, or for paths on standard input.

    python examples/export_and_predict.py MODEL --images FOLDER
    ls photos/*.jpg | python examples/export_and_predict.py MODEL --precision int8 --calibrate PHOTOS

The bundle is written only if its logits for real images match those of the fp32 model. An existing bundle is reused. Each image
gives one line of JSON.
"""

import argparse
import json
import sys
from pathlib import Path

import deit

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, a model directory or a hub name")
    parser.add_argument("--images", type=Path, help="folder of images; default: paths on standard input")
    parser.add_argument("--to", choices=("openvino", "onnx", "torch"), help="default: the best that is installed")
    parser.add_argument("--precision", choices=("fp32", "bf16", "int8"), default="fp32")
    parser.add_argument("--calibrate", type=Path, help="data set for int8 and for the parity check")
    parser.add_argument("--bundle", type=Path, default=Path("exports/example"))
    options = parser.parse_args()

    if not options.bundle.exists():
        exported = deit.export_model(options.model, options.bundle, options.to, options.precision, calibrate=options.calibrate)
        for runtime, parity in exported.parities.items():
            print(f"{runtime}: same prediction for {parity.agreement:.1%} of {parity.images} images", file=sys.stderr)

    if options.images:  # many images: all cores work on several at once
        predictor = deit.Predictor.from_pretrained(options.bundle)
        paths = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in SUFFIXES)
        for prediction in predictor.stream(paths):
            print(json.dumps(prediction.to_dict(), ensure_ascii=False))
    else:  # one image at a time: all cores work on it
        predictor = deit.Predictor.from_pretrained(options.bundle, performance_hint="latency")
        for line in sys.stdin:
            print(json.dumps(predictor(line.strip()).to_dict(), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
