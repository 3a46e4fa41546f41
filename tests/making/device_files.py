"""Files of times, in the very form of the tools that write them."""

from __future__ import annotations

from typing import Any

AI_HUB: dict[str, Any] = {
    "execution_summary": {
        "estimated_inference_time": 3652,
        "estimated_inference_peak_memory": 166711296,
        "first_load_time": 1374293,
        "first_load_peak_memory": 166711296,
        "warm_load_time": 277823,
        "warm_load_peak_memory": 163520512,
        "compile_time": 0,
        "compile_peak_memory": 0,
        "inference_memory_peak_range": [2654208, 39406752],
        "all_compile_times": [1],
        "all_first_load_times": [1374293],
        "all_inference_times": [3652, 4205, 10003],
        "all_warm_load_times": [277823],
    },
    "execution_detail": [
        {"name": "stem", "type": "CONV_2D", "compute_unit": "NPU", "execution_time": 127},
        {"name": "gate", "type": "MUL", "compute_unit": "CPU", "execution_time": 23},
        {"name": "head", "type": "FULLY_CONNECTED", "compute_unit": "NPU"},
    ],
}
"""As the client qai-hub 0.56 makes it of the service's answer."""
CALL = """\
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Num threads: [2]
INFO: Graph: [/data/local/tmp/model.tflite]
INFO: Enable op profiling: [1]
INFO: Loaded model /data/local/tmp/model.tflite
INFO: Explicitly applied XNNPACK delegate, and the model graph will be partially executed by the \
delegate w/ 1 delegate kernels.
INFO: The input model file size (MB): 16.9008
INFO: Initialized session in 17.187ms.
INFO: Running benchmark for at least 1 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1 curr=35123 p5=35123 median=35123 p95=35123

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=50 first=29902 curr=29134 min=27275 max=31899 avg=29503.4 std=1097 p5=28000 \
median=29400 p95=31000

INFO: Inference timings in us: Init: 17187, First inference: 35123, Warmup (avg): 35123, \
Inference (avg): 29503.4
INFO: Memory footprint delta from the start of the tool (MB): init=4.21094 overall=46.0859
INFO: Profiling Info for Benchmark Initialization:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t         AllocateTensors\t    1.356\t    1.356\t100.000%\t100.000%\t     0.000\t        1\tAllocateTensors/0

INFO: Operator-wise Profiling Info for Regular Benchmark Runs:
============================== Run Order ==============================
\t             [node type]\t  [first]\t [avg ms]\t     [%]\t  [cdf%]\t  [mem KB]\t[times called]\t[Name]
\t                 CONV_2D\t   20.000\t   19.500\t 66.000%\t 66.000%\t     0.000\t        1\t[stem/conv]:0
\t                     MUL\t   10.000\t    9.500\t 34.000%\t100.000%\t     0.000\t        1\t[gate]:1

============================== Top by Computation Time ==============================
"""  # noqa: E501
"""As LiteRT's tool logs it (tflite/tools/benchmark/benchmark_model.cc, profiling_listener.cc)."""
