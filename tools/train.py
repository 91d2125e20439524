#!/usr/bin/env python3
"""Trains a model: python tools/train.py --cfg FILE [KEY VALUE ...], alone or under torchrun."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

import torch
from yacs.config import CfgNode

from ovenet import builders, load_config
from ovenet.config import changed_settings
from ovenet.data.dataset import ListDataset
from ovenet.engine.run_lock import run_lock
from ovenet.engine.store import CHECKPOINT, CheckpointStore
from ovenet.engine.trainer import BEST, FINAL, Trainer, TrainSettings
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import evaluate
from ovenet.evaluation.inference import ScorePredictor
from ovenet.evaluation.pictures import picture_row
from ovenet.structures import EvalResult
from ovenet.utils import distributed
from ovenet.utils.cli import config_parser, run_main
from ovenet.utils.environment import allow_tf32, describe_environment
from ovenet.utils.logging import configure_logging, get_logger
from ovenet.utils.seeding import seed_everything


def main() -> None:
    """Reads the config, builds the parts, trains."""
    args = config_parser(__doc__).parse_args()
    configure_logging(is_main=distributed.is_launch_main())
    cfg = load_config(args.cfg, args.overrides)
    device = distributed.choose_device(cfg.DEVICE)
    run_dir = builders.run_directory(cfg, args.cfg)
    lock = run_lock(run_dir) if distributed.is_launch_main() else nullcontext()
    with lock, distributed.process_group(device, timeout_s=cfg.DIST_TIMEOUT):
        prepare_run(cfg, run_dir)
        trainer = build_trainer(cfg, run_dir, builders.log_directory(cfg, args.cfg), device)
        if cfg.TRAIN.RESUME and trainer.store.exists():
            changes = changed_settings(trainer.resume(), cfg)
            if changes:
                get_logger().warning("the run began with other settings: %s; the new ones hold", "; ".join(changes))
            if trainer.is_done:
                get_logger().warning(
                    "nothing is left to train; raise TRAIN.END_EPOCH or TRAIN.ITERATIONS, or choose another OUTPUT_DIR"
                )
        get_logger().info(
            "%s: epochs %d to %d, %d iterations each, %d process(es) on %s",
            run_dir,
            trainer.epoch,
            trainer.end_epoch,
            trainer.iterations_per_epoch,
            distributed.world_size(),
            device.type,
        )
        best = trainer.fit()
        get_logger().info("done: best mIoU %.4f; weights in %s and %s", best, run_dir / BEST, run_dir / FINAL)


def prepare_run(cfg: CfgNode, run_dir: Path) -> None:
    """Refuses to overwrite another run, saves the resolved config, and begins the log.

    Raises:
        UserError: the folder holds a run and TRAIN.RESUME is False.
    """
    if CheckpointStore(run_dir, cfg.TRAIN.KEEP_CHECKPOINTS).exists() and not cfg.TRAIN.RESUME:
        raise UserError(
            f"{run_dir / CHECKPOINT} exists; set TRAIN.RESUME True to go on with that run, or another OUTPUT_DIR"
        )
    distributed.barrier()  # every process has looked before the first one writes
    if distributed.is_main():
        (run_dir / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        configure_logging(file=run_dir / "train.log")
        with (run_dir / "environment.jsonl").open("a", encoding="utf-8") as file:  # a line for each start
            file.write(json.dumps(describe_environment(Path(__file__).parent)) + "\n")


def build_trainer(cfg: CfgNode, run_dir: Path, log_dir: Path, device: torch.device) -> Trainer:
    """Builds every part and joins them."""
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    allow_tf32(cfg.TRAIN.TF32)
    seed_everything(cfg.SEED)
    info = builders.dataset_info(cfg)
    phases = builders.build_phases(cfg)
    if distributed.is_main():
        builders.check_training_data(cfg, phases[0].loader.dataset.dataset)
    test_loader, test_set = builders.build_test_loader(cfg)
    if not test_set.has_labels:
        raise UserError(f"{test_set.list_path}: validation needs `image label` on every line; set DATASET.TEST_SET")
    model = builders.build_model(cfg).to(device, memory_format=torch.channels_last)
    builders.initialize_model(model, cfg)
    if distributed.world_size() > 1 and device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    seed_everything(cfg.SEED, rank=distributed.rank())  # from here on, dropout differs between processes
    predictor = builders.build_predictor(model, cfg, device, single_scale=True)
    names = builders.prediction_names(cfg)

    def score(model: torch.nn.Module) -> dict[str, EvalResult]:
        scorer = builders.build_predictor(model, cfg, device, single_scale=True)
        return evaluate(scorer, test_loader, info, names, ignore_label=cfg.TRAIN.IGNORE_LABEL).overall

    return Trainer(
        builders.build_train_step(model, cfg, device, phases),
        phases,
        evaluate=score,
        draw_picture=lambda: draw_picture(cfg, predictor, test_set),
        settings=TrainSettings(
            run_dir=run_dir,
            log_dir=log_dir,
            begin_epoch=cfg.TRAIN.BEGIN_EPOCH,
            eval_interval=cfg.TRAIN.EVAL_INTERVAL,
            print_freq=cfg.PRINT_FREQ,
            max_skipped=cfg.TRAIN.MAX_SKIPPED,
            accumulate=cfg.TRAIN.ACCUMULATE,
            freeze_epochs=cfg.TRAIN.FREEZE_EPOCHS,
            checkpoint_every=cfg.TRAIN.CHECKPOINT_EVERY,
            checkpoint_minutes=cfg.TRAIN.CHECKPOINT_MINUTES,
            num_checkpoints=cfg.TRAIN.KEEP_CHECKPOINTS,
            wandb_project=cfg.WANDB,
            metadata={
                "config": cfg.dump(),
                "dataset": info.name,
                "class_names": list(info.class_names),
                "palette": [list(c) for c in info.palette],
                "dataset_info": info.as_dict(),
                "normalization": asdict(model.normalization),
            },
        ),
    )


def draw_picture(cfg: CfgNode, predictor: ScorePredictor, test_set: ListDataset) -> torch.Tensor:
    """The picture row of the first validation image."""
    sample = test_set[0]
    output = predictor.predict_output(sample.image)
    return picture_row(
        sample,
        output,
        test_set.info,
        max_offset=predictor.model.max_offset,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
    )


if __name__ == "__main__":
    run_main(main)
