"""The models of this package as subjects of transformers' tests; run by ``benchmarks.transformers_suites``."""

from __future__ import annotations

import unittest
from typing import Any

import torch
from torch import Tensor, nn
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

import deit


class TinyModel:
    """Provides transformers' tests with a configuration and inputs.

    Args:
        config_class: class of the configuration.
    """

    batch_size = 4
    image_size = 16
    patch_size = 4
    num_channels = 3
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    is_training = True

    def __init__(self, config_class: type[deit.ViTConfig]) -> None:
        self.config_class = config_class
        self.mask_length = (self.image_size // self.patch_size) ** 2
        self.num_masks = self.mask_length // 2
        self.seq_length = self.mask_length + config_class.PREFIX_TOKENS

    def get_config(self) -> deit.ViTConfig:
        """Returns the configuration of a small model with dropout, so that the tests see the difference of its modes."""
        return self.config_class(
            image_size=self.image_size,
            patch_size=self.patch_size,
            encoder_stride=self.patch_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=48,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            attn_implementation="eager",
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[deit.ViTConfig, dict[str, Tensor]]:
        """Returns the configuration, and images."""
        images = torch.rand(self.batch_size, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": images}


class CommonTests(ModelTesterMixin):  # type: ignore[misc]
    """What both families have in common: images are the only input, and there is no vocabulary."""

    config_class: type[deit.ViTConfig]
    test_resize_embeddings = False

    def setUp(self) -> None:
        self.model_tester = TinyModel(self.config_class)
        shape = {"hidden_size": 32, "num_attention_heads": 4}
        self.config_tester = ConfigTester(self, config_class=self.config_class, has_text_modality=False, **shape)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    @unittest.skip("images have no inputs_embeds")
    def test_inputs_embeds(self) -> None: ...

    def test_model_get_set_embeddings(self) -> None:
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            assert isinstance(model.get_input_embeddings(), nn.Module)
            assert model.get_output_embeddings() is None


class ViTTest(CommonTests, unittest.TestCase):
    """Models without a distillation token."""

    config_class = deit.ViTConfig
    all_model_classes = (deit.ViTModel, deit.ViTForImageClassification, deit.ViTForMaskedImageModeling)


class DeiTTest(CommonTests, unittest.TestCase):
    """Models with a distillation token."""

    config_class = deit.DeiTConfig
    all_model_classes = (
        deit.DeiTModel,
        deit.DeiTForImageClassification,
        deit.DeiTForImageClassificationWithTeacher,
        deit.DeiTForMaskedImageModeling,
    )

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        inputs: dict[str, Tensor] = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is deit.DeiTForImageClassificationWithTeacher:
            inputs["labels"] = torch.zeros(self.model_tester.batch_size, dtype=torch.long)
        return inputs
