"""The command line: `fastpack`, or `python -m fastpack`."""

import sys


def main() -> None:
    """Run the command line, or say in one line what it needs."""
    try:
        from fastpack.cli import app
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in ("typer", "rich"):
            sys.exit(f"fastpack: the command line needs {error.name}: pip install 'fastpack[cli]'")
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
