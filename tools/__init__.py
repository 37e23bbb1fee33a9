"""What works on a checkout and is in no wheel: the private systemd that tests run in, and the demo."""
