"""Programs that attack the sandbox, and how each of them has to end. Some are harmless, and have to pass."""

from typing import NamedTuple

from tests.sandbox.numbers import NUMBERS
from tests.sandbox.support import MACHINE
from tests.sandbox.test_filter import CONDITIONED, FREE, MISSING

CALLS = NUMBERS[MACHINE]

REFUSED = "failed PermissionError"
TIMEOUT = "timeout "
PASSED = "passed "
SEGFAULT = "died SIGSEGV"
EXIT = "died ended without a verdict"
KILLED = "died SIGKILL"  # ended by the server, which heard nothing more
PIPE = "died wrote to the pipe of the verdict"


class Case(NamedTuple):
    """A program.

    Attributes:
        code: source; VICTIM and DIRECTORY stand for a file and a directory that anybody may write to.
        ends: outcome and reason, one of these.
        seconds: limit of its time.
    """

    code: str
    ends: tuple[str, ...]
    seconds: float = 20.0


def _case(code: str, *ends: str) -> Case:
    return Case(code, ends, 0.4 if TIMEOUT in ends else 20.0)


# The prototype's.
FIRST: dict[str, Case] = {
    "plain": _case("x = 1", PASSED),
    "assertion": _case("assert 1 == 2", "failed AssertionError"),
    "TCP": _case("import socket; socket.create_connection(('127.0.0.1', 80))", REFUSED),
    "UDP": _case("import socket; s = socket.socket(2, 2); s.sendto(b'x', ('127.0.0.1', 9))", REFUSED),
    "Unix socket": _case("import socket; socket.socket(1, 1)", REFUSED),
    "write in /tmp": _case("open('DIRECTORY/evil', 'w').write('x')", REFUSED),
    "write in the working directory": _case("open('evil', 'w')", REFUSED),
    "append": _case("open('VICTIM', 'a')", REFUSED),
    "unlink": _case("import os; os.unlink('VICTIM')", REFUSED),
    "mkdir": _case("import os; os.mkdir('DIRECTORY/d')", REFUSED),
    "read /etc/passwd": _case("open('/etc/passwd').read()", REFUSED),
    "list the home": _case("import os; os.listdir('/root')", REFUSED),
    "read /proc": _case("open('/proc/1/environ').read()", REFUSED),
    "fork": _case("import os; os.fork()", REFUSED),
    "subprocess": _case("import subprocess; subprocess.run(['id'])", REFUSED),
    "system": _case("import os; assert os.system('id') == 0", "failed AssertionError"),
    "kill the parent": _case("import os; os.kill(os.getppid(), 9)", REFUSED),
    "memory": _case("x = bytearray(3 << 30)", "failed MemoryError"),
    "memory of lists": _case("x = [0] * 10**9", "failed MemoryError"),
    "loop": _case("while True: pass", TIMEOUT),
    "sleep": _case("import time; time.sleep(60)", TIMEOUT),
    "loop that catches all": _case(
        "import time\nwhile True:\n  try: time.sleep(1)\n  except BaseException: pass", TIMEOUT
    ),
    "os._exit": _case("import os; os._exit(0)", EXIT),
    "sys.exit": _case("import sys; sys.exit(0)", "failed SystemExit"),
    "thread": _case("import threading; t = threading.Thread(target=print); t.start(); t.join()", PASSED),
    "unshare": _case(
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); assert l.unshare(0x10000000) == 0, ctypes.get_errno()",
        "failed AssertionError",
    ),
    "ptrace": _case(
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); assert l.ptrace(0, 0, 0, 0) == 0, ctypes.get_errno()",
        "failed AssertionError",
    ),
    "io_uring": _case(
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); assert l.syscall(425, 1, 0) >= 0",
        "failed AssertionError",
    ),
    "memfd": _case("import os; os.memfd_create('x')", REFUSED),
    "recursion without end": _case(
        "import sys; sys.setrecursionlimit(10**8)\ndef f(n): return f(n + 1)\nf(0)",
        TIMEOUT,
        SEGFAULT,
        "failed MemoryError",
        "failed RecursionError",
    ),
    "100 MB of output": _case("for _ in range(100): print('x' * 10**6)", PASSED),
    "hash and random": _case(
        "import hashlib, random, secrets; hashlib.md5(b'x').hexdigest(); random.random(); secrets.token_hex()", PASSED
    ),
    "a package that is not asked for": _case("import numpy", "failed ModuleNotFoundError"),
    "many imports": _case("import json, urllib, xml.dom.minidom, sqlite3, tempfile, unittest, asyncio", PASSED),
    "signal to itself": _case("import signal; signal.raise_signal(11)", REFUSED),
}

