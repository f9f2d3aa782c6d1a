"""The last scale: of a flow's scales, the one that sees most of the image at once tells most.

Runs in the working folder's MLflow store; a model that is there is not trained again.
"""

import oodflow

small = {"depth": 1, "hidden": 16, "batch_size": 32, "limit": 1000, "resume": True}
[general] = oodflow.train(dataset="sketch-general", steps=150, **small)
[loss] = oodflow.finetune(
    dataset="sketch-shapes", outlier_loss="binary", steps=60, init=general.run_id, **small
)

# log p(x) = c_1(x) + c_2(x) + c_3(x): the contributions of three scales (Eq. 3).
for score in ("scale1", "scale2", "last_scale"):
    print(f"{score}: AUROC against digits {loss.metrics[f'auroc/sketch-digits/{score}']:.2f}")

# Output:
#   scale1: AUROC against digits 0.21
#   scale2: AUROC against digits 0.48
#   last_scale: AUROC against digits 0.69
