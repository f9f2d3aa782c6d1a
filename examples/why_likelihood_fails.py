"""Why likelihood fails: a flow finds simpler images likelier than those it was trained on.

Runs in the working folder's MLflow store; a model that is there is not trained again.
"""

import oodflow

small = {"depth": 1, "hidden": 16, "batch_size": 32, "limit": 1000, "resume": True}
[general] = oodflow.train(dataset="sketch-general", steps=150, **small)
[shapes] = oodflow.finetune(dataset="sketch-shapes", steps=60, init=general.run_id, **small)

# AUROC: how often a shape has the higher likelihood. Below 0.5 it is mostly the outlier.
for outliers in ("sketch-digits", "sketch-scenes", "sketch-letters"):
    raw, bpd = shapes.metrics[f"auroc/{outliers}/raw"], shapes.metrics[f"bpd/{outliers}"]
    print(f"{outliers}: AUROC {raw:.2f}, {bpd:.2f} bits per dimension")
print(f"sketch-shapes: {shapes.metrics['bpd/sketch-shapes']:.2f} bits per dimension")

# Output:
#   sketch-digits: AUROC 0.21, 5.68 bits per dimension
#   sketch-scenes: AUROC 0.31, 5.74 bits per dimension
#   sketch-letters: AUROC 0.57, 5.91 bits per dimension
#   sketch-shapes: 5.85 bits per dimension
