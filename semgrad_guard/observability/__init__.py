"""What operators see: spans, metrics, feedback and logs, without the texts of questions and answers."""
