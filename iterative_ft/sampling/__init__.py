"""Policies write here: one interface (`interface`), the samplers behind it, and the canary that proves what is served."""
