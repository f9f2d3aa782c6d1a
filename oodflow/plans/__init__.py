"""Plans of many runs: the YAML files, their tasks, the engine that runs them, and their cost."""
