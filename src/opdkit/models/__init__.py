"""Models: loading, the head, the student module, sampler and teacher."""
