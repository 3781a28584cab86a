"""Generation to score: the objective, its gradients, and the scorer."""
