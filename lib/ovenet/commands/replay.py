"""Replays a training step whose loss or gradient was not finite."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ovenet import build_criterion, build_model
from ovenet.config import load_config_text
from ovenet.data.augmentation import augment_and_normalize
from ovenet.engine.checkpoint import read_repro
from ovenet.models import Segmentor
from ovenet.structures import Batch


def main() -> None:
    """Runs each micro-batch forward and backward, and says where the first number that is not finite appears."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="repro_*.pth of a run")
    args = parser.parse_args()
    content, batches = read_repro(args.file)
    cfg = load_config_text(content["config"], str(args.file))
    model = build_model(cfg)
    model.load_state_dict(content["model"])
    print(f"{args.file}: iteration {content['iteration']}, {len(batches)} batch(es)")
    bad_weights = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    print(f"weights: {bad_weights[0] + ' is not finite' if bad_weights else 'all finite'}")
    for batch in batches:
        replay(model, build_criterion(cfg), batch)


def replay(model: Segmentor, criterion: nn.Module, batch: Batch) -> None:
    """Prints the loss terms, the first module whose output is not finite, and the first such gradient."""
    bad_modules: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, object, object], None]:
        def check(_module: nn.Module, _inputs: object, output: object) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                bad_modules.append(name)

        return check

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    model.train()
    model.zero_grad()
    images, labels = augment_and_normalize(batch, model.normalization)
    loss = criterion(model(images), labels)
    for handle in handles:
        handle.remove()
    terms = ", ".join(f"{name} {value:.4f}" for name, value in loss.terms.items())
    print(f"{', '.join(batch.names)}: loss {loss.total:.4f} ({terms})")
    print(f"  labels: {sorted(labels.unique().tolist())}")
    print(f"  first output that is not finite: {bad_modules[0] if bad_modules else 'none'}")
    loss.total.backward()
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    print(f"  gradient: norm {norm:.4g}; {f'{len(bad)} are not finite, {bad[0]} first' if bad else 'all finite'}")
