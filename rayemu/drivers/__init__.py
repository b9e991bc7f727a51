"""What drives the state machines: the simulator, the record of what they did, the backends of an emulator."""
