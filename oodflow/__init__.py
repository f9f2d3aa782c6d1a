"""oodflow: anomaly detection with deep generative models, from training to report."""
