"""Plans of many runs: YAML files, their tasks, who carries them out, and what they cost."""
