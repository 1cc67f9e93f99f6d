"""Model and losses as one module per method: `forward` takes a batch's tensors and gives the loss."""
