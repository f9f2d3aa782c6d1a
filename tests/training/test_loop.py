"""The loop: reports, warm-up, seeds, and exact continuation from a saved state."""

import copy
from dataclasses import replace

import pytest
import torch

from oodflow.bench.machine import peak_memory
from oodflow.data.batches import Batches
from oodflow.data.images import Images
from oodflow.experiment import Data, Experiment, Loss, Model, Optimisation
from oodflow.models.form import FORMS
from oodflow.models.glow import Glow
from oodflow.models.likelihood import bits_per_dimension
from oodflow.training import loop, vector
from oodflow.training.checkpoint import STATE_FILE, TrainingState, load_training, save_training

RAMPS = torch.arange(32)[:, None] * 3 + torch.arange(40)[:, None, None, None]
NOISE = torch.randint(0, 8, (40, 1, 32, 32), generator=torch.Generator().manual_seed(0))
IMAGES = Images("ramps", "train", (RAMPS + NOISE).to(torch.uint8), None, "")


def experiment(steps: int = 7, loss: Loss | None = None, **changes) -> Experiment:
    settings = {"lr": 1e-3, "weight_decay": 0.0, "warmup": 0, "report_every": 3, **changes}
    return Experiment(
        Model(1, "glow", 1, 4),
        Data("blobs", 0),
        loss or Loss("none", "", 0.0, 0.0),
        Optimisation(steps, 8, precision="fp32", **settings),
        "scratch",
        "",
        seed=1,
    )


def batches(seed: int = 1) -> Batches:
    return Batches(IMAGES, 8, seed, 1, True, "cpu")


def trainer_for(given: Experiment) -> loop.Trainer:
    model = loop.new_model(given, torch.device("cpu"))
    loop.initialise(model, batches())
    return loop.Trainer(given, model, batches())


def test_reports_come_at_every_interval_and_at_the_end() -> None:
    assert [report.step for report in trainer_for(experiment(7)).run()] == [3, 6, 7]


def test_the_reported_bpd_is_that_of_the_batches_seen() -> None:
    trainer = trainer_for(experiment(1))
    before = copy.deepcopy(trainer.model)
    report = next(trainer.run())
    batch = batches().at(0)
    expected = bits_per_dimension(before.log_prob(batch.images, batch.noise).mean(), (1, 32, 32))
    assert report.bpd == pytest.approx(expected.item(), rel=1e-6)


def test_training_lowers_the_bpd() -> None:
    reports = list(trainer_for(experiment(60, lr=1e-2, report_every=20)).run())
    assert reports[-1].bpd < reports[0].bpd - 0.1


def test_warm_up_is_linear_in_the_updates() -> None:
    rates = []
    trainer = trainer_for(experiment(5, warmup=4, lr=0.008))
    for _ in trainer.run(lambda *_: rates.append(trainer.optimiser.param_groups[0]["lr"])):
        pass
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.008])


def test_the_rate_falls_linearly_to_zero_at_the_end() -> None:
    rates = []
    trainer = trainer_for(experiment(6, warmup=2, cooldown=4, lr=0.008))
    for _ in trainer.run(lambda *_: rates.append(trainer.optimiser.param_groups[0]["lr"])):
        pass
    assert rates == pytest.approx([0.004, 0.008, 0.008, 0.006, 0.004, 0.002])


def test_the_seed_decides_the_weights_and_nothing_else_does() -> None:
    torch.manual_seed(123)
    one = loop.new_model(experiment(), torch.device("cpu")).state_dict()
    torch.manual_seed(321)
    state = torch.get_rng_state()
    two = loop.new_model(experiment(), torch.device("cpu")).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("stop", [3, 6])
def test_a_run_continued_from_disk_ends_with_the_same_bits(tmp_path, stop: int) -> None:
    whole = trainer_for(experiment(11))
    expected = list(whole.run())

    first = trainer_for(experiment(11))
    for report in first.run():
        if report.step == stop:
            break
    save_training(tmp_path, first.state(), experiment(11))

    second = trainer_for(experiment(11))
    saved = load_training(tmp_path / STATE_FILE, experiment(11))
    second.restore(saved)
    assert list(second.run()) == [report for report in expected if report.step > stop]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


