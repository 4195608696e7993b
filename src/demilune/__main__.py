"""The command ``demilune``. Nothing heavy is imported before a command is known."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0, 2 for bad input (one line on stderr), 130 when stopped."""
    from demilune.cli import run
    from demilune.errors import DemiluneError

    try:
        return run(list(sys.argv[1:] if argv is None else argv))
    except DemiluneError as error:
        print(f"demilune: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demilune: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    sys.exit(main())
