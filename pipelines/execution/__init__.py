"""Runs the stages of a sweep, with Ray on this machine or with Slurm on a cluster; their status."""