_KERNEL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    if libc.syscall(ctypes.c_long(number), *words) == -1:
        raise OSError(ctypes.get_errno(), "refused")
"""
_OTHERS = sorted(CALLS[name] for name in (*FREE, *CONDITIONED) if name in CALLS)
if MACHINE == "x86_64":
    _OTHERS += [335, 336]  # uretprobe and uprobe, which no filter sees: they kill whoever is not probed
_EVERY_CALL = (
    _KERNEL
    + f"""
got_through = []
for number in range(470):
    if number not in {_OTHERS}:
        try:
            call(number)
        except OSError as error:
            if error.errno == 1 or error.errno == 38 and number in {[CALLS[name] for name in MISSING]}:
                continue
        got_through.append(number)
assert not got_through, got_through
"""
)
_SPRAY = "import os\nfor fd in range(3, 256):\n  try: os.write(fd, {what})\n  except OSError: pass\nos._exit(0)"
HUNT = """
import gc, os, sys, threading
words, seen = set(), set()
def look(thing, depth=0):
    if isinstance(thing, (bytes, bytearray)):
        words.add(bytes(thing))
    elif id(thing) not in seen and depth < 40:
        seen.add(id(thing))
        for part in gc.get_referents(thing):
            look(part, depth + 1)
frame = sys._getframe()
while frame:
    for space in (frame.f_locals, frame.f_globals, frame):
        look(space)
    frame = frame.f_back
gc.unfreeze()
for thing in gc.get_objects():
    look(thing)
for word in words:
    if len(word) in (16, 17, 32):
        for fd in range(3, 64):
            try: os.write(fd, word)
            except OSError: pass
os._exit(0)
"""
_TAMPER = "import builtins\nfor name in {names}:\n  setattr(builtins, name, lambda *a, **k: {value})\n1 / 0"
_THREADS = """
import threading, time
threading.stack_size(32768)
while True:
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
"""
_MEMORY_OF_THREADS = """
import threading
held = []
def take(): held.append(bytearray(90 << 20))
threads = [threading.Thread(target=take) for _ in range(40)]
threading.excepthook = lambda *a: None
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(held) == 40
"""
_BUSY_THREADS = """
import threading, hashlib
def burn():
    while True: hashlib.sha256(b'x' * 10**7)
for _ in range(8): threading.Thread(target=burn, daemon=True).start()
burn()
"""
_IGNORE = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
"""
_ASYNC = """
import asyncio
async def one(): await asyncio.sleep(0.001); return 1
async def all_of_them(): return sum(await asyncio.gather(*[one() for _ in range(9)]))
assert asyncio.run(all_of_them()) == 9
"""
ENVIRONMENT = """
import os, sys
allowed = {'LANG', 'PATH', 'PWD', 'LC_CTYPE', 'LD_LIBRARY_PATH', 'MALLOC_ARENA_MAX'}
allowed |= {'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'}
assert all(name in allowed or name.startswith('PYTHON') for name in os.environ), os.environ
assert os.getcwd() == '/'
assert sys.stdin.read() == ''
assert not any('site-packages' in place or place in ('', '.') for place in sys.path), sys.path
"""
_DESCRIPTORS = """
import os
open_ones = []
for fd in range(1024):
    try: os.fstat(fd)
    except OSError: continue
    open_ones.append(fd)
assert len(open_ones) == 4, open_ones
null = os.stat('/dev/null').st_rdev
assert [os.fstat(fd).st_rdev for fd in open_ones[:3]] == [null] * 3
"""
_OF_OUR_MODULES = """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith('ts2_lightning'):
        for attribute in list(vars(module)):
            setattr(module, attribute, lambda *a, **k: b'')
1 / 0
"""

