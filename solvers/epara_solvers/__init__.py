"""Back ends that solve mixed-integer programs, and planners that turn problems into plans."""
