"""`python -m ftlab` is `ftlab`."""

from ftlab.apps.cli import main

raise SystemExit(main())
