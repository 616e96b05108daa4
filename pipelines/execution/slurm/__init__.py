"""The code that depends on Slurm: submission, job states, resources, and the job on its node."""
