"""The benchmark: our modules beside ``nn.*`` and other peers, each result checked before it is timed.

``fused-rnn bench`` and, in a source checkout, ``python -m benchmarks``. It is part of the package because a wheel
cannot carry a top-level folder.

| module | knows |
|---|---|
| ``cases``, ``cuda_cases`` | what is measured: cell, mode, dtype, shape; the sets behind ``--quick`` and ``--grid`` |
| ``precision`` | in which precision f32 products are computed on CUDA |
| ``providers`` | who is measured: a registry of name -> builder |
| ``ort`` | the weights of a torch module as an ONNX graph under ONNX Runtime |
| ``gate`` | whether a result is right; a wrong one is never timed |
| ``timing`` | blocks of calls, alternating between the providers of a case |
| ``memory`` | peak memory of one call, in a process of its own |
| ``limits`` | what the machine could do: formulas for flops and bytes, measured rates |
| ``header`` | where and with what it was measured |
| ``report``, ``tables``, ``cuda_tables``, ``plot`` | the same results for a terminal, for documents and as a picture |
| ``output`` | the files of a run |
| ``run`` | the command itself |
"""
