"""Claims: verdicts follow from numbers that make each hold, fail, stay undecided, or are absent."""

import pytest
from registered import OODS, PARAMS, add_general, add_run
from scipy.stats import ttest_1samp

from oodflow.tracking.registry import Registry, read_registry
from oodflow.tracking.run_info import RunInfo
from reports.claims import check_claims
from reports.contents import all_tables

SCORES = ("raw", "last_scale", "diff", "diff_outlier")


@pytest.fixture
def store(blank):
    return blank.store()


def verdict(store, words: str) -> tuple[str, str]:
    [claim] = [each for each in check_claims(read_registry(store)) if words in each.text]
    return claim.verdict, claim.detail


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


HOLDS, FAILS, ABSENT = "holds in one seed", "does not hold in one seed", "not measured"
ALONE = "(one seed, no interval)"


def test_the_ratio_must_beat_raw_against_simpler_outliers_only(store):
    # Of these, digits and scenes have fewer bits under the general model than shapes.
    general = add_general(store)
    against = {"sketch-digits": (0.1, 0, 0.9, 0), "sketch-scenes": (0.4, 0, 0.5, 0),
               "sketch-letters": (0.9, 0, 0.2, 0)}  # fmt: skip
    add_model(store, general, "none", against)
    assert verdict(store, "simpler outliers") == (
        HOLDS,
        f"sketch-shapes against sketch-digits +80.00 {ALONE}, "
        f"sketch-shapes against sketch-scenes +10.00 {ALONE}",
    )
    # A second seed that pulls one pair far below raw: its interval is wide.
    add_model(store, general, "none", against | {"sketch-scenes": (0.8, 0, 0.5, 0)}, seed="2")
    found, detail = verdict(store, "simpler outliers")
    assert found == "undecided"
    assert detail.startswith(
        "undecided in 1 of 2: sketch-shapes against sketch-scenes −10.00 [−264.12, +244.12] (n = 2)"
    )


def test_losses_and_general_models_are_compared_on_averages(store):
    general = add_general(store)
    add_model(store, general, "none", {"sketch-digits": (0.1, 0.2, 0.9, 0.8),
                                       "sketch-letters": (0.5, 0.6, 0.5, 0.6)})  # fmt: skip
    assert verdict(store, "improves Raw") == (ABSENT, "")
    add_model(store, general, "binary", {"sketch-digits": (0.0, 0.9, 0.95, 0.99),
                                         "sketch-letters": (0.7, 0.1, 0.4, 0.3)})  # fmt: skip
    # A seed without the other loss has no partner; a pair that one lacks is not averaged.
    add_model(store, general, "binary", {"sketch-digits": (1, 1, 1, 1)}, seed="2")
    add_model(store, general, "binary", {"sketch-scenes": (1, 1, 1, 1)}, seed="3")
    for words, expected, detail in (
        ("improves Raw", HOLDS, "+5.00 {}; binary 35.0, none 30.0"),
        ("improves 4×4", HOLDS, "+10.00 {}; binary 50.0, none 40.0"),
        ("improves Diff", FAILS, "−2.50 {}; binary 67.5, none 70.0"),
        # Equal is enough for Diff†, but not less.
        ("on average, no outlier loss", HOLDS, "+0.00 {}; Diff† 70.0, Diff 70.0"),
    ):
        assert verdict(store, words) == (expected, detail.format(ALONE))


def test_finetuning_is_compared_at_equal_updates_only(store):
    def add(init: str, bpd: float, diff: float, steps: int, seed: str = "1") -> None:
        metrics = {"bpd/sketch-shapes": bpd, "auroc/mean/diff": diff, "auroc/sketch-digits/raw": 0}
        add_run(store, metrics, PARAMS | {"optimisation.steps": str(steps)}, init=init, seed=seed,
                general_run=general)  # fmt: skip

    general = add_general(store)
    add("general", 4.0, 0.7, 300)
    add("scratch", 4.5, 0.8, 1000, seed="9")
    assert verdict(store, "bits per dimension") == (ABSENT, "")
    add("scratch", 4.5, 0.8, 300)
    add("scratch", 4.5, 0.8, 300, seed="2")
    assert verdict(store, "bits per dimension") == (HOLDS, f"sketch-shapes +0.500 {ALONE}")
    assert verdict(store, "from-scratch ones: Diff") == (FAILS, f"sketch-shapes −10.00 {ALONE}")


def test_fourier_needs_a_margin(store):
    general = add_general(store)
    model = add_model(store, general, "none", {"sketch-digits": (0.1, 0.2, 0.9, 0.8)})
    assert verdict(store, "Fourier") == (ABSENT, "")
    names = ("sketch-shapes", "sketch-digits", "together")
    metrics = {f"spearman/{name}/amplitude": 0.9 for name in names}
    metrics |= {f"spearman/{name}/phase": 0.1 for name in names}
    analysis = {"kind": "analyse", "analysis": "fourier", "analysed": model}
    add_run(store, metrics, **analysis)
    found, detail = verdict(store, "Fourier")
    assert found == HOLDS and "sketch-shapes on together +0.80" in detail
    add_run(store, metrics | {"spearman/together/phase": 0.45}, **analysis)
    found, detail = verdict(store, "Fourier")
    assert found == FAILS
    assert detail.startswith("does not hold in 1 of 3: sketch-shapes on together +0.45")


