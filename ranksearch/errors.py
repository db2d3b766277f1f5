"""Every error ranksearch raises on purpose.

    RanksearchError                 exit code 1
    ├── UsageError                  2   what the caller gave cannot be used; nothing was written
    │   ├── ConfigError                 a flag, environment variable, TOML key or URL
    │   ├── SpaceError                  a search space: unknown key, method, layer pattern, rank
    │   ├── ModelError                  a model that does not import, build, load or run
    │   ├── DataError                   data that is missing, empty, unreadable or of the wrong shape
    │   ├── NotFoundError               a study, trial or file that is not there
    │   └── FingerprintError            the study exists with another model, data, space, objective or device
    ├── InfeasibleError             3   the run finished and no trial meets the constraints
    ├── StorageError                4   the database or the disk refused
    │   └── StudyBusyError              another process drives the study
    ├── TooManyFailuresError        5   too many trials failed; the reasons are in the message
    ├── SelfTestError               1   `bench --self-test` missed a target: latencies measured here are in doubt
    ├── PreemptedError             75   told to leave by the scheduler; run the same command again
    └── TrialError                      ends one trial alone, never the run
        ├── NonFiniteError              a loss, an output or an objective is NaN or infinite
        ├── DivergedError               a loss stayed worse than at the start for long
        ├── TrialTimeoutError           the trial ran past its time limit
        └── MeasurementError            a latency could not be measured

A message is one line: what was got, what is allowed, what to do.
"""

from typing import ClassVar

__all__ = [
    "ConfigError",
    "DataError",
    "DivergedError",
    "FingerprintError",
    "InfeasibleError",
    "MeasurementError",
    "ModelError",
    "NonFiniteError",
    "NotFoundError",
    "PreemptedError",
    "RanksearchError",
    "SelfTestError",
    "SpaceError",
    "StorageError",
    "StudyBusyError",
    "TooManyFailuresError",
    "TrialError",
    "TrialTimeoutError",
    "UsageError",
]


class RanksearchError(Exception):
    exit_code: ClassVar[int] = 1


class UsageError(RanksearchError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class SpaceError(UsageError):
    pass


class ModelError(UsageError):
    pass


class DataError(UsageError):
    pass


class NotFoundError(UsageError):
    pass


class FingerprintError(UsageError):
    pass


class InfeasibleError(RanksearchError):
    exit_code = 3


class StorageError(RanksearchError):
    exit_code = 4


class StudyBusyError(StorageError):
    pass


class TooManyFailuresError(RanksearchError):
    exit_code = 5


class SelfTestError(RanksearchError):
    pass


class PreemptedError(RanksearchError):
    exit_code = 75


class TrialError(RanksearchError):
    pass


class NonFiniteError(TrialError):
    pass


class DivergedError(TrialError):
    pass


class TrialTimeoutError(TrialError):
    pass


class MeasurementError(TrialError):
    pass
