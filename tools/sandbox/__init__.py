"""A real, private systemd (PID 1, journald, D-Bus) on a Linux machine that was not booted with systemd.

`python3 -m tools.sandbox boot|exec|off|list` on the command line, `sandbox.Sandbox` in code. It shares the
machine's root file system and network; processes, mounts, cgroups, host name and IPC are its own, and so are
/run, /tmp, /var/tmp, /dev/shm and what is written directly in /etc, /opt and /home. Nothing is left behind.

Import rule: the standard library alone; `enter` and `first` run as bare files (`python -I -S`).
"""
