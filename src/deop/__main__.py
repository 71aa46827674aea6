"""``python -m deop``: the same as the command ``deop`` (Accelerate launches modules)."""

from deop.cli import app

if __name__ == "__main__":
    app(prog_name="deop")
