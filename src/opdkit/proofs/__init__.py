"""The gradient and metric proofs, run on this install: `opd selftest`."""
