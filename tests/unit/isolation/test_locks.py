"""The locks for real: each in a process of its own, which then tries what it gave up, and what it must keep."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keep_isolation import filters, landlock
from keep_isolation.kernel import MACHINES, call
from keep_isolation.locks import what_the_kernel_lacks
from keep_protocol.errors import ErrorKind, KeepfleetError

PROLOGUE = """
import ctypes, errno, json, mmap, os, signal, socket, subprocess, sys, threading
from keep_isolation import filters, kernel, landlock, locks
seen = {}
libc = ctypes.CDLL(None, use_errno=True)
def trial(name, action):
    try:
        action()
        seen[name] = "done"
    except OSError as error:
        seen[name] = errno.errorcode.get(error.errno, str(error))
def system_call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
def end():
    os.write(1, json.dumps(seen).encode())
    os._exit(0)
"""
REFUSED = {"EPERM", "EACCES"}
has_landlock = pytest.mark.skipif(landlock.kernel_abi() < landlock.SCOPE_ABI, reason="needs Landlock of Linux 6.12")


def tried(program: str, *arguments: str) -> dict[str, Any]:
    """What `program`, after the prologue, has seen."""
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + program + "\nend()", *arguments], capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("call_of_lock", ["lock_loader()", "lock_endpoint()"])
def test_a_listener_cannot_be_turned_round(call_of_lock: str) -> None:
    program = f"""
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
target = ("127.0.0.1", int(sys.argv[1]))
beyond = socket.socket(socket.AF_UNIX)
locks.{call_of_lock}
accepted, _ = listener.accept()
accepted.sendall(b"answer")
seen["answer"] = client.recv(6).decode()
listener.shutdown(socket.SHUT_RDWR)
accepted.shutdown(socket.SHUT_RDWR)
unspecified = ctypes.create_string_buffer(16)
trial("connect", lambda: listener.connect(target))
trial("connect the accepted one", lambda: accepted.connect(target))
trial("unspecified", lambda: system_call({call_number("connect")}, listener.fileno(), unspecified, 16))
trial("by a descriptor", lambda: beyond.connect(f"/proc/self/fd/{{sys.stdin.fileno()}}"))
trial("fast open", lambda: listener.sendto(b"x", socket.MSG_FASTOPEN, target))
trial("listen again", lambda: listener.listen())
trial("bind", lambda: beyond.bind("/tmp/x"))
trial("socket", lambda: socket.socket())
trial("a pair that could send anywhere", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
trial("the host's devices", lambda: __import__("fcntl").ioctl(listener, 0x8912, bytes(16)))
trial("pair", lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
"""
    with socket.create_server(("127.0.0.1", 0)) as target:
        seen = tried(program, str(target.getsockname()[1]))
    assert seen.pop("answer") == "answer"
    assert seen.pop("pair") == "done"
    assert len(seen) == 10
    assert set(seen.values()) == {"EPERM"}


def call_number(name: str) -> int:
    number = (filters.NEVER | filters.OTHERS)[name][MACHINES.index(platform.machine())]
    assert number is not None
    return number


OTHER_PROCESS = """
def read_memory():
    with open(f"/proc/{parent}/mem", "rb") as file:
        file.seek(1)
def descriptors():
    os.listdir(f"/proc/{parent}/fd") and os.readlink(f"/proc/{parent}/fd/0")
parent = os.getppid()
trial("signal", lambda: os.kill(parent, 0))
trial("its limits", lambda: __import__("resource").prlimit(parent, 7, (1, 1)))
trial("its owner of a signal", lambda: __import__("fcntl").fcntl(0, 8, parent))
trial("trace", lambda: system_call(TRACE, 0x4206, parent, 0, 0))
trial("take a descriptor", lambda: system_call(438, 0, 0, 0))
trial("program", lambda: os.execv("/bin/true", ["true"]))
trial("fork", os.fork)
trial("namespace", lambda: system_call(UNSHARE, 0x10000000))
trial("keys", lambda: system_call(KEYS, 0, -3, 1))
trial("memory", lambda: mmap.mmap(-1, 4096))
trial("written code", lambda: mmap.mmap(-1, 4096, prot=7))
trial("dump", lambda: kernel.prctl(4, 1))
"""


def other_process() -> str:
    text = OTHER_PROCESS
    for word, name in (("TRACE", "ptrace"), ("UNSHARE", "unshare"), ("KEYS", "keyctl")):
        text = text.replace(word, str(call_number(name)))
    return text


@pytest.mark.parametrize("call_of_lock", ["lock_endpoint()", "lock_checker()", "lock_runner()"])
def test_a_locked_process_reaches_no_other_and_becomes_no_other(call_of_lock: str) -> None:
    seen = tried(f"import resource, fcntl\nlocks.{call_of_lock}\n{other_process()}")
    assert seen.pop("memory") == "done"
    assert seen.pop("written code") == ("done" if "checker" in call_of_lock else "EPERM")
    assert set(seen.values()) == {"EPERM"}, seen


def test_a_locked_loader_still_has_children_and_ends_them() -> None:
    seen = tried(
        """
def child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGKILL)
    if os.WTERMSIG(os.waitpid(pid, 0)[1]) != signal.SIGKILL:
        raise OSError(0, "not killed")
locks.lock_loader()
trial("child", child)
trial("program", lambda: os.execv("/bin/true", ["true"]))
trial("code in the loader", lambda: mmap.mmap(-1, 4096, prot=7))
code_in_child = os.fork()
if code_in_child == 0:
    mmap.mmap(-1, 4096, prot=7)
    os._exit(0)
seen["code in a fork"] = os.waitpid(code_in_child, 0)[1]
"""
    )
    assert (seen["child"], seen["program"], seen["code in a fork"]) == ("done", "EPERM", 0)
    if not what_the_kernel_lacks():
        assert seen["code in the loader"] == "EACCES"


LOADER_FILES = """
own, granted = sys.argv[1:3]
locks.TEMPORARY_DIRECTORIES = ()
os.mkdir(own + "/secrets")
directory = os.open(granted, os.O_RDONLY | os.O_DIRECTORY)
os.mkdir("a", dir_fd=directory)
os.mkdir("b", dir_fd=directory)
older = os.fork()
if older == 0:
    signal.pause()
locks.lock_loader()
locks.lock_loader_files([(directory, landlock.WRITE)], [own], [own + "/secrets"])
def child():
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
def runner():
    pid = os.fork()
    if pid == 0:
        locks.lock_runner([(directory, landlock.WRITE)])
        os.close(os.open("a/new", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory))
        os.rename("a/new", "b/new", src_dir_fd=directory, dst_dir_fd=directory)
        os._exit(7)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 7:
        raise OSError(errno.EIO, "")
trial("older child", lambda: os.kill(older, signal.SIGKILL))
trial("child", child)
trial("runner", runner)
trial("record", lambda: os.close(os.open(own, os.O_TMPFILE | os.O_RDWR, 0o600)))
trial("secret", lambda: os.close(os.open(own + "/secrets/one", os.O_CREAT | os.O_WRONLY, 0o600)))
trial("tree", lambda: os.listdir("/proc/self/fd"))
good, seen = seen, {}
trial("name", lambda: os.mkdir(own + "/another"))
trial("remove", lambda: os.unlink(own + "/there"))
trial("rename", lambda: os.rename(own + "/there", own + "/gone"))
trial("memory of another", lambda: open(f"/proc/{os.getppid()}/mem", "rb").close())
seen = {"good": good, "bad": seen}
"""


@has_landlock
def test_a_loader_keeps_what_its_workload_is_granted_and_its_forks_have_no_less(tmp_path: Path) -> None:
    seen = tried(LOADER_FILES, *(str(made(_new(tmp_path / name))) for name in ("own", "granted")))
    assert seen["good"] == dict.fromkeys(("older child", "child", "runner", "record", "secret", "tree"), "done")
    assert set(seen["bad"].values()) <= REFUSED, seen["bad"]


@has_landlock
def test_forks_of_a_locked_loader_are_kept_from_it_and_from_each_other() -> None:
    seen = tried(
        f"""
import resource, fcntl
locks.lock_loader()
reader, writer = os.pipe()
sibling = os.fork()
if sibling == 0:
    locks.lock_endpoint()
    signal.pause()
child = os.fork()
if child == 0:
    locks.lock_endpoint()
    {other_process().replace(chr(10), chr(10) + "    ")}
    trial("memory of the loader", read_memory)
    trial("descriptors of the loader", descriptors)
    parent = sibling
    trial("memory of the sibling", read_memory)
    trial("signal the sibling", lambda: os.kill(sibling, 0))
    os.write(writer, json.dumps(seen).encode())
    os._exit(0)
os.close(writer)
os.waitpid(child, 0)
seen = json.loads(os.read(reader, 65536))
os.kill(sibling, signal.SIGKILL)
"""
    )
    assert seen.pop("memory") == "done"
    assert set(seen.values()) <= REFUSED, seen


LOOKING = """
if os.geteuid() == 0:  # whose capabilities would see through all of it
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
kernel.prctl(38, 1)
BEFORE
secret = ctypes.create_string_buffer(b"secret", 16)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    INSIDE
    parent, number = os.getppid(), reader
    def read_memory():
        with open(f"/proc/{parent}/mem", "rb", buffering=0) as file:
            file.seek(ctypes.addressof(secret))
            assert file.read(6) == b"secret"
    def trace():
        system_call(TRACE, 0x4206, parent, 0, 0)
    def copy():
        room = ctypes.create_string_buffer(6)
        ours = (ctypes.c_void_p * 2)(ctypes.addressof(room), 6)
        theirs = (ctypes.c_void_p * 2)(ctypes.addressof(secret), 6)
        system_call(COPY, parent, ours, ctypes.c_ulong(1), theirs, ctypes.c_ulong(1), ctypes.c_ulong(0))
    trial("memory", read_memory)
    trial("copy", copy)
    trial("take a descriptor", lambda: system_call(438, os.pidfd_open(parent), number, 0))
    trial("environment", lambda: open(f"/proc/{parent}/environ").close())
    trial("trace", trace)
    os.write(writer, json.dumps(seen).encode())
    os._exit(0)
os.close(writer)
seen = json.loads(os.read(reader, 65536))
os.waitpid(child, 0)
"""
YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")


@pytest.mark.parametrize(
    ("before", "inside"),
    [
        pytest.param("kernel.prctl(4, 0)", "", id="a process that cannot be dumped"),
        pytest.param(
            "kernel.prctl(4, 1)",
            'landlock.restrict([(os.open("/", os.O_PATH), landlock.handled(landlock.kernel_abi())[0])])',
            id="Landlock, all files allowed",
            marks=has_landlock,
        ),
        pytest.param("kernel.prctl(4, 1)", "", id="none of both"),
    ],
)
def test_each_of_two_locks_keeps_a_process_from_its_parent_whatever_yama_says(before: str, inside: str) -> None:
    walled = (before, inside) != ("kernel.prctl(4, 1)", "")
    if not walled and YAMA.exists() and int(YAMA.read_text()) > 0:
        pytest.skip("Yama refuses on this host what is to be seen to work without the locks")
    program = LOOKING.replace("BEFORE", before).replace("INSIDE", inside or "pass")
    for word, name in (("TRACE", "ptrace"), ("COPY", "process_vm_readv")):
        program = program.replace(word, str(call_number(name)))
    seen = tried(program)
    assert len(seen) == 5
    assert (set(seen.values()) <= REFUSED) if walled else (set(seen.values()) == {"done"}), seen


def test_an_endpoint_reads_the_tree_and_makes_files_without_a_name_and_nothing_else(tmp_path: Path) -> None:
    seen = tried(
        """
def nameless():
    file = os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(file, b"x")
    os.close(os.open(f"/proc/self/fd/{file}", os.O_RDONLY))
locks.TEMPORARY_DIRECTORIES = ("/var/tmp", "/nowhere")
locks.lock_endpoint()
trial("nameless", nameless)
trial("read", lambda: open("/etc/hostname").close())
trial("library", lambda: __import__("_bisect" if "_bisect" not in sys.modules else "_statistics"))
trial("named", lambda: open("/var/tmp/named", "x").close())
trial("directory", lambda: os.mkdir("/tmp/named"))
trial("elsewhere", lambda: os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR, 0o600))
trial("rename", lambda: os.rename(sys.argv[1] + "/there", sys.argv[1] + "/gone"))
trial("remove", lambda: os.unlink(sys.argv[1] + "/there"))
trial("write", lambda: open("/dev/null", "w").close())
trial("its own memory", lambda: open("/proc/self/mem", "r+b").close())
""",
        str(made(tmp_path)),
    )
    assert [seen.pop(name) for name in ("nameless", "read", "library")] == ["done"] * 3
    if landlock.kernel_abi():
        assert set(seen.values()) == {"EACCES"}, seen


def made(directory: Path) -> Path:
    (directory / "there").write_text("a")
    return directory


RUNNER = """
granted, other, outside = sys.argv[1:4]
writable = os.open(granted, os.O_RDONLY | os.O_DIRECTORY)
read_only = os.open(other, os.O_RDONLY | os.O_DIRECTORY)
abi = None if len(sys.argv) < 5 else int(sys.argv[4])
restrict = landlock.restrict
landlock.restrict = lambda rules: restrict(rules, abi)
locks.lock_runner([(writable, landlock.WRITE), (read_only, landlock.READ)])
def opened(path, flags=os.O_RDONLY, at=writable):
    os.close(os.open(path, flags, 0o600, dir_fd=at))
