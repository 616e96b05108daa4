"""The doctor reports what is missing with advice, and leaves no files."""

import os
import subprocess
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from conftest import COMMAND

from pipelines.execution import checks as finding
from pipelines.execution import doctor
from pipelines.execution.doctor import examine
from pipelines.execution.slurm import doctor as doctor_cluster
from pipelines.workspace.settings import Cluster, Local, MLflow, Settings, SettingsError, Weights
from pipelines.workspace.store import Home

HEALTHY = Cluster(
    partition="main", gpus_per_node=2, device="cpu", wall_hours=1, cpus_per_gpu=1,
    memory_gb_per_gpu=1, nodes=2, setup=("export THERE=yes",),
)  # fmt: skip


def found(home, on="local", **settings) -> dict[str, tuple[bool | None, str]]:
    findings = examine(Home(home), Settings(**settings), on)
    assert len({one.name for one in findings}) == len(findings)
    return {one.name: (one.ok, one.message) for one in findings}


@pytest.fixture
def _no_torch(monkeypatch):
    """Skip the check of torch, which takes two seconds."""
    monkeypatch.setattr(doctor, "TORCH", 'print(\'doctor: torch={"torch": "2", "gpus": []}\')')


quick = pytest.mark.usefixtures("_no_torch")


def test_a_healthy_machine_passes_all_checks_and_no_files_remain(tmp_path):
    seen = found(tmp_path / "a" / "runs")
    assert [what for what, (good, _) in seen.items() if good is False] == []
    assert seen["torch"][0] is not False
    assert list(tmp_path.iterdir()) == []


@quick
def test_data_is_checked_in_the_folders_of_settings_and_environment(tmp_path, monkeypatch):
    for picture in ("photos/train/cat/1.png", "cifar10/flat.png"):
        (tmp_path / picture).parent.mkdir(parents=True)
        (tmp_path / picture).write_bytes(b"\x89PNG")
    for table, start in (("good", b"PAR1"), ("broken", b"<htm")):
        (tmp_path / table / "data").mkdir(parents=True)
        (tmp_path / table / "data" / "train-0.parquet").write_bytes(start)
    (tmp_path / "empty").mkdir()
    names = ("photos", "good", "broken", "empty", "gone")
    monkeypatch.setenv("VAR_SCALING_DATA", str(tmp_path))
    seen = found(tmp_path / "runs", data={name: tmp_path / name for name in names})
    good, message = seen["data photos"]
    assert good
    assert "such as train/cat/1.png" in message
    assert seen["data good"][0]
    assert seen["data broken"] == (
        False,
        f"{tmp_path}/broken: Parquet, but data/train-0.parquet is damaged: download it again",
    )
    assert "is this the folder?" in seen["data empty"][1]
    assert '[data] gone = "/path"' in seen["data gone"][1]
    assert "put the images of each class" in seen["data cifar10"][1]  # by VAR_SCALING_DATA
    assert seen["data imagenet"][0] is None  # a sweep needs it, but no sweep was checked
    monkeypatch.setenv("VAR_SCALING_DATA", str(tmp_path / "gone"))
    assert found(tmp_path / "runs")["VAR_SCALING_DATA"][0] is False


def test_only_some_of_many_files_are_checked(tmp_path, monkeypatch):
    for number in range(300):
        (tmp_path / f"{number}").mkdir()
    requested = []
    scandir = os.scandir
    monkeypatch.setattr(doctor.os, "scandir", lambda path: requested.append(path) or scandir(path))
    assert doctor._first_file(tmp_path) is None
    assert len(requested) == 9


