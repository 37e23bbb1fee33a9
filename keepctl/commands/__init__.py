"""The click commands: options, printing and exit codes; what they do is done elsewhere."""
