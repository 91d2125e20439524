"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from ovenet.fields import setting
from ovenet.models.settings import PRECISIONS

DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")


@dataclass(frozen=True)
class RunSettings:
    """Output folders, logs and device of a run."""

    output_dir: str = setting("output", "runs go to OUTPUT_DIR/<dataset>/<name of the config file>", role="place")
    log_dir: str = setting(
        "", 'TensorBoard files go to LOG_DIR/<dataset>/<config>; "" puts them into the run\'s folder', role="place"
    )
    mlflow: str = setting(
        "", 'MLflow experiment that receives the numbers too (pip install mlflow); "" for none', role="place"
    )
    wandb: str = setting(
        "", 'Weights & Biases project that receives the numbers too (pip install wandb); "" for none', role="place"
    )
    device: str = setting(
        "auto",
        "auto is CUDA where present, else the CPU; mps and xpu were never run, see docs/training.md",
        one_of=DEVICES,
        role="speed",
    )
    print_freq: int = setting(20, "iterations between log lines and TensorBoard points", at_least=1, role="speed")
    dist_timeout: int = setting(
        1800, "seconds a process waits for the others before it gives up", at_least=1, at_most=10**7, role="speed"
    )
    seed: int = setting(0, "random seed of weights, shuffling and augmentation", at_least=0, at_most=2**32 - 1)


@dataclass(frozen=True)
class CudnnSettings:
    """cuDNN."""

    benchmark: bool = setting(True, "let cuDNN time its algorithms for each input size")
    deterministic: bool = setting(False, "deterministic algorithms only")
    enabled: bool = setting(True, "use cuDNN")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer."""

    optimizer: str = setting("sgd", "optimizer", one_of=("sgd", "adamw"))
    momentum: float = setting(0.9, "momentum of sgd", at_least=0, below=1)
    nesterov: bool = setting(False, "Nesterov's momentum, of sgd")
    wd: float = setting(0.0001, "weight decay", at_least=0)
    no_decay_on_norm: bool = setting(False, "no weight decay for biases and normalisation layers")
    lr_layer_decay: float = setting(
        1.0,
        "layer-wise learning rate decay: factor on the backbone's learning rates per layer between a parameter and the "
        "scores; 1 for none",
        above=0,
        at_most=1,
    )
    param_groups: str = setting(
        "parts",
        "parameter groups: by part, or official as OffSeg's optimizer has them, see docs/training.md",
        one_of=("parts", "official"),
    )


@dataclass(frozen=True)
class LearningRateMultipliers:
    """Factors on the learning rate, by part of the model."""

    backbone: float = setting(1.0, "factor of the backbone", above=0)
    head: float = setting(1.0, "factor of neck and head", above=0)
    seed: float = setting(1.0, "factor of the seed branch", above=0)
    offset_head: float = setting(0.0, "factor of the seed's offset head; 0 is that of SEED", at_least=0)


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over time, and how long training lasts."""

    lr: float = setting(0.01, "learning rate at the first iteration; falls to LR_MIN by LR_SCHEDULE", above=0)
    lr_schedule: str = setting(
        "poly",
        "fall of the learning rate: poly is (1 - it/max)^LR_POWER, cosine is (1 + cos(pi it/max)) / 2",
        one_of=("poly", "cosine"),
    )
    lr_min: float = setting(0.0, "learning rate at the end, at most LR", at_least=0)
    lr_power: float = setting(0.9, "exponent of the schedule poly", above=0)
    warmup: int = setting(
        0, "iterations in which the learning rate rises linearly from 0 to the schedule's value", at_least=0
    )
    begin_epoch: int = setting(0, "index of the first epoch of a fresh run", at_least=0)
    end_epoch: int = setting(484, "index of the last epoch plus 1")
    iterations: int = setting(
        0, "length of the training in iterations, instead of END_EPOCH; 0 is END_EPOCH", at_least=0
    )
    extra_epoch: int = setting(0, "epochs on DATASET.EXTRA_TRAIN_SET after END_EPOCH", at_least=0)
    extra_lr: float = setting(
        0.001, "learning rate at the start of the extra epochs; falls to LR_MIN x EXTRA_LR / LR as LR does", above=0
    )


@dataclass(frozen=True)
class StepSettings:
    """How a training step is computed."""

    precision: str = setting(
        "fp32", "precision of convolutions; losses and seed sampling are always float32", one_of=PRECISIONS
    )
    tf32: bool = setting(True, "CUDA: float32 convolutions and matrix products read 10 bits of mantissa; losses do not")
    accumulate: int = setting(1, "batches whose gradients are averaged in one iteration", at_least=1)
    clip_grad_norm: float = setting(0.0, "maximum norm of the gradient of all parameters; 0 for no limit", at_least=0)
    ema: float = setting(
        0.0, "decay of the averaged weights, which are validated and saved too; 0 for none", at_least=0, below=1
    )
    sync_bn: bool = setting(
        True, "CUDA, xpu: BatchNorm statistics over the batches of all processes, two messages per layer and step"
    )
    gradient_compression: str = setting(
        "none",
        "gradient compression between processes; bf16 halves the bytes",
        one_of=("none", "bf16", "powersgd"),
    )
    freeze_layers: str = setting(
        "", "parts, or modules of the backbone (layer1,stage2), separated by commas, frozen until FREEZE_EPOCHS"
    )
    freeze_epochs: int = setting(-1, "first epoch in which FREEZE_LAYERS are trained")
    max_skipped: int = setting(
        10, "end the run after this many iterations in a row without a finite loss and gradient", at_least=1
    )
    cuda_graph: str = setting(
        "auto",
        "auto launches a step as one CUDA graph where possible (crops of one size)",
        one_of=("auto", "off"),
        role="speed",
    )
    compile: str = setting(
        "none",
        "torch.compile; blocks takes seconds to start, the others minutes",
        one_of=("none", "blocks", "default", "reduce-overhead", "max-autotune"),
        role="speed",
    )
    checkpoint_activations: bool = setting(
        False, "recompute activations in the backward pass: less memory for about a third more time", role="speed"
    )


@dataclass(frozen=True)
class CheckpointSettings:
    """Validation during training, and checkpoints."""

    eval_interval: int = setting(1, "epochs between validations; the last epoch is always validated", at_least=1)
    eval_num_samples: int = setting(
        0, "validations use only the first N lines of what a test uses; 0 is all", at_least=0
    )
    resume: bool = setting(False, "go on from the run's checkpoint.pth, if it exists", role="speed")
    checkpoint_every: int = setting(
        0, "iterations between checkpoints inside an epoch; 0 for none", at_least=0, role="speed"
    )
    checkpoint_minutes: float = setting(
        0.0, "minutes between checkpoints inside an epoch; 0 for none", at_least=0, role="speed"
    )
    best: str = setting(
        "fused",
        "choice of best.pth: fused is by the mIoU of S_f; any is the better of S_i and S_f, of the trained and of the "
        "averaged weights; where that is S_i, the file holds the network without its seed",
        one_of=("fused", "any"),
    )
    keep_checkpoints: int = setting(2, "number of newest checkpoints to keep", at_least=1, at_most=1000, role="speed")
