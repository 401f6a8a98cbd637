"""What the engine talks about: the edge, services, profiles, categories, parallel configurations. No effects."""