trial("read", lambda: opened("there"))
trial("write", lambda: opened("new", os.O_CREAT | os.O_WRONLY))
trial("truncate", lambda: opened("new", os.O_TRUNC | os.O_WRONLY))
trial("mkdir", lambda: os.mkdir("made", dir_fd=writable))
trial("rename", lambda: os.rename("new", "made/new", src_dir_fd=writable, dst_dir_fd=writable))
trial("remove", lambda: os.unlink("made/new", dir_fd=writable))
trial("list", lambda: os.listdir(read_only))
trial("read the other", lambda: opened("there", at=read_only))
good, seen = seen, {}
trial("write the other", lambda: opened("new", os.O_CREAT | os.O_WRONLY, read_only))
trial("change the other", lambda: opened("there", os.O_WRONLY, read_only))
trial("remove of the other", lambda: os.unlink("there", dir_fd=read_only))
trial("absolute", lambda: opened(outside + "/there"))
trial("absolute, made", lambda: os.mkdir(outside + "/made", dir_fd=writable))
trial("dots", lambda: opened("../" + os.path.basename(outside) + "/there"))
trial("passwords", lambda: opened("/etc/passwd"))
trial("root of another", lambda: opened("/proc/self/root/etc/passwd"))
trial("memory of another", lambda: opened(f"/proc/{os.getppid()}/mem"))
trial("device", lambda: opened("/dev/null"))
trial("socket", lambda: os.mknod("pipe", 0o10600, dir_fd=writable))
seen = {"good": good, "bad": seen}
"""


@pytest.mark.parametrize("abi", [None, 1, 2, 3, 4, 5, 6])
def test_a_runner_has_the_files_it_was_granted_as_they_were_granted_under_each_interface(
    abi: int | None, tmp_path: Path
) -> None:
    if landlock.kernel_abi() < (abi or 1):
        pytest.skip(f"this kernel has no Landlock of version {abi}")
    places = [str(made(_new(tmp_path / name))) for name in ("granted", "other", "outside")]
    seen = tried(RUNNER, *places, *([] if abi is None else [str(abi)]))
    # Before version 2 nothing can be moved between directories; the rest is the same.
    moved = {"rename": "EXDEV", "remove": "ENOENT"} if abi == 1 else {}
    assert seen["good"] == dict.fromkeys(seen["good"], "done") | moved
    assert set(seen["bad"].values()) <= {"EACCES", "EPERM"}, seen["bad"]


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory


WASM = """
from app_loader.engine.compiled import Module
from app_loader.engine.foreign import EngineError
from app_loader.engine.settings import Settings, make_engine
from app_loader.engine.store import Linker, Store
engine = make_engine(Settings())
binary = bytes.fromhex("0061736d01000000010501600001 7f03020100070501016600000a0601040041070b")
module, store = Module.compile(engine, binary), Store(engine)
def compiled():
    try:
        Module.compile(engine, binary)
    except EngineError as error:
        raise PermissionError(errno.EPERM, "") from error
