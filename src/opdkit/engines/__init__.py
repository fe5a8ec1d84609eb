"""Models that run elsewhere, behind the two contracts of `models/contracts.py`.

Teachers over a wire, the story: facts → probe → served.

    wire      one frame: a JSON header and typed arrays, checked before anything is read
    client    requests with a deadline: tries, limits, what is final
    dialects  what `opd serve` and vLLM are asked, how their answers are read      replies  what an answer must hold
    facts     who serves what there, asked before anything is loaded              probe    what it must show first
    served    a Teacher over HTTP, with a known sequence in every request          router   several, one of them per prompt

Samplers: vLLM in this process (`vllm`) or a server (`vllm_http`), what they share (`drawn`), what runs inside the engine
(`vllm_extension`), and whether its weights are the learner's (`canary`).
"""
