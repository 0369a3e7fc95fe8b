"""The Lightning module with its optimizer, schedule, budget, checkpoints and loggers."""
