"""What to do with a pair before, beside and after training: preflight, diagnosis of anybody's rollouts."""
