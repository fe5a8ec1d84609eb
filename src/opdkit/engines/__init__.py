"""Models that run elsewhere, behind the same two contracts: teachers and samplers over a wire, vLLM beside the learner.

wire       one frame: a JSON header and typed arrays, checked before anything is read
client     requests with a deadline: tries, limits, what is final
dialects   what `opd serve` and vLLM are asked, and what their answers must hold
served     a Teacher over HTTP          probe      what it must show before it is believed
vllm       a Sampler: vLLM in-process   vllm_http  the same, a server
canary     are the engine's weights the learner's?
"""
