"""The command ``demilune``. Nothing heavy is imported before a command is known."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 for bad input (one line on stderr), 130 when stopped."""
    from demilune.errors import DemiluneError

    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        if getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False):
            os._exit(_stopped())  # C++ code is being loaded, which an exception would abort; nothing has begun
        raise KeyboardInterrupt

    if argv is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without ε shows a question mark, and loses no work
    try:
        from demilune.cli import run

        code = run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except DemiluneError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        _drop_output()
        return 0
    except OSError as error:  # what no one foresaw: a name too long, a file without permission, a full disk
        _drop_output()
        reason = error.strerror or error
        return _refuse(f"{error.filename or 'the output'}: {reason}; check the name, its permissions and the disk")
    except Exception:
        if not asked:
            raise
        return _stopped()  # an import that is cut short can fail in ways of its own


def _stopped() -> int:
    print("demilune: stopped; a training goes on with --resume, an evaluation with the same command", file=sys.stderr)
    return 130


def _refuse(message: str) -> int:
    """Print a refusal as the one line it must be."""
    print(f"demilune: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2


def _drop_output() -> None:
    """Send what is still to be printed nowhere, so that the interpreter does not fail on it when it ends."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (AttributeError, OSError, ValueError):  # there is no such stream
        pass


if __name__ == "__main__":
    sys.exit(main())
