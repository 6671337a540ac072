"""Encode, decode and tag: python -m benchmarks.micro.wire [pyperf options]"""

from __future__ import annotations

import pyperf  # type: ignore[import-untyped]

from benchmarks.micro.samples import BATCH, SENDER, accept, puts, value
from twisted_paxos.core.messages import decode_value, encode_value
from twisted_paxos.statemachine.commands import Result
from twisted_paxos.wire.client import Results, Submit, decode_request, decode_response, encode
from twisted_paxos.wire.peer import PeerCodec


def main() -> None:
    """Each figure is for one batch, or one message with a batch in it."""
    runner = pyperf.Runner(program_args=("-m", "benchmarks.micro.wire"), metadata={"batch": BATCH})
    commands, message, whole = puts(), accept(), value()
    runner.bench_func("encode: value", encode_value, 1, commands)
    runner.bench_func("decode: value", decode_value, whole)
    for name, key in (("crc32c", None), ("keyed BLAKE2b", b"k" * 32)):
        codec = PeerCodec("cluster", key)
        data = codec.encode(SENDER, message)
        runner.bench_func(f"encode: Accept, {name}", codec.encode, SENDER, message)
        runner.bench_func(f"decode: Accept, {name}", codec.decode, data)
        runner.bench_func(f"tag: {name}", codec._tag, data)
    submit = encode(Submit(1, commands))
    results = Results(tuple(Result(c.client, c.sequence, 1, 0) for c in commands))
    runner.bench_func("decode: Submit", decode_request, submit)
    runner.bench_func("encode: Results", encode, results)
    runner.bench_func("decode: Results", decode_response, encode(results))


if __name__ == "__main__":
    main()
