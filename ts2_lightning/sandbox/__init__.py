"""Running programs that a model wrote, so that they reach nothing: no network, no file to write, no other process.

In: `Program`s; out: `Verdict`s, as they come. It may import only what every room may. Not here: what a program is put
together from, and what its verdict means for a score (`evaluation`). docs/security.md says what the sandbox protects
from, and what not.
"""

from ts2_lightning.sandbox.pool import Sandbox, run_programs
from ts2_lightning.sandbox.programs import Program, SandboxSettings, Verdict

__all__ = ["Program", "Sandbox", "SandboxSettings", "Verdict", "run_programs"]
