"""Datasets at an address: the same bits as on a disk, whatever happens to the connection, and no secret anywhere."""

import os
import pickle
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import forking
from tests.folder_server import folder_server
from tests.four_convolutions import small_settings

from ovenet.builders.data import list_dataset, shard_loader
from ovenet.commands import main
from ovenet.data import cache as cache_module
from ovenet.data import remote
from ovenet.data.cache import DecodedCache
from ovenet.data.catalog import CATALOG
from ovenet.data.dataset import AugmentedDataset, ListDataset
from ovenet.data.files import image_size
from ovenet.data.remote import RemotePath, UnreachableError, data_root
from ovenet.data.shared_cache import attach_cache
from ovenet.errors import UserError

pytest.importorskip("aiohttp", reason="ovenet[http] is not installed")
CAMVID = CATALOG["camvid"]
PAIR_BYTES = 64 * 48 * 4 + 2 * 128  # decoded: three colours and a class, and two headers


@pytest.fixture(autouse=True)
def _as_a_new_process(monkeypatch):
    """Nothing is known of any file, and failures are not waited for."""
    monkeypatch.setattr(remote, "_found", {})
    monkeypatch.setattr(remote, "_filesystems", {})
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.001)


@pytest.fixture
def server(tiny_data):
    """A server of a folder that has ``DATASET.ROOT``."""
    with folder_server(tiny_data.parent) as server:
        yield server


@pytest.fixture
def root(server):
    return data_root(f"{server.address}/data")


def load(root, name="train"):
    return ListDataset(root, root / f"list/camvid/{name}.lst", CAMVID, ignore_label=255)


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for index in range(len(ours)):
        first, second = ours[index], theirs[index]
        np.testing.assert_array_equal(first.image, second.image)
        np.testing.assert_array_equal(first.labels, second.labels)
        assert first.name == second.name


def test_addresses_are_paths():
    path = data_root("s3://bucket/some folder") / "camvid" / "train/0.png"
    assert isinstance(path, Path)
    assert str(path) == "s3://bucket/some folder/camvid/train/0.png"
    assert (path.name, path.suffix, str(path.parent)) == ("0.png", ".png", "s3://bucket/some folder/camvid/train")
    assert pickle.loads(pickle.dumps(path)) == path
    assert str(path.with_suffix(".jpg")).startswith("s3://bucket/")
    assert type(path / "/data/own.lst") is type(Path())  # a list of this machine
    assert path != data_root("s3://bucket/other folder") / "camvid" / "train/0.png"


def test_a_path_of_this_machine_stays_one(tmp_path):
    assert type(data_root("data/")) is type(Path())
    assert data_root(f"file://{tmp_path}/with%20space") == tmp_path / "with space"


@pytest.mark.parametrize("use", [os.stat, os.listdir, lambda p: p.open("w"), lambda p: p.mkdir(), open])
def test_nothing_is_written_to_an_address_or_read_beside_it(use):
    with pytest.raises(UserError, match=r"s3://bucket/folder: .*this machine"):
        use(RemotePath("s3:/bucket/folder"))


def test_samples_are_those_of_a_disk(root, tiny_data, server):
    assert_same(load(root), load(tiny_data))
    assert image_size(root / "camvid/train/0.png") == (48, 64)
    assert server.requests["GET", "/data/camvid/train/1.png"] == 1
    assert server.requests["HEAD", "/data/camvid/train/1.png"] == 0


def test_names_with_odd_characters_are_found(tiny_data, server):
    folder = tiny_data.parent / "of år & day"
    tiny_data.rename(folder)
    names = ["a b.png", "50%20.png", "1#2.png", "what?.png", "+.png"]
    for number, name in enumerate(names):
        for kind in ("train", "trainannot"):
            (folder / "camvid" / kind / f"{number}.png").rename(folder / "camvid" / kind / name)
    (folder / "list/camvid/train.lst").write_text("".join(f"train/{n}\ttrainannot/{n}\n" for n in names))
    for address in ("of år & day", "of%20%C3%A5r%20&%20day/"):
        assert_same(load(data_root(f"{server.address}/{address}")), load(folder))


