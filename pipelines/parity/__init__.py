"""How far the executors are apart."""
