"""The command `millstream`: one file for each group of subcommands, and what `up` and `demo` run.

It starts the tiers as processes of their own and imports neither.
"""

import sys


def run() -> None:
    """Run the command, or say which packages it needs: clients and authors may have installed none of them."""
    try:
        from millstream.command.main import app
    except ModuleNotFoundError as error:
        if str(error.name).startswith("millstream"):
            raise
        print("The command needs more packages: pip install 'millstream[server]'", file=sys.stderr)
        sys.exit(2)
    sys.exit(app())
