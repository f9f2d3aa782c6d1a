"""Tracking: the one place that imports mlflow. Runs, the registry, artifacts."""
