package com.google.ai.edge.litert;

import java.util.Collections;
import java.util.List;

/** What LiteRT 2.1 offers, as its Kotlin sources declare it; here it answers nothing. */
public class CompiledModel implements AutoCloseable {
    public static class CpuOptions {
        public CpuOptions(Integer numThreads, Integer xnnPackFlags, String xnnPackWeightCachePath) {}
    }

    public static class Options {
        private CpuOptions cpuOptions;

        public Options(Accelerator... accelerators) {}

        public CpuOptions getCpuOptions() { return cpuOptions; }
        public void setCpuOptions(CpuOptions options) { cpuOptions = options; }
    }

    public static class Environment {}

    public static CompiledModel create(String path, Options options, Environment environment) {
        return new CompiledModel();
    }

    public List<TensorBuffer> createInputBuffers() {
        return Collections.singletonList(new TensorBuffer());
    }

    public List<TensorBuffer> createOutputBuffers() { return createInputBuffers(); }

    public void run(List<TensorBuffer> inputs, List<TensorBuffer> outputs) {}

    @Override
    public void close() {}
}
