"""Diff†: the ratio to a general model that was itself trained against in-distribution images.

Runs in the working folder's MLflow store; a model that is there is not trained again.
"""

import oodflow

small = {"depth": 1, "hidden": 16, "batch_size": 32, "limit": 1000, "resume": True}
[general] = oodflow.train(dataset="sketch-general", steps=150, **small)
[shapes] = oodflow.finetune(dataset="sketch-shapes", steps=60, init=general.run_id, **small)
[against] = oodflow.finetune(
    dataset="sketch-general",
    outlier_loss="binary",
    outlier_dataset="sketch-shapes",
    general=shapes.run_id,
    init=general.run_id,
    steps=60,
    **small,
)

[run] = oodflow.evaluate(run=shapes.run_id, general_outlier=against.run_id, limit=1000)
for outliers in ("sketch-digits", "sketch-scenes"):
    ratio, dagger = (run.metrics[f"auroc/{outliers}/{s}"] for s in ("diff", "diff_outlier"))
    print(f"{outliers}: AUROC diff {ratio:.2f}, diff_outlier {dagger:.2f}")

# Output:
#   sketch-digits: AUROC diff 0.94, diff_outlier 0.92
#   sketch-scenes: AUROC diff 0.60, diff_outlier 0.64
