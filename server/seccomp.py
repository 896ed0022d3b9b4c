"""Filters of system calls for the sandbox, as the classic BPF programs that the kernel takes.

Everything is allowed but what stands in the tables: namespaces, limits and an empty file system keep the code
in; the filters take away the calls by which the kernel itself has been attacked, and those that would hold
memory that no limit counts. Each is denied with EPERM, so that a program sees an error and goes on.

Numbers: `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h` of Linux.
"""

import errno
import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """`column` is its place in the tables; `audit` is how a filter knows a call's architecture."""

    column: int
    audit: int
    x32: bool = False  # a second set of numbers, which would walk around the tables


MACHINES = {
    "x86_64": Machine(0, 0xC000003E, x32=True),
    "aarch64": Machine(1, 0xC00000B7),
}

DENIED: dict[str, tuple[int | None, int | None]] = {
    # name: (x86_64, aarch64); None where the architecture has no such call
    # sockets, of any family
    "socket": (41, 198),
    "socketpair": (53, 199),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    # large and often attacked parts of the kernel
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_setup": (206, 0),
    "vmsplice": (278, 75),
    "remap_file_pages": (216, 234),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    # memory that RLIMIT_AS does not count
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # where memory lies
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "uselib": (134, None),
    "_sysctl": (156, None),
}

PROCESSES: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
}

CLONE = (56, 220)
CLONE3 = (435, 435)

_CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020000  # CLONE_NEWNS, …CGROUP, …UTS, …IPC, …USER, …PID, …NET
_X32_BIT = 0x40000000

_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data, little-endian
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06

ALLOW = 0x7FFF0000
KILL = 0x80000000  # the whole process
_ERRNO = 0x00050000


def program(machine: str, *, processes: bool) -> bytes:
    """The filter for `machine` (as `platform.machine` writes it), an array of struct sock_filter.

    Without `processes` it also denies new processes and programs; threads remain. `clone3` hides its flags
    from filters, so it is said not to exist, and C libraries fall back to `clone`.
    """
    here = MACHINES[machine]
    denied = DENIED if processes else DENIED | PROCESSES
    lines = [_line(_LOAD, _ARCHITECTURE), _line(_JUMP_EQUAL, here.audit, 1, 0), _line(_RETURN, KILL)]
    lines += [_line(_LOAD, _NUMBER)]
    if here.x32:
        lines += [_line(_JUMP_SET, _X32_BIT, 0, 1), _line(_RETURN, KILL)]
    for numbers in denied.values():
        number = numbers[here.column]
        if number is not None:
            lines += [_line(_JUMP_EQUAL, number, 0, 1), _line(_RETURN, _ERRNO | errno.EPERM)]
    lines += [_line(_JUMP_EQUAL, CLONE3[here.column], 0, 1), _line(_RETURN, _ERRNO | errno.ENOSYS)]
    lines += [_line(_JUMP_EQUAL, CLONE[here.column], 1, 0), _line(_RETURN, ALLOW)]
    lines += [_line(_LOAD, _FIRST_ARGUMENT)]
    if not processes:
        lines += [_line(_JUMP_SET, _CLONE_THREAD, 1, 0), _line(_RETURN, _ERRNO | errno.EPERM)]
    lines += [_line(_JUMP_SET, _CLONE_NEW, 0, 1), _line(_RETURN, _ERRNO | errno.EPERM)]
    lines += [_line(_RETURN, ALLOW)]
    return b"".join(lines)


def _line(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    """`true` and `false` are how many lines a jump skips."""
    return struct.pack("<HBBI", code, true, false, value)
