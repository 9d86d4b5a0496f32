"""Linux, made to look like Windows as far as that goes: `python -m tests.packaging.windows CODE [ARGUMENT…]` runs code
where the modules and the functions of POSIX are absent; sys.argv[1:] has the arguments.

What other libraries are made of is imported before: they were built for this system. Paths stay those of POSIX, for
pathlib and the file system cannot be changed; os.name stays, too.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import sys

MODULES = ("crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty")
"""Python's own that are for Unix alone: importing them fails."""
NAMES = {
    os: (
        *("fork", "forkpty", "register_at_fork", "killpg", "getuid", "geteuid", "getgid", "getegid", "getgroups"),
        *("getpgid", "getpgrp", "setsid", "setpgid", "setuid", "setgid", "getpriority", "nice", "sysconf", "confstr"),
        *("getloadavg", "sched_getaffinity", "sched_setaffinity", "sched_yield", "uname", "statvfs", "fstatvfs"),
        *("mkfifo", "mknod", "memfd_create", "chown", "fchown", "lchown", "fchmod", "pread", "preadv", "pwrite"),
        *("sendfile", "posix_fadvise", "posix_fallocate", "posix_spawn", "pipe2", "eventfd", "pidfd_open", "ttyname"),
        *("openpty", "wait", "wait3", "wait4", "waitid", "WIFSIGNALED", "WTERMSIG", "fdatasync", "sync", "lockf"),
        *("O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "O_PATH", "O_CLOEXEC", "O_SYNC", "O_DSYNC", "O_TMPFILE"),
        *("RTLD_GLOBAL", "RTLD_LOCAL", "RTLD_NOW", "RTLD_LAZY", "get_blocking", "set_blocking", "fchdir", "chroot"),
    ),
    signal: (
        *("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGCHLD", "SIGQUIT", "SIGSTOP", "SIGCONT"),
        *("SIGTSTP", "SIGBUS", "SIGWINCH", "alarm", "setitimer", "getitimer", "pthread_kill", "pthread_sigmask"),
        *("sigwait", "sigpending", "siginterrupt", "pause"),
    ),
    select: ("poll", "epoll", "EPOLLIN"),
}
"""Functions and constants that are absent there."""
_LOADED = (
    *("asyncio", "concurrent.futures", "ctypes", "multiprocessing", "shutil", "socket", "subprocess", "tarfile"),
    *("tempfile", "threading", "urllib.request", "webbrowser", "zipfile", "cProfile"),
    *("numpy", "onnx", "onnx_ir", "onnxruntime", "PIL.Image", "click", "rich.console", "rich.progress"),
    *("openvino", "tvm", "tvm_ffi", "libstb", "distributed", "pycocotools.mask", "matplotlib.pyplot", "cv2"),
    "numpy.testing",
)
"""What looks at the system when it is imported."""


def imitate() -> None:
    """Takes away what Windows has not, in this process, for good."""
    for name in _LOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    os.supports_dir_fd = set()
    os.supports_fd = set()
    sys.platform = "win32"


if __name__ == "__main__":
    imitate()
    code = sys.argv.pop(1)
    sys.argv[0] = "windows"
    exec(compile(code, "code", "exec"), {"__name__": "code"})
