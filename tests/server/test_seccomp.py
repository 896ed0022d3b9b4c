"""Filters of system calls, run by an interpreter of classic BPF."""

import errno
import struct

import pytest

from server.seccomp import ALLOW, CLONE, CLONE3, DENIED, KILL, MACHINES, PROCESSES, program

ERRNO = 0x00050000
EPERM, ENOSYS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS
CLONE_THREAD = 0x00010000
# NS, CGROUP, UTS, IPC, USER, PID, NET
CLONE_NEW = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
SIGCHLD = 17
# what glibc gives to clone for a thread: VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, two TIDs
THREAD = 0x003D0F00
# read, write, mmap, exit_group, futex, openat, prctl, seccomp, kill, pidfd_open
ORDINARY = {
    "x86_64": (0, 1, 9, 231, 202, 257, 157, 317, 62, 434),
    "aarch64": (63, 64, 222, 94, 98, 56, 167, 277, 129, 434),
}


def verdict(filter_: bytes, audit: int, number: int, first_argument: int = 0) -> int:
    """What the kernel would return for a call, with the four instructions that the filters use."""
    data = struct.pack("<IIQ6Q", number, audit, 0, first_argument, *[0] * 5)
    lines = list(struct.iter_unpack("<HBBI", filter_))
    accumulator = position = 0
    while True:
        code, true, false, value = lines[position]
        position += 1
        if code == 0x20:
            assert value % 4 == 0  # the kernel refuses others
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x15:
            position += true if accumulator == value else false
        elif code == 0x45:
            position += true if accumulator & value else false
        elif code == 0x06:
            return value
        else:
            raise AssertionError(f"unknown instruction {code:#x}")


@pytest.fixture(params=MACHINES)
def machine(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["processes", "no processes"])
def processes(request):
    return request.param


def ask(machine, processes, number, first_argument=0):
    filter_ = program(machine, processes=processes)
    return verdict(filter_, MACHINES[machine].audit, number, first_argument)


def test_every_call_of_the_table_is_denied(machine, processes):
    """Each denied call gets EPERM, with and without new processes, whatever its argument."""
    column = MACHINES[machine].column
    for name, numbers in DENIED.items():
        if numbers[column] is not None:
            for argument in (0, 1, 2**32 - 1):
                assert ask(machine, processes, numbers[column], argument) == EPERM, name


def test_ordinary_calls_pass(machine, processes):
    """What every Python program does is allowed, and so is a second filter."""
    for number in ORDINARY[machine]:
        assert ask(machine, processes, number) == ALLOW


def test_nothing_else_is_denied(machine, processes):
    """Over all numbers, the denied ones are those of the tables: no line of the program jumps astray."""
    column = MACHINES[machine].column
    tables = [DENIED] if processes else [DENIED, PROCESSES]
    expected = {numbers[column] for table in tables for numbers in table.values()} - {None}
    expected |= {CLONE3[column]}
    filter_, audit = program(machine, processes=processes), MACHINES[machine].audit
    denied = {number for number in range(1024) if verdict(filter_, audit, number, CLONE_THREAD) != ALLOW}
    assert denied == expected


def test_another_architecture_is_killed(machine, processes):
    """Calls by another architecture's numbers, 32-bit x86 among them, kill the process."""
    filter_ = program(machine, processes=processes)
    others = {other.audit for other in MACHINES.values()} - {MACHINES[machine].audit}
    for audit in (*others, 0x40000003, 0x40000028, 0):
        assert verdict(filter_, audit, 0) == KILL


def test_x32_is_killed():
    """The x32 numbers of x86_64, a second set for the same calls, kill the process."""
    for number in (0x40000000, 0x40000000 | 41, 0x40000000 | 520, 0xFFFFFFFF):
        assert ask("x86_64", True, number) == KILL
        assert ask("x86_64", False, number) == KILL


def test_processes_and_programs(machine):
    """The first filter leaves fork and exec to the interpreter's start; the stricter one denies them."""
    column = MACHINES[machine].column
    for name, numbers in PROCESSES.items():
        if numbers[column] is not None:
            assert ask(machine, True, numbers[column]) == ALLOW, name
            assert ask(machine, False, numbers[column]) == EPERM, name
    assert ask(machine, True, CLONE[column], SIGCHLD) == ALLOW
    assert ask(machine, False, CLONE[column], SIGCHLD) == EPERM


def test_threads(machine, processes):
    """A thread can be made through clone; clone3, whose flags no filter sees, is said not to exist."""
    column = MACHINES[machine].column
    assert ask(machine, processes, CLONE[column], THREAD) == ALLOW
    assert ask(machine, processes, CLONE3[column]) == ENOSYS


def test_no_namespace_by_clone(machine, processes):
    """clone makes no namespaces, not even as a thread."""
    column = MACHINES[machine].column
    for namespace in CLONE_NEW:
        assert ask(machine, processes, CLONE[column], namespace | SIGCHLD) == EPERM
        assert ask(machine, processes, CLONE[column], namespace | CLONE_THREAD) == EPERM


def test_the_kernel_takes_as_many_lines(machine, processes):
    """A program is whole lines of eight bytes, within the kernel's 4,096."""
    filter_ = program(machine, processes=processes)
    assert len(filter_) % 8 == 0
    assert len(filter_) // 8 <= 4096


def test_no_number_twice(machine):
    """Each number stands for one call: a slip of a digit would deny the wrong one."""
    column = MACHINES[machine].column
    rows = [*DENIED.values(), *PROCESSES.values(), CLONE, CLONE3]
    numbers = [row[column] for row in rows if row[column] is not None]
    assert len(numbers) == len(set(numbers))


def test_an_unknown_machine():
    """A filter is written only for architectures whose numbers stand in the tables."""
    with pytest.raises(KeyError):
        program("riscv64", processes=False)
