"""Monitoring of a run: metrics, progress, throughput, goodput, a watchdog for hangs, and stops on a signal."""

from easylm_jax.runtime.chips import total_peak_flops
from easylm_jax.runtime.monitor.goodput import Ledger
from easylm_jax.runtime.monitor.metrics import MetricsWriter, read_metrics
from easylm_jax.runtime.monitor.progress import Progress, counting
from easylm_jax.runtime.monitor.run import Monitor
from easylm_jax.runtime.monitor.stop import StopRequest
from easylm_jax.runtime.monitor.throughput import Throughput, mfu
from easylm_jax.runtime.monitor.watchdog import Limits, Watchdog
from models.flops import model_flops_per_token

__all__ = [
    "Ledger",
    "Limits",
    "MetricsWriter",
    "Monitor",
    "Progress",
    "StopRequest",
    "Throughput",
    "Watchdog",
    "counting",
    "mfu",
    "model_flops_per_token",
    "read_metrics",
    "total_peak_flops",
]
