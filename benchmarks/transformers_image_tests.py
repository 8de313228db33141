"""The image processors of this package as subjects of transformers' tests; run by ``benchmarks.transformers_suites``.

The tests of transformers 4.x and 5.x ask a test class for its processors in different ways; both are served here.
"""

from __future__ import annotations

import unittest
from typing import Any, ClassVar
from unittest import mock

from fetch_hub_objects_for_ci import url_to_local_path
from transformers_tests import test_image_processing_common as common

import deit

SETTINGS = ("do_resize", "size", "do_center_crop", "crop_size", "do_normalize", "image_mean", "image_std")
Base: Any = getattr(common, "ImageProcessingTester", object)  # 5.x has it, 4.x does not


class Processors(Base):  # type: ignore[misc]
    """Provides transformers' tests with processor classes, settings and images.

    Args:
        parent: test case.
        processor_class: class of the image processors.
        settings: further settings.
    """

    batch_size = 7
    num_channels = 3
    min_resolution = 30
    max_resolution = 400

    def __init__(self, parent: unittest.TestCase, processor_class: type[deit.DeiTImageProcessor], **settings: Any) -> None:
        self.parent = parent
        # In 5.x, a backend is a class of its own. Here, all have the values of the Pillow backend.
        self.image_processing_classes = {"pil": processor_class, "torchvision": processor_class}
        self.settings = {
            "do_convert_rgb": False,  # the default of transformers
            "do_resize": True,
            "size": {"height": 20, "width": 20},
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            **settings,
        }
        self.size, self.crop_size = self.settings["size"], self.settings.get("crop_size")

    def prepare_image_processor_dict(self) -> dict[str, Any]:
        """Returns the settings that the tests make image processors with."""
        return dict(self.settings)

    def expected_output_image_shape(self, images: list[Any]) -> tuple[int, int, int]:  # noqa: ARG002
        """Returns (C, height, width) of the output."""
        size = self.crop_size or self.size
        return self.num_channels, size["height"], size["width"]

    def prepare_image_inputs(self, **options: Any) -> list[Any]:
        """Returns images; the options are those of the function of the same name in transformers' tests."""
        names = ("batch_size", "num_channels", "min_resolution", "max_resolution")
        return list(common.prepare_image_inputs(**{**{name: getattr(self, name) for name in names}, **options}))


class CommonTests(common.ImageProcessingTestMixin):  # type: ignore[misc]
    """What both classes have in common."""

    processor_class: type[deit.DeiTImageProcessor]
    settings: ClassVar[dict[str, Any]] = {}
    test_cast_dtype = True

    def setUp(self) -> None:
        if hasattr(common, "requests"):  # 4.x downloads an image
            response = mock.Mock(raw=self.enterContext(open(url_to_local_path(""), "rb")))  # noqa: PTH123
            self.enterContext(mock.patch.object(common.requests, "get", return_value=response))
        self.image_processing_class = self.fast_image_processing_class = self.processor_class  # 4.x
        self.image_processor_tester_class: Any = lambda parent: Processors(parent, self.processor_class, **self.settings)  # 5.x
        super().setUp()
        self.image_processor_tester = self.image_processor_tester_class(self)

    @property
    def image_processor_dict(self) -> dict[str, Any]:
        """Settings of the image processors."""
        return self.image_processor_tester.prepare_image_processor_dict()


class DeiTImageProcessingTest(CommonTests, unittest.TestCase):
    """The processor of DeiT, which crops."""

    processor_class = deit.DeiTImageProcessor
    settings: ClassVar[dict[str, Any]] = {"do_center_crop": True, "crop_size": {"height": 18, "width": 18}}


class ViTImageProcessingTest(CommonTests, unittest.TestCase):
    """The processor of ViT, which does not crop."""

    processor_class = deit.ViTImageProcessor
