"""What the machine at hand does in how much time, as modelled hardware: `rayemu calibrate`. See docs/calibration.md."""
