"""The Lightning module, its optimizers and schedules, budgets and checkpoints."""
