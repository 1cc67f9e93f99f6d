"""What a run leaves behind: checkpoints, journal, plots."""
