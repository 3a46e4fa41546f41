"""A stand-in for LiteRT's `benchmark_model`: its flags and its output, by LiteRT in Python.

A script of its own, which a "phone" of tests runs; what it lies on is Linux, as this machine is.
What it logs follows the tool's own log lines; the environment can have it behave as on phones
that lack something: POCKETNEST_GPU (all, part, none, unsupported, failed), or that compute
wrongly: POCKETNEST_WRONG.
"""

import os
import statistics
import sys
import time


def flags(arguments):
    found = dict(one.removeprefix("--").partition("=")[::2] for one in arguments)
    known = {
        "graph",
        "num_threads",
        "num_runs",
        "min_secs",
        "warmup_runs",
        "warmup_min_secs",
        "input_layer",
        "input_layer_shape",
        "input_layer_value_files",
        "output_filepath",
        "use_xnnpack",
        "use_gpu",
        "enable_op_profiling",
    }
    unknown = [f"--{name}={value}" for name, value in found.items() if name not in known]
    if unknown:
        print("WARN: Unconsumed cmdline flags:", *unknown)
    return found


def delegates(asked):
    """What the tool says of delegates; whether it goes on."""
    if asked.get("use_gpu") == "true":
        how = os.environ.get("POCKETNEST_GPU", "unsupported")
        if how == "unsupported":
            print("WARN: GPU acceleration is unsupported on this platform.")
        elif how == "failed":
            print("ERROR: Failed to apply GPU delegate.")
            return False
        else:
            said("GPU", how)
    if asked.get("use_xnnpack") == "true":
        print("INFO: XNNPACK delegate created.")
        said("XNNPACK", "all")
    return True


def said(name, how):
    if how == "none":
        print(
            f"INFO: Though {name} delegate is explicitly applied, the model graph will not be "
            "executed by the delegate."
        )
        return
    extent = "completely" if how == "all" else "partially"
    kernels = "." if how == "all" else " w/ 3 delegate kernels."
    print(
        f"INFO: Explicitly applied {name} delegate, and the model graph will be {extent} "
        f"executed by the delegate{kernels}"
    )


def timed(interpreter, count):
    """Microseconds of runs, logged as the tool does."""
    print(
        f"INFO: Running benchmark for at least {count} iterations and at least 0 seconds but "
        "terminate if exceeding 150 seconds."
    )
    taken = []
    for _ in range(count):
        began = time.perf_counter()
        interpreter.invoke()
        taken.append(max(1, round((time.perf_counter() - began) * 1e6)))
    if len(set(taken)) < 2:
        print(f"INFO: count={count} curr={taken[-1] if taken else 0}")
    else:
        ordered = sorted(taken)
        print(
            f"INFO: count={count} first={taken[0]} curr={taken[-1]} min={ordered[0]} "
            f"max={ordered[-1]} avg={statistics.mean(taken):g} "
            f"std={statistics.pstdev(taken):.0f} p5={ordered[len(ordered) * 5 // 100]} "
            f"median={ordered[len(ordered) // 2]} p95={ordered[len(ordered) * 95 // 100]}"
        )
    print()
    return taken


def main():
    asked = flags(sys.argv[1:])
    print("INFO: STARTING!\nINFO: Log parameter values verbosely: [0]")
    if "num_threads" in asked:
        print(f"INFO: Num threads: [{asked['num_threads']}]")
    print(f"INFO: Graph: [{asked['graph']}]", flush=True)
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    began = time.perf_counter()
    interpreter = Interpreter(
        model_path=asked["graph"], num_threads=int(asked.get("num_threads", 1))
    )
    interpreter.allocate_tensors()
    init = round((time.perf_counter() - began) * 1e6)
    print(f"INFO: Loaded model {asked['graph']}")
    if not delegates(asked):
        return 1
    details = interpreter.get_input_details()[0]
    if files := asked.get("input_layer_value_files"):
        with open(files.partition(":")[2], "rb") as file:
            content = file.read()
        values = np.frombuffer(content, details["dtype"]).reshape(details["shape"])
    else:
        values = np.zeros(details["shape"], details["dtype"])
    interpreter.set_tensor(details["index"], values)
    print(f"INFO: The input model file size (MB): {os.path.getsize(asked['graph']) / 1e6:g}")
    print(f"INFO: Initialized session in {init / 1e3:g}ms.")
    warm = timed(interpreter, int(asked.get("warmup_runs", 1)))
    taken = timed(interpreter, int(asked.get("num_runs", 50)))
    if path := asked.get("output_filepath"):
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        if "POCKETNEST_WRONG" in os.environ:
            output = output + np.asarray(100, output.dtype)
        try:
            with open(path, "wb") as file:
                file.write(output.tobytes())
        except OSError:  # the tool goes on, too
            pass
    print(
        f"INFO: Inference timings in us: Init: {init}, First inference: {warm[0] if warm else 0}, "
        f"Warmup (avg): {statistics.mean(warm) if warm else 0:g}, "
        f"Inference (avg): {statistics.mean(taken):g}"
    )
    print("INFO: Memory footprint delta from the start of the tool (MB): init=2.5 overall=8.25")
    if asked.get("enable_op_profiling") == "true":
        profile(interpreter)
    return 0


def profile(interpreter):
    """The table of the operations, in the tool's form; LiteRT in Python has no profiler."""
    bar = "=" * 30
    print(f"INFO: Operator-wise Profiling Info for Regular Benchmark Runs:\n{bar} Run Order {bar}")
    heads = ("node type", "first", "avg ms", "%", "cdf%", "mem KB", "times called", "Name")
    print("".join(f"\t[{head}]" for head in heads))
    for operation in interpreter._get_ops_details():
        cells = (operation["op_name"], "0.1", "0.1", "0%", "0%", "0", "1", str(operation["index"]))
        print("".join(f"\t{cell}" for cell in cells))
    print(f"\n{bar} Top by Computation Time {bar}")


sys.exit(main())
