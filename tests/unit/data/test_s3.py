"""A packed data set in a bucket of a local S3 server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from deit.data.loader import Loader
from deit.data.opening import open_data
from deit.data.packing import pack
from deit.errors import LoadingError
from deit.recipes.presets import get_recipe
from deit.recipes.samples import training_samples, view_steps
from tests.helpers import pattern

pytestmark = pytest.mark.filterwarnings("default")  # of the libraries
ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("a", "b")):
        (root / name).mkdir()
        for number in range(10):
            pattern(40, 40, 10 * label + number).save(root / name / f"{number}.png")
    pack(root, root.with_name("packed"), shard_mb=0.03)
    return root.with_name("packed")


@pytest.fixture
def address(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {**ACCESS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="photos")
    for path in packed.iterdir():
        client.upload_file(str(path), "photos", f"my shards/{path.name}")
    yield "s3://photos/my shards"
    server.stop()


@pytest.mark.parametrize("workers", [0, 2])
def test_bucket_makes_the_batches_of_the_folder(packed: Path, address: str, workers: int) -> None:
    recipe = get_recipe("deit").tiny().replace(batch_size=8)
    batches = []
    for data in (str(packed), address):
        splits = open_data(data)
        loader = Loader(training_samples(recipe, splits.train), workers)
        steps = view_steps(recipe, len(splits.train.labels), 0)
        batches.append(list(loader.run([plan for step in steps for plan in step])))
        loader.close()
    assert len(batches[0]) == len(batches[1]) > 1
    for one, other in zip(*batches, strict=True):
        assert (one.pixel_values == other.pixel_values).all()


def test_lost_shard_is_not_an_unreadable_image(address: str) -> None:
    source = open_data(address).train
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for found in client.list_objects_v2(Bucket="photos")["Contents"]:
        if found["Key"].endswith(".tar"):
            client.delete_object(Bucket="photos", Key=found["Key"])
    with pytest.raises(LoadingError, match="cannot be read"):
        source.load(0)
