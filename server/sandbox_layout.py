"""The file system of a sandbox: the interpreter's own files, read-only, and a folder in memory."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = "/tmp"  # noqa: S108  # the sandbox's own
_NOBODY = "65534"
_STAGE = Path("/mnt")  # see `_as_nobody`
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_OPTIONAL = (Path("/etc/ld.so.cache"), Path("/usr/share/zoneinfo"))

_ISOLATION = (
    *("--unshare-user", "--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
    *("--cap-drop", "ALL", "--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "sandbox"),
)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a sandbox's file system is made of. `command` is bwrap up to its filter and program."""

    executable: Path
    bound: tuple[Path, ...]
    masked: tuple[Path, ...]  # installed packages within `bound`
    command: tuple[str, ...]

    @classmethod
    def of_this_host(cls, scratch: int) -> "Layout":
        # A virtual environment's interpreter is a link to, or a copy of, the one that has the library.
        executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        prefix = Path(sys.base_prefix).resolve()
        bound = [
            path
            for path in dict.fromkeys(_needed(prefix))
            if path.is_file() or (path.is_dir() and not path.is_symlink())
        ]
        masked = [
            path
            for folder in bound
            for place in ("", "python3*/")
            for name in ("site-packages", "dist-packages")
            for path in folder.glob(place + name)
            if path.is_dir() and not path.is_symlink()
        ]
        bound += [executable, *(path for path in _OPTIONAL if path.exists())]
        become, staged = _as_nobody(prefix)
        command = [*become, shutil.which("bwrap") or "bwrap", *_ISOLATION]
        command += ["--size", str(scratch), "--tmpfs", FOLDER]
        for path in bound:
            source = _STAGE / path.relative_to(prefix) if staged and path.is_relative_to(prefix) else path
            command += ["--ro-bind", str(source), str(path)]
        for path in masked:
            command += ["--tmpfs", str(path), "--remount-ro", str(path)]
        for path in (Path("/lib"), Path("/lib64")):
            if path.is_symlink():
                command += ["--symlink", str(path.readlink()), str(path)]
            elif path.is_dir():
                command += ["--ro-bind", str(path), str(path)]
        for device in _DEVICES:
            command += ["--dev-bind", device, device]
        command += ["--remount-ro", "/", "--chdir", FOLDER]
        return cls(executable, tuple(bound), tuple(masked), tuple(command))


def _needed(prefix: Path) -> Iterator[Path]:
    """The library and what it links to. Other software lies in the same folders, so no more than that."""
    if prefix in (Path("/usr"), Path("/usr/local")):
        yield Path(sysconfig.get_path("stdlib")).resolve()
        yield Path(sysconfig.get_path("platstdlib", vars={"platbase": str(prefix)})).resolve()
        yield from prefix.glob("lib*/libpython3*.so*")
    else:
        yield from (prefix / "lib", prefix / "lib64")
    system = Path("/usr/lib")
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch and (system / multiarch).is_dir():
        yield system / multiarch
        yield from system.glob("ld-*.so*")
    else:
        yield system
    yield Path("/usr/lib64")


def _as_nobody(prefix: Path) -> tuple[list[str], bool]:
    """What stands before bwrap where the server is root, whom neither file modes nor RLIMIT_NPROC bind.

    An interpreter under a folder of root's own, such as /root, is bound to `_STAGE` first, in a mount
    namespace that ends with the sandbox: nobody could not reach it. The second value says so.
    """
    if os.geteuid() != 0:
        return [], False
    become = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--"]
    if all(folder.stat().st_mode & 0o001 for folder in (prefix, *prefix.parents)):
        return become, False
    bind = f'mount --bind "$0" {_STAGE} && exec "$@"'
    private = ["unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", bind, str(prefix)]
    return [*private, *become], True
