"""Training, inference and tests, from a configuration."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from ovenet.builders.data import (
    TestLoader,
    build_test_loader,
    build_train_loader,
    check_data,
    shard_loader,
    test_dataset,
)
from ovenet.builders.models import (
    build_criterion,
    build_model,
    build_optimizer,
    dataset_info,
    initialize_model,
    prediction_names,
)
from ovenet.config import changed_settings, load_config_text
from ovenet.data.dataset import ListDataset
from ovenet.data.info import DatasetInfo
from ovenet.deployment import ConvertedNetwork, FileNetwork, choose_runtime, is_exported
from ovenet.deployment.formats import read_about
from ovenet.engine.checkpoint import read_checkpoint, weights_of
from ovenet.engine.interruption import Interruption
from ovenet.engine.optim import build_schedule
from ovenet.engine.run_log import track
from ovenet.engine.step import StepSettings, TrainStep
from ovenet.engine.trainer import Phase, Trainer, TrainSettings, phase_lengths
from ovenet.errors import UserError
from ovenet.evaluation.evaluate import Evaluation, count_samples, evaluate, evaluation_from_counts
from ovenet.evaluation.evaluator import ImageCounts, SegEvaluator
from ovenet.evaluation.inference import InferenceSettings, Prediction, SlidingWindowInferencer
from ovenet.evaluation.partial import FOLDER, PartialEvaluation
from ovenet.evaluation.pictures import picture_row, prediction_path, save_picture, save_prediction
from ovenet.evaluation.writers import image_record
from ovenet.models import Segmentor
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.models.segmentor import GROUPS, synchronized
from ovenet.models.weights import load_weights
from ovenet.report.gallery import picture_data, picture_path, picture_sides, save_picture_data, write_records
from ovenet.report.runs import RECORDS
from ovenet.structures import EvalResult, Normalization, Sample
from ovenet.utils import distributed
from ovenet.utils.environment import allow_tf32
from ovenet.utils.logging import get_logger
from ovenet.utils.seeding import seed_everything

NUM_PICTURE_ROWS = 4
_SEEN_IN_TRAINING = re.compile(
    r"(MODEL\.(?!BACKBONE\.PRETRAINED|SEED\.PRETRAINED|FROZEN|ALLOW_PARTIAL)|TEST\.(IMAGE_SIZE|BASE_SIZE|BASE_BOX) )"
)


def build_phases(cfg: CfgNode) -> list[Phase]:
    """The training of ``TRAIN.ITERATIONS``, or up to ``TRAIN.END_EPOCH`` and the extra epochs after it, if any."""
    loader, sampler = build_train_loader(cfg)
    if len(loader) < cfg.TRAIN.ACCUMULATE:
        raise UserError(
            f"TRAIN.ACCUMULATE is {cfg.TRAIN.ACCUMULATE}, but an epoch of {cfg.DATASET.TRAIN_SET} has {len(loader)} "
            "batches; set it to at most that"
        )
    if cfg.TRAIN.ITERATIONS:
        return [Phase(loader, sampler, cfg.TRAIN.END_EPOCH, cfg.TRAIN.ITERATIONS)]
    phases = [Phase(loader, sampler, cfg.TRAIN.END_EPOCH)]
    if cfg.TRAIN.EXTRA_EPOCH:
        extra = build_train_loader(cfg, cfg.DATASET.EXTRA_TRAIN_SET)
        phases.append(Phase(*extra, cfg.TRAIN.END_EPOCH + cfg.TRAIN.EXTRA_EPOCH))
    return phases


def build_train_step(model: Segmentor, cfg: CfgNode, device: torch.device, phases: Sequence[Phase]) -> TrainStep:
    """What an iteration does.

    Args:
        model: on `device`, with the weights that training starts from.
        cfg: the configuration.
        device: of this process.
        phases: from `build_phases`; the schedule has their length.
    """
    lengths = [length for _, length in phase_lengths(phases, cfg.TRAIN.BEGIN_EPOCH, cfg.TRAIN.ACCUMULATE)]
    optimizer = build_optimizer(model, cfg)
    settings = StepSettings(
        precision=cfg.TRAIN.PRECISION,
        clip_grad_norm=cfg.TRAIN.CLIP_GRAD_NORM,
        ema_decay=cfg.TRAIN.EMA,
        frozen=_frozen(model, cfg),
        compile_mode=None if cfg.TRAIN.COMPILE == "none" else cfg.TRAIN.COMPILE,
        normalization=model.normalization,
        compression=cfg.TRAIN.GRADIENT_COMPRESSION,
    )
    schedule = build_schedule(
        optimizer,
        lengths[0],
        warmup=cfg.TRAIN.WARMUP,
        num_extra=sum(lengths[1:]),
        extra=cfg.TRAIN.EXTRA_LR / cfg.TRAIN.LR,
        lr_min=cfg.TRAIN.LR_MIN,
        power=cfg.TRAIN.LR_POWER,
    )
    return TrainStep(model, build_criterion(cfg).to(device), optimizer, schedule, device, settings)


def _frozen(model: Segmentor, cfg: CfgNode) -> frozenset[str]:
    """Parameters that ``TRAIN.FREEZE_LAYERS`` names.

    Raises:
        UserError: an entry names no part of the model and no module of its backbone.
    """
    frozen: set[str] = set()
    for entry in filter(None, (entry.strip() for entry in cfg.TRAIN.FREEZE_LAYERS.split(","))):
        inside = f"backbone.{entry}"
        try:
            place = entry if entry.split(".")[0] in GROUPS else inside
            frozen |= {f"{place}.{name}" for name, _ in model.part(place).named_parameters()}
        except UserError as error:
            raise UserError(f"TRAIN.FREEZE_LAYERS: {entry!r}: {error}") from None
    return frozenset(frozen)


def build_trainer(cfg: CfgNode, run_dir: Path, log_dir: Path, device: torch.device) -> Trainer:
    """Builds every part and joins them."""
    torch.backends.cudnn.enabled = cfg.CUDNN.ENABLED
    torch.backends.cudnn.benchmark = cfg.CUDNN.BENCHMARK
    torch.backends.cudnn.deterministic = cfg.CUDNN.DETERMINISTIC
    allow_tf32(cfg.TRAIN.TF32)
    seed_everything(cfg.SEED)
    info = dataset_info(cfg)
    phases = build_phases(cfg)
    test_loader, test_set = build_test_loader(cfg)
    if not test_set.has_labels:
        raise UserError(f"{test_set.list_path}: validation needs `image label` on every line; set DATASET.TEST_SET")
    if distributed.is_main():
        for dataset in (*(phase.loader.dataset.dataset for phase in phases), test_set):
            check_data(cfg, dataset)
    model = build_model(cfg).to(device, memory_format=torch.channels_last)
    initialize_model(model, cfg)
    if distributed.world_size() > 1 and device.type == "cuda":
        model = synchronized(model)
    seed_everything(cfg.SEED, rank=distributed.rank())  # from here on, dropout differs between processes
    predictor = build_predictor(model, cfg, device, single_scale=True)
    names = prediction_names(cfg)

    def score(model: torch.nn.Module, stop: Callable[[], bool]) -> dict[str, EvalResult]:
        scorer = build_predictor(model, cfg, device, single_scale=True)
        samples = takewhile(lambda _: not stop(), test_loader)
        return evaluate(scorer, samples, info, names, ignore_label=cfg.TRAIN.IGNORE_LABEL).overall

    return Trainer(
        build_train_step(model, cfg, device, phases),
        phases,
        evaluate=score,
        draw_picture=lambda: _draw_picture(cfg, predictor, test_set),
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
            mlflow_experiment=cfg.MLFLOW,
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


def _draw_picture(cfg: CfgNode, predictor: SlidingWindowInferencer, test_set: ListDataset) -> torch.Tensor:
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


def build_predictor(
    model: nn.Module, cfg: CfgNode, device: torch.device, *, single_scale: bool = False
) -> SlidingWindowInferencer:
    """Inference as the ``TEST`` section describes it.

    Args:
        model: on `device`.
        cfg: the configuration.
        device: of this process.
        single_scale: leave out ``TEST.SCALE_LIST`` and ``TEST.FLIP_TEST``, as validation during training does.
    """
    settings = inference_settings(cfg, dataset_info(cfg), model.normalization, single_scale=single_scale)
    return SlidingWindowInferencer(model, settings, device)


def inference_settings(
    cfg: CfgNode, info: DatasetInfo, normalization: Normalization, *, single_scale: bool = False
) -> InferenceSettings:
    """What the ``TEST`` section, the dataset and the model say about inference."""
    width, height = cfg.TEST.IMAGE_SIZE
    return InferenceSettings(
        base_size=cfg.TEST.BASE_SIZE,
        window_size=(height, width),
        scales=(1.0,) if single_scale else tuple(float(s) for s in cfg.TEST.SCALE_LIST),
        flip=cfg.TEST.FLIP_TEST and not single_scale,
        score=cfg.TEST.SCORE,
        output_index=cfg.TEST.OUTPUT_INDEX,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
        batch_size=cfg.TEST.BATCH_SIZE_PER_GPU,
        precision=cfg.TEST.PRECISION,
        rule=info.evaluation,
        flip_pairs=info.flip_pairs,
        normalization=normalization,
        tf32=cfg.TEST.TF32,
        base_box=tuple(cfg.TEST.BASE_BOX) or None,
        stride=tuple(reversed(cfg.TEST.STRIDE)) or None,
    )


def load_predictor(cfg: CfgNode, model_file: Path, device: torch.device) -> SlidingWindowInferencer:
    """Inference with trained weights.

    Raises:
        UserError: see `load_checkpoint`.
    """
    if is_exported(model_file):
        network, settings, _ = exported_model(model_file, None if cfg.TEST.RUNTIME == "torch" else cfg.TEST.RUNTIME)
        missing = [name for name in prediction_names(cfg) if name not in network.about.tensors]
        if missing:
            raise UserError(
                f"{model_file}: gives no {missing[0]} scores, which a test counts; export them too (--tensors)"
            )
        own = inference_settings(cfg, dataset_info(cfg), network.normalization)
        return SlidingWindowInferencer(network, replace(own, window_size=settings.window_size), torch.device("cpu"))
    model = build_model(cfg)
    content = read_checkpoint(model_file)
    report = load_weights(model, weights_of(content, model_file), str(model_file), whole=True)
    get_logger().info("%s", report)
    report.require(1.0, allow_partial=cfg.MODEL.ALLOW_PARTIAL)
    if isinstance(text := content.get("config"), str) and (changes := settings_unlike_training(text, cfg)):
        get_logger().warning(
            "%s was trained with other settings: %s; the new ones hold, and scores may be worse for it",
            model_file,
            "; ".join(changes),
        )
    return build_predictor(inference_model(model, cfg, device), cfg, device)


def settings_unlike_training(text: str, cfg: CfgNode) -> list[str]:
    """Settings of the network and of its input's size that differ from those that weights were trained with.

    Args:
        text: the configuration that the weights carry.
        cfg: the present one.

    Returns:
        ``KEY was OLD, is NEW``.
    """
    return [change for change in changed_settings(text, cfg) if _SEEN_IN_TRAINING.match(change)]


def inference_model(model: Segmentor, cfg: CfgNode, device: torch.device) -> nn.Module:
    """A trained model as it is fastest for inference, on its device, or in the runtime of ``TEST.RUNTIME``.

    Raises:
        UserError: the runtime is not installed, or does not do what ``TEST`` asks for.
    """
    runtime = choose_runtime(cfg.TEST.RUNTIME, device)
    model = fuse_conv_bn(model) if cfg.TEST.FUSE_CONV_BN else model
    if runtime != "torch":
        return ConvertedNetwork(model, runtime, output_index=cfg.TEST.OUTPUT_INDEX, precision=cfg.TEST.PRECISION)
    model = model.to(device, memory_format=torch.channels_last).eval()
    return model if cfg.TEST.COMPILE == "none" else torch.compile(model, mode=cfg.TEST.COMPILE)


def exported_model(
    path: Path, runtime: str | None, overrides: Sequence[str] = ()
) -> tuple[FileNetwork, InferenceSettings, DatasetInfo]:
    """The network of an exported file, how images are run through it, and its classes.

    Args:
        path: the file.
        runtime: None or ``auto`` is what the file is made for.
        overrides: ``KEY VALUE …`` that win over the settings that it carries.

    Raises:
        UserError: the file cannot be read or run so.
    """
    about = read_about(path)
    cfg = load_config_text(about.config, str(path), overrides)
    network = FileNetwork(path, None if runtime in (None, "auto") else runtime, precision=cfg.TEST.PRECISION)
    info = DatasetInfo.from_dict(about.dataset_info)
    settings = inference_settings(cfg, info, about.normalization)
    return network, replace(settings, window_size=about.size or settings.window_size, output_index=-1), info


class ImageWriter:
    """Writes the requested files of each image right after it was evaluated.

    Args:
        cfg: ``TEST`` says what is wanted.
        dataset: the whole list.
        predictor: for the picture rows.
        folder: of the test.
    """

    def __init__(self, cfg: CfgNode, dataset: ListDataset, predictor: SlidingWindowInferencer, folder: Path):
        self._cfg, self._dataset, self._predictor, self._folder = cfg, dataset, predictor, folder
        self.saves_predictions = cfg.TEST.SAVE_PREDICTIONS or not dataset.has_labels
        self.photo_side, self.grid_side = picture_sides(len(dataset)) if cfg.TEST.REPORT else (0, 0)
        self._num_rows_left = NUM_PICTURE_ROWS if distributed.is_main() else 0

    def write(self, index: int, sample: Sample, prediction: Prediction) -> None:
        """Writes one image's files.

        Raises:
            OSError: the file system refuses.
        """
        if self.saves_predictions:
            save_prediction(prediction.labels["fused"], sample.name, self._folder / "predictions", self._dataset.info)
            if self._num_rows_left:
                self._num_rows_left -= 1
                self._write_row(sample)
        if self.grid_side:
            sides = {"photo_side": self.photo_side, "grid_side": self.grid_side}
            data = picture_data(sample, prediction, self._dataset.info.num_classes, **sides)
            save_picture_data(data, picture_path(self._folder, index))

    def has_written(self, index: int) -> bool:
        """Whether the files of an image are there, but for the picture rows, which show a few only."""
        name = self._dataset.pairs[index][0]
        saved = prediction_path(self._folder / "predictions", name).is_file()
        return (saved or not self.saves_predictions) and (
            not self.grid_side or picture_path(self._folder, index).is_file()
        )

    def _write_row(self, sample: Sample) -> None:
        row = picture_row(
            sample,
            self._predictor.predict_output(sample.image),
            self._dataset.info,
            max_offset=self._predictor.model.max_offset,
            align_corners=self._cfg.MODEL.ALIGN_CORNERS,
        )
        save_picture(row, (self._folder / "pictures" / sample.name).with_suffix(".png"))


@dataclass(frozen=True)
class TestRun:
    """What a test gave.

    Attributes:
        evaluation: the scores.
        saved: whether predictions were saved.
        max_offset: see `Segmentor.max_offset`.
    """

    evaluation: Evaluation
    saved: bool
    max_offset: float | None


def run_test(
    cfg: CfgNode, model_file: Path, folder: Path, settings: Mapping[str, Any], device: torch.device
) -> TestRun:
    """Predicts and counts the whole list on all processes, which share a file system.

    SIGTERM, SIGUSR1 and Ctrl-C end the program after the image at hand; ``TEST.RESUME`` then goes on there.

    Args:
        cfg: the configuration.
        model_file: weights.
        folder: takes ``images.jsonl``, and predictions and pictures as far as ``TEST`` wants them.
        settings: what the counts depend on, see `evaluation_settings`.
        device: of this process.

    Raises:
        UserError: the weights or the list cannot be used, or an interrupted evaluation is there and not to be resumed.
        OSError: the file system refuses.
    """
    dataset = test_dataset(cfg)
    predictor = load_predictor(cfg, model_file, device)
    names = prediction_names(cfg)
    evaluator = SegEvaluator(
        dataset.info, names, ignore_label=cfg.TRAIN.IGNORE_LABEL, detailed=cfg.TEST.DETAILS, device=device
    )
    partial = PartialEvaluation(folder / FOLDER, settings)
    writer = ImageWriter(cfg, dataset, predictor, folder)
    done = _resume(cfg, partial, writer, len(dataset))
    loader, places = shard_loader(cfg, dataset, done)
    place = iter(places)

    with Interruption() as interruption:

        def on_image(sample: Sample, prediction: Prediction, counts: ImageCounts | None) -> None:
            index = next(place)
            writer.write(index, sample, prediction)
            partial.add(image_record(index, sample, counts, names), evaluator)
            if interruption.received:
                sys.exit(interruption.exit_code)

        try:
            count_samples(predictor, _tracked(cfg, loader), evaluator, on_image=on_image, score_side=writer.grid_side)
        finally:
            partial.save(evaluator)
    distributed.barrier()
    if distributed.is_main():
        evaluator.merge(partial.joined)
    evaluator.all_reduce()
    if distributed.is_main():
        write_records(partial.records(), folder / RECORDS)
        partial.remove()
    return TestRun(evaluation_from_counts(evaluator), writer.saves_predictions, predictor.model.max_offset)


def _resume(cfg: CfgNode, partial: PartialEvaluation, writer: ImageWriter, num_images: int) -> set[int]:
    """The places in the list that need not be evaluated again; process 0 keeps what they counted."""
    if partial.exists() and not cfg.TEST.RESUME:
        raise UserError(
            f"{partial.folder}: an interrupted evaluation; TEST.RESUME True goes on with it, or delete that folder"
        )
    distributed.barrier()  # every process has read it before process 0 changes anything
    if cfg.TEST.RESUME and distributed.is_main() and not partial.exists():
        get_logger().info("%s: no interrupted evaluation to go on with; all images are evaluated", partial.folder)
    done: set[int] = partial.join() if distributed.is_main() else set()
    if not all(map(writer.has_written, done)):
        get_logger().warning(
            "%s: the interrupted evaluation did not save all that is wanted now; all images are evaluated again",
            partial.folder,
        )
        partial.discard()
        done = set()
    done = distributed.broadcast(done)
    if done:
        get_logger().info("going on with an interrupted evaluation: %d of %d images are done", len(done), num_images)
    partial.begin(distributed.rank())
    return done


def _tracked(cfg: CfgNode, loader: TestLoader) -> Iterable[Sample]:
    name = cfg.DATASET.TEST_SET
    return track(loader, name, len(loader), print_freq=cfg.PRINT_FREQ, enabled=distributed.is_main())
