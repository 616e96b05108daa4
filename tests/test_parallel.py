"""Jobs in forked processes: results in order, errors raised, every job once, equal numbers."""

import json
import os
from functools import partial

import numpy as np
import pandas as pd
import pytest

from analysis.export import laws_of
from analysis.parallel import in_processes
from analysis.study import study
from analysis.table.table import check


def square(number):
    return number**2, os.getpid()


def fail(number):
    raise ValueError(f"job {number}")


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_results_are_in_the_order_of_the_jobs_and_each_job_runs_once(processes, tmp_path):
    def job(number):
        with (tmp_path / str(number)).open("a") as file:
            file.write("x")
        return number**2

    jobs = [partial(job, number) for number in range(7)]
    assert in_processes(jobs, processes) == [number**2 for number in range(7)]
    assert [path.read_text() for path in tmp_path.iterdir()] == ["x"] * 7


def test_one_process_does_not_fork():
    assert {pid for _, pid in in_processes([partial(square, 2)] * 3, 1)} == {os.getpid()}
    assert in_processes([], 4) == []


@pytest.mark.parametrize("processes", [1, 3])
def test_an_error_of_a_job_is_raised(processes):
    with pytest.raises(ValueError, match="job 1"):
        in_processes([partial(fail, 1)] * 4, processes)


def test_the_laws_of_several_processes_are_bitwise_those_of_one():
    sizes = 1152.0 * np.arange(2, 8) ** 3
    noise = np.exp(np.random.default_rng(0).normal(0, 0.002, 6))
    rows = {
        "params_total": sizes,
        "train_flops": 6e6 * sizes,
        "val_loss": (1 + sizes**-0.1) * noise,
    }
    table = check(pd.DataFrame(rows))
    one, several = (study(table, processes=count) for count in (1, 3))
    assert len(one.findings) >= 2
    assert json.dumps(laws_of(one)) == json.dumps(laws_of(several))
