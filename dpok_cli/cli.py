"""The command ``dpok``: its commands are mounted here, and errors become one line."""

import _thread
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from dpok_cli import __version__
from dpok_cli.commands import (
    evaluate,
    export,
    prompts,
    push,
    rewards,
    sample,
    serve_reward,
    train_rl,
    train_sft,
)
from dpok_cli.display.console import divert_stdout, out, results_alone, say
from dpok_cli.errors import DpokError, InputError
from dpok_cli.inputs import is_unicode

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train-rl")(results_alone()(train_rl.train_rl))
app.command("train-sft")(results_alone()(train_sft.train_sft))
app.command("sample")(results_alone()(sample.sample))
app.command("evaluate")(results_alone()(evaluate.evaluate))
app.command("export")(results_alone()(export.export))
app.command("push")(results_alone()(push.push))
app.command("prompts")(results_alone()(prompts.prompts))
app.add_typer(rewards.app, name="rewards")
app.command("serve-reward")(results_alone()(serve_reward.serve_reward))


#: Errors of the system for a path that is invalid or not permitted, and so is bad input.
_NO_PATH = {
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
}


def _show_version(asked: bool) -> None:
    if asked:
        say(f"dpok {__version__}", out)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def dpok(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fine-tune text-to-image diffusion models from a reward.

    Start with: dpok train-rl --prompt "a green colored rabbit"
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error is one line on stderr.

    0 is success, 1 a failure, 2 input that cannot be used, 130 an interrupt. With ``DPOK_DEBUG=1``
    the traceback comes before the line.
    """
    try:
        for argument in arguments:
            if not is_unicode(argument):
                raise InputError(f"{argument!r} is not UTF-8: type it so, or rename the file.")
        return app(list(arguments), prog_name="dpok", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return 130
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        advice = f" See {context.command_path} --help." if context else ""
        return _fail(f"{error.format_message().rstrip('.')}.{advice}", error.exit_code)
    except DpokError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        if error.filename is not None and error.errno in _NO_PATH:
            return _fail(f"{error.filename!s}: {error.strerror}. Give another path.", 2)
        return _unexpected(error)
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    hint = "" if _debugging() else " (set DPOK_DEBUG=1 for the traceback)"
    return _fail(f"{type(error).__name__}: {error}{hint}", 1)


def _fail(message: str, exit_code: int) -> int:
    if _debugging():
        traceback.print_exc()
    say(f"Error: {' '.join(message.split())}")
    return exit_code


def _debugging() -> bool:
    return os.environ.get("DPOK_DEBUG", "") not in ("", "0")


def lose_no_interrupt(lost: "sys.UnraisableHookArgs") -> None:
    """Be `sys.unraisablehook`: interrupt again where an interrupt was lost.

    A signal that arrives in a callback of the garbage collector raises KeyboardInterrupt there,
    which Python would print and forget.
    """
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
    elif not sys.is_finalizing():
        # Later, when the callback is over; a Timer's start would wait, and lose a signal itself.
        _thread.start_new_thread(_interrupt, ())


def _interrupt() -> None:
    time.sleep(0.2)
    if hasattr(signal, "pthread_kill"):  # which ends a wait, too; Windows has none
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        _thread.interrupt_main()


def main() -> None:
    sys.unraisablehook = lose_no_interrupt
    # These libraries' warnings are for developers; the user's own setting of a variable is kept.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        code = run(sys.argv[1:])
    finally:
        if sys.stdout:
            sys.stdout.flush()
            divert_stdout()  # what native code has in its buffers is written at the very end
    sys.exit(code)
