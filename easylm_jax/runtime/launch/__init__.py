"""Starting and supervising a run on many machines. Standard library only, so that no machine needs JAX to look on.

    supervisor.py   on the user's machine: starts the run, judges its state, restarts it
    status.py       what the workers report, collected and shown
    worker.py       on every worker: starts one command, reports on it, stops it

`tpu_scripts/` connects the two sides with gcloud.
"""
