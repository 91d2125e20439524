"""The loop: steps that must not happen, resuming, and the schedule."""

import dataclasses
import json
import logging
import math
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ovenet.builders import build_model, build_optimizer, build_train_step
from ovenet.data.samplers import TrainSampler
from ovenet.engine.checkpoint import BEST, BEST_EMA, CHECKPOINT, FINAL, FINAL_EMA
from ovenet.engine.optim import build_schedule, set_iteration
from ovenet.engine.phases import Phase, Timeline
from ovenet.engine.settings import CheckpointSettings, RunSettings, ScheduleSettings
from ovenet.engine.trainer import Trainer, TrainSettings
from ovenet.evaluation.metrics import scores_from_counts
from ovenet.models.weight_files import read_checkpoint
from ovenet.structures import Batch


class RandomCrops(torch.utils.data.Dataset):
    """Crops whose left half is dark and of class 1, and whose right half is light and of class 2."""

    def __len__(self):
        return 8

    def __getitem__(self, key):
        epoch, index = key
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        image = torch.randint(0, 60, (3, 32, 48), generator=generator, dtype=torch.uint8)
        image[:, :, 24:] += 150
        labels = torch.ones(32, 48, dtype=torch.int64)
        labels[:, 24:] = 2
        return image, labels


def stack(samples):
    images, labels = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.stack(labels), ("a.png",) * len(images))


def make_trainer(
    cfg, run_dir, *, scores=lambda: 0.5, end_epoch=3, batch_size=4, rank=0, world_size=1, iterations=0, hooks=(),
    **options,
):  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    run_dir.mkdir(exist_ok=True)
    sampler = TrainSampler(8, rank=rank, world_size=world_size, seed=0)
    loader = DataLoader(RandomCrops(), batch_size=batch_size, sampler=sampler, collate_fn=stack, drop_last=True)

    def evaluate(model, stop):
        wrong = round(100 * (1 - scores()))
        counts = torch.tensor([[100 - wrong, wrong], [0, 0]])
        return {"fused": scores_from_counts(counts, ("a", "b"))}

    options = {"print_freq": 1, **options}
    parts = {"run": RunSettings, "checkpoints": CheckpointSettings}
    for name, part in parts.items():
        names = [field.name for field in dataclasses.fields(part)]
        options[name] = part(**{key: options.pop(key) for key in names if key in options})
    settings = TrainSettings(run_dir, run_dir / "tensorboard", {"config": "c"}, **options)
    timeline = Timeline((Phase(loader, sampler, end_epoch, iterations),), 0, cfg.TRAIN.ACCUMULATE)
    cfg = cfg.clone()
    cfg.merge_from_list(["TRAIN.END_EPOCH", end_epoch, "TRAIN.MAX_SKIPPED", 2])
    step = build_train_step(model, cfg, torch.device("cpu"), timeline.lengths)
    return Trainer(step, timeline, evaluate, lambda: torch.zeros(3, 4, 4, dtype=torch.uint8), settings, hooks)


@pytest.fixture
def cfg(small_cfg):
    return small_cfg("TRAIN.LR", 0.05)


def test_the_loss_falls_and_the_files_are_there(cfg, tmp_path):
    trainer = make_trainer(cfg, tmp_path / "run", end_epoch=12)
    first = trainer.step([next(iter(trainer.phase.loader))]).loss.terms["fused"].item()
    assert trainer.fit() == pytest.approx(0.5)
    last = trainer.step([next(iter(trainer.phase.loader))]).loss.terms["fused"].item()
    assert first == pytest.approx(math.log(11), abs=0.1)  # 11 classes, about equally likely
    assert last < 0.5 * first
    for name in (CHECKPOINT, BEST, FINAL):
        assert set(trainer.model.state_dict()) == set(read_checkpoint(tmp_path / "run" / name)["model"])


def test_the_best_score_is_saved_with_the_weights_that_reached_it(cfg, tmp_path):
    series = iter([0.3, 0.6, 0.4])
    trainer = make_trainer(cfg, tmp_path / "run", scores=lambda: next(series))
    assert trainer.fit() == pytest.approx(0.6)
    best = read_checkpoint(tmp_path / "run" / BEST)
    assert (best["epoch"], best["best_mean_iou"]) == (2, pytest.approx(0.6))
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["best_mean_iou"] == pytest.approx(0.6)
    assert read_checkpoint(tmp_path / "run" / FINAL)["epoch"] == 3


