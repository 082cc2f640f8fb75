"""``python -m psi_engine`` is the same program as ``psi-engine``."""

from psi_engine.cli import main

if __name__ == "__main__":
    main()
