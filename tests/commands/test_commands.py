"""``ovenet COMMAND …``: what there is, what tools/ have in common with it, and what the package holds."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ovenet
from ovenet.commands import COMMANDS, OTHER_NAMES, main
from ovenet.utils.cli import typed_command

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_and_version_do_not_wait_for_torch():
    code = "import sys; sys.path.insert(0, 'lib'); from ovenet.commands import main; main(); "
    code += "assert 'torch' not in sys.modules"
    told = run("-c", code, "--help")
    assert told.returncode == 0, told.stderr
    assert all(re.search(rf"^  {name} +\w", told.stdout, re.M) for name in COMMANDS)
    assert re.fullmatch(r"ovenet \S.*\n", run("-c", code, "--version").stdout)
    assert isinstance(ovenet.__version__, str)


def test_an_unknown_command_is_one_line():
    done = run("tools/../lib/ovenet/__main__.py", "--help")
    assert done.returncode == 0, done.stderr  # wherever it is started from
    done = run("-m", "ovenet", "trian")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no command 'trian'; did you mean train? (ovenet --help)\n"


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_names_of_other_programs_lead_to_the_command(name, monkeypatch, capsys):
    assert name not in COMMANDS
    monkeypatch.setattr(sys, "argv", ["ovenet", name])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert f"did you mean {OTHER_NAMES[name]}?" in capsys.readouterr().err
    assert OTHER_NAMES[name] in COMMANDS


@pytest.mark.skipif(sys.platform == "win32", reason="pipes there do not break")
@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_that_nobody_reads_to_its_end_shows_no_traceback(option):
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -1` does when it has read its line
    done = subprocess.run([sys.executable, "-m", "ovenet", option], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_helps(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ovenet", name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ovenet {name} ")


def test_every_script_is_a_command():
    scripts = {path.stem for path in (ROOT / "tools").glob("*.py") if not path.stem.startswith("benchmark")}
    modules = {module for module, _ in COMMANDS.values()}
    assert scripts == modules - {"app", "fit", "latency", "pack", "refine", "review"}  # newer than the habit of scripts
    for name in scripts:
        spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "tools" / f"{name}.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        assert script.main is importlib.import_module(f"ovenet.commands.{name}").main


def test_every_public_name_is_there():
    for name in ovenet.__all__:
        assert getattr(ovenet, name) is not None
    assert set(ovenet.__all__) <= set(dir(ovenet))
    with pytest.raises(AttributeError, match=r"'ovenet'.*'segment'"):
        _ = ovenet.segment


def test_the_package_has_all_its_folders():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT / "lib") for path in (ROOT / "lib").rglob("*.py")}
    expected = {str(folder).replace("/", ".") for folder in folders}
    assert set(settings["packages"]) == expected | {"ovenet.experiments", "ovenet.pretrained_models"}


@pytest.mark.slow
def test_the_wheel_trains_tests_and_infers_from_another_folder(tmp_path):
    """Installed beside the libraries of this environment, away from the checkout."""
    wheel = run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "wheel", ROOT)
    assert wheel.returncode == 0, wheel.stderr
    (file,) = (tmp_path / "wheel").glob("ovenet-*.whl")
    installed = tmp_path / "installed"
    done = run("-m", "pip", "install", "--quiet", "--no-deps", "--target", installed, file)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    work.mkdir()

    def ovenet_command(*arguments):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "ovenet", *map(str, arguments)],
            cwd=work, env={"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert ovenet_command("--version").startswith("ovenet 0.")
    long_name = "cityscapes/seg_hrnet_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484"
    assert "TEST.SCORE: exp" in ovenet_command("config", "--changed", "--cfg", long_name)
    ovenet_command("prepare", "synthetic", "--train", 4, "--val", 1, "--test", 1, "--size", 128, 64)
    options = ("TRAIN.IMAGE_SIZE", "[64,64]", "TRAIN.BATCH_SIZE_PER_GPU", 2, "TRAIN.NUM_SAMPLES", 4, "WORKERS", 0)
    options += ("TRAIN.END_EPOCH", 1, "TEST.BASE_SIZE", 128, "DEVICE", "cpu")
    ovenet_command("train", "--cfg", "synthetic/ovenet_hrnet_w18_small_v2", *options)
    folder = work / "output/synthetic/ovenet_hrnet_w18_small_v2"
    assert "S_f" in ovenet_command("test", folder)
    photo = next((work / "data/synthetic/leftImg8bit/test").rglob("*.png"))
    ovenet_command("infer", folder, photo, "--output", "out")
    assert list((work / "out").rglob("*.png"))


@pytest.mark.parametrize(
    ("argv", "typed"),
    [
        (["ovenet report", "a b", "--output", "x.html"], "ovenet report 'a b' --output x.html"),
        (["tools/report.py", "a"], "python tools/report.py a"),
    ],
)
def test_the_command_in_a_report_can_be_typed_again(monkeypatch, argv, typed):
    monkeypatch.setattr(sys, "argv", argv)
    assert typed_command() == typed


def test_options_may_stand_among_the_settings(monkeypatch, capsys):
    """`ovenet test MODEL --corruptions all KEY VALUE`, as people type it, and values below 0."""
    monkeypatch.setattr(
        sys, "argv", ["ovenet", "config", "TEST.OUTPUT_INDEX", "-1", "--cfg", "camvid/lite0_fcn", "TRAIN.LR", "0.5"]
    )
    main()
    assert "LR: 0.5" in capsys.readouterr().out


def test_every_command_with_settings_takes_options_among_them():
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "lib/ovenet/commands").glob("*.py")]
    with_settings = [text for text in texts if "config_parser(" in text]
    assert len(with_settings) > 5
    assert not any(".parse_args()" in text for text in with_settings)