def test_a_resumed_run_ends_with_the_same_bits(cfg, tmp_path):
    whole = make_trainer(cfg, tmp_path / "whole")
    whole.fit()
    calls = []

    def fail_in_the_second_epoch():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 0.5

    with pytest.raises(KeyboardInterrupt):
        make_trainer(cfg, tmp_path / "cut", scores=fail_in_the_second_epoch).fit()
    resumed = make_trainer(cfg, tmp_path / "cut")
    resumed.checkpoints.resume()
    assert (resumed.state.epoch, resumed.state.iteration, resumed.state.is_validation_due) == (2, 4, True)
    resumed.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore:Detected call of")  # the very first step is the skipped one
def test_a_step_without_a_finite_loss_changes_no_weight(cfg, tmp_path, caplog):
    trainer = make_trainer(cfg, tmp_path / "run")
    trainer.model.train()
    batch = next(iter(trainer.phase.loader))
    with torch.no_grad():
        trainer.model.head.layers[3].bias[0] = float("nan")
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    assert trainer.step([batch]).loss is None
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p.nan_to_num(), before[name].nan_to_num()), name


def test_many_such_steps_end_the_run_and_leave_the_checkpoint(cfg, tmp_path):
    trainer = make_trainer(cfg, tmp_path / "run", end_epoch=1)
    trainer.fit()
    saved = (tmp_path / "run" / CHECKPOINT).read_bytes()
    broken = make_trainer(cfg, tmp_path / "run", end_epoch=3)
    broken.checkpoints.resume()
    with torch.no_grad():
        broken.model.head.layers[3].bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"not finite in 2 .*TRAIN\.MAX_SKIPPED"):
        broken.fit()
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == saved


def test_a_checkpoint_of_another_model_is_refused(cfg, small_cfg, tmp_path):
    make_trainer(cfg, tmp_path / "run", end_epoch=1).fit()
    other = make_trainer(small_cfg("MODEL.SEED.NAME", "none"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"checkpoint\.pth: .*TRAIN\.RESUME False"):
        other.checkpoints.resume()


def test_the_learning_rate_follows_the_formula():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    schedule = build_schedule(optimizer, ScheduleSettings(), 40)
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates, [0.01 * (1 - it / 40) ** 0.9 for it in range(41)], atol=1e-12)
    set_iteration(schedule, 10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (1 - 10 / 40) ** 0.9)
    schedule.step()
    assert schedule.get_last_lr()[0] == pytest.approx(0.01 * (1 - 11 / 40) ** 0.9)


def test_the_learning_rate_ends_where_it_is_told_to():
    """The values of mmsegmentation's schedule, and another base rate with the same end."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": 0.01}, {"params": parameters[1:], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.01)
    schedule = build_schedule(optimizer, ScheduleSettings(lr_min=1e-4), 40_000)
    expected = {0: 0.01, 10_000: 0.00774171, 20_000: 0.00540528, 39_999: 0.00010071}
    for iteration, rate in expected.items():
        set_iteration(schedule, iteration)
        slow, fast = (group["lr"] for group in optimizer.param_groups)
        assert slow == pytest.approx(rate, abs=1e-8)
        assert fast == pytest.approx((0.1 - 1e-4) * (1 - iteration / 40_000) ** 0.9 + 1e-4)


def test_extra_epochs_begin_at_their_rate_and_end_at_the_same_share_of_it():
    """``EXTRA_LR``'s text says so: in place of LR and LR_MIN there are EXTRA_LR and LR_MIN x EXTRA_LR / LR."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.02)
    schedule = build_schedule(optimizer, ScheduleSettings(lr=0.02, lr_min=0.005, lr_power=2.0, extra_lr=0.004), 10, 4)
    rates = []
    for iteration in (0, 5, 9, 10, 12, 13, 14):
        set_iteration(schedule, iteration)
        rates.append(optimizer.param_groups[0]["lr"])
    extra = [0.003 * (1 - it / 4) ** 2 + 0.001 for it in (0, 2, 3, 4)]
    assert rates == pytest.approx([0.015 * (1 - it / 10) ** 2 + 0.005 for it in (0, 5, 9)] + extra)
    assert extra[0] == pytest.approx(0.004)


