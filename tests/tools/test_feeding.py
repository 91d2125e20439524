"""The row of the benchmark that counts crops by loading processes."""

import pytest
import torch
from tests.tools.conftest import ROOT


@pytest.mark.parametrize("num_workers", [1, 2])
def test_crops_are_the_same_from_files_and_from_the_cache(monkeypatch, num_workers):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    from benchmarks.feeding import FEEDING, feeding_case
    from benchmarks.inputs import Options

    with feeding_case(Options(torch.device("cpu"), quick=True), num_workers) as case:
        decoded, cached = case.plain(), case.ours()
    case.same(decoded, cached)
    assert case.num_images == decoded[1] == cached[1] == 4
    assert decoded[0].images.shape == (4, 3, 64, 128)
    assert "crops by loading processes 1" in FEEDING
