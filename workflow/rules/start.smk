"""How jobs are started: at once.

Snakemake allows 100 starts a second unless told otherwise, and while jobs wait for a core it looks again each second,
once for every job that has ended so far (findings/snakemake_wakes_for_every_job.sh): after a few hundred jobs that takes
a quarter of a core from those that run.
"""


def start_at_once() -> None:
    """For `onstart`: no limit, unless a person sets another than Snakemake's own. No study starts jobs so fast."""
    limiter = getattr(workflow.scheduler, "job_rate_limiter", None)
    if limiter is not None and (limiter.max_jobs, limiter.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
