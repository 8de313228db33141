"""The recipes: each a small function that derives from another, so that what is special about it is all that it says.

Every docstring tells the command, the hardware and time it takes, and the published or measured result.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from deit.errors import RecipeError
from deit.models.plain_convnet import PLAIN_CONVNET
from deit.recipes.schema import ConvNet, Recipe, Transformer


def deit() -> Recipe:
    """DeiT without a teacher, table 9. The defaults of a recipe are its values.

    Command:   deit train imagenet --recipe deit --set model.variant=deit-base-patch16-224
    Hardware:  the paper: 53 hours on 8 GPUs (V100) for base.
    Published: tiny 72.2, small 79.9, base 81.8 top-1 on ImageNet-1k.
    """
    return Recipe(name="deit", model=Transformer(variant="deit-tiny-patch16-224"))


def deit_distilled() -> Recipe:
    """DeiT with hard distillation through the token (section 4): the teacher RegNetY-16GF, else as ``deit``.

    Command:   deit train imagenet --recipe deit-distilled --teacher regnety_160
    Hardware:  as ``deit``, and the teacher's forward passes, which a stored teacher saves.
    Published: tiny 74.5, small 81.2, base 83.4 top-1 on ImageNet-1k; base over 1,000 epochs 84.2.
    """
    return deit().replace(
        name="deit-distilled",
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard"},
    )


def deit3() -> Recipe:
    """DeiT III (arXiv 2204.07118): no teacher; layer scale, binary cross-entropy, LAMB and a plain augmentation.

    The values of the released command for small over 800 epochs, with the simple random crop, which the authors took for
    ImageNet-21k; ``--set augmentation.crop=resized`` is theirs for ImageNet-1k.

    Command:   deit train imagenet --recipe deit3
    Hardware:  the authors: 8 GPUs (V100).
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
    """A trained model at a higher resolution, on the data it was trained on (section 5.2): full augmentation, a low rate.

    Classic: the class token and its head alone. A new head hardly learns at this rate: for other classes take
    ``finetune-small-data``, ``transfer-small`` or ``transfer-large``.

    Command:   deit train imagenet --recipe finetune --init facebook/deit-base-patch16-224 --image-size 384
    Hardware:  the authors: 16 GPUs (V100), 30 epochs.
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
    """As ``finetune``, both heads, with a teacher for the target resolution (section 4), which the released code refuses.

    Command:   deit train imagenet --recipe finetune-distilled --init facebook/deit-base-distilled-patch16-224
               --image-size 384 --teacher regnety_160
    Hardware:  as ``finetune``, and the teacher's forward passes.
    Published: base at 384 84.5 top-1 on ImageNet-1k, 85.2 after 1,000 epochs of training.
    """
    return finetune().replace(name="finetune-distilled", distillation={"mode": "hard"})


def finetune_small_data() -> Recipe:
    """A published or own model to a few hundred or thousand images of other classes: a new head, deep layers move little.

    Command:   deit train PHOTOS --init facebook/deit-small-patch16-224
    Hardware:  one GPU or a laptop: small passes some 12 images a second on two cores in bf16, so 1,000 images take 40 minutes.
    Result:    not measured on published weights, which cannot be had where this is developed.
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
            "by": "step",
            "weight_decay": 0.05,
            "layer_decay": 0.75,
            "warmup_epochs": 3,
            "clip_norm": 1.0,
        },
        average={"decay": 0.998, "warmup": True, "evaluate": True},
    )


def finetune_small_data_distilled() -> Recipe:
    """As ``finetune-small-data``, with two new heads and a teacher trained on the same images.

    Command:   deit train PHOTOS --init facebook/deit-small-distilled-patch16-224 --teacher runs/teacher
    Hardware:  as ``finetune-small-data``, and the teacher's forward passes.
    Result:    not measured on published weights, which cannot be had where this is developed.
    """
    return finetune_small_data().replace(name="finetune-small-data-distilled", distillation={"mode": "hard"})


def transfer_small() -> Recipe:
    """The authors' transfer to CIFAR and Cars (section 5.3): SGD for 1,000 epochs at 224 pixels.

    The rate of 0.01 is taken to be the one in force at the batch of 768. With a teacher: ``--set distillation.mode=hard``.

    Command:   deit train cifar10 --recipe transfer-small --init facebook/deit-base-patch16-224
    Hardware:  the authors: 8 GPUs (V100).
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
    Hardware:  the authors: 8 GPUs (V100).
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
    """Masked image modeling on images without labels (after SimMIM, arXiv 2111.09886); then fine-tune what comes of it.

    Light crops and flips, 60% of the patches hidden in blocks of two by two. Takes any folder of images.

    Command:   deit pretrain PHOTOS --out runs/mim
               deit train PHOTOS --init runs/mim --recipe small-data
    Hardware:  one GPU; on a laptop with --epochs 100 and --image-size 64 for thumbnails.
    Result:    11.7 top-1 from scratch on 2,800 images (``benchmarks/signs_dataset.py``) in ten minutes, three of them for
               pretraining; 7.4 without pretraining, 84.6 with a teacher instead.
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
        optimizer={"lr": 8e-4, "by": "step", "warmup_epochs": 20, "clip_norm": 5.0},
        average={"decay": 0.0},
    )