def test_the_cosine_schedule_warms_up_falls_and_ends_where_it_is_told_to():
    """By hand: cos(0, π/4, π/2, π) is 1, 0.70711, 0, -1; warm-up multiplies by 1/3, 2/3 and 1."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": parameters[:1], "lr": 1e-5}, {"params": parameters[1:], "lr": 1e-3}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    settings = ScheduleSettings(lr=1e-3, lr_schedule="cosine", lr_min=1e-4, extra_lr=2e-4, warmup=2)
    schedule = build_schedule(optimizer, settings, 40, 4)
    falls = {0: 1.0, 1: (1 + math.cos(math.pi / 40)) / 2, 10: 0.853553, 20: 0.5, 30: 0.146447}
    for iteration, fall in falls.items():
        set_iteration(schedule, iteration)
        low, high = (group["lr"] for group in optimizer.param_groups)
        rising = {0: 1 / 3, 1: 2 / 3}.get(iteration, 1.0)
        assert high == pytest.approx(rising * (9e-4 * fall + 1e-4), rel=1e-5)
        assert low == pytest.approx(rising * 1e-5)  # a rate below LR_MIN does not rise to it
    extra = []  # from EXTRA_LR to LR_MIN x EXTRA_LR / LR
    for iteration in (40, 41, 42, 44):
        set_iteration(schedule, iteration)
        extra.append(optimizer.param_groups[1]["lr"])
    assert extra == pytest.approx([2e-4, 1.8e-4 * 0.853553 + 2e-5, 1.8e-4 * 0.5 + 2e-5, 2e-5], rel=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_optimizers_leave_out_frozen_parameters(small_cfg, name, kind):
    cfg = small_cfg("TRAIN.OPTIMIZER", name, "MODEL.FREEZED_PAR", True)
    model = build_model(cfg)
    optimizer = build_optimizer(model, cfg)
    assert type(optimizer) is kind
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    assert trained == sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))


@pytest.mark.filterwarnings("ignore:Detected call of")  # the very first step is the skipped one
def test_a_step_without_a_finite_loss_leaves_the_running_statistics(cfg, tmp_path):
    """One bad input makes every activation NaN; BatchNorm must not remember them."""
    trainer = make_trainer(cfg, tmp_path / "run")
    trainer.model.train()
    with torch.no_grad():
        trainer.model.backbone.layers[0][0].weight[0] = float("nan")
    before = {name: b.clone() for name, b in trainer.model.named_buffers()}
    assert trainer.step([next(iter(trainer.phase.loader))]).loss is None
    assert all(torch.equal(b, before[name]) for name, b in trainer.model.named_buffers())


def test_the_epoch_is_saved_before_its_validation_which_a_resumed_run_makes_up_for(cfg, tmp_path):
    whole = make_trainer(cfg, tmp_path / "whole", end_epoch=3, scores=iter([0.3, 0.6, 0.4]).__next__)
    whole.fit()

    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        make_trainer(cfg, tmp_path / "cut", end_epoch=3, scores=fail).fit()
    state = read_checkpoint(tmp_path / "cut" / CHECKPOINT)
    assert (state["epoch"], state["iteration"], state["is_validation_due"]) == (1, 2, True)
    resumed = make_trainer(cfg, tmp_path / "cut", end_epoch=3, scores=iter([0.3, 0.6, 0.4]).__next__)
    resumed.checkpoints.resume()
    assert resumed.fit() == pytest.approx(0.6)
    assert resumed.state.best == whole.state.best
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    points = [json.loads(line) for line in (tmp_path / "cut/log.jsonl").read_text().splitlines()]
    assert [p["epoch"] for p in points if p["kind"] == "val"] == [0, 1, 2]


def test_the_last_validation_is_made_up_for_too(cfg, tmp_path):
    def fail():
        raise MemoryError

    with pytest.raises(MemoryError):
        make_trainer(cfg, tmp_path / "run", end_epoch=1, scores=fail).fit()
    resumed = make_trainer(cfg, tmp_path / "run", end_epoch=1)
    resumed.checkpoints.resume()
    assert resumed.fit() == pytest.approx(0.5)
    assert (tmp_path / "run" / FINAL).exists()


def test_a_picture_never_ends_a_run(cfg, tmp_path, caplog):
    trainer = make_trainer(cfg, tmp_path / "run", end_epoch=1)

    def fail():
        raise RuntimeError("cannot colour NaN")

    trainer.draw_picture = fail
    trainer.fit()
    assert "epoch 1: cannot colour NaN" in caplog.text


def test_a_picture_is_drawn_every_epoch(cfg, tmp_path):
    trainer = make_trainer(cfg, tmp_path / "run")
    drawn = []
    trainer.draw_picture = lambda: drawn.append(trainer.state.epoch) or torch.zeros(3, 4, 4, dtype=torch.uint8)
    trainer.settings = dataclasses.replace(trainer.settings, checkpoints=CheckpointSettings(eval_interval=3))
    trainer.fit()
    assert drawn == [1, 2, 3]


def test_a_resumed_run_takes_the_present_settings_of_the_optimizer(cfg, small_cfg, tmp_path):
    make_trainer(cfg, tmp_path / "run", end_epoch=1).fit()
    other = small_cfg("TRAIN.LR", 0.2, "TRAIN.WD", 0.125)
    resumed = make_trainer(other, tmp_path / "run", end_epoch=4)
    resumed.checkpoints.resume()
    (group,) = resumed.step.optimizer.param_groups
    assert group["weight_decay"] == 0.125
    assert group["lr"] == pytest.approx(0.2 * (1 - 2 / 8) ** 0.9)  # 2 of 8 iterations are done
    resumed.step([next(iter(resumed.phase.loader))])
    assert group["lr"] == pytest.approx(0.2 * (1 - 3 / 8) ** 0.9)


def cut_after(trainer, iterations):
    """Trains until so many iterations are done, as a kill right after a checkpoint would leave it."""
    step = trainer.step

    def stop_then(batches, *, stop, **options):
        return step(batches, stop=trainer.state.iteration == iterations, **options)

    trainer.step = stop_then
    for name in ("optimizer", "ema", "parallel", "state", "latency", "device", "settings"):
        setattr(stop_then, name, getattr(step, name))
    with pytest.raises(SystemExit):
        trainer.fit()


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_a_run_goes_on_inside_its_epoch_with_the_same_bits(small_cfg, tmp_path, iterations):
    """With dropout, whose random numbers must go on where they were."""
    cfg = small_cfg("TRAIN.LR", 0.05, "MODEL.HEAD.DROPOUT", 0.5, "MODEL.HEAD.NAME", "ocr", "MODEL.NECK.NAME", "concat")
    whole = make_trainer(cfg, tmp_path / "whole", batch_size=2)
    whole.fit()
    cut_after(make_trainer(cfg, tmp_path / "cut", batch_size=2), iterations)
    resumed = make_trainer(cfg, tmp_path / "cut", batch_size=2)
    torch.manual_seed(999)  # what this process drew before must not matter
    resumed.checkpoints.resume()
    assert (resumed.state.epoch, resumed.state.iterations_in_epoch) == (0, iterations)
    resumed.fit()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_another_batch_size_goes_on_behind_the_samples_that_were_used(cfg, tmp_path):
    cut_after(make_trainer(cfg, tmp_path / "run", batch_size=2), 3)  # 6 of the epoch's 8 samples
    resumed = make_trainer(cfg, tmp_path / "run", batch_size=1)
    resumed.checkpoints.resume()
    assert (resumed.state.iterations_in_epoch, resumed.state.iterations_per_epoch) == (6, 8)
    resumed.phase.sampler.start = resumed.state.samples_done
    order = list(resumed.phase.sampler)
    resumed.phase.sampler.start = 0
    assert order == list(resumed.phase.sampler)[6:]
    other = make_trainer(cfg, tmp_path / "run", batch_size=4)
    other.checkpoints.resume()
    assert other.state.iterations_in_epoch == 2  # the epoch ends: two samples are left out rather than used twice


@pytest.mark.parametrize(("batch_size", "cut"), [(2, 8), (4, 7)])  # 4 iterations of 2 samples an epoch
def test_a_stop_in_the_last_steps_leaves_the_last_validation_to_the_resumed_run(cfg, tmp_path, batch_size, cut):
    """On the very last step; or one before it, and the samples that are left do not fill a larger batch."""
    cut_after(make_trainer(cfg, tmp_path / "run", batch_size=2, end_epoch=2, scores=lambda: 0.25), cut)
    resumed = make_trainer(cfg, tmp_path / "run", batch_size=batch_size, end_epoch=2)
    resumed.checkpoints.resume()
    assert (resumed.state.num_left, resumed.state.is_finished) == (0, False)
    assert resumed.fit() == pytest.approx(0.5)
    assert (resumed.state.iteration, resumed.state.is_finished) == (cut, True)
    for name in (BEST, FINAL):
        saved = read_checkpoint(tmp_path / "run" / name)
        assert saved["epoch"] == 2
        assert all(torch.equal(value, saved["model"][key]) for key, value in resumed.model.state_dict().items())
    points = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [p["epoch"] for p in points if p["kind"] == "val"] == [0, 1]


def test_a_run_that_is_made_shorter_than_it_is_has_nothing_left(cfg, tmp_path):
    cut_after(make_trainer(cfg, tmp_path / "run", batch_size=2, end_epoch=3), 6)  # inside the second epoch
    resumed = make_trainer(cfg, tmp_path / "run", batch_size=2, end_epoch=1)
    resumed.checkpoints.resume()
    assert resumed.state.is_finished


def test_a_card_without_memory_is_no_fault_of_the_checkpoint(cfg, tmp_path):
    make_trainer(cfg, tmp_path / "run", end_epoch=1).fit()
    resumed = make_trainer(cfg, tmp_path / "run")

    def fail(state):
        raise torch.OutOfMemoryError("CUDA out of memory")

    resumed.model.load_state_dict = fail
    with pytest.raises(torch.OutOfMemoryError):
        resumed.checkpoints.resume()


def test_checkpoints_by_the_clock(cfg, tmp_path):
    trainer = make_trainer(cfg, tmp_path / "run", batch_size=2, end_epoch=1, checkpoint_minutes=1e-9)
    saved = []
    save = trainer.checkpoints.store.save
    trainer.checkpoints.store.save = lambda state, **options: saved.append(state["iteration"]) or save(state, **options)
    trainer.fit()
    assert saved == [1, 2, 3, 4, 4]  # the epoch's before its validation, and with its score after it


def test_averaged_weights_are_validated_and_saved(small_cfg, tmp_path):
    trainer = make_trainer(small_cfg("TRAIN.EMA", 0.9), tmp_path / "run", end_epoch=1)
    seen = []
    score = trainer.evaluate
    trainer.evaluate = lambda model, stop: seen.append(model) or score(model, stop)
    trainer.fit()
    assert seen == [trainer.model, trainer.step.ema.module]
    for file in (BEST_EMA, FINAL_EMA):
        saved = read_checkpoint(tmp_path / "run" / file)["model"]
        for name, value in trainer.step.ema.module.state_dict().items():
            assert torch.equal(value, saved[name])
    assert any(not torch.equal(value, saved[name]) for name, value in trainer.model.state_dict().items())


def test_results_that_are_read_late_change_nothing(cfg, tmp_path):
    """On CUDA a step's result is read when the next one has begun."""
    prompt, late = (make_trainer(cfg, tmp_path / name, end_epoch=3) for name in ("prompt", "late"))
    late.step.latency = 1
    for trainer in (prompt, late):
        trainer.fit()
    for name, value in prompt.model.state_dict().items():
        assert torch.equal(value, late.model.state_dict()[name]), name
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("prompt", "late")]
    points = [[json.loads(line) for line in log] for log in lines]
    losses = [[p["loss"] for p in log if p["kind"] == "train"] for log in points]
    assert losses[1] == losses[0]
    assert len(losses[0]) == 6


