"""systemd over D-Bus: `bus` (the connection), `units` (what the manager wants of it), and pure helpers."""
