package ai.onnxruntime;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;

/** Keeps what it is made of in the file that the property `captured` names. */
public class OnnxTensor implements OnnxValue, AutoCloseable {
    public static OnnxTensor createTensor(OrtEnvironment environment, FloatBuffer data, long[] shape) {
        ByteBuffer bytes = ByteBuffer.allocate(4 * data.remaining()).order(ByteOrder.nativeOrder());
        bytes.asFloatBuffer().put(data);
        return kept(bytes);
    }

    public static OnnxTensor createTensor(
            OrtEnvironment environment, ByteBuffer data, long[] shape, OnnxJavaType type) {
        return kept(data);
    }

    private static OnnxTensor kept(ByteBuffer data) {
        byte[] bytes = new byte[data.remaining()];
        data.get(bytes);
        try {
            Files.write(Path.of(System.getProperty("captured")), bytes);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        return new OnnxTensor();
    }

    @Override
    public Object getValue() { return new float[1][1]; }

    @Override
    public void close() {}
}
