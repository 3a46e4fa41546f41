package ai.onnxruntime;

import java.util.Map;

public class OrtSession implements AutoCloseable {
    public static class SessionOptions {
        public void setIntraOpNumThreads(int threads) {}
        public void addConfigEntry(String key, String value) {}
    }

    public static class Result implements AutoCloseable {
        public OnnxValue get(int index) { return new OnnxTensor(); }

        @Override
        public void close() {}
    }

    public Result run(Map<String, OnnxTensor> inputs) throws OrtException { return new Result(); }

    @Override
    public void close() {}
}