def thread():
    started = threading.Thread(target=seen.update, args=({"in a thread": "done"},))
    started.start()
    started.join()
locks.LOCK()
trial("compile", compiled)
trial("open", lambda: open("/dev/null"))
trial("make a name", lambda: os.mkdir("/tmp/made-by-a-guest"))
trial("pair", socket.socketpair)
trial("code", lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC))
trial("memory", lambda: mmap.mmap(-1, 4096))
trial("thread", thread)
(seen["guest"],) = store.call(store.export(Linker(engine).instantiate(store, module), "f"), (), 1)
"""


@pytest.mark.parametrize("lock", ["lock_checker", "lock_runner"])
def test_a_guest_runs_behind_the_lock_and_only_a_checker_makes_code(lock: str) -> None:
    code = "done" if lock == "lock_checker" else "EPERM"
    assert tried(WASM.replace("LOCK", lock)) == {
        **dict.fromkeys(("compile", "code"), code),
        **dict.fromkeys(("open", "make a name", "pair"), "EPERM"),
        **dict.fromkeys(("memory", "thread", "in a thread"), "done"),
        "guest": 7,
    }


@pytest.mark.parametrize("lock", ["lock_loader()", "lock_endpoint()", "lock_checker()", "lock_runner()"])
def test_a_lock_that_does_not_hold_is_a_failure(lock: str) -> None:
    program = f"filters.install = lambda code: None\nlocks.{lock}"
    ended = subprocess.run([sys.executable, "-c", PROLOGUE + program], capture_output=True, timeout=60)
    assert b"cannot lock the process: socket is not refused" in ended.stderr


@has_landlock
def test_a_runner_whose_grants_can_be_left_is_not_run(tmp_path: Path) -> None:
    program = """
