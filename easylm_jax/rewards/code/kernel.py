"""What the Linux kernel offers to shut programs in, called through ctypes: no library and no privilege is needed.

Three layers, each of which holds without the others:

- namespaces: no network device, no other process to be seen, a file tree that has nothing but Python in it;
- Landlock: no file outside of Python's own folders can be opened, whatever the tree shows;
- seccomp: a list of the few system calls that computing needs. No sockets, no new processes or programs, no file
  opened for writing, no signal, debugger or limit for another process.

This file is run by `jail` in a process of its own and imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_USER = 0x1000_0000
_NAMESPACES = 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | _NEW_USER | 0x2000_0000 | 0x4000_0000  # ns uts ipc user pid net
_NOBODY = 65534
_BIND, _REC, _REMOUNT, _PRIVATE, _DETACH = 0x1000, 0x4000, 0x20, 1 << 18, 2
_READ_ONLY, _NO_SUID, _NO_DEV, _NO_EXEC = 1, 2, 4, 8

# Name and number on x86_64 and on aarch64 ("-": not there).
_SYSCALLS = """
read 0 63, write 1 64, close 3 57, fstat 5 80, newfstatat 262 79, stat 4 -, lstat 6 -, lseek 8 62, mmap 9 222,
mprotect 10 226, munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139,
pread64 17 67, readv 19 65, writev 20 66, access 21 -, pipe 22 -, pipe2 293 59, select 23 -, poll 7 -,
pselect6 270 72, ppoll 271 73, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -, epoll_pwait 281 22,
eventfd2 290 19, sched_yield 24 124, mremap 25 216, madvise 28 233, dup 32 23, dup2 33 -, dup3 292 24,
nanosleep 35 101, clock_nanosleep 230 115, getpid 39 172, gettid 186 178, getppid 110 173, getuid 102 174,
geteuid 107 175, getgid 104 176, getegid 108 177, getresuid 118 148, getresgid 120 150, getgroups 115 158,
getpgrp 111 -, getpgid 121 155, getsid 124 156, exit 60 93, exit_group 231 94, uname 63 160, getcwd 79 17,
chdir 80 49, readlink 89 -, readlinkat 267 78, getdents64 217 61, statfs 137 43, fstatfs 138 44, statx 332 291,
faccessat 269 48, faccessat2 439 439, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, time 201 -,
times 100 153, getrusage 98 165, sysinfo 99 179, set_tid_address 218 96, set_robust_list 273 99, futex 202 98,
sched_getaffinity 204 123, sigaltstack 131 132, rseq 334 293, getrandom 318 278, getcpu 309 168, membarrier 324 283,
restart_syscall 219 128, setitimer 38 103, getitimer 36 102, alarm 37 -, pause 34 -, arch_prctl 158 -,
getrlimit 97 163, setrlimit 160 164, fadvise64 221 223, open 2 -, openat 257 56, openat2 437 437, clone 56 220,
clone3 435 435, tgkill 234 131, kill 62 129, prlimit64 302 261, ioctl 16 29, fcntl 72 25, prctl 157 167
"""
_MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}  # column of the table, AUDIT_ARCH


class Unavailable(Exception):
    """The kernel does not offer a layer."""


def _call(name: str, *arguments: object) -> int:
    result = getattr(_libc, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def die_with_parent() -> None:
    """This process is killed when the thread that started it ends."""
    _call("prctl", 1, ctypes.c_ulong(9), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


# Namespaces


def new_namespaces() -> bool:
    """Moves this process into namespaces of its own; the next child is the first process of the new ones.

    Returns whether there is a second, powerless user in them to change to. A process that runs as root gets one, since
    the kernel does not count root's processes; other users' are counted and need none.

    Raises:
        Unavailable: the kernel or a container does not allow it. Nothing has changed then.
    """
    outside, inside = os.pipe()
    owner, group, me = os.geteuid(), os.getegid(), os.getpid()
    helper = os.fork()
    if helper == 0:  # stays outside, where it may do what the owner of the new namespace no longer may
        os.close(inside)
        try:
            if owner == 0 and os.read(outside, 1):
                _write(f"/proc/{me}/uid_map", f"0 {owner} 1\n{_NOBODY} {_NOBODY} 1")
                _write(f"/proc/{me}/gid_map", f"0 {group} 1\n{_NOBODY} {_NOBODY} 1")
                os._exit(0)
        finally:
            os._exit(1)
    os.close(outside)
    try:
        _call("unshare", ctypes.c_int(_NAMESPACES))
        os.write(inside, b"!")
    except OSError as error:
        raise Unavailable(str(error)) from None
    finally:
        os.close(inside)
        mapped = os.waitpid(helper, 0)[1] == 0
    if not mapped:
        _write("/proc/self/uid_map", f"0 {owner} 1")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/gid_map", f"0 {group} 1")
    return mapped


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def new_root(readable: list[str]) -> None:
    """Replaces the file tree by one that has nothing but these files and folders, to be read only.

    What is installed for Python (site-packages) is covered: it may point anywhere.
    """
    _mount("none", "/", None, _REC | _PRIVATE)
    base = "/proc"  # a folder that every system has; covered by the new tree, which then becomes the root
    _mount("tmpfs", base, "tmpfs", _NO_SUID | _NO_DEV, "size=1m,nr_inodes=1k,mode=755")
    for path in readable:
        place = base + path
        if os.path.isdir(path):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(path, place, None, _BIND | _REC)
        _mount("none", place, None, _BIND | _REMOUNT | _READ_ONLY | _kept_flags(place))
        for name in ("site-packages", "dist-packages"):
            if os.path.isdir(f"{place}/{name}"):
                _mount("tmpfs", f"{place}/{name}", "tmpfs", _READ_ONLY, "size=4k,nr_inodes=2")
    os.makedirs(f"{base}/empty", exist_ok=True)
    os.chdir(base)
    _call("syscall", ctypes.c_long(_number("pivot_root")), b".", b".")
    _call("umount2", b".", ctypes.c_int(_DETACH))
    os.chdir("/")
    _mount("none", "/", None, _BIND | _REMOUNT | _READ_ONLY | _NO_SUID | _NO_DEV)
    os.chdir("/empty")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    _call("mount", text(source), text(target), text(kind), ctypes.c_ulong(flags), text(options))


def _kept_flags(path: str) -> int:
    """Flags of a mount that only its owner may take away, so that they have to be given again."""
    has = os.statvfs(path).f_flag
    pairs = ((2, _NO_SUID), (4, _NO_DEV), (8, _NO_EXEC), (1024, 1 << 10), (2048, 1 << 11), (4096, 1 << 21))
    return sum(flag for bit, flag in pairs if has & bit)  # the last three: noatime, nodiratime, relatime


def _number(name: str) -> int:
    column = _MACHINES[platform.machine()][0]
    return {"pivot_root": (155, 41)}[name][column]


# Privileges


def drop_privileges(to_nobody: bool) -> None:
    """No user to be, no capability, and none to be had again."""
    if to_nobody:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header, nothing = struct.pack("II", 0x2008_0522, 0), bytes(24)
    _call("capset", header, nothing)
    _call("prctl", 38, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))  # NO_NEW_PRIVS


def limit(memory: int, seconds: int, threads: int | None) -> None:
    """Bounds what this process may use: bytes of address space, processor seconds, threads. It can write no file."""
    bounds = {
        resource.RLIMIT_AS: memory, resource.RLIMIT_CPU: seconds, resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64, resource.RLIMIT_MEMLOCK: 0,
    }  # fmt: skip
    if threads is not None:
        bounds[resource.RLIMIT_NPROC] = threads
    for kind, most in bounds.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


# Landlock


def landlock(readable: list[str]) -> None:
    """From now on this process and its children can open these files and folders, to read them, and no other.

    Raises:
        Unavailable: the kernel has no Landlock (it came with 5.13), or a container does not allow it.
    """
    create, add, restrict = 444, 445, 446
    try:
        version = _call("syscall", ctypes.c_long(create), None, ctypes.c_size_t(0), ctypes.c_uint(1))
        # All that the version can forbid: files, from 4 on TCP, from 6 on signals and abstract sockets.
        files = (1 << 13) - 1 | (version >= 2) << 13 | (version >= 3) << 14 | (version >= 5) << 15
        rules = struct.pack("QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
        ruleset = _call("syscall", ctypes.c_long(create), rules, ctypes.c_size_t(len(rules)), ctypes.c_uint(0))
    except OSError as error:
        raise Unavailable(str(error)) from None
    read_file, read_folder = 1 << 2, 1 << 3
    for path in readable:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = read_file | read_folder if os.path.isdir(path) else read_file
        rule = struct.pack("=Qi", allowed, place)
        _call("syscall", ctypes.c_long(add), ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
        os.close(place)
    _call("syscall", ctypes.c_long(restrict), ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


# Seccomp

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF_0000, 0x8000_0000, 0x0005_0000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | (getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY)
_THREAD, _CLONED_NAMESPACES = 0x1_0000, 0x7E02_0000
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # what opening a file asks for
_FCNTLS = (0, 1, 2, 3, 4, 1030)  # copies of a descriptor and its flags; no owner, no lease
_SET_NAME = 15


def seccomp() -> None:
    """From now on this process can compute, read what is open, open files to read them, start threads and end itself.

    Raises:
        Unavailable: the kernel has no filters, or this machine's system calls are not known here.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise Unavailable(f"no list of system calls for {machine}")
    column, architecture = _MACHINES[machine]
    rows = (entry.split() for entry in _SYSCALLS.replace("\n", " ").split(",") if entry.strip())
    numbers = {name: int(both[column]) for name, *both in rows if both[column] != "-"}
    program = _filter(numbers, architecture, os.getpid())
    code = b"".join(struct.pack("HBBI", *one) for one in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    count = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer)), 16)
    try:
        _call("prctl", 22, ctypes.c_ulong(2), count, ctypes.c_ulong(0), ctypes.c_ulong(0))
    except OSError as error:
        raise Unavailable(str(error)) from None


