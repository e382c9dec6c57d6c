"""`python -m iterative_ft.store`."""

import sys

from iterative_ft.store.clearing import main

sys.exit(main())
