"""A setting that the model's parts do not take ends every command in one line, before it reads any data."""

import pytest


@pytest.mark.parametrize(
    "tool", ["train", "test", "print_config", "plan", "audit_data", "browse_data", "make_submission", "sweep"]
)
def test_parts_are_checked_first(run_tool, tmp_path, tool):
    config = tmp_path / "own.yaml"
    config.write_text(f"MODEL: {{HEAD: {{NAME: ocr, MID_CHANELS: 3}}}}\nDATASET: {{ROOT: {tmp_path}/no_data}}\n")
    (tmp_path / "sweep.yaml").write_text("CFG: own.yaml\nRUNS: {a: {}}\n")
    printed = run_tool(tool, *((tmp_path / "sweep.yaml",) if tool == "sweep" else ("--cfg", config)))
    assert printed.code == 2
    (line,) = printed.err.strip().splitlines()
    assert "MODEL.HEAD.MID_CHANELS" in line
    assert "MID_CHANNELS" in line.replace("MID_CHANELS", "")
