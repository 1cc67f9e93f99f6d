"""What the data path costs, part by part, beside the alternatives."""
