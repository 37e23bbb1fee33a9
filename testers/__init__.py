"""Programs that try keepfleet the way a client would."""
