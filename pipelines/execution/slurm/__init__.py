"""All that knows Slurm: submission, states of jobs, resources, what a job does on its node."""
