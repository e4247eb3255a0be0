"""Everything that changes weights: optimizers, parameter groups, schedules, expert balance."""
