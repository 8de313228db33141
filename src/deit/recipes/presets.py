"""The named recipes: small functions, each of which states only how it differs from the recipe that it derives from.

Every docstring gives the command, the hardware and the published or measured result.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deit.errors import RecipeError, did_you_mean
from deit.models.plain_convnet import PLAIN_CONVNET
from deit.recipes.schema import ConvNet, Recipe, Transformer

DIGITS_IMAGES = 1_079  # in the training split
DIGITS_AUGMENTATION: dict[str, Any] = {
    "scale": (0.6, 1.0),
    "flip": 0.0,
    "randaugment": {"subset": "rotate-shear", "magnitude": 5.0},
    "color_jitter": 0.0,
}


def deit() -> Recipe:
    """DeiT without a teacher (table 9). These are the defaults of a recipe.

    Command:   deit train imagenet --recipe deit --set model.variant=deit-base-patch16-224
    Hardware:  53 hours on 8 V100 GPUs for base (paper).
    Published: tiny 72.2, small 79.9, base 81.8 top-1 on ImageNet-1k.
    """
    return Recipe(name="deit", batch_size=1024, micro_batch_size=128, model=Transformer(variant="deit-tiny-patch16-224"))


def deit_distilled() -> Recipe:
    """DeiT with hard distillation through the distillation token (section 4) from a RegNetY-16GF; otherwise as ``deit``.

    Command:   deit train imagenet --recipe deit-distilled --teacher regnety_160
    Hardware:  as ``deit``, plus the teacher's forward passes, which cached logits save.
    Published: tiny 74.5, small 81.2, base 83.4 top-1 on ImageNet-1k; base after 1,000 epochs 84.2.
    """
    return deit().replace(
        name="deit-distilled",
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard"},
    )


def deit3() -> Recipe:
    """DeiT III (arXiv 2204.07118): no teacher; LayerScale, binary cross-entropy, LAMB and 3-Augment.

    The values of the released command for small over 800 epochs, with the simple random crop, which the authors used for
    ImageNet-21k. ``--set augmentation.crop=resized`` gives theirs for ImageNet-1k.

    Command:   deit train imagenet --recipe deit3
    Hardware:  8 V100 GPUs (authors).
    Published: small 81.4 top-1 on ImageNet-1k after 800 epochs.
    """
    return deit().replace(
        name="deit3",
        epochs=800,
        batch_size=2048,
        loss="binary",
        smoothing=0.0,
        crop_ratio=1.0,
        model={"variant": "deit-small-patch16-224", "layer_scale": 1e-4, "drop_path": 0.05},
        augmentation={"crop": "simple", "three_augment": True, "randaugment": {"operations": 0}, "erasing": 0.0},
        optimizer={"name": "lamb", "lr": 4e-3, "reference_batch": 2048, "clip_norm": 1.0},
    )


def finetune() -> Recipe:
    """Fine-tunes at a higher resolution on the original training data (section 5.2): full augmentation, low learning rate.

    Trains the class token and its head only, without a teacher. A new head hardly learns at this learning rate: for other
    classes use ``finetune-small-data``, ``transfer-small`` or ``transfer-large``.

    Command:   deit train imagenet --recipe finetune --init facebook/deit-base-patch16-224 --image-size 384
    Hardware:  16 V100 GPUs, 30 epochs (authors).
    Published: base at 384 83.1 top-1 on ImageNet-1k (table 10: 81.8 at 224, 82.7 at 320).
    """
    return deit().replace(
        name="finetune",
        epochs=30,
        batch_size=512,
        micro_batch_size=32,
        model={"variant": None},
        optimizer={"lr": 5e-6, "schedule": "constant", "weight_decay": 1e-8},
    )


def finetune_distilled() -> Recipe:
    """As ``finetune``, with both heads and a teacher at the target resolution (section 4). The released code cannot do this.

    Command:   deit train imagenet --recipe finetune-distilled --init facebook/deit-base-distilled-patch16-224
               --image-size 384 --teacher regnety_160
    Hardware:  as ``finetune``, plus the teacher's forward passes.
    Published: base at 384 84.5 top-1 on ImageNet-1k, 85.2 after 1,000 epochs of training.
    """
    return finetune().replace(name="finetune-distilled", distillation={"mode": "hard"})


def finetune_small_data() -> Recipe:
    """Fine-tunes any checkpoint on a few hundred or thousand images of other classes: new head, layer-wise learning rate decay.

    Command:   deit train PHOTOS --init facebook/deit-small-patch16-224
    Hardware:  one GPU or a laptop: small trains at some 12 images/s on two cores in bf16, so 1,000 images take 40 minutes.
    Result:    not measured: published weights are not available in the development environment.
    """
    return finetune().replace(
        name="finetune-small-data",
        images=5_000,
        batch_size=64,
        augmentation={"scale": (0.35, 1.0), "erasing": 0.1, "repeats": 1},
        mixing={"mixup": 0.2, "probability": 0.5},
        optimizer={
            "lr": 4e-3,
            "schedule": "cosine",
            "min_lr": 1e-6,
            "lr_update": "step",
            "weight_decay": 0.05,
            "layer_decay": 0.75,
            "warmup_epochs": 3,
            "clip_norm": 1.0,
        },
        ema={"decay": 0.998, "warmup": True, "evaluate": True},
    )


def finetune_small_data_distilled() -> Recipe:
    """As ``finetune-small-data``, with two new heads and a teacher trained on the same data.

    Command:   deit train PHOTOS --init facebook/deit-small-distilled-patch16-224 --teacher runs/teacher
    Hardware:  as ``finetune-small-data``, plus the teacher's forward passes.
    Result:    not measured: published weights are not available in the development environment.
    """
    return finetune_small_data().replace(name="finetune-small-data-distilled", distillation={"mode": "hard"})


def transfer_small() -> Recipe:
    """The authors' transfer to CIFAR and Cars (section 5.3): SGD for 1,000 epochs at 224 pixels.

    The learning rate of 0.01 is taken as the one at a batch size of 768. With a teacher: ``--set distillation.mode=hard``.

    Command:   deit train cifar10 --recipe transfer-small --init facebook/deit-base-patch16-224
    Hardware:  8 V100 GPUs (authors).
    Published: base 99.1 on CIFAR-10, 90.8 on CIFAR-100, 92.1 on Cars; distilled 99.1, 91.3, 92.9 (table 7).
    """
    return deit().replace(
        name="transfer-small",
        images=50_000,
        epochs=1000,
        batch_size=768,
        model={"variant": None, "drop_path": 0.0},
        augmentation={"erasing": 0.0},
        optimizer={"name": "sgd", "lr": 0.01, "reference_batch": 768, "weight_decay": 1e-4},
    )


def transfer_large() -> Recipe:
    """The authors' transfer to iNaturalist (section 5.3): AdamW for 360 epochs.

    Command:   deit train inaturalist-2018 --recipe transfer-large --init facebook/deit-base-patch16-224
    Hardware:  8 V100 GPUs (authors).
    Published: base 73.2 on iNaturalist 2018, 77.7 on 2019; distilled 73.7, 78.4 (table 7).
    """
    return deit().replace(
        name="transfer-large",
        images=437_513,
        epochs=360,
        batch_size=768,
        model={"variant": None},
        augmentation={"erasing": 0.1},
        optimizer={"lr": 7.5e-5, "reference_batch": 768},
    )


def pretrain_mim() -> Recipe:
    """Masked image modeling on images without labels (after SimMIM, arXiv 2111.09886), to be fine-tuned afterwards.

    Light crops and flips; 60% of the patches masked in blocks of 2 x 2. Any folder of images will do.

    Command:   deit pretrain PHOTOS --out runs/mim
               deit train PHOTOS --init runs/mim --recipe small-data
    Hardware:  one GPU, or a laptop with --epochs 100 and --image-size 64 for thumbnails.
    Result:    11.7 top-1 from scratch on 2,800 images (``benchmarks/signs_dataset.py``) in ten minutes, three of them for
               pretraining; 7.4 without pretraining, 86.0 with a teacher instead.
    """
    return deit().replace(
        name="pretrain-mim",
        images=5_000,
        epochs=400,
        batch_size=256,
        micro_batch_size=64,
        smoothing=0.0,
        model={"variant": "deit-tiny-distilled-patch16-224", "drop_path": 0.0},
        masking={"ratio": 0.6},
        augmentation={
            "scale": (0.67, 1.0),
            "randaugment": {"operations": 0},
            "color_jitter": 0.0,
            "erasing": 0.0,
            "repeats": 1,
        },
        mixing={"mixup": 0.0, "cutmix": 0.0},
        optimizer={"lr": 8e-4, "lr_update": "step", "warmup_epochs": 20, "clip_norm": 5.0},
        ema={"decay": 0.0},
    )


def small_data() -> Recipe:
    """Trains from scratch on a few hundred to some ten thousand images, on a laptop or one GPU, within a given time.

    Compared to ``deit``: sizes, batch size and epochs are chosen from the data and the available time, and reported
    (:mod:`deit.recipes.planning`); local initialization, since a few thousand images do not teach locality; Muon with small
    batches and a learning rate that is updated at every step; milder crops and RandAugment, no mixing; flips only if flipped
    images still look like their class; an EMA that remembers about an epoch. Without ``--minutes`` it trains 100 epochs.

    Command:   deit train PHOTOS --minutes 6
    Hardware:  two cores of a laptop, or one GPU.
    Result:    7.4 top-1 after ten minutes on two cores on 2,800 images of 35 classes (``benchmarks/signs_dataset.py``);
               use a teacher.
    """
    return deit().replace(
        name="small-data",
        images=5_000,
        epochs=100,
        batch_size=None,
        micro_batch_size=None,
        crop_ratio=1.0,
        mirror_test=True,
        light_augmentation_below=10.0,
        model={"sizes": "data", "init": "local", "drop_path": 0.0},
        augmentation={
            "crop": "resized",
            "scale": (0.5, 1.0),
            "randaugment": {"magnitude": 6.0},
            "erasing": 0.0,
            "repeats": 1,
        },
        mixing={"mixup": 0.0, "cutmix": 0.0},
        optimizer={
            "name": "muon",
            "lr": 1e-2,
            "reference_batch": 32,
            "min_lr": 1e-6,
            "lr_update": "step",
            "momentum": 0.95,
            "muon_iterations": 3,
            "warmup_epochs": 2,
            "betas": (0.9, 0.99),
            "clip_norm": 1.0,
        },
        ema={"decay": 0.99, "warmup": True, "evaluate": True},
    )


def small_data_distilled() -> Recipe:
    """As ``small-data``, with a teacher: its predictions through the distillation token, its feature maps through the patches.

    Feature distillation is what lets a transformer learn from so few images
    (:mod:`deit.distillation.feature_distillation`).

    Command:   deit train PHOTOS --teacher runs/teacher --minutes 6
    Hardware:  as ``small-data``, plus the teacher's forward passes.
    Result:    86.0 top-1 after seven minutes on the same data, its teacher 84.7; three seeds, a deviation of 1.1 and 0.9.
    """
    return small_data().replace(
        name="small-data-distilled",
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard", "features": 40.0},
    )


def convnet() -> Recipe:
    """Trains a convolutional teacher from scratch on small data within a given time, with the pipeline of ``small-data``.

    Six plain convolutions (:mod:`deit.models.plain_convnet`), of which the first is whitened (:mod:`deit.training.whitening`),
    trained on images of half the size at first, unless they are small; until then, the validation accuracy at full size is low.
    ``--arch`` selects any other network of timm; small images are enlarged for it. Without label smoothing, its probabilities
    are calibrated better. Without ``--minutes`` it trains 60 epochs.

    Command:   deit teacher train PHOTOS --minutes 4
    Hardware:  as ``small-data``.
    Result:    84.7 top-1 after three minutes on two cores on 2,800 images of 35 classes (``benchmarks/signs_dataset.py``).
    """
    return small_data().replace(
        name="convnet",
        epochs=60,
        smoothing=0.0,
        model=ConvNet(architecture=PLAIN_CONVNET, half_size_until=0.5, whitened=True).model_dump(),
    )


def digits() -> Recipe:
    """The handwritten digits of 8 x 8 pixels, without a teacher.

    ``small-data`` with a fixed size, in which a patch covers one original pixel, and with crops, shears and rotations only,
    since the images have no color and a flipped digit is not a digit.

    Command:   deit train digits
    Hardware:  two CPU cores, some four minutes.
    Result:    97.2 top-1 on the 359 test images.
    """
    model = {"image_size": 32, "patch_size": 4, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    return small_data().replace(
        name="digits",
        images=DIGITS_IMAGES,
        batch_size=32,
        micro_batch_size=32,
        mirror_test=False,
        model={**model, "sizes": "variant"},
        augmentation=DIGITS_AUGMENTATION,
    )


def digits_distilled() -> Recipe:
    """As ``digits``, distilled from a teacher's predictions and feature maps, with fewer epochs.

    The student of ``deit quickstart``.

    Command:   deit quickstart
    Hardware:  two CPU cores, some two minutes including the teacher's training.
    Result:    98.3 to 99.4 top-1 of both heads on the 359 test images, mean 99.2 of five seeds (``benchmarks/quickstart.py``).
               Optimistic: the recipe was tuned on these images.
    """
    return digits().replace(
        name="digits-distilled",
        epochs=34,
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "soft", "weight": 0.5, "temperature": 2.0, "features": 40.0},
    )


def digits_convnet() -> Recipe:
    """The convolutional teacher of ``deit quickstart``.

    Command:   deit teacher train digits
    Hardware:  two CPU cores, less than a minute.
    Result:    99.4 to 99.7 top-1 on the 359 test images, five seeds.
    """
    return convnet().replace(
        name="digits-convnet",
        images=DIGITS_IMAGES,
        epochs=12,
        batch_size=32,
        mirror_test=False,
        model={"image_size": 32, "half_size_until": 0.0, "whitened": False},
        augmentation=DIGITS_AUGMENTATION,
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "deit": deit,
    "deit-distilled": deit_distilled,
    "deit3": deit3,
    "finetune": finetune,
    "finetune-distilled": finetune_distilled,
    "finetune-small-data": finetune_small_data,
    "finetune-small-data-distilled": finetune_small_data_distilled,
    "transfer-small": transfer_small,
    "transfer-large": transfer_large,
    "pretrain-mim": pretrain_mim,
    "small-data": small_data,
    "small-data-distilled": small_data_distilled,
    "convnet": convnet,
    "digits": digits,
    "digits-distilled": digits_distilled,
    "digits-convnet": digits_convnet,
}


def get_recipe(name: str) -> Recipe:
    """Returns a recipe by name, or loads it from a TOML file.

    Raises:
        RecipeError: there is no such recipe; the message suggests the closest name.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".toml"):
        return Recipe.load(Path(name))
    raise RecipeError(f"There is no recipe {name!r}", f"{did_you_mean(name, RECIPES)}? `deit recipe list` shows all")
