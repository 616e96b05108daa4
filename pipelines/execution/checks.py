"""The result of one check of `doctor`, and how `doctor` runs programs and parses their output."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

# The variables of Slurm that select the cluster and the account. The others describe the job that
# this process may run in; with them, srun would start its step inside that job.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_ACCOUNT", "SLURM_QOS", "SLURM_RESERVATION")
ProgramResult = subprocess.CompletedProcess[str]
# This script runs on this machine and on a node. It also computes on the GPU, because torch may
# list a GPU that it cannot use, for example one with an unsupported architecture.
TORCH = """
import json, torch
report = {"torch": torch.__version__, "gpus": [], "error": ""}
try:
    gpus = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    report["gpus"] = [(gpu.name, gpu.total_memory / 1e9) for gpu in gpus]
    torch.ones(1, device="cuda").sum().item()
except (RuntimeError, AssertionError) as error:
    report["error"] = str(error).splitlines()[0]
print("doctor: torch=" + json.dumps(report))
"""


@dataclass(frozen=True)
class CheckResult:
    """What was checked, whether it is ok (None: unknown, or only a note), and what to do if not."""

    name: str
    ok: bool | None
    message: str


def run_program(*command: str, seconds: float = 20.0) -> ProgramResult:
    """The exit code and output of the program. As in a shell, the code is 127 if it cannot be run
    and 124 if it takes longer than `seconds`; stderr then says so.
    """
    # stdin is closed below: srun would otherwise read the input of the terminal.
    environment = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith("SLURM_")}
    try:
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
            check=False, env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        return ProgramResult(command, 127, "", f"{command[0]} cannot be run: {error.strerror}")
    except subprocess.TimeoutExpired:
        return ProgramResult(command, 124, "", f"{command[0]} did not answer within {seconds:g} s")


def parse_facts(result: ProgramResult) -> dict[str, str]:
    """The values of lines such as `doctor: node=n1`. Other lines are skipped: a cluster may print a
    welcome message.
    """
    lines = [line.removeprefix("doctor: ") for line in result.stdout.splitlines()
             if line.startswith("doctor: ")]  # fmt: skip
    return dict(line.split("=", 1) for line in lines if "=" in line)


def last_error(result: ProgramResult) -> str:
    """The last line that the program printed, to stderr or else to stdout. Lines of srun are left
    out if there are others: they only say that the program ended.
    """
    lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
    of_program = [line for line in lines if not line.startswith(("srun: ", "slurmstepd: "))]
    return (of_program or lines or [f"exit code {result.returncode}, no output"])[-1]


def check_torch(result: ProgramResult, device: str, memory_gb: float) -> tuple[bool | None, str]:
    """(ok, message) for the output of TORCH; `device` and `memory_gb` are the expected ones."""
    if "torch" not in parse_facts(result):
        return (
            False,
            f"torch does not load ({last_error(result)}): install it again in {sys.prefix}",
        )
    report = json.loads(parse_facts(result)["torch"])
    gpus = ", ".join(f"{name} ({memory:.0f} GB)" for name, memory in report["gpus"])
    message = f"torch {report['torch']} sees {gpus or 'no GPU'}"
    if device == "cpu":
        idle = f'{message}, not used because device = "cpu"; set device = "cuda" to use it'
        return (None, idle) if gpus else (True, f'{message}; device = "cpu" needs none')
    if report["error"] or not gpus:
        fix = 'install a torch built for the driver that nvidia-smi shows, or set device = "cpu"'
        return False, f"{message} that it can use ({report['error']}): {fix}"
    # 5 % tolerance: torch reports slightly less than the nominal memory.
    if min(memory for _, memory in report["gpus"]) < 0.95 * memory_gb:
        return (
            False,
            f"{message}, but gpu_memory_gb = {memory_gb:g}: set it to the smallest of them",
        )
    return True, message