def contrived(differences: list[float]) -> Registry:
    """Runs of a seed each, whose numbers make every claim's difference that of the list."""
    tags = {"kind": "finetune", "model": "glow", "dataset": "sketch-shapes", "family": "sketch",
            "catalogued": "sketch-shapes", "role": "in_distribution", "setting": "unsupervised",
            "init": "general", "outlier_loss": "none", "general_run": "g"}  # fmt: skip

    def run(run_id: str, metrics: dict[str, float], **own: str) -> RunInfo:
        return RunInfo(run_id, run_id, "FINISHED", 0.0, 1.0, "", tags | own, metrics, {})

    def aurocs(**scores: float) -> dict[str, float]:
        return {f"auroc/sketch-digits/{name}": 0.5 + value for name, value in scores.items()}

    bits = {"bpd/sketch-shapes": 5.0, "bpd/sketch-digits": 3.0}
    training, analyses = [run("g", bits, role="general", init="scratch", seed="0")], []
    for number, d in enumerate(differences):
        own = {"seed": str(number)}
        plain = aurocs(raw=0, last_scale=0, diff=d, diff_outlier=2 * d)
        plain |= {"bpd/sketch-shapes": 4.0, "auroc/mean/diff": 0.5 + d}
        scratch = {"bpd/sketch-shapes": 4.0 + d, "auroc/mean/diff": 0.5}
        binary = aurocs(raw=d, last_scale=d, diff=2 * d, diff_outlier=3 * d)
        training += [run(f"p{number}", plain, **own),
                     run(f"s{number}", scratch, init="scratch", **own),
                     run(f"b{number}", binary, outlier_loss="binary", **own)]  # fmt: skip
        mixed = {"spearman/together/amplitude": 0.6 + d, "spearman/together/phase": 0.1}
        scores = aurocs(raw=0, typicality=d, complexity=d, waic=d, dose=2 * d, gradient=2 * d,
                        diff=2 * d)  # fmt: skip
        analyses += [run(f"f{number}", mixed, analysis="fourier", **own),
                     run(f"a{number}", scores, analysis="scores", **own)]  # fmt: skip
    return Registry(tuple(training), (), tuple(analyses), ())


SPREAD = [-0.01, 0.0, 0.02]


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.1, "holds"), (-0.1, "does not hold"), (0.0, "undecided")]
)
def test_every_claim_holds_fails_and_stays_undecided(shift, expected):
    differences = [shift + each for each in SPREAD]
    claims = check_claims(contrived(differences))
    assert len(claims) == 16
    assert {claim.verdict for claim in claims} == {expected}
    for claim in claims:
        bound, scale, digits = 0.0, 100, 2
        if "Fourier" in claim.text:
            bound, scale = 0.5, 1
        elif "bits per dimension" in claim.text:
            scale, digits = 1, 3
        values = [bound + each for each in differences]
        ends = ttest_1samp(values, 0).confidence_interval(0.95)
        mean, low, high = (
            f"{scale * number:+.{digits}f}".replace("-", "−")
            for number in (sum(values) / 3, ends.low, ends.high)
        )
        assert f"{mean} [{low}, {high}] (n = 3)" in claim.detail, claim


def test_one_seed_has_a_verdict_but_no_interval():
    claims = check_claims(contrived([0.1]))
    assert {claim.verdict for claim in claims} == {"holds in one seed"}
    assert all("(one seed, no interval)" in claim.detail for claim in claims)


def test_tables_name_the_pairs_where_the_ratio_fails():
    captions = [
        all_tables(contrived([shift, shift]), False)["detection-sketch"].caption
        for shift in (0.1, -0.1)
    ]
    assert "is below" not in captions[0]
    pair = "sketch-shapes against sketch-digits"
    assert captions[1].endswith(
        f"Diff is below Raw on {pair} (no outlier loss: 40.0 and 50.0), "
        f"{pair} (binary outlier loss: 30.0 and 40.0)."
    )


def test_rankings_of_the_field_stand_apart_from_the_papers_claims():
    headings = [claim.heading for claim in check_claims(contrived([0.1]))]
    assert headings == ["Claims of the paper"] * 9 + ["Rankings of the field"] * 7


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
    assert verdict(store, "Typicality is above Raw")[0] == HOLDS
    found, detail = verdict(store, "Complexity is above Raw")
    assert found == FAILS and "−5.00" in detail
    assert verdict(store, "DoSE is above Typicality")[0] == FAILS
    assert verdict(store, "DoSE is above WAIC")[0] == ABSENT
    assert verdict(store, "Diff is above Complexity") == (
        HOLDS,
        f"+85.00 {ALONE}; Diff 90.0, Complexity 5.0",
    )


def test_each_flow_has_a_verdict_of_its_own_and_others_only_on_what_was_measured(store):
    general = add_general(store)
    add_model(store, general, "none", {"sketch-digits": (0.1, 0, 0.9, 0)})
    only_glow = [each.text for each in check_claims(read_registry(store))]
    metrics = {"auroc/sketch-digits/raw": 0.8, "auroc/sketch-digits/diff": 0.3}
    flow = add_general(store, model="tarflow")
    add_run(store, metrics, model="tarflow", general_run=flow)
    found, detail = verdict(store, "raw likelihood (sketch, tarflow)")
    assert (found, detail) == (FAILS, f"sketch-shapes against sketch-digits −50.00 {ALONE}")
    assert verdict(store, "raw likelihood (sketch)")[0] == HOLDS
    texts = [each.text for each in check_claims(read_registry(store))]
    assert [text for text in texts if "tarflow" not in text] == only_glow
    assert len(texts) == len(only_glow) + 1
