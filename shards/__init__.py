"""Bytes on disk: sources, masks, tar shards, manifest, index, reader. Imports nothing of ours, no torch, no DALI."""