def test_broken_connections_are_tried_again_and_told(root, tiny_data, server, caplog):
    server.num_cuts = 2
    assert_same(load(root), load(tiny_data))
    assert server.count("GET") == 3 * (1 + 12)  # the list, and six pairs
    again = [record.getMessage() for record in caplog.records if "follows" in record.getMessage()]
    assert len(again) == 2 * (1 + 12)
    assert sum("try 3 of 8" in line and f"{server.address}/data/camvid/" in line for line in again) == 12


@pytest.mark.parametrize(
    ("status", "tries", "says"), [(503, 8, "HTTP 503"), (429, 8, "HTTP 429"), (400, 1, "HTTP 400")]
)
def test_what_stays_broken_is_named(root, server, status, tries, says):
    dataset = load(root)
    server.status = status
    with pytest.raises(UnreachableError, match=rf"data/camvid/train/0\.png: .*{says}") as caught:
        dataset[0]
    assert server.requests["GET", "/data/camvid/train/0.png"] == tries
    assert "\n" not in str(caught.value)
    assert tries == 1 or f"{tries} tries in" in str(caught.value)
    server.status = 0
    assert dataset[0].image.shape == (48, 64, 3)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_not_tried_again(root, server, status):
    server.status = status
    for ask in (
        lambda: load(root),
        lambda: (root / "camvid").exists(),
        lambda: image_size(root / "camvid/train/0.png"),
    ):
        with pytest.raises(UnreachableError, match=rf"http://127\S*: access is refused \(HTTP {status} .*environment"):
            ask()
    assert max(server.requests.values()) == 1


def test_a_server_that_is_not_there_is_named(root, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UnreachableError, match=r"train\.lst: cannot be read \(ClientConnectorError.*8 tries"):
        load(root)


def test_slow_answers_are_given_up_and_tried_again(root, server, monkeypatch, caplog):
    dataset = load(root)
    for name, value in (("_ANSWER_S", 0.1), ("NUM_TRIES", 2), ("_filesystems", {})):
        monkeypatch.setattr(remote, name, value)
    server.pause_s = 1
    with pytest.raises(UnreachableError, match=r"train/0\.png: .*Timeout.*2 tries in"):
        dataset[0]
    assert "try 2 of 2 follows" in caplog.text


def test_no_try_begins_after_two_minutes(root, server, monkeypatch):
    monkeypatch.setattr(remote, "_LONGEST_S", 0)
    server.status = 500
    with pytest.raises(UnreachableError, match="HTTP 500"):
        image_size(root / "camvid/train/0.png")
    assert server.count("GET") == 1


def test_a_missing_file_is_as_one_on_a_disk(root, tiny_data, server):
    dataset, local = load(root), load(tiny_data)
    (tiny_data / "camvid/train/0.png").unlink()
    errors = []
    for one in (dataset, local):
        with pytest.raises(UserError, match="does not exist") as caught:
            one[0]
        errors.append(str(caught.value).removeprefix(str(one.folder)))
    assert errors[0] == errors[1]
    assert server.requests["GET", "/data/camvid/train/0.png"] == 1
    with pytest.raises(UserError, match=r"other\.lst: there is no such list"):
        load(root, "other")


def test_a_failing_network_is_no_broken_image(root, tiny_data, server):
    (tiny_data / "camvid/train/0.png").write_bytes(b"no image")
    dataset = AugmentedDataset(load(root), lambda sample, _: sample, seed=0, skip_broken=True)
    assert "train/0.png" in dataset[0, 0].problem
    server.status = 502
    with pytest.raises(UnreachableError, match=r"train/0\.png: .*HTTP 502"):
        dataset[0, 0]


