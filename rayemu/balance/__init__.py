"""Load and balance: metrics, monitors, predictors, and the judge of a rebalance."""
