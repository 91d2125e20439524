"""Everything but videos where PyAV is missing: importing it raises ImportError in these processes."""

import sys

import pytest
from tests.conftest import tiny_settings

from ovenet.inference.inputs import FrameReader, Input
from ovenet.inference.outputs import FrameWriter

SCRIPT = "import sys; sys.modules['av'] = None; from ovenet.commands import main; sys.argv[0] = 'ovenet'; main()"


@pytest.fixture
def ovenet(run_fork, tmp_path):
    """Runs a command in a fork, which has not imported PyAV: `test_commands_begin_without_what_only_some_need`."""
    script = tmp_path / "without_av.py"
    script.write_text(SCRIPT)
    return lambda *arguments: run_fork(script, *arguments)


@pytest.mark.ci
def test_a_network_is_trained_and_images_are_predicted(ovenet, tiny_data, tmp_path, write_config):
    settings = tiny_settings()
    settings["DATASET"]["ROOT"] = str(tiny_data)
    settings["OUTPUT_DIR"] = str(tmp_path / "output")
    settings["TRAIN"]["END_EPOCH"] = 1
    trained = ovenet("train", "--cfg", write_config(settings, "tiny.yaml"), "WORKERS", 1)
    assert trained.returncode == 0, trained.stderr
    weights = tmp_path / "output/camvid/tiny/best.pth"
    predicted = ovenet("infer", weights, tiny_data / "camvid/val", "--output", tmp_path / "out")
    assert predicted.returncode == 0, predicted.stderr
    assert (tmp_path / "out/ids/0.png").is_file()


@pytest.mark.ci
def test_commands_begin_without_what_only_some_need(run_process):
    """Each of them takes part of a second; what plots and videos need is imported where they are made."""
    text = "import sys, ovenet.commands.train, ovenet.commands.infer; print(*sys.modules)"
    loaded = set(run_process(sys.executable, "-c", text).stdout.split())
    assert "torch" in loaded
    assert not loaded & {"av", "matplotlib", "onnx", "onnxruntime", "openvino", "timm"}


def test_a_video_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"out\.mp4: .*PyAV.*; pip install av$"):
        FrameWriter(tmp_path / "out.mp4", 25.0)
    with pytest.raises(ValueError, match=r"in\.mp4: .*PyAV.*; pip install av$"):
        FrameReader(Input("video", tmp_path / "in.mp4", "in"))
    with pytest.raises(ValueError, match=r"the pipe: .*PyAV.*; pip install av$"):
        FrameReader(Input("pipe", 0, "pipe"))
