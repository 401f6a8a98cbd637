"""A model's files: which may travel, where they are kept, how they are got. Imports no torch, knows no event loop."""
