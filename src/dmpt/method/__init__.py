"""The paper and nothing else."""