def test_bad_steps_that_are_read_late_end_the_run(cfg, tmp_path):
    trainer = make_trainer(cfg, tmp_path / "run", end_epoch=3)
    trainer.step.latency = 1
    with torch.no_grad():
        trainer.model.head.layers[3].bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"not finite in 2 .*TRAIN\.MAX_SKIPPED"):
        trainer.fit()


def rates_of(trainer):
    """The learning rate of every step that is still to come."""
    rates = []
    step = trainer.step

    def noting(batches, **keys):
        rates.append(step.optimizer.param_groups[0]["lr"])
        return step(batches, **keys)

    for name in ("optimizer", "ema", "parallel", "state", "latency", "model", "device", "settings"):
        setattr(noting, name, getattr(step, name))
    trainer.step = noting
    trainer.fit()
    return rates


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
@pytest.mark.parametrize("iterations", [0, 12])
def test_a_resumed_run_has_the_rate_of_its_share_of_the_schedule(cfg, tmp_path, batch_size, iterations):
    """Six epochs of 8 samples, cut after half of them in batches of 4; then in batches of another size.

    Per epoch there are 8 / batch_size steps: with the length in epochs, 3 epochs of them are left. With the length in
    iterations, 6 of 12 are left whatever the batch.
    """
    cut_after(make_trainer(cfg, tmp_path / "run", batch_size=4, end_epoch=6, iterations=iterations), 6)
    resumed = make_trainer(cfg, tmp_path / "run", batch_size=batch_size, end_epoch=6, iterations=iterations)
    resumed.checkpoints.resume()
    total = iterations or 6 * 8 // batch_size
    expected = [0.05 * (1 - it / total) ** 0.9 for it in range(total // 2, total)]
    assert rates_of(resumed) == pytest.approx(expected)


def test_another_accumulation_has_the_rate_of_its_share_too(small_cfg, tmp_path):
    once, twice = small_cfg("TRAIN.LR", 0.05), small_cfg("TRAIN.LR", 0.05, "TRAIN.ACCUMULATE", 2)
    cut_after(make_trainer(once, tmp_path / "run", batch_size=2, end_epoch=4), 8)
    resumed = make_trainer(twice, tmp_path / "run", batch_size=2, end_epoch=4)
    resumed.checkpoints.resume()
    assert rates_of(resumed) == pytest.approx([0.05 * (1 - it / 8) ** 0.9 for it in range(4, 8)])


def test_a_length_in_iterations_ends_inside_an_epoch(cfg, tmp_path):
    trainer = make_trainer(cfg, tmp_path / "run", batch_size=2, end_epoch=999, iterations=6)  # 4 steps an epoch
    assert trainer.state.end_epoch == 2
    validations = []
    score = trainer.evaluate
    trainer.evaluate = lambda model, stop: validations.append(trainer.state.schedule_iteration) or score(model, stop)
    trainer.fit()
    assert (trainer.state.iteration, trainer.state.schedule_iteration, trainer.state.is_trained) == (6, 6, True)
    assert validations == [4, 6]
    again = make_trainer(cfg, tmp_path / "run", batch_size=2, end_epoch=999, iterations=6)
    again.checkpoints.resume()
    assert again.state.is_trained


def test_momenta_of_another_optimizer_are_refused(cfg, small_cfg, tmp_path):
    make_trainer(cfg, tmp_path / "run", end_epoch=1).fit()
    other = make_trainer(small_cfg("TRAIN.OPTIMIZER", "adamw"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"checkpoint\.pth: .*TRAIN\.OPTIMIZER"):
        other.checkpoints.resume()


def test_momenta_follow_their_parameters_into_other_groups(cfg, small_cfg, tmp_path):
    first = make_trainer(cfg, tmp_path / "run", end_epoch=1)
    first.fit()
    other = make_trainer(small_cfg("TRAIN.LR_MULT.HEAD", 5, "TRAIN.NO_DECAY_ON_NORM", True), tmp_path / "run")
    other.checkpoints.resume()
    assert len(other.step.optimizer.param_groups) == 4
    for name, parameter in other.model.named_parameters():
        before = first.step.optimizer.state[first.model.get_parameter(name)]["momentum_buffer"]
        assert torch.equal(other.step.optimizer.state[parameter]["momentum_buffer"], before), name


def test_the_share_of_the_peak_is_logged_where_it_is_known(cfg, tmp_path):
    make_trainer(cfg, tmp_path / "run", end_epoch=1, peak_images_per_second=50.0).fit()
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    assert train
    assert all(line["mfu"] == pytest.approx(line["images_per_second"] / 50) for line in train)


SCHEDULES = {  # what each of 12 iterations is done with, counted from 0, for TRAIN.LR 0.2
    "poly": ((), lambda it: 0.2 * (1 - it / 12) ** 0.9),
    "linear": (("TRAIN.LR_POWER", 1.0), lambda it: 0.2 * (1 - it / 12)),
    "least": (("TRAIN.LR_MIN", 0.05), lambda it: 0.15 * (1 - it / 12) ** 0.9 + 0.05),
    "warm-up": (("TRAIN.WARMUP", 3), lambda it: min(1, (it + 1) / 4) * 0.2 * (1 - it / 12) ** 0.9),
}


@pytest.mark.parametrize("latency", [0, 1])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_log_has_the_rate_that_each_step_was_done_with(small_cfg, tmp_path, caplog, name, latency):
    """In a run that is cut off in its second epoch and resumed, too."""
    settings, formula = SCHEDULES[name]
    cfg = small_cfg("TRAIN.LR", 0.2, *settings)
    for is_resumed in (False, True):
        trainer = make_trainer(cfg, tmp_path / "run", end_epoch=6)
        trainer.step.latency = latency
        if is_resumed:
            trainer.checkpoints.resume()
        else:
            trainer.evaluate = scores_until(trainer, 2)
        is_ended = nullcontext() if is_resumed else pytest.raises(KeyboardInterrupt)
        with caplog.at_level(logging.INFO, "ovenet"), is_ended:
            trainer.fit()
    points = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    train = [point for point in points if point["kind"] == "train"]
    assert [point["iteration"] for point in train] == list(range(1, 13))
    assert [point["lr"] for point in train] == pytest.approx([formula(it) for it in range(12)], abs=1e-12)
    assert [p["iteration"] for p in points if p["kind"] == "val"] == [2, 4, 6, 8, 10, 12]
    told = [re.search(r" lr (\S+),", message)[1] for message in caplog.messages if " lr " in message]
    assert [float(rate) for rate in told] == pytest.approx([formula(it) for it in range(12)], rel=1e-3)


def scores_until(trainer, last):
    """The trainer's evaluation, during which the run is killed after an epoch."""
    evaluate = trainer.evaluate

    def ending(model, stop):
        if trainer.state.epoch == last:
            raise KeyboardInterrupt
        return evaluate(model, stop)

    return ending


def test_a_validation_that_is_made_again_is_in_the_log_once(cfg, tmp_path):
    """The run is killed after its scores are written, and before the checkpoint that knows of them."""
    trainer = make_trainer(cfg, tmp_path / "run", end_epoch=2)

    def save(*, replaces_newest=False):
        if replaces_newest:
            raise KeyboardInterrupt
        type(trainer.checkpoints).save(trainer.checkpoints)

    trainer.checkpoints.save = save
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    resumed = make_trainer(cfg, tmp_path / "run", end_epoch=2)
    resumed.checkpoints.resume()
    resumed.fit()
    points = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [(p["kind"], p["iteration"]) for p in points] == [
        ("train", 1), ("train", 2), ("val", 2), ("train", 3), ("train", 4), ("val", 4),
    ]  # fmt: skip


def early_stopping(patience):
    """A hook of the page "Your own loop": ends a training whose score has not risen for so many validations."""

    def is_enough(state):
        scores = [row["fused"] for row in state.history]
        return len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience])

    return is_enough


def test_a_hook_ends_the_training_and_sees_every_validation(cfg, tmp_path):
    seen = []
    trainer = make_trainer(
        cfg,
        tmp_path / "run",
        end_epoch=9,
        scores=iter([0.3, 0.6, 0.5, 0.6, 0.7]).__next__,
        hooks=[lambda state: seen.append((state.iteration, dict(state.history[-1]))), early_stopping(2)],
    )
    assert trainer.fit() == pytest.approx(0.6)
    assert seen == [(2 * n, {"epoch": n, "fused": pytest.approx(s)}) for n, s in enumerate([0.3, 0.6, 0.5, 0.6], 1)]
    assert (tmp_path / "run" / FINAL).exists()


def test_hooks_change_no_bit_and_a_resumed_run_knows_the_scores_before(cfg, tmp_path):
    """A killed run stops where an uninterrupted one does; what a hook draws at random is no matter."""
    scores = [0.6, 0.5, 0.4, 0.3]
    hooks = [lambda state: torch.rand(7), early_stopping(2)]
    cut = make_trainer(cfg, tmp_path / "cut", end_epoch=9, scores=iter(scores[:2]).__next__, hooks=hooks)
    with pytest.raises(StopIteration):  # in the third validation
        cut.fit()
    resumed = make_trainer(cfg, tmp_path / "cut", end_epoch=9, scores=lambda: scores[2], hooks=hooks)
    resumed.checkpoints.resume()
    resumed.fit()
    assert [row["epoch"] for row in resumed.state.history] == [1, 2, 3]
    short = make_trainer(cfg, tmp_path / "short", end_epoch=9, scores=iter(scores).__next__, hooks=[early_stopping(2)])
    short.fit()
    assert short.state.epoch == 3
    for name, value in short.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
