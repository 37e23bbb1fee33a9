"""The interfaces of WASI that a keep gives a guest: what the checker links, and policies allow.

Import rule: nothing (but not of the light part: no keep's loader asks for it).
"""

from __future__ import annotations

PREVIEW_1 = "wasi_snapshot_preview1"
PREVIEW_1_FUNCTIONS = (
    *("args_get", "args_sizes_get", "environ_get", "environ_sizes_get"),
    *("clock_res_get", "clock_time_get"),
    *("fd_advise", "fd_allocate", "fd_close", "fd_datasync", "fd_fdstat_get", "fd_fdstat_set_flags"),
    *("fd_fdstat_set_rights", "fd_filestat_get", "fd_filestat_set_size", "fd_filestat_set_times", "fd_pread"),
    *("fd_prestat_get", "fd_prestat_dir_name", "fd_pwrite", "fd_read", "fd_readdir", "fd_renumber", "fd_seek"),
    *("fd_sync", "fd_tell", "fd_write"),
    *("path_create_directory", "path_filestat_get", "path_filestat_set_times", "path_link", "path_open"),
    *("path_readlink", "path_remove_directory", "path_rename", "path_symlink", "path_unlink_file"),
    *("poll_oneoff", "proc_exit", "proc_raise", "sched_yield", "random_get"),
    *("sock_accept", "sock_recv", "sock_send", "sock_shutdown"),
)
"""Every function of WASI 0.1, which core modules import."""
INTERFACES = {
    "wasi:cli": (
        *("environment", "exit", "stdin", "stdout", "stderr"),
        *("terminal-input", "terminal-output", "terminal-stdin", "terminal-stdout", "terminal-stderr"),
    ),
    "wasi:clocks": ("monotonic-clock", "wall-clock"),
    "wasi:filesystem": ("preopens", "types"),
    "wasi:io": ("error", "poll", "streams"),
    "wasi:random": ("insecure", "insecure-seed", "random"),
    "wasi:sockets": (
        *("instance-network", "ip-name-lookup", "network"),
        *("tcp", "tcp-create-socket", "udp", "udp-create-socket"),
    ),
}
"""Every interface of WASI 0.2 that is there, which components import. Sockets' calls fail: a guest has no network."""
VERSION = "0.2"
"""Of INTERFACES; any third number."""
