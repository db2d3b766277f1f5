"""The table that seeds a search: what every option of every layer costs and gains on this device.

rounds       many things timed against one, in turns             against any clock
clock        one call on this device
latencies    what options do to the network's latency
errors       how far options are from their layers
replay       what follows a layer, run again and again
losses       what options do to the network's outputs
table        all of it, within a budget of seconds
verdict      what can be reached with it, in words
"""

from ranksearch.profiling.errors import option_errors
from ranksearch.profiling.latencies import Latencies, measure_latencies
from ranksearch.profiling.losses import OptionLoss, measure_losses
from ranksearch.profiling.table import profile_options
from ranksearch.profiling.verdict import verdict

__all__ = [
    "Latencies",
    "OptionLoss",
    "measure_latencies",
    "measure_losses",
    "option_errors",
    "profile_options",
    "verdict",
]
