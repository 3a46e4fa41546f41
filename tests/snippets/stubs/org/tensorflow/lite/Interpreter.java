package org.tensorflow.lite;

import java.io.File;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;

/** Keeps what it is given in the file that the property `captured` names. */
public class Interpreter implements AutoCloseable {
    public static class Options {
        public Options setNumThreads(int threads) { return this; }
        public Options setUseXNNPACK(boolean use) { return this; }
    }

    public Interpreter(File model, Options options) {}

    public void run(Object input, Object output) {
        ByteBuffer given = (ByteBuffer) input;
        byte[] bytes = new byte[given.remaining()];
        given.get(bytes);
        try {
            Files.write(Path.of(System.getProperty("captured")), bytes);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
    }

    @Override
    public void close() {}
}
