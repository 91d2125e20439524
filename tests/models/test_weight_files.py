"""Files of weights are read without running code."""

import os
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch

from ovenet.errors import UserError
from ovenet.models.weight_files import read_checkpoint, weights_of, write_safetensors


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/ovenet-was-here",)


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match=r"bomb\.pth: .*code.*\.mkdir.*state_dict\(\)") as error:
        read_checkpoint(tmp_path / "bomb.pth")
    assert "\n" not in str(error.value)
    assert not os.path.exists("/tmp/ovenet-was-here")


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoints_of_the_public_code_are_read(tmp_path, zipped):
    """They hold the best score as a numpy number, in old files under numpy's old module name."""
    content = {"epoch": 3, "best_mIoU": np.float64(0.5), "state_dict": {"model.conv1.weight": torch.ones(2)}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / "a.pth")
    assert weights_of(read, "a.pth")["model.conv1.weight"].tolist() == [1, 1]


def test_numpys_old_module_name_is_known(tmp_path):
    class OldPickler(pickle._Pickler):
        def save_global(self, obj, name=None):
            if obj is np.float64(0).__reduce__()[0]:
                self.write(b"cnumpy.core.multiarray\nscalar\n")
                self.memoize(obj)
            else:
                super().save_global(obj, name)

        dispatch = pickle._Pickler.dispatch

    class Module:
        Pickler, Unpickler, load, loads = OldPickler, pickle.Unpickler, pickle.load, pickle.loads

        @staticmethod
        def dump(obj, file, protocol):
            OldPickler(file, protocol).dump(obj)

    torch.save(
        {"best_mIoU": np.float64(0.25), "state_dict": {"a": torch.ones(1)}},
        tmp_path / "old.pth",
        pickle_module=Module,
    )
    assert float(read_checkpoint(tmp_path / "old.pth")["best_mIoU"]) == 0.25


class HistoryBuffer:
    """As mmengine's: arrays, and its own methods by name."""

    def __init__(self):
        self.max_length, self._log_history, self._count_history = 10, np.array([0.5, 0.25]), np.array([1, 2])

    def mean(self):
        raise AssertionError("called")

    def __getstate__(self):
        return {**vars(self), "statistics_methods": {"mean": HistoryBuffer.mean}}


@pytest.mark.parametrize("zipped", [True, False])
def test_the_history_of_mmengine_is_left_alone(tmp_path, monkeypatch, zipped):
    module = types.ModuleType("mmengine.logging.history_buffer")
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", module.__name__)
    content = {
        "meta": {"mmengine_version": "0.6.0", "dataset_meta": {"classes": ("road",), "palette": [[128, 64, 128]]}},
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer()), "resumed_keys": OrderedDict(loss=True)},
        "state_dict": {"a": torch.ones(2)},
    }
    with monkeypatch.context() as here:
        for name in ("mmengine", "mmengine.logging", module.__name__):
            here.setitem(sys.modules, name, module)
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(tmp_path / "a.pth", weights_only=True)
    assert weights_of(read_checkpoint(tmp_path / "a.pth"), "a.pth")["a"].tolist() == [1, 1]


class Looked:
    def __reduce__(self):
        return getattr, (OrderedDict, "fromkeys")


def test_looking_up_by_name_finds_nothing(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Looked()}, tmp_path / "a.pth")
    assert not callable(read_checkpoint(tmp_path / "a.pth")["extra"])
    torch.save({"a": np.ones(2)}, tmp_path / "arrays.pth")
    with pytest.raises(UserError, match=r"arrays\.pth: no weights found"):
        weights_of(read_checkpoint(tmp_path / "arrays.pth"), "arrays.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"a": torch.ones(2)},
        {"state_dict": {"a": torch.ones(2)}},
        {"model": {"a": torch.ones(2)}, "optimizer": {}, "epoch": 1},
    ],
)
def test_weights_are_found_wherever_they_are(content):
    assert weights_of(content, "file")["a"].tolist() == [1, 1]


def test_files_without_weights_are_refused():
    with pytest.raises(ValueError, match=r"f\.pth: no weights found"):
        weights_of({"epoch": 3}, "f.pth")


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(ValueError, match="a directory; expected a checkpoint file"):
        read_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"no\.pth: .*no such"):
        read_checkpoint(tmp_path / "no.pth")
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for content in (b"", b"text, not a checkpoint", b"# a page", whole[: len(whole) // 2], whole[:20]):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.pth: .*checkpoint.*damaged") as error:
            read_checkpoint(tmp_path / "bad.pth")
        assert "\n" not in str(error.value)
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(ValueError, match=r"tensor\.pth: .*Tensor.*by name"):
        read_checkpoint(tmp_path / "tensor.pth")


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.tensor([1.0, float("nan")]), "NaN or infinite"),
        (torch.tensor([1.0, float("-inf")], dtype=torch.bfloat16), "NaN or infinite"),
        (torch.tensor([True]), "values of type bool"),
        (torch.tensor([1j]), "values of type complex64"),
        (torch.tensor([1.0, 0.0]).to_sparse(), "a sparse_coo tensor"),
        (torch.empty(2, device="meta"), "a meta tensor"),
        (torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "a quantised tensor"),
    ],
)
def test_what_cannot_be_a_weight_is_refused_by_name(tensor, problem):
    with pytest.raises(UserError, match=rf"a\.pth: 'head\.layers\.3\.bias' .*{problem}"):
        weights_of({"model": {"good": torch.ones(2), "head.layers.3.bias": tensor}}, "a.pth")


def test_names_of_weights_are_strings():
    with pytest.raises(UserError, match=r"a\.pth: 3 .*\bint\b.*string"):
        weights_of({3: torch.ones(2)}, "a.pth")


def test_safetensors_carry_weights_and_what_belongs_to_them(tmp_path):
    weights = {"a": torch.randn(3, 4), "steps": torch.tensor(7), "b": torch.randn(2, 6).t()}
    about = {"config": "A: 1", "class_names": ["x", "y"]}
    for half in (False, True):
        path = tmp_path / f"{half}.safetensors"
        write_safetensors(path, weights, about, half=half)
        content = read_checkpoint(path)
        assert {key: content[key] for key in about} == about
        read = weights_of(content, path)
        assert read["steps"] == 7
        for name in ("a", "b"):
            expected = weights[name].half() if half else weights[name]
            assert torch.equal(read[name], expected)
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\xff" * 100])
def test_damaged_safetensors_are_one_line(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.safetensors: not .*safetensors.*damaged"):
        read_checkpoint(tmp_path / "x.safetensors")
