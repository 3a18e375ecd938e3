"""`python -m solo_minent` is `solo-minent`."""

from solo_minent.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
