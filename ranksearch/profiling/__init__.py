"""The table that seeds a search: what every option of every layer costs and gains on this device.

rounds       many things timed against one, in turns             against any clock
clock        one call on this device
probes       what is timed: layers as they run in the network
latencies    what options do to the network's latency
staircase    how wide the steps of latency over rank are
errors       how far options are from their layers
replay       what follows a layer, run again and again
losses       what options do to the network's outputs
table        all of it, within a budget of seconds
verdict      what can be reached with it, in words
"""

from ranksearch.profiling.errors import option_errors
from ranksearch.profiling.latencies import PROBE, Latencies, measure_latencies
from ranksearch.profiling.losses import OptionLoss, measure_losses
from ranksearch.profiling.staircase import measure_staircase, step_of
from ranksearch.profiling.table import profile_options
from ranksearch.profiling.verdict import verdict

__all__ = [
    "PROBE",
    "Latencies",
    "OptionLoss",
    "measure_latencies",
    "measure_losses",
    "measure_staircase",
    "option_errors",
    "profile_options",
    "step_of",
    "verdict",
]
