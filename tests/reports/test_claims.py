"""Claims: each verdict follows from numbers that make it hold, fail, or were not measured."""

import pytest
from registered import OODS, PARAMS, add_general, add_run

from oodflow.tracking.registry import read_registry
from reports.claims import check_claims

SCORES = ("raw", "last_scale", "diff", "diff_outlier")


@pytest.fixture
def store(blank):
    return blank.store()


def verdict(store, words: str) -> tuple[bool | None, str]:
    [claim] = [each for each in check_claims(read_registry(store)) if words in each.text]
    return claim.holds, claim.detail


def add_model(
    store, general: str, loss: str, against: dict[str, tuple[float, ...]], seed="1"
) -> str:
    metrics = {
        f"auroc/{ood}/{score}": value
        for ood, values in against.items()
        for score, value in zip(SCORES, values, strict=True)
    }
    return add_run(store, metrics, outlier_loss=loss, general_run=general,
                   general_outlier_run=general, seed=seed)  # fmt: skip


def test_the_ratio_must_beat_raw_against_simpler_outliers_only(store):
    # Of these, digits and scenes have fewer bits under the general model than shapes.
    general = add_general(store)
    against = {"sketch-digits": (0.1, 0, 0.9, 0), "sketch-scenes": (0.4, 0, 0.5, 0),
               "sketch-letters": (0.9, 0, 0.2, 0)}  # fmt: skip
    add_model(store, general, "none", against)
    holds, detail = verdict(store, "simpler outliers")
    assert holds is True
    assert detail == (
        "sketch-shapes against sketch-digits +80.0, sketch-shapes against sketch-scenes +10.0"
    )
    # A second seed that pulls the mean of one pair below raw.
    add_model(store, general, "none", against | {"sketch-scenes": (0.8, 0, 0.5, 0)}, seed="2")
    holds, detail = verdict(store, "simpler outliers")
    assert holds is False
    assert detail.startswith("not in 1 of 2: sketch-shapes against sketch-scenes −10.0, ")


def test_losses_and_general_models_are_compared_on_averages(store):
    general = add_general(store)
    add_model(store, general, "none", {"sketch-digits": (0.1, 0.2, 0.9, 0.8),
                                       "sketch-letters": (0.5, 0.6, 0.5, 0.6)})  # fmt: skip
    assert verdict(store, "improves Raw") == (None, "")
    add_model(store, general, "binary", {"sketch-digits": (0.0, 0.9, 0.95, 0.99),
                                         "sketch-letters": (0.7, 0.1, 0.4, 0.3)})  # fmt: skip
    assert verdict(store, "improves Raw") == (True, "binary 35.0, none 30.0")
    assert verdict(store, "improves 4×4") == (True, "binary 50.0, none 40.0")
    assert verdict(store, "improves Diff") == (False, "binary 67.5, none 70.0")
    # Equal is enough for Diff†, but not less.
    assert verdict(store, "on average, no outlier loss") == (True, "Diff† 70.0, Diff 70.0")
    assert verdict(store, "on average, binary outlier loss") == (False, "Diff† 64.5, Diff 67.5")


def test_finetuning_is_compared_at_equal_updates_only(store):
    def add(init: str, bpd: float, diff: float, steps: int, seed: str = "1") -> None:
        metrics = {"bpd/sketch-shapes": bpd, "auroc/mean/diff": diff, "auroc/sketch-digits/raw": 0}
        add_run(store, metrics, PARAMS | {"optimisation.steps": str(steps)}, init=init, seed=seed,
                general_run=general)  # fmt: skip

    general = add_general(store)
    add("general", 4.0, 0.7, 300)
    add("scratch", 4.5, 0.8, 1000, seed="9")
    assert verdict(store, "bits per dimension")[0] is None
    add("scratch", 4.5, 0.8, 300)
    add("scratch", 4.5, 0.8, 300, seed="2")
    assert verdict(store, "bits per dimension") == (True, "sketch-shapes +0.500")
    assert verdict(store, "from-scratch ones: Diff") == (
        False,
        "not in 1 of 1: sketch-shapes −10.0",
    )


def test_fourier_needs_a_margin(store):
    general = add_general(store)
    model = add_model(store, general, "none", {"sketch-digits": (0.1, 0.2, 0.9, 0.8)})
    assert verdict(store, "Fourier") == (None, "")
    names = ("sketch-shapes", "sketch-digits", "together")
    metrics = {f"spearman/{name}/amplitude": 0.9 for name in names}
    metrics |= {f"spearman/{name}/phase": 0.1 for name in names}
    analysis = {"kind": "analyse", "analysis": "fourier", "analysed": model}
    add_run(store, metrics, **analysis)
    holds, detail = verdict(store, "Fourier")
    assert holds is True and "sketch-shapes on together +0.80" in detail
    add_run(store, metrics | {"spearman/together/phase": 0.45}, **analysis)
    holds, detail = verdict(store, "Fourier")
    assert holds is False and detail.startswith("not in 1 of 3: sketch-shapes on together +0.45")


def test_a_store_without_detectors_makes_no_claims(store):
    add_general(store)
    assert check_claims(read_registry(store)) == ()


def test_rankings_of_the_field_are_those_of_the_analysed_models(store):
    general = add_general(store)
    numbers = {"raw": 0.1, "typicality": 0.8, "complexity": 0.05, "dose": 0.7, "diff": 0.9}
    for dataset, oods in OODS.items():
        own = {f"auroc/{oods[0]}/raw": 0.1}
        model = add_run(store, own, dataset=dataset, general_run=general)
        metrics = {
            f"auroc/{ood}/{score}": value for ood in oods for score, value in numbers.items()
        }
        add_run(store, metrics, kind="analyse", analysis="scores", analysed=model, dataset=dataset)
    assert verdict(store, "Typicality is above Raw")[0] is True
    holds, detail = verdict(store, "Complexity is above Raw")
    assert holds is False and "−5.0" in detail
    assert verdict(store, "DoSE is above Typicality")[:1] == (False,)
    assert verdict(store, "DoSE is above WAIC")[0] is None
    assert verdict(store, "Diff is above Complexity") == (True, "Diff 90.0, Complexity 5.0")


def test_each_flow_has_a_verdict_of_its_own_and_others_only_on_what_was_measured(store):
    general = add_general(store)
    add_model(store, general, "none", {"sketch-digits": (0.1, 0, 0.9, 0)})
    only_glow = [each.text for each in check_claims(read_registry(store))]
    metrics = {"auroc/sketch-digits/raw": 0.8, "auroc/sketch-digits/diff": 0.3}
    flow = add_general(store, model="tarflow")
    add_run(store, metrics, model="tarflow", general_run=flow)
    holds, detail = verdict(store, "raw likelihood (sketch, tarflow)")
    assert holds is False and detail == "not in 1 of 1: sketch-shapes against sketch-digits −50.0"
    assert verdict(store, "raw likelihood (sketch)")[0] is True
    texts = [each.text for each in check_claims(read_registry(store))]
    assert [text for text in texts if "tarflow" not in text] == only_glow
    assert len(texts) == len(only_glow) + 1