def _filter(numbers: dict[str, int], architecture: int, me: int) -> list[tuple[int, int, int, int]]:
    """The filter as instructions (code, jump if true, jump if false, operand). What is not allowed fails with EPERM."""
    deny = (_RETURN, 0, 0, _ERROR | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    numbers = dict(numbers)

    def argument(index: int) -> tuple[int, int, int, int]:  # its lower half
        return (_LOAD, 0, 0, 16 + 8 * index)

    def one_of(index: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        return [argument(index), *(step for value in values for step in ((_EQUAL, 0, 1, value), allow)), deny]

    def without(index: int, bits: int) -> list[tuple[int, int, int, int]]:
        return [argument(index), (_ANY_BIT, 0, 1, bits), deny, allow]

    conditions = {
        "open": without(1, _WRITING),
        "openat": without(2, _WRITING),
        "openat2": [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)],  # its flags lie in memory, where no filter can look
        "clone3": [(_RETURN, 0, 0, _ERROR | errno.ENOSYS)],  # the same; the C library then uses clone
        "clone": [argument(0), (_ANY_BIT, 1, 0, _THREAD), deny, (_ANY_BIT, 0, 1, _CLONED_NAMESPACES), deny, allow],
        "kill": one_of(0, (me,)),
        "tgkill": one_of(0, (me,)),
        "prlimit64": one_of(0, (0, me)),
        "ioctl": one_of(1, _IOCTLS),
        "fcntl": one_of(1, _FCNTLS),
        "prctl": one_of(0, (_SET_NAME,)),
    }
    program = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, 0x4000_0000), deny,  # x86_64's second table (x32)
    ]  # fmt: skip
    for name, steps in conditions.items():
        if name in numbers:
            program += [(_EQUAL, 0, len(steps), numbers.pop(name)), *steps]
    for number in numbers.values():
        program += [(_EQUAL, 0, 1, number), allow]
    return [*program, deny]
