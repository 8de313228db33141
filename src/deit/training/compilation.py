"""Compiled training: torch.compile fuses the operations of each transformer block, or of a convolutional network."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from deit.errors import UserError
from deit.models.modeling import Block
from deit.models.timm_classifier import TimmClassifier

COMPILERS = ("g++", "clang++", "c++", "cl")  # that torch.compile looks for on a CPU


def check_compiler(device: torch.device) -> None:
    """Checks that torch.compile has what it needs.

    Raises:
        UserError: it has not.
    """
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", COMPILERS[0]), *COMPILERS))):
        raise UserError("--compile needs a C++ compiler", "install one, such as g++, or leave it out")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("--compile needs triton on a GPU", "install the package triton, or leave it out")


def compile_model(model: nn.Module) -> None:
    """Makes the blocks of a transformer, or a whole convolutional network, compile at their first call.

    Parameters and their names stay the same. The blocks are alike, so that one is compiled for all of them.
    """
    blocks: list[nn.Module] = [module for module in model.modules() if isinstance(module, Block)]
    if isinstance(model, TimmClassifier):
        blocks = [model.network]
    for block in blocks:
        block.compile(dynamic=False)
