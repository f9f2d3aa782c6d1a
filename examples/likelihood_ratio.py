"""The likelihood ratio: what all images share cancels out against a general model.

Runs in the working folder's MLflow store; a model that is there is not trained again.
"""

import oodflow

small = {"depth": 1, "hidden": 16, "batch_size": 32, "limit": 1000, "resume": True}
[general] = oodflow.train(dataset="sketch-general", steps=150, **small)
[shapes] = oodflow.finetune(dataset="sketch-shapes", steps=60, init=general.run_id, **small)

# The same by hand: score tables of both models, log p_in(x) − log p_g(x), AUROC.
inliers, outliers = (
    oodflow.scores(
        oodflow.score_table(shapes.run_id, images, limit=1000),
        general=oodflow.score_table(general.run_id, images, limit=1000),
    )
    for images in ("sketch-shapes", "sketch-digits")
)
for score in ("raw", "diff"):
    print(f"{score}: AUROC {oodflow.auroc(inliers[score], outliers[score]):.2f}")

# Output:
#   raw: AUROC 0.21
#   diff: AUROC 0.94