# Ours, against the verdict.
VERDICT: dict[str, Case] = {
    "say passed to every descriptor": _case(_SPRAY.format(what="b'passed'"), PIPE),
    "say passed in JSON": _case(_SPRAY.format(what='b\'{"outcome": "passed", "reason": ""}\''), PIPE),
    "fail in JSON": _case(_SPRAY.format(what='b\'{"reason": "x" , "text": []}\''), "failed other"),
    "hunt for the word in frames and objects": _case(HUNT, PIPE, EXIT),
    "brackets into the pipe": _case(_SPRAY.format(what="b'[' * 4000"), PIPE),
    "a list into the pipe": _case(_SPRAY.format(what="b'[1]'"), PIPE),
    "flood the pipe": _case(_SPRAY.format(what="b'x' * 10**6"), PIPE),
    "close the pipe": _case("import os; os.closerange(3, 256)", EXIT, KILLED, SEGFAULT),
    "put another file in the pipe's place": _case(
        "import os\nfor fd in range(3, 9): os.dup2(1, fd)", EXIT, KILLED, SEGFAULT
    ),
    "json says passed": _case('import json; json.dumps = lambda *a, **k: \'{"outcome": "passed"}\'; 1 / 0', PIPE),
    "json writes nothing": _case("import json; json.dumps = lambda *a, **k: ''; 1 / 0", EXIT),
    "no os.write": _case("import os; os.write = None", PASSED),
    "no os._exit": _case("import os; os._exit = lambda *a: None; 1 / 0", "failed ZeroDivisionError"),
    "builtins are gone": _case(
        _TAMPER.format(names=["exec", "compile", "len", "open", "BaseException"], value=1),
        "failed ZeroDivisionError",
        EXIT,
    ),
    "type and str are others": _case(
        _TAMPER.format(names=["type", "getattr", "isinstance", "str"], value="b'x'"),
        PIPE,
        EXIT,
        "failed other",
        "failed ZeroDivisionError",
    ),
    "no builtins": _case(
        "__builtins__.clear() if isinstance(__builtins__, dict) else vars(__builtins__).clear(); 1 / 0",
        EXIT,
        "failed other",
        "failed ZeroDivisionError",
        "failed NameError",
    ),
    "no modules": _case("import sys; sys.modules.clear(); 1 / 0", "failed ZeroDivisionError", EXIT),
    "our modules are others": _case(_OF_OUR_MODULES, EXIT, PIPE, "failed ZeroDivisionError"),
    "atexit": _case(
        "import atexit, os; atexit.register(os.write, 3, b'passed'); raise SystemExit(0)", "failed SystemExit"
    ),
    "end from a thread": _case(
        "import os, threading, time; threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(9)", EXIT
    ),
    "interrupt": _case("import _thread, time; _thread.interrupt_main(); time.sleep(1)", "failed KeyboardInterrupt"),
    "SystemExit": _case("raise SystemExit", "failed SystemExit"),
    "GeneratorExit": _case("raise GeneratorExit", "failed GeneratorExit"),
    "an exception of its own": _case("class Secret(Exception): pass\nraise Secret('secret')", "failed other"),
    "an exception under a name of Python's": _case(
        "class ValueError(Exception): pass\nraise ValueError", "failed other"
    ),
    "an exception whose text raises": _case(
        "class E(Exception):\n  def __str__(self): raise SystemExit\nraise E", "failed other"
    ),
    "an exception whose text never ends": _case(
        "class E(Exception):\n  def __str__(self):\n    while True: pass\nraise E", TIMEOUT
    ),
    "a trace that raises": _case(
        "import sys\ndef t(*a): 1 / 0\nsys.settrace(t)\ndef check(): pass\ncheck()", "failed ZeroDivisionError"
    ),
    "a profile that ends": _case("import os, sys\ndef p(*a): os._exit(0)\nsys.setprofile(p)\nlen([])", EXIT),
    "syntax": _case("def f(:", "failed SyntaxError"),
    "a zero byte": _case("x = '\0'", "failed SyntaxError", "failed ValueError"),
    "half of a character": _case("x = '\ud800'", "failed UnicodeEncodeError"),
    "no main": _case("assert __name__ != '__main__'", PASSED),
}