@quick
def test_a_home_that_cannot_be_created_or_linked_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    good, message = found(tmp_path / "file")["home"]
    assert (good, "creating it fails" in message, "--home" in message) == (False, True, True)

    def link(*paths):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(doctor.os, "link", link)
    good, message = found(tmp_path / "runs")["home"]
    assert (good, "creating a hard link fails" in message) == (False, True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@quick
@pytest.mark.parametrize(("free", "good"), [(0.5e9, False), (20e9, None), (60e9, True)])
def test_a_nearly_full_disk_is_reported(tmp_path, monkeypatch, free, good):
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    assert found(tmp_path)["disk"][0] is good


class Health(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *words):
        pass


@quick
def test_a_dead_or_wrong_mlflow_server_is_reported(tmp_path):
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        uri = f"127.0.0.1:{server.server_port}"
        alive = found(tmp_path, mlflow=MLflow(uri=f"http://user:secret@{uri}/"))["MLflow"]
        other = found(tmp_path, mlflow=MLflow(uri=f"http://{uri}/elsewhere"))["MLflow"]
        server.shutdown()
    assert alive == (True, f"http://{uri}/ answers")  # and the password is not printed
    assert other[0] is False
    dead = found(tmp_path, mlflow=MLflow(uri=f"http://{uri}"))["MLflow"]
    assert (dead[0], "does not answer" in dead[1]) == (False, True)
    assert found(tmp_path, mlflow=MLflow(uri="databricks"))["MLflow"][0] is None


@quick
def test_a_broken_mlflow_database_is_reported(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("create table runs (id)")
    database.close()
    assert found(tmp_path)["MLflow"][0]
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    good, message = found(tmp_path)["MLflow"]
    assert (good, "var-scaling mirror" in message) == (False, True)


@quick
def test_too_many_cpus_and_missing_weights_are_reported(tmp_path):
    weights = Weights(lpips=(tmp_path / "vgg.pth",), inception=tmp_path / "inception.pth")
    seen = found(tmp_path, local=Local(cpus=10_000), weights=weights)
    assert seen["cpus"][0] is None
    assert (seen["weights lpips"][0], seen["weights inception"][0]) == (False, False)


@pytest.mark.parametrize(
    ("message", "device", "good", "words"),
    [
        ('{"torch": "2", "gpus": [["H100", 85.0]], "error": ""}', "cuda", True, "H100 (85 GB)"),
        ('{"torch": "2", "gpus": [["A100", 42.0]], "error": ""}', "cuda", False, "gpu_memory_gb"),
        ('{"torch": "2", "gpus": [["H100", 85.0]], "error": ""}', "cpu", None, "not used"),
        ('{"torch": "2", "gpus": [], "error": "driver too old"}', "cuda", False, "driver too old"),
        ('{"torch": "2", "gpus": [["K80", 99]], "error": "no kernel"}', "cuda", False, "no kernel"),
        ('{"torch": "2", "gpus": [], "error": "no driver"}', "cpu", True, "needs none"),
    ],
)
def test_the_devices_of_torch_are_checked_against_the_settings(message, device, good, words):
    answer = finding.ProgramResult(
        "python", 0, f"Welcome to node 7!\ndoctor: torch={message}\n", ""
    )
    judged = finding.check_torch(answer, device, 80.0)
    assert judged[0] is good
    assert words in judged[1]


def test_a_torch_that_fails_to_import_is_reported_with_the_reason():
    stderr = "Traceback\nImportError: libcudart.so.12\nsrun: error: n1: task 0: Exited with 1\n"
    good, message = finding.check_torch(finding.ProgramResult("srun", 1, "", stderr), "cpu", 80.0)
    assert (good, "libcudart" in message) == (False, True)


def test_torch_is_checked_in_a_separate_process(tmp_path):
    """device = "cuda" on a machine without one names torch's reason."""
    import torch

    good, message = found(tmp_path, local=Local(device="cuda"))["torch"]
    assert good is torch.cuda.is_available()
    assert good or "that it can use" in message


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:4", 4),
        ("gpu:h100:8(S:0-1)", 8),
        ("craynetwork:4,gpu:a100:2(S:0,2),gpu:h100:1", 3),
        ("(null)", 0),
        ("shard:gpu:4,vgpu:3", 0),
    ],
)
def test_gpus_of_a_node_are_parsed_from_sinfo(gres, gpus):
    assert doctor_cluster.gpus_in(gres) == gpus