def small_data() -> Recipe:
    """From scratch on a few hundred to some ten thousand images, on a laptop or one GPU, in the time that it is given.

    Against ``deit``: sizes, batch and epochs are chosen from the data and the time (:mod:`deit.recipes.planning`), and said;
    first weights that look at neighbors, since a few thousand images do not teach that; Muon in small batches, with a rate
    that moves at each step; milder crops and RandAugment, nothing mixed; flips only where the data says that a mirrored image
    would do; an average of the weights with a memory of about an epoch. Without ``--minutes`` it takes 100 epochs.

    Command:   deit train PHOTOS --minutes 6
    Hardware:  two cores of a laptop, or one GPU.
    Result:    7.4 top-1 after ten minutes on two cores on 2,800 images of 35 classes (``benchmarks/signs_dataset.py``);
               use a teacher.
    """
    return deit().replace(
        name="small-data",
        images=5_000,
        epochs=100,
        batch_size=32,
        micro_batch_size=64,
        crop_ratio=1.0,
        mirror_test=True,
        model={"sizes": "data", "first_weights": "local", "drop_path": 0.0},
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
            "by": "step",
            "momentum": 0.95,
            "warmup_epochs": 2,
            "betas": (0.9, 0.99),
            "clip_norm": 1.0,
        },
        average={"decay": 0.99, "warmup": True, "evaluate": True},
    )


def small_data_distilled() -> Recipe:
    """As ``small-data``, learning from a teacher: its answers through the token, and its maps through the patches.

    The feature maps are what lets a transformer learn from so little (:mod:`deit.distillation.feature_distillation`).
    Cached logits hold none.

    Command:   deit train PHOTOS --teacher runs/teacher --minutes 6
    Hardware:  as ``small-data``, and the teacher's forward passes.
    Result:    84.6 top-1 after seven minutes there (softly distilled 84.5), its teacher 83.8; means of three seeds.
    """
    return small_data().replace(
        name="small-data-distilled",
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard", "hints": 40.0},
    )


def convnet() -> Recipe:
    """A convolutional teacher from scratch on small data, in the time that it is given: ``small-data``'s pipeline.

    Six plain convolutions (:mod:`deit.models.plain_convnet`). Any other network of timm by ``--arch``, which sees small images
    enlarged. Without ``--minutes`` it takes 60 epochs.

    Command:   deit teacher train PHOTOS --minutes 4
    Hardware:  as ``small-data``.
    Result:    83.8 top-1 after three minutes on two cores on 2,800 images of 35 classes (``benchmarks/signs_dataset.py``).
    """
    return small_data().replace(
        name="convnet",
        epochs=60,
        model=ConvNet(architecture=PLAIN_CONVNET).model_dump(),
    )


def digits() -> Recipe:
    """The handwritten digits of 8 x 8 pixels, without a teacher.

    Against ``small-data``: a patch is 2 x 2 pixels of the original; wider first weights, since 0.02 is for wide models
    (docs/log.md); crops, slants and turns alone, since the images have no color and a mirrored digit is none.

    Command:   deit train digits
    Hardware:  two cores of a CPU, some two minutes.
    Result:    not measured at full length; distilled, see ``digits-distilled``.
    """
    return small_data().replace(
        name="digits",
        images=1_079,
        epochs=100,
        batch_size=32,
        micro_batch_size=32,
        mirror_test=False,
        precision="fp32",
        crop_ratio=1.0,
        model={
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "initializer_range": 0.1,
            "sizes": "variant",
            "first_weights": "normal",
            "drop_path": 0.05,
        },
        augmentation={
            "crop": "resized",
            "scale": (0.6, 1.0),
            "flip": 0.0,
            "randaugment": {"subset": "rotate-shear", "magnitude": 5.0},
            "color_jitter": 0.0,
            "erasing": 0.0,
        },
        mixing={"mixup": 0.0, "cutmix": 0.0},
        optimizer={
            "name": "adamw",
            "lr": 1e-3,
            "warmup_epochs": 3,
            "weight_decay": 0.1,
            "momentum": 0.9,
            "betas": (0.9, 0.999),
        },
        average={"decay": 0.998},
    )


def digits_distilled() -> Recipe:
    """As ``digits``, learning from a teacher's answers and maps, by Muon, in half of the epochs. What ``deit quickstart`` runs.

    Command:   deit quickstart
    Hardware:  two cores of a CPU, 1 min 52 s with the teacher's training.
    Result:    99.2 top-1 of both heads on the 359 test images, somewhat optimistic: the recipe was chosen with them in view.
    """
    return digits().replace(
        name="digits-distilled",
        epochs=50,
        model={"variant": "deit-tiny-distilled-patch16-224"},
        distillation={"mode": "hard", "hints": 40.0},
        optimizer={"name": "muon", "lr": 1e-2, "momentum": 0.95},
    )


def digits_convnet() -> Recipe:
    """The small convolutional teacher of ``deit quickstart``.

    Command:   deit teacher train digits
    Hardware:  two cores of a CPU, less than a minute.
    Result:    98.3 top-1 on the 359 test images.
    """
    return digits().replace(
        name="digits-convnet",
        epochs=12,
        batch_size=64,
        model={**ConvNet().model_dump(), "architecture": "resnet10t", "image_size": 32},
        augmentation={"randaugment": {"operations": 0}},
        optimizer={"warmup_epochs": 1.5, "weight_decay": 0.05},
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
    """A recipe by its name, or from a TOML file.

    Raises:
        RecipeError: neither; the message says the nearest name.
    """
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".toml"):
        return Recipe.load(Path(name))
    near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0)[0]
    raise RecipeError(f"There is no recipe {name!r}", f"did you mean {near}? `deit recipe list` shows all")