# Against the kernel, and other processes.
KERNEL: dict[str, Case] = {
    "every other call": Case(_EVERY_CALL, (PASSED,)),
    **{
        name: _case(_KERNEL + f"call({CALLS[name]}, {arguments})", REFUSED)
        for name, arguments in {
            "process_vm_readv": "os.getppid()",
            "process_vm_writev": "os.getppid()",
            "tgkill": "os.getpid(), os.getpid(), 9",
            "keyctl": "0, -3, 1",
            "add_key": "0",
            "bpf": "5",
            "perf_event_open": "0",
            "userfaultfd": "1",
            "shmget": "0, 4096, 0o1600",
            "name_to_handle_at": "-100",
            "open_by_handle_at": "-100",
            "memfd_secret": "0",
            "execveat": "3",
            "setns": "3",
            "mount": "0",
            "pidfd_open": "os.getppid()",
            "personality": "0x0040000",
            "sched_setscheduler": "0, 1",
            "seccomp": "0",
            "ptrace": "16, os.getppid()",
            "setresuid": "0, 0, 0",
            "wait4": "-1",
            "chroot": "0",
            "process_madvise": "0",
        }.items()
    },
    **{
        f"prctl {name}": _case(_KERNEL + f"call({CALLS['prctl']}, {arguments})", REFUSED)
        for name, arguments in {
            "PR_SET_NO_NEW_PRIVS": "38, 0",
            "PR_SET_SECCOMP": "22, 0",
            "PR_SET_PDEATHSIG": "1, 0",
            "PR_SET_DUMPABLE": "4, 1",
            "PR_SET_PTRACER": "0x59616d61, -1",
            "PR_CAP_AMBIENT": "47, 2",
            "PR_SET_MM": "35",
        }.items()
    },
    "clone as fork": _case(_KERNEL + f"call({CALLS['clone']}, 17)", REFUSED),
    "clone without flags": _case(_KERNEL + f"call({CALLS['clone']}, 0)", REFUSED),
    "clone into a namespace": _case(_KERNEL + f"call({CALLS['clone']}, 0x3d0f00 | 0x40000000)", REFUSED),
    "clone3": _case(_KERNEL + "call(435, 0, 0)", "failed OSError"),
    "openat2": _case(_KERNEL + "call(437, -100, ctypes.c_char_p(b'/etc/passwd'), 0, 24)", "failed OSError"),
    "memfd and exec": _case("import os\nfd = os.memfd_create('x', 0)\nos.execve(fd, ['x'], {})", REFUSED),
    "exec": _case("import os; os.execv('/bin/sh', ['sh'])", REFUSED),
    "posix_spawn": _case("import os; os.posix_spawn('/bin/sh', ['sh'], {})", REFUSED),
    "multiprocessing": _case("import multiprocessing as m; p = m.Process(target=print); p.start()", REFUSED),
    "pty": _case("import os; os.openpty()", REFUSED, "failed OSError", "failed FileNotFoundError"),
    "raise the limit of memory": _case(
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "failed ValueError", REFUSED
    ),
    "another's limits": _case("import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)", REFUSED),
    "read limits": _case("import resource; assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)", PASSED),
    "nice": _case("import os; os.nice(-5)", REFUSED),
    "affinity": _case("import os; os.sched_setaffinity(0, {0})", REFUSED),
    "priority": _case("import os; os.setpriority(os.PRIO_PROCESS, 0, -20)", REFUSED),
    "signals by a file": _case(
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())", REFUSED
    ),
    "locks": _case("import fcntl, os; fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX)", REFUSED),
    "keys into the terminal": _case("import fcntl; fcntl.ioctl(0, 0x5412, b'x')", REFUSED),
    "datagrams between sockets": _case("import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)", REFUSED),
    "out-of-band data": _case("import socket; a, b = socket.socketpair(); a.send(b'x', socket.MSG_OOB)", REFUSED),
    "descriptors over a socket": _case(
        "import array, socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0])", REFUSED
    ),
    "asyncio": _case(_ASYNC, PASSED),
    "kill every process": _case("import os; os.kill(-1, 9)", REFUSED),
    "kill its thread": _case("import signal, threading; signal.pthread_kill(threading.get_ident(), 9)", REFUSED),
    "abort": _case("import os; os.abort()", SEGFAULT, "died SIGABRT", "died SIGILL", "died SIGTRAP"),
    "null pointer": _case("import ctypes; ctypes.string_at(0)", SEGFAULT),
    "faulthandler": _case(
        "import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", PASSED, SEGFAULT, "died SIGABRT"
    ),
}