@pytest.mark.parametrize(
    ("time", "hours"), [("1-12:30:00", 36.5), ("00:15:00", 0.25), ("UNLIMITED", float("inf"))]
)
def test_time_limits_are_parsed_from_slurms_format(time, hours):
    assert doctor_cluster._hours(time) == hours


@quick
def test_a_cluster_without_slurm_fails_a_check_and_an_unknown_one_is_an_error(
    tmp_path, monkeypatch
):
    crooked = HEALTHY.model_copy(update={"setup": ("if true; then",)})
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    (tmp_path / "bin").mkdir()
    for name in ("bash", "git"):
        (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    seen = found(tmp_path, "box", clusters={"box": crooked})
    assert seen["Slurm"] == (
        False,
        "not in PATH: sbatch, squeue, srun, scancel, scontrol, sinfo; use a login node, or load "
        "the module of Slurm",
    )
    assert (seen["setup"][0], "syntax error" in seen["setup"][1]) == (False, True)
    assert seen["home shared"][0] is not False
    with pytest.raises(SettingsError, match="allowed are local, box"):
        found(tmp_path, "elsewhere", clusters={"box": crooked})


@pytest.mark.parametrize(("code", "good"), [(0, True), (1, None)])
def test_optional_features_that_a_cluster_lacks_are_notes(monkeypatch, code, good):
    answers = {"scontrol": "JobRequeue              = 0\n", "sacct": ""}
    monkeypatch.setattr(
        doctor_cluster,
        "run_program",
        lambda *words: finding.ProgramResult(words, code, answers[words[0]], "off"),
    )
    notes = {one.name: one for one in doctor_cluster._optional_features()}
    assert notes["requeue"].ok is None
    assert "request --requeue themselves" in notes["requeue"].message
    assert notes["sacct"].ok is good


def test_the_file_system_type_decides_whether_other_machines_share_it(tmp_path, monkeypatch):
    mounts = (
        "/dev/sda / ext4 rw 0 0\nserver:/x /big\\040disk nfs4 rw 0 0\ntmpfs /big tmpfs rw 0 0\n"
    )
    monkeypatch.setattr(doctor_cluster.Path, "read_text", lambda path: mounts)
    assert doctor_cluster._shared(doctor_cluster.Path("/big disk/runs"), "")[0] is True
    good, message = doctor_cluster._shared(doctor_cluster.Path("/big/runs"), "move it")
    assert (good, "(tmpfs)" in message, "move it" in message) == (None, True, True)


# On a cluster -----------------------------------------------------------------------------------


@pytest.fixture
def box(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.setenv("PATH", slurm.environment["PATH"])
    monkeypatch.setenv("SLURM_JOB_ID", "99999")  # as inside a job of another cluster
    slurm.wait(lambda: slurm.run("sinfo", "-h", "-t", "idle", "-o", "%D").split()[:1] == ["2"], "2")
    return slurm


@pytest.mark.slurm
def test_a_healthy_cluster_passes_all_checks_and_its_node_sees_the_home(box, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"\x89PNG")
    seen = found(
        tmp_path / "runs", "box", clusters={"box": HEALTHY}, data={"photos": tmp_path / "photos"}
    )
    assert [f"{what}: {message}" for what, (good, message) in seen.items() if good is False] == []
    (node,) = (what for what in seen if what.startswith("node n"))
    assert seen[node] == (True, "it sees home, Python, data photos as this machine does")
    assert seen[f"torch on {node.split()[1]}"][0]
    assert "to start at" in seen["dry submission"][1]
    assert "goes back into the queue" in seen["partition main"][1]
    assert seen["sacct"][0] is None
    assert not (tmp_path / "runs").exists()
    (tmp_path / "var-scaling.toml").write_text(
        '[clusters.box]\npartition = "main"\ngpus_per_node = 2\ndevice = "cpu"\nwall_hours = 1\n'
        "cpus_per_gpu = 1\nmemory_gb_per_gpu = 1\nnodes = 2\n"
    )
    done = subprocess.run(
        [*COMMAND, "doctor", "--on", "box"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("wrong", "what", "words"),
    [
        ({"partition": "gpu"}, "partition gpu", "name one of: main, high"),
        ({"gpus_per_node": 4}, "nodes", "the most that a node has is 2"),
        ({"gpus_per_node": 4}, "dry submission", "node configuration is not available"),
        ({"nodes": 3}, "partition main", "nodes = 2, or less"),
        ({"constraint": "h100"}, "dry submission", "Invalid feature specification"),
        ({"device": "cuda"}, "torch on n1", "sees no GPU"),
        ({"setup": ("echo no such module >&2; exit 3",)}, "setup on n1", "no such module"),
    ],
)
def test_each_fault_of_a_cluster_is_reported(box, tmp_path, wrong, what, words):
    cluster = HEALTHY.model_copy(update=wrong)
    good, message = found(tmp_path, "box", clusters={"box": cluster})[what]
    assert good is False
    assert words in message


@pytest.mark.slurm
def test_a_partition_that_is_down_or_too_short_is_reported(box, tmp_path):
    try:
        box.run("scontrol", "update", "PartitionName=main", "MaxTime=30", "State=DOWN")
        seen = found(tmp_path, "box", clusters={"box": HEALTHY})
    finally:
        box.run("scontrol", "update", "PartitionName=main", "MaxTime=UNLIMITED", "State=UP")
    good, message = seen["partition main"]
    assert (good, "it is DOWN" in message, "wall_hours = 0.5, or less" in message) == (
        False,
        True,
        True,
    )
    assert seen["node"][0] is None  # the check does not wait for a node


@pytest.mark.slurm
def test_a_node_without_the_home_is_reported(box, tmp_path, monkeypatch):
    """All virtual nodes see all files, so an empty folder is mounted over the home of one."""
    nothing = f"mount -t tmpfs none {tmp_path / 'runs'}"
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    real = subprocess.run(["which", "srun"], capture_output=True, text=True).stdout.strip()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no namespaces of mounts here")
    code = f'#!/bin/bash\nwords=("$@")\nscript="${{words[-1]}}"\nunset "words[-1]"\nexec {real} '
    code += f'"${{words[@]:0:${{#words[@]}}-2}}" unshare -m bash -c "{nothing}; $script"\n'
    srun.write_text(code)
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    (tmp_path / "runs").mkdir()
    seen = found(tmp_path / "runs", "box", clusters={"box": HEALTHY})
    (good, message) = next(value for what, value in seen.items() if what.startswith("node n"))
    assert (good, "does not see home" in message) == (False, True)


@pytest.mark.slurm
def test_busy_nodes_are_not_checked(box, tmp_path):
    job = box.run("sbatch", "--parsable", "-N2", "--exclusive", "--wrap", "sleep 60").strip()
    try:
        box.wait(lambda: "RUNNING" in box.run("squeue", "-h", "-j", job, "-o", "%T"), "the job")
        seen = found(tmp_path, "box", clusters={"box": HEALTHY})
    finally:
        box.run("scancel", job)
    assert (seen["node"][0], "none is idle" in seen["node"][1]) == (None, True)
    assert [what for what, (good, _) in seen.items() if good is False] == []


@pytest.mark.slurm
def test_an_unresponsive_slurmctld_is_reported(box, tmp_path):
    box.stop_controller()
    try:
        seen = found(tmp_path, "box", clusters={"box": HEALTHY})
    finally:
        box.start_controller()
    good, message = seen["Slurm"]
    assert good is False
    assert "did not answer within 5 s; no job can be submitted until it answers" in message
