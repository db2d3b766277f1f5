"""A search and what it leaves: proposals, bookkeeping, the stored study. Optuna lives here only."""