# Against files, and what there is to read.
FILES: dict[str, Case] = {
    "its own memory as a file": _case("open('/proc/self/mem', 'rb')", REFUSED),
    "its own memory to write": _case("open('/proc/self/mem', 'r+b')", REFUSED),
    "its descriptors as files": _case("import os; os.listdir('/proc/self/fd')", REFUSED),
    "its descriptors by /dev/fd": _case("import os; os.listdir('/dev/fd')", REFUSED, "failed FileNotFoundError"),
    "the map of its memory": _case("open('/proc/self/maps')", REFUSED),
    "by a descriptor of a directory": _case(
        "import os; os.open('passwd', os.O_RDONLY, dir_fd=os.open('/etc', os.O_PATH))", REFUSED
    ),
    "by two dots": _case("import os; open(os.path.dirname(os.__file__) + '/../' * 9 + 'etc/passwd')", REFUSED),
    "/dev/shm": _case("open('/dev/shm/ts2', 'w')", REFUSED),
    "shared memory": _case(
        "from multiprocessing import shared_memory as s; s.SharedMemory(create=True, size=9)", REFUSED
    ),
    "a file without a name": _case("import os; os.open('DIRECTORY', os.O_TMPFILE | os.O_RDWR)", REFUSED),
    "a temporary file": _case("import tempfile; tempfile.TemporaryFile()", REFUSED, "failed FileNotFoundError"),
    "create by reading": _case("import os; os.open('DIRECTORY/new', os.O_RDONLY | os.O_CREAT)", REFUSED),
    "truncate by opening": _case("import os; os.open('VICTIM', os.O_RDONLY | os.O_TRUNC)", REFUSED),
    "truncate": _case("import os; os.truncate('VICTIM', 0)", REFUSED),
    "rename": _case("import os; os.rename('VICTIM', 'VICTIM.2')", REFUSED),
    "link": _case("import os; os.link('VICTIM', 'DIRECTORY/hard')", REFUSED),
    "symbolic link": _case("import os; os.symlink('/etc/passwd', 'DIRECTORY/soft')", REFUSED),
    "rights": _case("import os; os.chmod('VICTIM', 0o777)", REFUSED),
    "times": _case("import os; os.utime('VICTIM')", REFUSED),
    "attributes": _case("import os; os.setxattr('VICTIM', 'user.x', b'x')", REFUSED),
    "change directory": _case("import os; os.chdir('/tmp')", REFUSED),
    "a database": _case(
        "import sqlite3; sqlite3.connect('DIRECTORY/x.db').execute('create table t (x)')", "failed other"
    ),
    "Python's own files to write": _case("import os; open(os.__file__, 'a')", REFUSED),
    "Python's own files": _case("import os; assert open(os.__file__).read()", PASSED),
    "/dev/null to write": _case("import os; open(os.devnull, 'w')", REFUSED),
    "environment": _case(ENVIRONMENT, PASSED),
    "descriptors": _case(_DESCRIPTORS, PASSED),
    "a third party": _case("import torch", "failed ModuleNotFoundError"),
}

