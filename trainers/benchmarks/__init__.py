"""What steps and scores cost, beside the published way in the same run."""