def test_a_list_that_is_not_there_is_not_written(tiny_cfg, server, tiny_data):
    (tiny_data / "list/camvid/train.lst").unlink()
    cfg = tiny_cfg("DATASET.ROOT", f"{server.address}/data")
    with pytest.raises(UserError, match=r"list/camvid/train\.lst: .*ovenet prepare camvid"):
        list_dataset(cfg, cfg.DATASET.TRAIN_SET)
    own = tiny_data / "own.lst"
    own.write_text("train/0.png trainannot/0.png\n")
    assert len(list_dataset(cfg, str(own))) == 1  # of this machine


@pytest.mark.parametrize(
    "address",
    [
        "https://me:hush-hush@host/data", "https://hush-hush@host/data", "s3://bucket/data?X-Amz-Signature=hush-hush",
        "https://me:hush/hush-hush@host/data", "https://[::1/hush-hush", "a::https://hush-hush", "file://me:hush-hush@/d",
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["ROOT", "TRAIN_SET", "CACHE_DIR"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(tiny_cfg, key, address, caplog):
    with pytest.raises(UserError, match=f"^DATASET.{key}: ") as caught:
        tiny_cfg(f"DATASET.{key}", address, "DATASET.CACHE", "nonsense")
    assert "hush-hush" not in str(caught.value) + caplog.text


@pytest.mark.parametrize("key", ["TRAIN_SET", "TEST_SET", "EXTRA_TRAIN_SET", "CACHE_DIR"])
def test_only_the_root_may_be_an_address(tiny_cfg, key):
    with pytest.raises(UserError, match=rf"DATASET\.{key} .*DATASET\.ROOT"):
        tiny_cfg(f"DATASET.{key}", "https://host/folder")


@pytest.mark.parametrize(("protocol", "says"), [("nosuch", "not known"), ("dropbox", "pip|librar|install")])
def test_a_protocol_that_is_not_there_is_named(protocol, says):
    with pytest.raises(UserError, match=rf"DATASET\.ROOT {protocol}://.*({says})"):
        (data_root(f"{protocol}://bucket/folder") / "camvid").exists()


def attach(cfg):
    dataset = list_dataset(cfg, cfg.DATASET.TRAIN_SET)
    shard_loader(cfg, dataset)
    return dataset


def test_the_cache_fills_as_files_are_read_and_serves_the_rest(tiny_cfg, tiny_data, server, tmp_path, monkeypatch):
    settings = ["DATASET.ROOT", f"{server.address}/data", "DATASET.CACHE", "disk", "DATASET.CACHE_DIR", tmp_path / "c"]
    cfg = tiny_cfg(*settings)
    for _ in range(2):  # a second run too
        dataset = attach(cfg)
        for _ in range(2):
            assert_same(dataset, load(tiny_data))
        assert server.requests["GET", "/data/camvid/train/1.png"] == 1
        monkeypatch.setattr(remote, "_found", {})
    assert len(list((tmp_path / "c").rglob("*.npy"))) == 12
    (tiny_data / "camvid/train/1.png").write_bytes((tiny_data / "camvid/train/2.png").read_bytes())
    os.utime(tiny_data / "camvid/train/1.png", (0, 0))
    dataset = attach(cfg)
    assert_same(dataset, load(tiny_data))  # with the file that has changed since
    assert len(list((tmp_path / "c").rglob("*.npy"))) == 12
    with pytest.raises(UserError, match=r"DATASET\.CACHE_DIR"):
        attach(tiny_cfg(*settings[:4]))


def test_a_full_disk_ends_no_run(tiny_cfg, tiny_data, server, tmp_path, monkeypatch, caplog):
    cfg = tiny_cfg(
        "DATASET.ROOT", f"{server.address}/data", "DATASET.CACHE", "disk", "DATASET.CACHE_DIR", tmp_path / "c"
    )
    dataset = attach(cfg)
    dataset[0]
    monkeypatch.setattr(cache_module, "_SPARE_BYTES", 2**62)
    assert_same(dataset, load(tiny_data))
    assert len(list((tmp_path / "c").rglob("*.npy"))) == 2
    assert caplog.text.count("nothing more is added") == 1


def build(root, cache_dir, limit_bytes):
    dataset = load(root)
    cache = DecodedCache(cache_dir, root / "camvid", CAMVID, 255, limit_bytes=limit_bytes)
    room = cache.room()
    missing = cache.plan(dataset.pairs, num_threads=1).missing
    cache.build(dataset.pairs, dataset.read_files, missing, num_threads=4)
    dataset.cache = cache
    return room, dataset


def test_the_bound_holds_for_all_processes_and_what_is_over_it_is_read(tiny_data, tmp_path):
    limit = 4 * PAIR_BYTES + 100
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(build, [tiny_data] * 3, [tmp_path] * 3, [limit] * 3))
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.npy")]
    assert 0 < sum(sizes) <= limit
    (tmp_path / ".bytes").write_text("")  # a process was killed as it wrote
    room, dataset = build(tiny_data, tmp_path, limit)
    assert room == limit - sum(sizes)
    assert_same(dataset, load(tiny_data))
    assert len(list(tmp_path.rglob("*.npy"))) == 2 * 4
    room, dataset = build(tiny_data, tmp_path, None)
    assert room is None
    assert len(list(tmp_path.rglob("*.npy"))) == 2 * 6


def test_what_is_outdated_does_not_count(tiny_data, tmp_path):
    def attached():
        dataset = load(tiny_data)
        attach_cache(dataset, "disk", str(tmp_path / "c"), limit_gb=6.5 * PAIR_BYTES / 1e9, num_threads=2)
        return [dataset.cache.entry(name) for pair in dataset.pairs for name in pair]

    attached()
    for path in (tiny_data / "camvid").rglob("*.png"):
        os.utime(path, (1, 1))
    expected = attached()
    assert sorted((tmp_path / "c").rglob("*.npy")) == sorted(expected)


def test_a_training_over_broken_connections_is_that_of_a_disk(tiny_data, server, tmp_path, write_config):
    """Loading processes, validation, a bounded cache and a password; and the password is in no file."""
    password = f"a-long-secret-of-{os.getpid()}"  # files of a run hold changes of the code that are not committed
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login me password {password}\n")
    (tmp_path / "netrc").chmod(0o600)
    server.num_cuts, server.password = 2, f"me:{password}"
    weights, said = [], []
    bound = ["DATASET.CACHE", "disk", "DATASET.CACHE_DIR", tmp_path / "cache", "DATASET.CACHE_GB", 5 * PAIR_BYTES / 1e9]
    for root, overrides in ((tiny_data, []), (f"{server.address}/data", bound)):
        settings = small_settings()
        settings["DATASET"]["ROOT"], settings["WORKERS"] = str(root), 2
        file = write_config(settings, f"run{len(weights)}.yaml")
        command = ["tools/train.py", "--cfg", file, "OUTPUT_DIR", tmp_path / "output", *overrides]
        environment = {**os.environ, "NETRC": str(tmp_path / "netrc"), "OMP_NUM_THREADS": "1"}
        done = forking.run(command, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
        final = tmp_path / "output" / "camvid" / file.stem / "final_state.pth"
        weights.append(torch.load(final, weights_only=True)["model"])
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    files = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(password.encode() in path.read_bytes() for path in files)
    assert password not in said[1]
    again = re.findall(r"(\S+): ClientPayloadError\S*: .*; try (\d) of 8 follows", said[1])
    assert len(again) == len(set(again)) == 2 * (2 + 2 * 9)  # two lists and nine pairs
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2 * 5
    # The check before the training after two cuts, the first epoch, and the second for the pair that found no room.
    assert sorted(server.requests["GET", f"/data/camvid/train/{i}.png"] for i in range(6)) == [4, 4, 4, 4, 4, 5]


def test_commands_that_write_into_the_data_folder_refuse(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ovenet", "prepare", "camvid", "--root", "s3://bucket/folder"])
    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert (end.value.code, error.count("\n")) == (2, 1)
    assert "--root: an address" in error
