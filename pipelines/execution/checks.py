"""One thing that a doctor has looked at; and how programs, torch among them, are asked about it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

# Of Slurm's variables those that say which Slurm and who pays; the rest describe another job, and
# srun would start its step there.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_ACCOUNT", "SLURM_QOS", "SLURM_RESERVATION")
Answer = subprocess.CompletedProcess[str]
# Here and on a node; a GPU that torch can name may still be one it cannot compute on.
TORCH = """
import json, torch
said = {"torch": torch.__version__, "gpus": [], "error": ""}
try:
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    said["gpus"] = [(one.name, one.total_memory / 1e9) for one in found]
    torch.ones(1, device="cuda").sum().item()
except (RuntimeError, AssertionError) as error:
    said["error"] = str(error).splitlines()[0]
print("doctor: torch=" + json.dumps(said))
"""


@dataclass(frozen=True)
class CheckResult:
    """What was looked at, whether it will do (None: who knows), and what to do if not."""

    what: str
    good: bool | None
    said: str


def ask(*words: str, seconds: float = 20.0) -> Answer:
    """How the program ended and what it said; where it is missing or silent, words for that."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or not k.startswith("SLURM_")}
    try:
        return subprocess.run(
            words, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds,
            check=False, env=kept, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        return Answer(words, 127, "", f"{words[0]} cannot be run: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Answer(words, 124, "", f"{words[0]} did not answer within {seconds:g} s")


def facts(answer: Answer) -> dict[str, str]:
    """What lines such as `doctor: node=n1` say; a cluster may greet with lines of its own."""
    lines = [line.removeprefix("doctor: ") for line in answer.stdout.splitlines()
             if line.startswith("doctor: ")]  # fmt: skip
    return dict(line.split("=", 1) for line in lines if "=" in line)


def complaint(answer: Answer) -> str:
    """The last that a program said, errors first; srun only adds that it ended."""
    lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    own = [line for line in lines if not line.startswith(("srun: ", "slurmstepd: "))]
    return (own or lines or [f"exit code {answer.returncode}, no word"])[-1]


def torch_sees(answer: Answer, device: str, memory_gb: float) -> tuple[bool | None, str]:
    if "torch" not in facts(answer):
        return False, f"torch does not load ({complaint(answer)}): install it again in {sys.prefix}"
    seen = json.loads(facts(answer)["torch"])
    gpus = ", ".join(f"{name} ({memory:.0f} GB)" for name, memory in seen["gpus"])
    said = f"torch {seen['torch']} sees {gpus or 'no GPU'}"
    if device == "cpu":
        idle = f'{said}: left idle by device = "cpu"; "cuda" would use them'
        return (None, idle) if gpus else (True, f'{said}; device = "cpu" needs none')
    if seen["error"] or not gpus:
        mend = 'install a torch built for the driver that nvidia-smi shows, or device = "cpu"'
        return False, f"{said} that it can use ({seen['error']}): {mend}"
    if min(memory for _, memory in seen["gpus"]) < 0.95 * memory_gb:
        return False, f"{said}, but gpu_memory_gb = {memory_gb:g}: set what there is"
    return True, said
