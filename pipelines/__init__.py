"""Which clip, which pixels: sampling, curriculum, augmentation, executors, loader. Imports shards."""
