"""Drivers on a real Slurm: killed, started twice, detached; cancel, retry; other clusters."""

import os
import signal

import pytest
from slurm_site import row_of, unharmed

from pipelines.workspace import job_log as jobs

pytestmark = pytest.mark.slurm


def test_a_restarted_driver_attaches_to_running_jobs(site, undisturbed):
    before = site.submissions()
    driver = site.start("--only", "d1", "--only", "d2")
    site.saved("d2")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    job = site.job("d2")
    assert site.run("--only", "d1", "--only", "d2").returncode == 0
    assert site.job("d2") == job
    assert site.submissions() == before + 2
    for name in ("d1", "d2"):
        unharmed(site, undisturbed, name)
        assert row_of(site, name).attempts == 1


def test_a_second_driver_is_refused_unless_it_takes_over(site, undisturbed):
    driver, job = site.begin("d2")
    second = site.run("--only", "d2")
    assert second.returncode == 4
    assert f"pid {driver.pid}" in second.stderr
    third = site.run("--only", "d2", "--take-over")
    assert third.returncode == 0, third.stderr
    assert site.ends(driver) == 4  # the first driver noticed and exited
    assert site.job("d2") == job
    unharmed(site, undisturbed, "d2")


def test_a_detached_run_submits_and_exits(site, undisturbed):
    left = site.run("--only", "d1", "--detach")
    assert left.returncode == 0, left.stderr
    job = site.job("d1")
    site.box.wait(lambda: site.state(job)["state"] == "COMPLETED", "d1 done", 60)
    assert site.run("--only", "d1").returncode == 0
    assert site.job("d1") == job
    unharmed(site, undisturbed, "d1")


def test_cancel_ends_the_jobs_and_retry_resumes_them(site, undisturbed):
    driver, job = site.begin("d2")
    ended = site.call("cancel")
    assert f"job {job} cancelled" in ended.stdout
    assert site.ends(driver) == 1
    site.box.wait(lambda: site.state(job)["state"] == "CANCELLED", "Slurm ended d2")
    assert site.call("retry", "--only", "d2", "--dirty").returncode == 0
    unharmed(site, undisturbed, "d2")


@pytest.mark.thorough
def test_a_running_driver_picks_up_a_retry(site, undisturbed):
    driver = site.start("--only", "d2", "--only", "d3")
    site.saved("d2")
    site.box.run("scancel", site.job("d2"))
    site.box.wait(lambda: jobs.latest(site.trial("d2")).ended == "cancelled", "the driver saw it")
    retried = site.call("retry", "--only", "d2")
    assert "the running driver resubmits them" in retried.stdout
    assert site.ends(driver) == 0
    for name in ("d2", "d3"):
        unharmed(site, undisturbed, name)


@pytest.mark.thorough
def test_a_folder_with_jobs_of_another_cluster_is_refused(site):
    """Cluster `old` no longer exists; its job ids are not valid on this one."""
    jobs.note(
        site.trial("d1"), "submitting", submission="abc", cluster="old", index=None, code="c",
        resources={},
    )  # fmt: skip
    jobs.note(site.trial("d1"), "submitted", submission="abc", job="1")
    refused = site.run("--only", "d1")
    assert refused.returncode == 2
    assert "job 1 on old works on" in refused.stderr
    assert site.call("cancel", "--forget").returncode == 0
    assert site.call("retry", "--on", "box", "--only", "d1", "--dirty").returncode == 0


@pytest.mark.thorough
def test_a_job_id_of_an_earlier_cluster_is_ignored(site, undisturbed):
    """A new cluster with the same name: ids begin at 1, and job 1 belongs to another user."""
    jobs.note(
        site.trial("d1"), "submitting", submission="abc", cluster="box", index=None, code="c",
        resources={},
    )  # fmt: skip
    jobs.note(site.trial("d1"), "submitted", submission="abc", job="1")
    assert site.run("--only", "d1").returncode == 0
    assert site.job("d1") != "1"
    unharmed(site, undisturbed, "d1")
