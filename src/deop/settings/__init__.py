"""What may be configured, and the configuration files. Imports nothing heavy."""
