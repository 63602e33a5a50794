"""What tells a person how a run is doing: metrics, progress, speed, where the time went, hangs and polite stops."""

from easylm_jax.monitor.goodput import Ledger
from easylm_jax.monitor.metrics import MetricsWriter, read_metrics
from easylm_jax.monitor.progress import Progress
from easylm_jax.monitor.run import Monitor
from easylm_jax.monitor.signals import StopRequest
from easylm_jax.monitor.throughput import Throughput, mfu, model_flops_per_token, total_peak_flops
from easylm_jax.monitor.watchdog import Limits, Watchdog

__all__ = [
    "Ledger",
    "Limits",
    "MetricsWriter",
    "Monitor",
    "Progress",
    "StopRequest",
    "Throughput",
    "Watchdog",
    "mfu",
    "model_flops_per_token",
    "read_metrics",
    "total_peak_flops",
]
