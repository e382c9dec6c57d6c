"""The configuration: types and rules (`schema`), what must hold on disk (`check`), errors in one line (`messages`)."""
