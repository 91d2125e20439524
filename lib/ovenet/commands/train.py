"""Trains a model, alone or under torchrun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from yacs.config import CfgNode

from ovenet import builders, load_config
from ovenet.config import changed_settings, check_parts
from ovenet.engine.checkpoint import BEST, CHECKPOINT, FINAL, CheckpointStore
from ovenet.engine.interruption import Interruption
from ovenet.engine.trainer import Hook
from ovenet.errors import UserError, one_line
from ovenet.predictor import run_folder
from ovenet.utils import distributed
from ovenet.utils.cli import config_parser
from ovenet.utils.environment import describe_environment
from ovenet.utils.logging import configure_logging, get_logger
from ovenet.utils.run_lock import run_lock
from ovenet.utils.torchrun import have_begun, launchers, note_launchers, num_restarts
from ovenet.utils.writing import write_text


def main() -> None:
    """Reads the config, builds the parts, trains."""
    args = config_parser(__doc__).parse_intermixed_args()
    configure_logging(is_main=distributed.is_launch_main())
    with Interruption(at_once=True) as interruption:
        train(args.cfg, args.overrides, interruption)


def train(
    config_file: str | Path,
    overrides: Sequence[str] = (),
    interruption: Interruption | None = None,
    *,
    hooks: Sequence[Hook] = (),
) -> Path:
    """Trains to the end, or until a request to stop, as ``ovenet train`` does.

        run = ovenet.train("experiments/camvid/ovenet_lite0_fcn.yaml", ["TRAIN.LR", "0.01"], hooks=[stop_early])
        predictor = ovenet.load(run)

    Args:
        config_file: the experiment file, or the name of one that comes along.
        overrides: ``KEY VALUE …`` as on a command line.
        interruption: receives requests to stop; None creates one.
        hooks: functions of `ovenet.engine.train_state.TrainState`, called on every process after each validation; the
            training ends with the epoch once one of them returns True.

    Returns:
        The folder of the run.

    Raises:
        UserError: the configuration, the data or the initial weights are wrong.
        SystemExit: after a request to stop.
    """
    cfg = load_config(config_file, overrides)
    check_parts(cfg)
    device = distributed.choose_device(cfg.DEVICE)
    run_dir = run_folder.run_directory(cfg, config_file)
    # After a failure the main process of before may still be writing, on another machine.
    patience_s = cfg.DIST_TIMEOUT if num_restarts() else 0
    lock = run_lock(run_dir, timeout_s=patience_s) if distributed.is_launch_main() else nullcontext()
    with lock, distributed.process_group(device, timeout_s=cfg.DIST_TIMEOUT):
        started_by = launchers()
        if have_begun(run_dir, started_by):  # torchrun starts a run again with the command of its first start
            cfg = with_resume(cfg)
        require_own_folder(cfg, run_dir)
        if distributed.is_main():
            note_launchers(run_dir, started_by)
        log_dir = run_folder.log_directory(cfg, config_file)
        trainer = builders.build_trainer(cfg, run_dir, log_dir, device, hooks)
        if cfg.TRAIN.RESUME and trainer.checkpoints.store.exists():
            changes = changed_settings(trainer.checkpoints.resume(), cfg)
            if changes:
                listed = "; ".join(changes.values())
                get_logger().warning("the run began with other settings: %s; the new ones hold", listed)
            if trainer.state.is_finished:
                get_logger().warning(
                    "nothing is left to train; raise TRAIN.END_EPOCH or TRAIN.ITERATIONS, or choose another OUTPUT_DIR"
                )
        if distributed.is_main():
            record_start(cfg, run_dir)
            log_cost(cfg)
        state = trainer.state
        get_logger().info(
            "%s: epochs %d to %d, %d iterations each, %d process(es) on %s",
            run_dir,
            min(state.epoch + 1, state.end_epoch),
            state.end_epoch,
            state.iterations_per_epoch,
            distributed.world_size(),
            device.type,
        )
        best = trainer.fit(interruption)
        if (run_dir / BEST).exists():
            get_logger().info(
                "done: best mIoU %.2f %%; weights in %s and %s", 100 * best, run_dir / BEST, run_dir / FINAL
            )
        else:
            get_logger().info("done: weights in %s; no mIoU, since no validation pixel is labelled", run_dir / FINAL)
    return run_dir


def log_cost(cfg: CfgNode) -> None:
    """Logs the cost of the network, if it can be counted on the meta device."""
    try:
        cost = builders.describe_network(cfg)
    except Exception as error:  # a user's part that does not run on the meta device must not end the run
        get_logger().warning("the network's multiply-adds cannot be counted: %s", one_line(error))
        return
    get_logger().info("%s: %s", cfg.MODEL.BACKBONE.NAME, cost)


def with_resume(cfg: CfgNode) -> CfgNode:
    """The configuration with ``TRAIN.RESUME True``."""
    resumed = cfg.clone()
    resumed.defrost()
    resumed.TRAIN.RESUME = True
    resumed.freeze()
    return resumed


def require_own_folder(cfg: CfgNode, run_dir: Path) -> None:
    """Refuses to overwrite another run, and starts the log.

    Raises:
        UserError: the folder holds a run and TRAIN.RESUME is False, or weights of a run without its checkpoint.
    """
    if CheckpointStore(run_dir, cfg.TRAIN.KEEP_CHECKPOINTS).exists():
        if not cfg.TRAIN.RESUME:
            raise UserError(
                f"{run_dir / CHECKPOINT} exists; set TRAIN.RESUME True to go on with that run, or another OUTPUT_DIR"
            )
    else:
        for name in (FINAL, BEST):
            if (run_dir / name).exists():
                raise UserError(
                    f"{run_dir / name}: the weights of an earlier run, with no checkpoint to go on from; choose "
                    "another OUTPUT_DIR, or move them away"
                )
    distributed.barrier()  # every rank has looked before the first one writes
    if distributed.is_main():
        configure_logging(file=run_dir / "train.log")


def record_start(cfg: CfgNode, run_dir: Path) -> None:
    """Saves the resolved config, and appends hardware, versions and code of this start."""
    write_text(run_dir / "config.yaml", cfg.dump())
    with (run_dir / "environment.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(describe_environment(Path(__file__).parent)) + "\n")
