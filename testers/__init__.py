"""Programs that try keepfleet the way a client would, the private systemd they run in, and the demo."""
