"""A pool in a keep: its endpoint, and the template process whose forks run the scripts."""