landlock.restrict = lambda rules: True
locks.lock_runner([(os.open(sys.argv[1], os.O_RDONLY), landlock.READ)])
"""
    ended = subprocess.run([sys.executable, "-c", PROLOGUE + program, str(tmp_path)], capture_output=True, timeout=60)
    assert b"cannot lock the process: an absolute path leads out of a grant" in ended.stderr


def test_a_process_with_several_threads_is_not_locked() -> None:
    for lock in ("lock_loader()", "lock_endpoint()", "lock_checker()", "lock_runner()"):
        program = f"threading.Thread(target=threading.Event().wait, daemon=True).start()\nlocks.{lock}"
        ended = subprocess.run([sys.executable, "-c", PROLOGUE + program], capture_output=True)
        assert b"cannot lock the process: it has several threads" in ended.stderr


WITHOUT = """
machine = os.uname().machine
column = kernel.MACHINES.index(machine)
code = filters.begin(machine)
for name, rule in (
    ("landlock_create_ruleset", [filters.refuse(errno.LANDLOCK)]),
    ("prctl", filters._refused_if(0, 65, 66)),
):
    code += filters.only_if(kernel.NUMBERS[name][column], rule)
filters.install([*code, (filters.RETURN, 0, 0, filters.ALLOW)])
"""
"""A kernel without Landlock (ENOSYS, or switched off at boot) and without PR_SET_MDWE."""


@pytest.mark.parametrize("answer", ["ENOSYS", "EOPNOTSUPP"])
@pytest.mark.parametrize("lock", ["lock_endpoint", "lock_runner"])
def test_an_older_kernel_s_process_is_locked_by_its_filter_and_says_what_is_missing(lock: str, answer: str) -> None:
    seen = tried(
        WITHOUT.replace("LANDLOCK", answer)
        + "seen['lacks'] = locks.what_the_kernel_lacks()\nimport resource, fcntl\n"
        + f"locks.{lock}()\n{other_process()}"
    )
    lacks = seen.pop("lacks")
    assert [line.split(":")[0] for line in lacks] == ["the kernel has no Landlock", "the kernel has no PR_SET_MDWE"]
    assert seen.pop("memory") == "done"
    assert set(seen.values()) == {"EPERM"}


def test_landlock_that_may_not_be_used_is_a_failure() -> None:
    program = WITHOUT.replace("LANDLOCK", "EPERM") + "locks.lock_runner()"
    ended = subprocess.run([sys.executable, "-c", PROLOGUE + program], capture_output=True)
    assert b"cannot lock the process: Landlock: it may not be used here" in ended.stderr
    assert b"SystemCallFilter=" in ended.stderr


@has_landlock
def test_what_cannot_be_a_rule_is_a_failure(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(KeepfleetError, match="its rules cannot be set") as failed:
        landlock.restrict([(descriptor, 0)])
    os.close(descriptor)
    assert failed.value.kind is ErrorKind.ISOLATION_FAILURE


@has_landlock
def test_what_has_no_path_is_opened_again_by_its_descriptor(tmp_path: Path) -> None:
    seen = tried(
        """
