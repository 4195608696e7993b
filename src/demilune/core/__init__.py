"""Pure maths: imports torch and nothing of ours (the refusals of errors.py excepted)."""
