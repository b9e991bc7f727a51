"""A run of a scenario: its folder, its journal, its faults, its verdict."""