memory, (reader, _) = os.memfd_create("x"), os.pipe()
os.mkdir(sys.argv[1] + "/gone")
nameless = os.open(sys.argv[1] + "/gone", os.O_TMPFILE | os.O_RDWR, 0o600)
os.rmdir(sys.argv[1] + "/gone")
kernel.prctl(38, 1)
landlock.restrict([(descriptor, landlock.READ) for descriptor in (memory, reader, nameless)])
for descriptor in (memory, nameless):
    trial(str(descriptor), lambda: open(f"/proc/self/fd/{descriptor}").close())
""",
        str(tmp_path),
    )
    assert list(seen.values()) == ["done", "done"]


def test_this_kernel_s_interface_is_what_it_says() -> None:
    library = ctypes.CDLL(None, use_errno=True)
    asked = library.syscall(444, None, 0, 1)
    assert landlock.kernel_abi() == max(asked, 0)
    assert landlock.handled(1) == ((1 << 13) - 1, 0, 0)
    assert landlock.handled(7) == ((1 << 16) - 1, 3, 3)


def test_a_call_that_fails_is_an_error_with_its_number() -> None:
    with pytest.raises(OSError) as failed:
        call("landlock_restrict_self", -1, 0)
    assert failed.value.errno in (errno.EBADF, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
