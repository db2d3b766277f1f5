"""The program `ranksearch`: its commands, and how errors and signals become one line and an exit code."""

import logging
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ranksearch.cli import bench, compare, database, doctor, export, finetune, profile, queries, run, show, submit
from ranksearch.cli.signals import INTERRUPTED, Signalled, listening, signal_behind
from ranksearch.errors import RanksearchError, UsageError

__all__ = ["app", "main"]

PIPE_CLOSED = 141  # 128 + SIGPIPE, as shells have it

app = typer.Typer(
    name="ranksearch",
    help="Finds the low-rank versions of a trained PyTorch model that nothing else beats, on your own hardware.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (
    run.run,
    doctor.doctor,
    queries.studies,
    queries.status,
    queries.trials,
    queries.pareto,
    show.show,
    profile.profile,
    bench.bench,
    compare.compare,
):
    app.command()(command)
app.command()(finetune.finetune)
app.command()(export.export)
app.add_typer(submit.app, name="submit")
app.add_typer(database.app, name="db")


def _version(wanted: bool) -> None:
    if wanted:
        from ranksearch import __version__

        typer.echo(f"ranksearch {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line, by default the process's own. Returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _take_debug(words)
    _show_log()
    with listening():
        try:
            _invoke(words)
            sys.stdout.flush()
        except typer.Exit as done:
            return done.exit_code
        except BaseException as error:  # noqa: BLE001 - a user gets one line, whatever it is
            if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
                return _pipe_closed()  # where rich was printing, it has made a SystemExit of that
            if debug:
                traceback.print_exc()
            text, exit_code = _explained(error)
            return _say(text, exit_code) if text else exit_code
    return 0


def _take_debug(words: list[str]) -> bool:
    """Whether --debug is among the words, before any `--`; it is taken out, for any command may have it anywhere."""
    own = words[: words.index("--")] if "--" in words else words
    if "--debug" not in own:
        return False
    words.remove("--debug")
    return True


def _invoke(words: list[str]) -> None:
    command = typer.main.get_command(app)
    with command.make_context("ranksearch", words) as context:
        command.invoke(context)


def _say(text: str, exit_code: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return exit_code


def _explained(error: BaseException) -> tuple[str, int]:
    """One line, or none where help has been printed in its place, and the exit code."""
    told = signal_behind(error)
    if isinstance(told, Signalled):
        return str(told), told.exit_code
    if told is not None:
        return "interrupted; run the same command again to go on", INTERRUPTED
    if isinstance(error, RanksearchError):
        return str(error), error.exit_code
    if hasattr(error, "format_message"):  # the command line itself cannot be read
        return _usage(error), UsageError.exit_code
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{said}; run with --debug to see where", RanksearchError.exit_code


def _usage(error: Any) -> str:
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    close = getattr(error, "possibilities", None)
    text = f"{error.message} (did you mean {min(close)!r}?)" if close else error.format_message()
    text = re.sub(r"\. Did you mean (.*)\?$", r" (did you mean \1?)", text[:1].lower() + text[1:].rstrip("."))
    return f"{text}; see `{error.ctx.command_path} --help`" if getattr(error, "ctx", None) else text


def _pipe_closed() -> int:
    """Our reader has gone, as `head` does. Python must not find that out once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return PIPE_CLOSED


class _Notes(logging.Handler):
    """What the library logs, on stderr as it is at that moment: a live view stands in for it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_log() -> None:
    log = logging.getLogger("ranksearch")
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes())
        log.setLevel(logging.INFO)