# Against time and memory.
RESOURCES: dict[str, Case] = {
    "signals ignored": _case(_IGNORE, TIMEOUT),
    "threads that burn": _case(_BUSY_THREADS, TIMEOUT),
    "a bomb of threads": _case(_THREADS, "died too many threads"),
    "memory of threads": _case(
        _MEMORY_OF_THREADS, "failed AssertionError", "failed RuntimeError", "failed MemoryError"
    ),
    "garbage": _case(
        "import gc\ngc.disable()\nwhile True:\n  x = [bytearray(1 << 20)]; x.append(x)", "failed MemoryError", TIMEOUT
    ),
    "shared pages": _case("import mmap; mmap.mmap(-1, 3 << 30)", "failed OSError", "failed MemoryError"),
    "small things": _case("x = []\nwhile True: x.append(bytearray(1 << 16))", "failed MemoryError"),
    "descriptors without end": _case("import os\ntry:\n  while True: os.pipe()\nexcept OSError: pass", PASSED),
    "a long wait for a lock": _case("import threading; l = threading.Lock(); l.acquire(); l.acquire()", TIMEOUT),
    "a regular expression": _case("import re; re.match('(a+)+$', 'a' * 64 + 'b')", TIMEOUT),
    "a huge number": _case("x = 9 ** 9 ** 9", TIMEOUT, "failed MemoryError"),
    "a huge number in digits": _case("str(10 ** 5000)", "failed ValueError"),
    "very many digits": _case(
        "import sys; sys.set_int_max_str_digits(0); str(1 << 30_000_000)", TIMEOUT, "failed MemoryError"
    ),
    "brackets": _case("import json; json.loads('[' * 10**6)", "failed RecursionError"),
    "brackets without a limit": _case(
        "import sys, json; sys.setrecursionlimit(10**9); json.loads('[' * 10**7)",
        SEGFAULT,
        "failed RecursionError",
        "failed other",
    ),
    "a deep program": _case(
        "import ast; ast.parse('-' * 10**6 + '1')", "failed MemoryError", "failed RecursionError", SEGFAULT
    ),
    "a deep program as program": _case(
        "x = " + "(" * 5000 + ")" * 5000, "failed SyntaxError", "failed MemoryError", SEGFAULT
    ),
    "nested lists freed": _case("x = []\nfor _ in range(10**6): x = [x]\ndel x", PASSED),
    "repr of itself": _case(
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n  def __repr__(self): return repr(self)\nrepr(A())",
        SEGFAULT,
        TIMEOUT,
        "failed MemoryError",
        "failed RecursionError",
    ),
    "a long text": _case("raise ValueError('x' * 10**7)", "failed ValueError"),
}

_RUN_BYTES = """
import ctypes, mmap
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(bytes.fromhex('{code}'))
function = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
result = function()
"""

# Machine code of x86-64.
X86: dict[str, Case] = {
    # mov eax, 41; mov edi, 2; mov esi, 1; xor edx, edx; syscall; ret: socket(AF_INET, SOCK_STREAM, 0)
    "machine code": _case(
        _RUN_BYTES.format(code="b829000000bf02000000be0100000031d20f05c3") + "assert result == -1", PASSED
    ),
    "a 32-bit call": _case(_RUN_BYTES.format(code="b814000000cd80c3"), "died SIGSYS"),  # mov eax, 20; int 0x80; ret
    "an x32 call": _case(_KERNEL + "call(0x40000000 | 39)", "died SIGSYS"),
    "the vsyscall page": _case(
        "import ctypes; ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)(0xffffffffff600400)(0)", PASSED, SEGFAULT
    ),
    "a port": _case(_RUN_BYTES.format(code="66ba8000eec3"), SEGFAULT),  # mov dx, 0x80; out dx, al; ret
}

NEED_LANDLOCK = {
    "read /etc/passwd", "list the home", "read /proc", "its own memory as a file", "its descriptors as files",
    "its descriptors by /dev/fd", "the map of its memory", "by a descriptor of a directory", "by two dots",
}  # fmt: skip
"""Cases that may end otherwise where the kernel has no Landlock."""

CASES = {**FIRST, **VERDICT, **KERNEL, **FILES, **RESOURCES, **(X86 if MACHINE == "x86_64" else {})}
