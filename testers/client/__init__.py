"""What the two testers share: their options, their console, how they end. Imports keep_protocol and keep_client."""
