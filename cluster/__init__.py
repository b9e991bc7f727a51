"""The running system: Ray actors for modules and coordinator, transports, fault injection."""
