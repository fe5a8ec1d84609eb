"""The gradient and metric proofs, run on this install: `opd selftest`.

An oracle of loops for every objective and every metric, the invariances of a learner's step, two processes against one.
"""
