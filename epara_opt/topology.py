"""Reading topology YAML and profile CSV into the domain."""
