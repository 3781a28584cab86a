"""The evaluation on published weights: answers are collected once, and everything else is computed from them."""