@pytest.mark.parametrize("lr", [1e-3, 1e3])
@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_run_continued_between_two_reports_makes_the_same_reports(
    tmp_path, stop: int, lr: float
) -> None:
    """At the higher rate images leave and batches are skipped: their counts go on as well."""
    whole = trainer_for(experiment(9, lr=lr))
    expected = list(whole.run())
    saved = []

    def on_step(step: int, _: object) -> None:
        if step == stop:
            save_training(tmp_path, first.state(), experiment(9, lr=lr))
            saved.append(load_training(tmp_path / STATE_FILE, experiment(9, lr=lr)))

    first = trainer_for(experiment(9, lr=lr))
    list(first.run(on_step))
    second = trainer_for(experiment(9, lr=lr))
    second.restore(saved[0])
    assert str(list(second.run())) == str([each for each in expected if each.step >= stop])
    assert all(each.dropped_images for each in expected) == (lr > 1)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_an_optimisers_state_fits_the_parameters_and_any_chunks(monkeypatch) -> None:
    first = trainer_for(experiment(6))
    reports = first.run()
    next(reports)
    model = {name: tensor.clone() for name, tensor in first.model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in first.optimiser_tensors().items()}
    for position, parameter in enumerate(first.model.parameters()):
        assert state[f"{position}/exp_avg"].shape == parameter.shape
        assert state[f"{position}/step"].item() == 3
    monkeypatch.setattr(vector, "CHUNK", 100)
    second = trainer_for(experiment(6))
    second.restore(TrainingState(3, model, state))
    assert list(second.run()) == list(reports)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_one_pass_over_inliers_and_outliers_gives_the_gradients_of_two() -> None:
    loss = Loss("binary", "out", 1000.0, 6000.0)
    given = experiment(1, loss)
    model = loop.new_model(given, torch.device("cpu")).double()
    contrast = copy.deepcopy(model)
    inliers, outliers = batches(1), batches(2)
    loop.initialise(model, inliers)
    loop.initialise(contrast, outliers)
    trainer = loop.Trainer(given, model, inliers, outliers, contrast)
    a, b = inliers.at(0), outliers.at(0)
    reference = copy.deepcopy(model)
    gap = contrast.log_prob(b.images, b.noise) - reference.log_prob(b.images, b.noise)
    value = -reference.log_prob(a.images, a.noise).mean()
    value = value - 6000 * torch.log(torch.sigmoid(gap / 1000)).mean()
    value.backward()
    next(trainer.run())
    for name, parameter in reference.named_parameters():
        own = model.get_parameter(name).grad
        assert torch.allclose(own, parameter.grad, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("outliers", [False, True])
def test_every_form_has_the_loss_curve_and_the_weights_of_the_plain_one(outliers: bool) -> None:
    given = experiment(8, Loss("binary", "out", 1000.0, 6000.0) if outliers else None)
    found = {}
    for form in FORMS:
        model, contrast = (loop.new_model(given, torch.device("cpu")) for _ in range(2))
        loop.initialise(model, batches(1))
        loop.initialise(contrast, batches(2))
        others = (batches(2), contrast) if outliers else (None, None)
        trainer = loop.Trainer(given, model, batches(1), *others, form=form)
        curve = [value for each in trainer.run() for value in (each.bpd, each.outlier_loss)]
        found[form] = curve, torch.cat([p.detach().flatten() for p in model.parameters()])
    plain, weights = found["plain"]
    for form in ("fused", "recomputed"):
        assert found[form][0] == pytest.approx(plain, rel=1e-5)
        # Adamax divides by the gradient's size: where that is rounding, so is the whole update.
        assert float((found[form][1] - weights).abs().max()) < 8 * 1e-3 * 2
        assert float((found[form][1] - weights).norm() / weights.norm()) < 1e-4


@pytest.mark.parametrize("loss", ["none", "binary", "margin"])
def test_a_batch_in_parts_has_the_curve_of_the_whole_one(loss: str) -> None:
    given = experiment(8, Loss(loss, "out", 1000.0, 6.0))
    found, gradients = [], []
    for parts in (1, 2, 8):
        model, contrast = (loop.new_model(given, torch.device("cpu")).double() for _ in range(2))
        loop.initialise(model, batches(1))
        loop.initialise(contrast, batches(2))
        others = (None, None)
        if loss != "none":
            others = (batches(2), contrast if loss == "binary" else None)
        trainer = loop.Trainer(given, model, batches(1), *others, parts=parts)
        found.append([value for each in trainer.run() for value in (each.bpd, each.outlier_loss)])
        gradients.append(trainer.vector.gradients)
    for curve, gradient in zip(found[1:], gradients[1:], strict=True):
        assert curve == pytest.approx(found[0], rel=1e-7)
        # Adamax does not see their size; weight decay and other optimisers do.
        assert torch.allclose(gradient, gradients[0], rtol=1e-5, atol=1e-8)
    assert (found[0][1] > 0) == (loss != "none")


def test_a_batch_in_parts_takes_the_memory_of_a_part() -> None:
    def memory(parts: int) -> int:
        given, data = experiment(2, report_every=1), Batches(IMAGES, 32, 1, 1, True, "cpu")
        reports = loop.Trainer(given, Glow(1, depth=4, hidden=16), data, parts=parts).run()
        next(reports)
        return peak_memory(lambda: next(reports), torch.device("cpu"))

    assert memory(4) < 0.35 * memory(1)


def test_a_bfloat16_run_changes_nothing_for_the_next_one() -> None:
    reports = []
    for precision in ("fp32", "bf16", "fp32", "tf32", "fp32"):
        given = experiment(3)
        optimisation = replace(given.optimisation, precision=precision)
        trainer = trainer_for(replace(given, optimisation=optimisation))
        reports.append([replace(each, step=0) for each in trainer.run()])
    first, bfloat16, second, tf32, third = reports
    assert first == second == third
    assert bfloat16 != first
    assert bfloat16[0].bpd == pytest.approx(first[0].bpd, abs=0.01)
    # There is no TF32 on a CPU.
    assert tf32 == first


def test_initialisation_uses_about_seven_hundred_images_once(monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr(Glow, "initialise", lambda self, images, noise: sizes.append(len(images)))
    many = Images("many", "train", IMAGES.pixels.repeat(40, 1, 1, 1), None, "")
    model = Glow(1, 1, 2)
    loop.initialise(model, Batches(many, 64, 0, 0, False, "cpu"))
    loop.initialise(model, Batches(IMAGES, 8, 0, 0, False, "cpu"))
    assert sizes == [704, 40]


def test_the_contrast_is_frozen() -> None:
    contrast = Glow(1, 1, 2)
    loop.Trainer(experiment(), Glow(1, 1, 2), batches(), batches(2), contrast)
    assert not contrast.training
    assert not any(parameter.requires_grad for parameter in contrast.parameters())
