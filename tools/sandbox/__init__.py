"""A real, private systemd (PID 1, journald, D-Bus) on a Linux machine that was not booted with systemd.

`python3 -m tools.sandbox boot|exec|off|list` on the command line, `sandbox.Sandbox` in code. It shows the machine's
root file system, or another one (`--root`); processes, mounts, cgroups, network, host name and IPC are its own, and
so are /run, /tmp, /var/tmp, /dev/shm and what is written directly in /etc, /opt, /home and /var/lib. Nothing is left
behind.
Of a root given with `--root`, the rest is that directory itself, and what is written there stays.

An agent inside, PID 1's first child, starts the commands: a caller needs no process of its own for one.

Import rule: the standard library alone; `client` and `first` run as bare files (`python -I -S`).
"""
