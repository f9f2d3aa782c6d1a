"""A detector on one's own images: from an array to decisions with a false-positive rate.

Runs in the working folder's MLflow store; a general model that is there is not trained again.
"""

import oodflow

small = {"depth": 1, "hidden": 16, "batch_size": 32}
[general] = oodflow.train(dataset="sketch-general", steps=150, limit=1000, resume=True, **small)

# Any uint8 array N×H×W, N×H×W×C or N×C×H×W; here shapes stand for photographs of one's own.
own = oodflow.load_images("sketch-shapes", "train", limit=1000)
detector = oodflow.Detector.fit(own, steps=60, init=general.run_id, **small)

# An image is anomalous where its p-value is at most α; α = 0.05 flags 5 % of the inliers.
for name in ("sketch-shapes", "sketch-digits"):
    flagged = detector.decide(oodflow.load_images(name, "test", limit=400), alpha=0.05)
    print(f"{name}: {flagged.mean():.2f} flagged")

# Output:
#   sketch-shapes: 0.04 flagged
#   sketch-digits: 0.46 flagged
