"""Everything that changes weights or scores them: configs, objectives, loop, checkpoints, prediction, scoring."""
