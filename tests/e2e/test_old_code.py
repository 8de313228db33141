"""Code written for transformers runs with its import changed and gives the same results.

The two programs make the calls that the DeiT page of the transformers documentation shows, old ones and newer ones. The model
is in the hub's cache, in the published format: the published name, a thousand classes, a small transformer with random weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.helpers import PUBLISHED_PREPROCESSING, pattern, randomized

NAME = "facebook/deit-tiny-distilled-patch16-224"
IMPORTS = {
    "transformers": """
from transformers import DeiTConfig, DeiTForImageClassification, DeiTForImageClassificationWithTeacher
from transformers import DeiTForMaskedImageModeling, DeiTModel
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil as AutoImageProcessor
DeiTFeatureExtractor = AutoImageProcessor
""",
    "deit": """
from deit import DeiTConfig, DeiTForImageClassification, DeiTForImageClassificationWithTeacher
from deit import DeiTForMaskedImageModeling, DeiTModel
from deit import DeiTImageProcessor as AutoImageProcessor
from deit import DeiTFeatureExtractor
""",
}
PROGRAM = """
import json
import sys

import torch
from PIL import Image

name, picture = sys.argv[1:]
image = Image.open(picture)
results = {}


def note(key, value):
    results[key] = value.double().flatten()[:50].tolist() if isinstance(value, torch.Tensor) else value


# A configuration, and a model of it with random weights.
configuration = DeiTConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=96)
model = DeiTModel(configuration)
configuration = model.config
note("layers", configuration.num_hidden_layers)
note("last hidden state", list(model(torch.zeros(1, 3, 224, 224)).last_hidden_state.shape))

# The backbone.
image_processor = AutoImageProcessor.from_pretrained(name)
model = DeiTModel.from_pretrained(name)
model.eval()
inputs = image_processor(image, return_tensors="pt")
note("pixel values", inputs.pixel_values)
with torch.no_grad():
    outputs = model(**inputs)
note("hidden", outputs.last_hidden_state)
note("shape", list(outputs.last_hidden_state.shape))

# Both heads, with the old name of the processor and its keywords.
feature_extractor = DeiTFeatureExtractor.from_pretrained(name)
inputs = feature_extractor(images=image, return_tensors="pt")
model = DeiTForImageClassificationWithTeacher.from_pretrained(name)
with torch.no_grad():
    outputs = model(**inputs)
logits = outputs.logits
predicted_class_idx = logits.argmax(-1).item()
note("class", model.config.id2label[predicted_class_idx])
note("both", outputs["logits"])
note("first", outputs[0])
note("heads", torch.cat([outputs.cls_logits, outputs.distillation_logits]))

# One head, newly initialized: its shape, and a loss with gradients.
torch.manual_seed(3)
model = DeiTForImageClassification.from_pretrained(name, num_labels=7, ignore_mismatched_sizes=True)
outputs = model(**inputs, labels=torch.tensor([3]))
outputs.loss.backward()
note("new logits", list(outputs.logits.shape))
note("learns", bool(model.classifier.weight.grad.abs().sum() > 0))
note("names", model.config.id2label[6])

# Half precision, fused attention.
model = DeiTForImageClassification.from_pretrained(name, attn_implementation="sdpa", dtype=torch.float16)
note("type", str(model.dtype))
note("classes", model.config.num_labels)

# Masked image modeling.
model = DeiTForMaskedImageModeling.from_pretrained(name)
num_patches = (model.config.image_size // model.config.patch_size) ** 2
pixel_values = image_processor(images=image, return_tensors="pt").pixel_values
bool_masked_pos = torch.randint(low=0, high=2, size=(1, num_patches)).bool()
outputs = model(pixel_values, bool_masked_pos=bool_masked_pos)
loss, reconstructed_pixel_values = outputs.loss, outputs.reconstruction
note("reconstruction", list(reconstructed_pixel_values.shape))
note("loss", loss.ndim)

# Every layer's attention.
model = DeiTModel.from_pretrained(name, add_pooling_layer=False, attn_implementation="eager")
with torch.no_grad():
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
note("attentions", torch.stack(outputs.attentions))
note("states", torch.stack(outputs.hidden_states))

print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache that contains one model, in the layout of huggingface_hub."""
    root = tmp_path_factory.mktemp("hub")
    commit = "0" * 40
    repository = root / "hub" / f"models--{NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    shape: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
    config = transformers.DeiTConfig(**shape, num_labels=1000)  # type: ignore[call-arg]
    randomized(transformers.DeiTForImageClassificationWithTeacher(config), std=0.1).save_pretrained(snapshot)
    (snapshot / "preprocessor_config.json").write_text(json.dumps(PUBLISHED_PREPROCESSING))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    pattern(500, 375).save(root / "image.png")
    return root


def run(home: Path, library: str) -> dict[str, Any]:
    program = IMPORTS[library] + PROGRAM
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, NAME, str(home / "image.png")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def test_documented_examples_give_the_same_results(home: Path) -> None:
    expected, ours = run(home, "transformers"), run(home, "deit")
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, list) and isinstance(value[0], float):
            assert torch.allclose(torch.tensor(ours[key]), torch.tensor(value), atol=1e-5), key
        else:
            assert ours[key] == value, key
    assert torch.tensor(ours["attentions"]).std() > 0
