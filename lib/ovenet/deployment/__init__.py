"""Trained networks as files and programs of other runtimes: ONNX Runtime, OpenVINO, ``torch.export``."""

from ovenet.deployment.about import ExportedFile, is_exported
from ovenet.deployment.formats import FORMATS, write_network
from ovenet.deployment.network import ExportableNetwork
from ovenet.deployment.parity import Limits, Parity, compare
from ovenet.deployment.runtimes import RUNTIMES, ConvertedNetwork, FileNetwork, choose_runtime

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "ConvertedNetwork",
    "ExportableNetwork",
    "ExportedFile",
    "FileNetwork",
    "Limits",
    "Parity",
    "choose_runtime",
    "compare",
    "is_exported",
    "write_network",
]
