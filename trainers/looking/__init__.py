"""Pages and sheets of what a run draws and what a model makes of it."""
