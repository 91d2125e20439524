"""Exported files that are written once in a session: tracing a network takes seconds."""

from __future__ import annotations

import functools
import hashlib
from contextlib import ExitStack, contextmanager, suppress
from unittest.mock import patch

from ovenet.deployment import formats, runtimes
from ovenet.deployment.formats import write_onnx
from ovenet.deployment.quantization import quantize_onnx
from ovenet.predictor import export

_WRITTEN: dict[bytes, bytes] = {}  # files, by what they were made of


@contextmanager
def traced_once():
    """What is written of the same network with the same options, or quantised with the same images, is copied."""

    def write(network, example, path, tensors, **others):
        settings = {name: value for name, value in vars(network).items() if isinstance(value, (bool, int, tuple))}
        digest = hashlib.sha256(repr((network, settings, example.shape, tensors, others)).encode())
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            digest.update(name.encode() + value.detach().contiguous().numpy().tobytes())
        _once(digest, path, lambda: write_onnx(network, example, path, tensors, **others))

    def quantize(path, images):
        images = list(images)
        digest = hashlib.sha256(path.read_bytes())
        for image in images:
            digest.update(image.tobytes())
        _once(digest, path, lambda: quantize_onnx(path, images))

    with ExitStack() as patched:
        for module, name, function in (
            (formats, "write_onnx", write), (runtimes, "write_onnx", write), (export, "quantize_onnx", quantize),
        ):  # fmt: skip
            patched.enter_context(patch.object(module, name, function))
        with suppress(ImportError, AttributeError):  # the exporter's table of operations, anew for each file
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            table = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
            patched.enter_context(patch.object(ONNXRegistry, "from_torchlib", table))
        yield


def _once(digest, path, write):
    key = digest.digest()
    if key not in _WRITTEN:
        write()
        _WRITTEN[key] = path.read_bytes()
    path.write_bytes(_WRITTEN[key])
