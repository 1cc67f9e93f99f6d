"""Networks. Torch only; imports nothing of ours."""
