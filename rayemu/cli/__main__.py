"""`python -m rayemu.cli`, where the `rayemu` command is not on the path."""

from rayemu.cli import main

if __name__ == "__main__":
    main()
